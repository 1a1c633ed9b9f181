"""The task `workload`, from a composed configuration to its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from omegaconf import DictConfig, OmegaConf

from llmpilot.errors import ConfigError, PilotError, TraceError
from llmpilot.tasks.workload import run
from llmpilot.workload import TraceColumns, WorkloadModel, load_workload, read_trace

CONF = Path(__file__).parents[2] / "conf"


def composed(workload: str = "paper", **given: Any) -> DictConfig:
    cfg = OmegaConf.merge(
        OmegaConf.load(CONF / "task" / "workload.yaml"),
        {"seed": 42, "workload": OmegaConf.load(CONF / "workload" / f"{workload}.yaml")},
        OmegaConf.from_dotlist([f"{key.replace('__', '.')}={value}" for key, value in given.items()]),
    )
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trace of 3,000 correlated requests, in the working directory."""
    monkeypatch.chdir(tmp_path)
    random = np.random.Generator(np.random.PCG64(3))
    inputs = random.integers(1, 2_000, 3_000)
    rows = [f"{i},{i // 2 + 1},{'true' if i % 3 else 'false'},0.7" for i in inputs.tolist()]
    Path("my.csv").write_text("ContextTokens,Generated,greedy,heat\n" + "\n".join(rows) + "\n")
    return Path("my.csv")


MAPPED = {
    "trace__columns__input_tokens": "ContextTokens",
    "trace__columns__output_tokens": "Generated",
    "trace__columns__greedy": "greedy",
    "trace__columns__temperature": "heat",
}


def test_fit_report_and_use(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(composed(trace__path=trace, samples=20_000, samples_file="drawn.parquet", **MAPPED))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["rows"] == 3_000
    assert result["correlation_difference_joint"] < 0.03
    assert result["correlation_difference_independent"] > 0.9
    assert result["constant"] == ["batch_size", "temperature", "top_k", "top_p"]
    assert sorted(p.name for p in Path.cwd().iterdir()) == [
        "drawn.parquet",
        "my.csv",
        "workload.parquet",
        "workload.png",
    ]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.endswith("+gpu=... +model=... workload=file workload.model=workload.parquet")

    model = load_workload(composed("file", workload__model="workload.parquet").workload)
    assert isinstance(model, WorkloadModel)
    assert model.content_hash == result["content_hash"]
    assert model.longest() == (result["longest_input_tokens"], result["longest_output_tokens"])
    columns = TraceColumns(greedy="greedy", temperature="temperature")
    drawn = [requests for requests, _ in read_trace("drawn.parquet", columns)]
    assert sum(map(len, drawn)) == 20_000
    assert np.array_equal(drawn[0].input_tokens[:100], model.sample(100, 42).input_tokens)


@pytest.mark.parametrize("workload", ["paper", "production", "azure_code", "azure_conv"])
def test_without_a_trace_the_workload_is_described(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(composed(workload, samples=70_000, samples_file="drawn.csv"))
    assert result["workload"] == workload
    assert "output" not in result
    assert [p.name for p in tmp_path.iterdir()] == ["drawn.csv"]
    assert Path("drawn.csv").read_text().count("\n") == 70_001
    assert workload in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({}, TraceError, "no column 'input_tokens'"),
        (MAPPED | {"samples_file": "drawn.txt"}, TraceError, "must end in .csv or .parquet"),
        (MAPPED | {"samples": 0}, ConfigError, "samples is not possible"),
        (MAPPED | {"samples": 1.5}, ConfigError, "samples is not possible"),
        (MAPPED | {"output": "my.csv/x.parquet"}, TraceError, "no folder that can be written"),
        (MAPPED | {"trace__max_bins": 5}, ConfigError, "trace.max_bins is not possible"),
        (MAPPED | {"trace__columns__inputs": "x"}, ConfigError, "trace.columns.inputs is not a key"),
        (MAPPED | {"trace__colums": "x"}, ConfigError, "did you mean 'columns'"),
        (MAPPED | {"seed": -1}, ConfigError, "seed is not possible"),
        ({"trace__path": "none.csv"}, TraceError, "does not exist"),
    ],
)
def test_mistakes_leave_nothing_behind(
    trace: Path, given: dict[str, Any], kind: type[PilotError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        run(composed(**({"trace__path": trace} | given)))
    assert says in str(caught.value)
    assert [p.name for p in Path.cwd().iterdir()] == ["my.csv"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["output=my.csv"], ["output would overwrite trace.path", "set output="]),
        (["output=x.png"], ["the figure of output would overwrite output", "set output="]),
        (["samples_file=workload.parquet"], ["samples_file would overwrite output", "set samples_file="]),
    ],
)
def test_no_file_is_written_over_another(run: Run, trace: Path, given: list[str], says: list[str]) -> None:
    before = trace.read_text()
    ran = run("task=workload", "trace.path=my.csv", *given)
    assert ran.code == 2
    for words in says:
        assert words in ran.err
    assert trace.read_text() == before
