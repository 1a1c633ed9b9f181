"""The task `calibrate`: from a characterization's artifacts to a table that the engine takes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf

from llmpilot import catalog
from llmpilot.config import Load
from llmpilot.engine.tgis import TgisEngine
from llmpilot.errors import ConfigError
from llmpilot.loadtest import open_traffic
from llmpilot.loadtest.virtual import run_level
from llmpilot.tasks.calibrate import run
from llmpilot.workload import load_workload

CONF = Path(__file__).parents[2] / "conf"
LEVELS = [1, 8]


def composed(**given: Any) -> DictConfig:
    cfg = OmegaConf.merge(OmegaConf.load(CONF / "task" / "calibrate.yaml"), given)
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifacts of a run on a service that no shipped calibration knows."""
    monkeypatch.chdir(tmp_path)
    model, gpu = catalog.models(["mistral_7b"])["mistral_7b"], catalog.gpus(["a10"])["a10"]
    engine = TgisEngine()
    service = engine.service(model, gpu, engine.default_max_batch_weight(model, gpu))
    load = Load(arrival="closed", users=LEVELS, duration_s=30, warmup_s=5)
    traffic = open_traffic(load, load_workload(OmegaConf.load(CONF / "workload" / "paper.yaml")), 7)
    tables = [run_level(service, traffic, level).to_table().replace_schema_metadata(None) for level in LEVELS]
    pq.write_table(
        pa.concat_tables([table.unify_dictionaries() for table in tables]), tmp_path / "requests.parquet"
    )
    facts = {"model": model.model_dump(), "gpu": gpu.model_dump(), "load": load.model_dump()}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(facts)))
    (tmp_path / "result.json").write_text(json.dumps({"measurement": "simulated"}))
    return tmp_path


def test_it_fits_and_the_engine_takes_it(folder: Path) -> None:
    result = run(composed(runs=[str(folder)], simulated=True))
    (pair,) = result["pairs"]
    assert pair["levels"] == len(LEVELS)
    assert pair["median_error"]["itl_ms_p50"] < 0.1
    model, gpu = catalog.models(["mistral_7b"])["mistral_7b"], catalog.gpus(["a10"])["a10"]
    _, source = TgisEngine(calibration="calibration.csv").calibrated(model, gpu)
    assert source == "calibrated by calibration.csv"


def test_runs_that_cannot_be_used_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs runs"):
        run(composed())
    with pytest.raises(ConfigError, match="was simulated"):
        run(composed(runs=[str(folder)]))
    (folder / "requests.parquet").unlink()
    with pytest.raises(ConfigError, match=r"has no requests\.parquet"):
        run(composed(runs=[str(folder)]))
