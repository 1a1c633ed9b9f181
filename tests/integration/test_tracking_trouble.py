"""Tracking that fails in the middle: what was measured is kept, and no run stays RUNNING in the store."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Timer

import pytest
from conftest import Run
from tracked import runs, stopping_at

from llmpilot.config import Tracking
from llmpilot.tasks import characterize
from llmpilot.tracking import Tracker

CELL = ("+gpu=a100", "+model=starcoder", "tuner=none")
QUICK = ("load.users=[1,4]", "load.duration_s=20", "load.warmup_s=2")


@contextmanager
def refusing(table: str, when: str = "1") -> Iterator[None]:
    """Let the tracking database refuse new rows of a table, as one on a full disk does."""
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute(
            f"CREATE TRIGGER full BEFORE INSERT ON {table} WHEN {when} "
            "BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
        )
        yield
        database.execute("DROP TRIGGER full")


def test_a_run_that_lacks_metrics_ends_failed_and_whole_once_uploaded(run: Run) -> None:
    with refusing("metrics"):
        ran = run(*CELL, *QUICK)
    assert ran.code == 1
    assert "cannot be used" in ran.err, ran.err
    (tracked,) = runs()
    assert tracked.info.status == "FAILED"
    assert run("task=upload").code == 0
    (tracked,) = runs()
    assert tracked.info.status == "FINISHED"
    assert "ttft_ms.p50" in tracked.data.metrics


def test_an_interruption_after_a_failure_ends_it_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characterize, "run_level", stopping_at(4, KeyboardInterrupt))
    with refusing("metrics"):
        ran = run(*CELL, *QUICK)
    assert ran.code == 130
    assert "cannot be used" in ran.err, ran.err
    (tracked,) = runs()
    assert tracked.info.status == "KILLED"


def test_neither_a_sweep_nor_a_run_made_in_one_go_stays_running(run: Run) -> None:
    with refusing("tags", "NEW.value = 'infeasible'"):
        run("-m", "+gpu=t4", "+model=llama_3_1_70b,qwen2_5_72b", *QUICK, "tuner=none")
    assert {tracked.data.tags["mlflow.runName"].split(":")[0]: tracked.info.status for tracked in runs()} == {
        "sweep": "FINISHED",
        "+model=llama_3_1_70b": "FAILED",
    }


def test_a_store_that_hangs_is_not_waited_for(workdir: Path) -> None:
    tracker, released = Tracker(Tracking(uri="sqlite:///mlflow.db", timeout_s=0.2)), Event()
    run_id = tracker.start_parent("tune", "parent", {})
    with refusing("experiments"):
        tracker.start_parent("dataset", "another", {})
    first = tracker.problem
    with closing(sqlite3.connect("mlflow.db", check_same_thread=False)) as database:
        database.execute("BEGIN EXCLUSIVE")
        timer = Timer(4, lambda: (released.set(), database.rollback()))
        timer.start()
        tracker.end(run_id, "KILLED")
        assert not released.is_set()
        timer.join()
    assert first is not None
    assert tracker.problem == first, "what went wrong first is what is told"
    tracker.end(run_id, "KILLED")
    assert {tracked.info.status for tracked in runs()} == {"KILLED"}


def test_a_study_and_its_trials_do_not_stay_running(run: Run) -> None:
    with refusing("metrics"):
        run("task=tune", *CELL[:2], *QUICK)
    assert {tracked.info.status for tracked in runs()} == {"FAILED"}
