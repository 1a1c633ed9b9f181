"""Files as editors on Windows save them: a byte order mark is no part of their content."""

import codecs
import json
from pathlib import Path

import pytest
from hf_configs import CONFIGS

from llmpilot import profile_gpu
from llmpilot.catalog import price_list
from llmpilot.dataset.measured_file import read_table
from llmpilot.hf_config import model_from_hf_config
from llmpilot.operators.profile import read_profile
from llmpilot.simulator.calibration import SHIPPED, read_calibrations


def marked(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(codecs.BOM_UTF8 + content)
    return path


def test_a_config_json(tmp_path: Path) -> None:
    config = CONFIGS["llama_3_1_8b"]
    content = config.read_bytes() if isinstance(config, Path) else json.dumps(config).encode()
    plain = tmp_path / "plain.json"
    plain.write_bytes(content)
    same = {"name": "x", "hf_id": "x", "source": ""}
    marked_model = model_from_hf_config(marked(tmp_path, "config.json", content), overrides=same)
    assert marked_model == model_from_hf_config(plain, overrides=same)


def test_calibrations(tmp_path: Path) -> None:
    assert read_calibrations(marked(tmp_path, "c.csv", SHIPPED.read_bytes())) == read_calibrations(SHIPPED)


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.csv", b"gpu,count,price_per_hour\na100,1,2.5\n"), ("p.yaml", b"a100: {1: 2.5}\n")],
)
def test_prices(tmp_path: Path, name: str, content: bytes) -> None:
    assert price_list(marked(tmp_path, name, content)).price("a100", 1) == 2.5


def test_measurements_with_a_comment(tmp_path: Path) -> None:
    table = read_table(marked(tmp_path, "m.csv", b"# where they are from\nmodel,gpu\na,b\n"))
    assert list(table.columns) == ["model", "gpu"]


def test_a_profile_of_a_gpu(tmp_path: Path) -> None:
    content = {
        "schema": profile_gpu.SCHEMA,
        "schema_version": profile_gpu.VERSION,
        "complete": True,
        "gpu": {"name": "NVIDIA L4", "kind": "nvidia"},
        "rows": [],
    }
    found = read_profile(marked(tmp_path, "g.json", json.dumps(content).encode()))
    assert (found.gpu_name, found.complete) == ("NVIDIA L4", True)
