"""Several workers and one tracking store that is new to all of them."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tracked import runs

from llmpilot.config import Tracking
from llmpilot.tracking import Tracker

URI = "sqlite:///mlflow.db"
WORKER = f"""
import sys
from llmpilot.config import Tracking
from llmpilot.tracking import Tracker
tracker = Tracker(Tracking(uri="{URI}"))
tracker.start_parent("tune", "run", {{}})
sys.exit(tracker.problem)
"""


def begun() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_both_make_the_database_and_both_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workers = [begun(), begun()]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert len(runs("tune")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_database_is_whole_from_the_first(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can use one whose making was killed in the middle, nor mend it."""
    monkeypatch.chdir(tmp_path)
    worker = begun()
    while not (tmp_path / "mlflow.db").exists():
        assert worker.poll() is None, worker.communicate()
        time.sleep(0.001)
    worker.kill()
    worker.communicate()
    assert tables(tmp_path / "mlflow.db") == tables(empty_database)


@contextmanager
def held_up(seconds: float) -> Iterator[None]:
    """Let nobody write to the database in the meantime; all may read."""
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        time.sleep(seconds)
        database.rollback()


def test_both_create_the_experiment_and_both_use_it(workdir: Path) -> None:
    trackers = [Tracker(Tracking(uri=URI)) for _ in range(4)]
    assert [tracker.find_finished("dataset", "none") for tracker in trackers] == [None] * 4  # all connected
    with ThreadPoolExecutor() as pool:
        with held_up(seconds=1):
            begun = [pool.submit(tracker.start_parent, "tune", "run", {}) for tracker in trackers]
        ids = {one.result() for one in begun}
    assert [tracker.problem for tracker in trackers] == [None] * 4
    assert {run.info.run_id for run in runs("tune")} == ids
    assert len({run.info.experiment_id for run in runs("tune")}) == 1
