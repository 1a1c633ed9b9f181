"""What a command line left behind in the working directory; and how tests stop one in the middle."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from llmpilot import loadtest


def client_here() -> MlflowClient:
    """Return a client of the working directory's tracking database."""
    return MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")


def runs(task: str | None = None) -> list[Run]:
    """Return all tracked runs, or those of one task."""
    client = client_here()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [run for run in found if task is None or run.data.tags.get("llmpilot.task") == task]


def read(path: str | Path) -> Any:
    """Return what a JSON file says."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def stopping_at(stop: float, error: type[BaseException]) -> Callable[[Any, Any, float], Any]:
    """Return a `run_level` that measures, but raises at one level."""

    def run_level(endpoint: Any, traffic: Any, level: float) -> Any:
        if level == stop:
            raise error
        return loadtest.run_level(endpoint, traffic, level)

    return run_level


def interrupted_after(words: str, *arguments: str) -> tuple[str, str]:
    """Run a command line until its standard error has a line with these words, and press Ctrl-C.

    Returns what it said before and after, once it has ended as it should.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "llmpilot", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    before = ""
    for line in process.stderr:
        before += line
        if words in line:
            break
    process.send_signal(signal.SIGINT)
    _, after = process.communicate(timeout=120)
    assert process.returncode == 130, before + after
    assert "Traceback" not in before + after
    return before, after
