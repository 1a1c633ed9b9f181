"""`task=tune` from end to end, on the simulated service."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from mlflow.entities import Run as MlflowRun
from tracked import client_here, read, runs

from llmpilot import catalog
from llmpilot.engine.tgis import TgisEngine
from llmpilot.tasks import tune

CELL = ("task=tune", "+gpu=t4", "+model=flan_t5_xl", "engine=tgis")
QUICK = ("load.duration_s=20", "load.warmup_s=1", "tuner.users=32")
FEASIBLE = ("tuner=bisection", "tuner.tolerance=1")
CAPACITY = TgisEngine().memory(catalog.models()["flan_t5_xl"], catalog.gpus()["t4"]).kv_capacity_tokens


def artifacts_of(run: MlflowRun, path: str | None = None) -> set[str]:
    return {file.path for file in client_here().list_artifacts(run.info.run_id, path)}


def worker(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmpilot", *CELL, *QUICK, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def test_the_best_weight_with_all_that_is_kept(run: Run) -> None:
    ran = run(*CELL, *QUICK, "tuner.tolerance=1", "tuner.trials=2", "tuner.repeats=2", "result_file=r.json")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("SIMULATED")
    result = read("r.json")
    wanted = "study best_max_batch_weight objective value stopped_because trials"
    assert set(wanted.split()) <= set(result)
    wanted = "number max_batch_weight feasible reason e2e_ms_p50 throughput_tok_s failure_rate"
    for trial in result["trials"]:
        assert set(wanted.split()) <= set(trial)
        assert trial["feasible"] == (trial["max_batch_weight"] <= CAPACITY)
        assert trial["feasible"] or "out_of_memory" in trial["reason"]
        assert trial["feasible"] or trial["failure_rate"] > 0.01
    assert result["best_max_batch_weight"] <= CAPACITY
    assert result["noise"] > 0
    assert "noise" in result["stopped_because"] or "proposals" in result["stopped_because"]
    for part in ("flan_t5_xl", "1 x T4", "tgis", "paper", "e2e_ms.p50"):
        assert part in result["study"]

    tracked = runs()
    (parent,) = (r for r in tracked if r.info.run_id == result["run_id"])
    children = [r for r in tracked if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(result["trials"]) == len(tracked) - 1
    assert {r.info.status for r in tracked} == {"FINISHED"}
    assert {r.data.tags["llmpilot.outcome"] for r in children} == {"feasible", "infeasible"}
    assert parent.data.metrics["best_max_batch_weight"] == result["best_max_batch_weight"]
    assert {"result.json", "config.yaml", "plots"} <= artifacts_of(parent)
    plots = {f"plots/{name}" for name in ("history.html", "slice.html", "latency_over_weight.png")}
    assert artifacts_of(parent, "plots") == plots

    again = run(
        *CELL, *QUICK, "tuner.tolerance=1", "tuner.trials=2", "tuner.repeats=2", "result_file=again.json"
    )
    assert again.code == 0, again.err
    assert read("again.json") == result, "the same command again measures nothing"
    assert len(runs()) == len(tracked)


def test_an_interrupted_study_repeats_no_finished_trial(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    measure = tune.measure

    def interrupted(start: Any, traffic: Any, settings: Any, weight: int, **more: Any) -> Any:
        if len(measured) == 3 and measured.count(weight) == 0 and not Path("once").touch():
            monkeypatch.setattr(tune, "measure", counted)
            raise KeyboardInterrupt
        return counted(start, traffic, settings, weight, **more)

    def counted(start: Any, traffic: Any, settings: Any, weight: int, **more: Any) -> Any:
        measured.append(weight)
        return measure(start, traffic, settings, weight, **more)

    monkeypatch.setattr(tune, "measure", interrupted)
    first = run(*CELL, *QUICK, *FEASIBLE, "result_file=r.json")
    assert first.code == 130
    assert "the same command goes on" in first.err
    assert run(*CELL, *QUICK, *FEASIBLE, "result_file=r.json").code == 0
    assert len(measured) == len(set(measured)) == len(read("r.json")["trials"])
    assert len([r for r in runs() if "mlflow.parentRunId" not in r.data.tags]) == 1


def test_two_workers_share_a_study_and_one_that_is_killed_is_made_up_for(workdir: Path) -> None:
    killed, other = worker(*FEASIBLE, "result_file=a.json"), worker(*FEASIBLE, "result_file=b.json")
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("trial"):
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stderr.close()
    _, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    result = read("b.json")
    weights = [trial["max_batch_weight"] for trial in result["trials"]]
    assert len(set(weights)) == len(weights)
    assert CAPACITY / 2 <= result["best_max_batch_weight"] <= CAPACITY
    parents = [r for r in runs() if "mlflow.parentRunId" not in r.data.tags]
    assert [r.info.run_id for r in parents] == [result["run_id"]]


KILLED = """
import os, signal, sys
from {module} import {name}
{name}.{method} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from llmpilot import cli
cli.run(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("module", "name", "method", "left"),
    [
        ("mlflow", "MlflowClient", "set_terminated", "RUNNING"),
        ("llmpilot.tune", "TuningStudy", "tell", "FINISHED"),
    ],
    ids=["before its run ends", "before its study hears of it"],
)
def test_the_run_of_a_killed_workers_trial_ends_killed(
    run: Run, module: str, name: str, method: str, left: str
) -> None:
    program = KILLED.format(module=module, name=name, method=method)
    command = [sys.executable, "-c", program, *CELL, *QUICK, *FEASIBLE, "tuner.upper=2000"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    (lost,) = (r for r in runs() if "mlflow.parentRunId" in r.data.tags)
    assert lost.info.status == left
    assert run(*CELL, *QUICK, *FEASIBLE, "tuner.upper=2000", "result_file=r.json").code == 0
    status = {r.info.run_id: r.info.status for r in runs()}
    assert status.pop(lost.info.run_id) == "KILLED"
    result = read("r.json")
    assert status.keys() == {result["run_id"], *(trial["run_id"] for trial in result["trials"])}
    assert set(status.values()) == {"FINISHED"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tuner.lower=10"], ["tuner.lower=10", "heaviest request"]),
        (["tuner.lower=5000", "tuner.upper=4000"], ["tuner.lower=5000", "tuner.upper=4000"]),
        (["tuner.upper=many"], ["tuner.upper", "many"]),
        (["tuner.upper=1000000000000"], ["tuner.upper=1000000000000", "could ever hold", "or less"]),
        (["tuner.first_part=1e-9"], ["tuner.first_part", "0.01"]),
        (["tuner.objective=beauty"], ["tuner.objective", "beauty"]),
        (["tuner.colour=red"], ["tuner.colour"]),
        (["tuner.storage=nonsense"], ["tuner.storage=nonsense"]),
        (["tuner.storage=sqlite:///mlflow.db"], ["alembic_version"]),
        (["tuner.storage=sqlite:///./mlflow.db"], ["alembic_version"]),
        (["load=poisson"], ["load=closed_loop"]),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(run: Run, arguments: list[str], words: list[str]) -> None:
    ran = run(*CELL, *arguments)
    assert ran.code == 2, ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err + ran.out
    assert runs() == []


def test_a_study_of_another_configuration_under_the_same_name(run: Run) -> None:
    named = (*CELL, *QUICK, *FEASIBLE, "tuner.study=mine", "tuner.upper=2000")
    assert run(*named).code == 0
    ran = run(*named, "seed=43")
    assert ran.code == 2
    assert "'mine' is of another configuration" in ran.err
    assert "seed=43, in the study 42" in ran.err


def test_an_unreachable_tracking_server_costs_no_trial(run: Run) -> None:
    short = (*CELL, *QUICK, *FEASIBLE, "tuner.upper=2000", "result_file=r.json")
    ran = run(*short, "tracking.uri=http://127.0.0.1:9")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert len(read("r.json")["trials"]) == 2
    assert run(*short).code == 0
    assert read("r.json")["trials"][0]["run_id"] is None


BROKEN = "#!/bin/sh\nprintf '\\033[31merror while loading shared libraries: libcuda.so.1\\n'\nexit 127\n"
TOO_SMALL = "#!/bin/sh\necho 'cudaMalloc failed: out of memory'\nexit 1\n"


@pytest.mark.parametrize("task", ["tune", "characterize"])
def test_a_server_that_never_comes_up_says_nothing_of_the_weight(run: Run, binary: str, task: str) -> None:
    Path("some.gguf").touch()
    command = (
        *("+gpu=a100", "+model=starcoder", f"task={task}", "tuner=bisection", "engine=llamacpp"),
        *("deployment=process", f"engine.binary={binary}", "engine.model_path=some.gguf"),
    )
    Path(binary).write_text(BROKEN)
    first = run(*command)
    assert first.code == 1
    assert "ended, with exit code 127" in first.err
    assert "libcuda.so.1" in first.err
    assert "\x1b" not in first.err, "a server's words command no terminal"
    assert "feasible" not in first.err + first.out
    study, failed = sorted(runs(), key=lambda r: "mlflow.parentRunId" in r.data.tags)
    assert (study.info.status, failed.info.status) == ("FAILED", "FAILED")
    assert "libcuda.so.1" in failed.data.tags["llmpilot.reason"]
    assert "llmpilot.outcome" not in failed.data.tags

    Path(binary).write_text(TOO_SMALL)
    mended = run(*command)
    said = mended.err + mended.out
    assert "libcuda.so.1" not in said, "the failure before is not remembered"
    assert "nothing is feasible" in said
    assert "ran out of memory" in said
