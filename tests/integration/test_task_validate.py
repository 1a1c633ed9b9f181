"""The task `validate`, on a small campaign whose truth is a shipped calibration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import interrupted_when, two_workers, with_a_worker_killed

from llmpilot.simulator.calibration import shipped_calibrations

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from recorded import write_campaign  # noqa: E402


def pilot(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llmpilot", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_prints_and_writes_every_error(tmp_path: Path, workers: int) -> None:
    truth = shipped_calibrations()["starcoder", "A100-40GB", 1]
    write_campaign(tmp_path / "requests.parquet", (1, 2, 8), truth)
    done = pilot(
        "task=validate", "data=requests.parquet", f"workers={workers}", "result_file=r.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "error of the simulator" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result["calibrated"]) == {
        "itl_ms_p50",
        "ttft_ms_p50",
        "throughput_tok_s",
        "itl_ms_p95",
        "ttft_ms_p95",
    }
    assert set(result["unseen_llm"]) == set(result["unseen_gpu"]) == {"itl_ms_p50", "nttft_ms_p50"}
    assert result["cells"] == 3
    assert result["campaign_seconds"] > 0
    assert result["peak_memory_mb"] > 0
    # The recorded service is the one that was fitted on all levels; the other fits are of the same pair.
    assert result["all_levels_fitted"]["itl_ms_p50"] < 0.05
    assert result["calibrated"]["itl_ms_p50"] < 0.1


def test_it_fits_anew_when_asked(tmp_path: Path) -> None:
    write_campaign(tmp_path / "requests.parquet", (1, 4, 8))
    done = pilot(
        "task=validate",
        "data=requests.parquet",
        "workers=1",
        "refit=true",
        "result_file=r.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["calibrated"]["itl_ms_p50"] < 0.1
    assert result["all_levels_fitted"]["itl_ms_p50"] < 0.05


REFIT = ("task=validate", "data=requests.parquet", "workers=2", "refit=true")


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_campaign(Path("requests.parquet"), (1, 4, 8))


@pytest.mark.usefixtures("campaign")
def test_ctrl_c_ends_the_workers_without_their_noise() -> None:
    out, err = interrupted_when(two_workers, *REFIT)
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Process" not in err


@pytest.mark.usefixtures("campaign")
def test_a_killed_worker_is_one_message() -> None:
    err = with_a_worker_killed(*REFIT)
    assert "use one: workers=1" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "data=PATH"),
        (["data=absent.parquet"], "no such file"),
        (["data=absent.parquet", "workers=0"], "workers"),
    ],
)
def test_wrong_usage_is_explained(tmp_path: Path, arguments: list[str], expected: str) -> None:
    done = pilot("task=validate", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
