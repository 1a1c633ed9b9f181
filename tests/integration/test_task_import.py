"""The task `import` from the command line: what it writes, what reads that, and what it refuses."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import Run

from llmpilot.dataset import read_measurements
from llmpilot.predict.service.levels import described

FIXTURES = Path(__file__).parent.parent / "imports"
SGLANG = FIXTURES / "sglang" / "bench.jsonl"
VLLM = FIXTURES / "vllm" / "closed.json"
SERVED = ("+gpu=h100", "+model=llama_3_1_8b")


def importing(*paths: Path | str) -> str:
    return f"import.paths=[{','.join(map(str, paths))}]"


def test_rows_are_written_once_and_can_be_predicted(run: Run, workdir: Path) -> None:
    engine = ("engine=vllm", "engine.version='\"0.11.0\"'", "precision=bf16")
    ran = run("task=import", importing(VLLM, FIXTURES / "guidellm"), *SERVED, *engine, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "vllm-bench" in ran.out
    assert "lacking in 2 of 3 rows: itl_ms" in ran.err
    result = json.loads((workdir / "r.json").read_text())
    assert (result["rows"], result["rows_in_table"], result["replaced"]) == (3, 3, 0)
    assert result["by_client"] == {"guidellm": 2, "vllm-bench": 1}

    again = run("task=import", importing(VLLM, SGLANG), *SERVED, *engine, "import.source=acme/results")
    assert again.code == 0, again.err
    assert "5 rows, 1 rows of the same files replaced" in again.out
    table = read_measurements(workdir / "measurements.csv")
    assert table.table["source"].tolist() == ["GuideLLM", "GuideLLM", *["acme/results"] * 3]
    assert set(table.table["model"]) == {"meta-llama/Llama-3.1-8B-Instruct"}

    assert described(table, {}).skipped == [None] * 5  # all can be simulated, which task=validate does


@pytest.mark.parametrize("output", ["table.csv", "table.parquet"])
def test_a_file_that_has_grown_replaces_its_rows(output: str, run: Run, workdir: Path) -> None:
    """As sglang's bench appends a line a run."""
    lines = SGLANG.read_text().splitlines(keepends=True)
    for count, replaced in ((1, 0), (2, 1)):
        (workdir / "bench.jsonl").write_text("".join(lines[:count]))
        options = (importing("bench.jsonl"), *SERVED, f"output={output}", "result_file=r.json")
        ran = run("task=import", *options)
        assert ran.code == 0, ran.err
        result = json.loads((workdir / "r.json").read_text())
        assert (result["rows_in_table"], result["replaced"]) == (count, replaced)
    assert read_measurements(workdir / output).table["in_doubt"].isna().all()


def test_the_table_may_be_parquet_and_files_may_say_no_load(run: Run, workdir: Path) -> None:
    csv = FIXTURES / "aiperf" / "profile_export_aiperf.csv"
    options = (
        *SERVED,
        "gpu.count=3",
        "import.users=4",
        "output=table.parquet",
        "import.measurement=simulated",
    )
    ran = run("task=import", importing(csv), *options)
    assert ran.code == 0, ran.err
    (row,) = pd.read_parquet(workdir / "table.parquet").to_dict("records")
    assert (row["concurrency"], row["n_gpus"]) == (4, 3)
    assert pd.isna(row["engine"])
    assert row["measurement"] == "simulated"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"completed": 3, "requ', (), ("cut off", "result.json")),
        ("", (), ("the file is empty",)),
        ('{"latency": 3, "who": "me"}', (), ("format is not known", "keys latency, who", "guidellm:")),
        ('{"a": 1}', ("import.format=guidellm",), ("not as GuideLLM writes",)),
        ('{"a": 1}', ("import.format=guidelm",), ("did you mean 'guidellm'?",)),
        ('{"benchmarks": [{"mode": 1, "results": [], "completed_request_rate": 1}]}', (), ("before 0.2",)),
        (None, ("import.paths=nowhere/",), ("no such file or folder", "nowhere")),
        (None, (), ("needs files to read", "import.paths=")),
        (None, (importing(SGLANG), "output=table.txt"), ("CSV or a Parquet",)),
        (None, (importing(SGLANG), "import.user=3"), ("import.user is not a key",)),
        (None, (importing(SGLANG), "import.users=3", "import.requests_per_s=1"), ("two loads",)),
        (None, (importing(FIXTURES / "vllm" / "truth.json"),), ("format is not known", "requests")),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_message(
    content: str | None, options: tuple[str, ...], said: tuple[str, ...], run: Run, workdir: Path
) -> None:
    paths = ()
    if content is not None:
        (workdir / "result.json").write_text(content)
        paths = ("import.paths=result.json",)
    ran = run("task=import", *SERVED, *paths, *options)
    assert ran.code == 2, ran.out + ran.err
    for text in said:
        assert text in ran.err
    assert "Traceback" not in ran.err
    assert not (workdir / "measurements.csv").exists()


def test_what_nobody_says_is_asked_for(run: Run, workdir: Path) -> None:
    ran = run("task=import", importing(SGLANG), "+model=llama_3_1_8b")
    assert ran.code == 2
    assert "does not say on which GPUs" in ran.err
    assert "+gpu=h100" in ran.err


def test_a_result_is_no_place_to_write_to(run: Run, workdir: Path) -> None:
    text = (FIXTURES / "aiperf" / "profile_export_aiperf.csv").read_text()
    (workdir / "export.csv").write_text(text)
    ran = run("task=import", importing("export.csv"), *SERVED, "output=export.csv")
    assert ran.code == 2
    assert "would overwrite" in ran.err
    assert (workdir / "export.csv").read_text() == text
