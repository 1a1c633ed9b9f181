"""The command line from end to end against llama.cpp's real server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Run
from mlflow import MlflowClient
from real_servers import needs_llamacpp

from llmpilot import tracking
from llmpilot.engine.tiny_model import write_gguf

pytestmark = needs_llamacpp
CELL = ("+gpu=a100", "+model=starcoder", "engine=llamacpp", "deployment=process")
SERVED = (*CELL, "engine.model_path=tiny.gguf", "engine.threads=1", "max_batch_weight=8192")
QUICK = ("load.users=[1,4]", "load.duration_s=1", "load.warmup_s=0.3", "deployment.client.calibrate=false")


def test_same_ladder_metrics_and_run_as_for_a_simulated_service(run: Run, workdir: Path) -> None:
    write_gguf("tiny.gguf")
    ran = run(*SERVED, *QUICK, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "MEASURED" in ran.out
    assert "SIMULATED" not in ran.out
    result = json.loads(Path("r.json").read_text())
    assert (result["engine"], result["deployment"], result["measurement"]) == (
        "llamacpp",
        "process",
        "measured",
    )
    assert [level["users"] for level in result["levels"]] == [1, 4]
    assert all(level["requests_ok"] > 0 and level["failure_rate"] == 0 for level in result["levels"])
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    logged = client.get_run(result["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.tags[tracking.TAG_GPU_METRICS]
    assert {"server.running.mean", "server.waiting.mean"} <= set(logged.data.metrics)
    assert logged.data.params["engine.model_path"] == "tiny.gguf"
    assert len(client.get_metric_history(result["run_id"], "ttft_ms.p50")) == 2
    assert "server.log" in {entry.path for entry in client.list_artifacts(result["run_id"])}
    assert not Path(".llmpilot").exists()


def test_what_is_missing_is_wrong_usage(run: Run) -> None:
    ran = run(*CELL, *QUICK)
    assert ran.code == 2
    assert "llmpilot.engine.tiny_model tiny.gguf" in ran.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_server_outlives_the_command(workdir: Path, number: signal.Signals, code: int) -> None:
    write_gguf("tiny.gguf")
    command = [sys.executable, "-m", "llmpilot", *SERVED, "load.users=[2]", "load.duration_s=60"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as us:
        log = None
        while log is None or "listening" not in log.read_text():
            assert us.poll() is None
            log = next(iter(workdir.glob(".llmpilot/servers/*.log")), None)
            time.sleep(0.05)
        us.send_signal(number)
        assert us.wait(60) == code
    deadline = time.monotonic() + 30
    while _mentioning(str(workdir / "tiny.gguf")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _mentioning(str(workdir / "tiny.gguf"))


def test_a_level_in_which_the_server_died_is_measured_again(run: Run, workdir: Path) -> None:
    write_gguf("tiny.gguf")
    ladder = (
        "load.users=[1,2]",
        "load.duration_s=2",
        "load.warmup_s=0.3",
        "deployment.client.calibrate=false",
    )
    command = [sys.executable, "-m", "llmpilot", *SERVED, *ladder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as us:
        assert us.stderr is not None
        said = [next(line for line in us.stderr if "1 user:" in line)]
        for pid in _mentioning(str(workdir / "tiny.gguf")):
            os.kill(pid, signal.SIGKILL)
        said += us.stderr.readlines()
        assert us.wait(60) == 1, said
    assert "exit code -9" in "".join(said)
    (kept,) = Path(".llmpilot/runs").glob("*/levels.json")
    assert [level["users"] for level in json.loads(kept.read_text())] == [1]

    ran = run(*SERVED, *ladder, "result_file=r.json")
    assert ran.code == 0, ran.err
    levels = json.loads(Path("r.json").read_text())["levels"]
    assert [(level["users"], level["requests_failed"]) for level in levels] == [(1, 0), (2, 0)]


def _mentioning(words: str) -> list[int]:
    """Return the processes with these words in their command lines."""
    lines = subprocess.run(["ps", "-ewwo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    found = [int(line.split()[0]) for line in lines.splitlines() if words in line]
    return [pid for pid in found if pid != os.getpid()]
