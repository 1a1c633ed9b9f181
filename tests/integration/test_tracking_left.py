"""Deleted experiments and variables of earlier runs: the cures that are printed mend."""

import re
import shlex

import pytest
from conftest import Run
from mlflow.cli import cli as mlflow_cli
from tracked import client_here, read, runs

CELL = ("+gpu=a100", "+model=starcoder")
QUICK = ("load.users=[1]", "load.duration_s=2", "load.warmup_s=0")
UNTUNED = (*CELL, "tuner=none", *QUICK)


def deleted(name: str) -> str:
    """Make an experiment, delete it, and return its id."""
    client = client_here()
    made = str(client.create_experiment(name))
    client.delete_experiment(made)
    return made


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set the variables that a shell line begins with; return the words of its command."""
    words = shlex.split(line)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    return words


def restored(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the message says restores the experiment."""
    found = re.search(r"restore it with `([^`]+)`", message)
    assert found is not None, message
    with monkeypatch.context() as patch:
        program, *arguments = typed(found.group(1), patch)
        assert program == "mlflow"
        mlflow_cli.main(arguments, standalone_mode=False)


@pytest.mark.parametrize("sweep", [False, True])
def test_a_deleted_experiment_is_restored_and_uploaded_to(
    run: Run, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    deleted("llm-pilot/characterize")
    ran = run(*(["-m"] if sweep else []), *UNTUNED)
    assert ran.code == 1
    assert "the experiment llm-pilot/characterize was deleted" in ran.err
    assert runs() == []
    restored(ran.err, monkeypatch)
    line = next(text.strip() for text in ran.err.splitlines() if "task=upload" in text)
    _, _, _, *arguments = typed(line, monkeypatch)
    uploaded = run(*arguments)
    assert uploaded.code == 0, uploaded.err
    (tracked,) = runs()
    assert tracked.info.status == "FINISHED"


def test_another_name_mends_it_too(run: Run) -> None:
    deleted("llm-pilot/characterize")
    ran = run(*UNTUNED, "tracking.experiment_prefix=other", "result_file=r.json")
    assert ran.code == 0, ran.err
    (tracked,) = runs()
    assert tracked.info.run_id == read("r.json")["run_id"]


def test_tuning_into_a_deleted_experiment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted("llm-pilot/tune")
    tune = ("task=tune", "tuner=bisection", *CELL, *QUICK, "tuner.users=2", "tuner.tolerance=0.5")
    ran = run(*tune)
    assert ran.code == 1
    assert "then give the same command again" in ran.err
    restored(ran.err, monkeypatch)
    assert run(*tune).code == 0
    assert runs("tune")


@pytest.mark.parametrize("left", ["0123456789abcdef0123456789abcdef", "no id", "ended", "deleted"])
def test_a_left_over_run_is_not_written_into(run: Run, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    client, run_id = client_here(), left
    if left in ("ended", "deleted"):
        run_id = client.create_run(client.create_experiment("mine")).info.run_id
        client.set_terminated(run_id)
    if left == "deleted":
        client.delete_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    ran = run(*UNTUNED, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert f"MLFLOW_RUN_ID={run_id} " in ran.err
    assert "To mend it: unset MLFLOW_RUN_ID" in ran.err
    assert read("r.json")["run_id"] != run_id
    (tracked,) = runs("characterize")
    assert tracked.info.status == "FINISHED"
    if left == "ended":
        assert client.get_run(run_id).data.params == {}


def test_a_left_over_run_is_no_parent_of_a_sweep(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
    ran = run("-m", *UNTUNED, "result_file=s.json")
    assert ran.code == 0, ran.err
    assert "unset MLFLOW_RUN_ID" in ran.err
    assert len(runs("characterize")) == 2  # the sweep's and the cell's


@pytest.mark.parametrize("left", ["4711", "deleted"])
def test_an_experiment_that_points_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    experiment = deleted("gone") if left == "deleted" else left
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    ran = run(*UNTUNED)
    assert ran.code == 0, ran.err
    assert ran.err.count(f"MLFLOW_EXPERIMENT_ID={experiment} ") == 1
    assert "runs go to llm-pilot/characterize. To mend it: unset MLFLOW_EXPERIMENT_ID" in ran.err
    (tracked,) = runs()
    assert client_here().get_experiment(tracked.info.experiment_id).name == "llm-pilot/characterize"
