"""What a command line left behind in the working directory; and how tests stop one in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from llmpilot import loadtest
from llmpilot.report.result_fields import Result, Sweep


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


def started(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a command line in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmpilot", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupted_after(words: str, *arguments: str) -> tuple[str, str]:
    """Run a command line until its standard error has a line with these words, and press Ctrl-C.

    Returns what it said before and after, once it has ended as it should.
    """
    process = started(*arguments, stdout=subprocess.DEVNULL)
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


def interrupted_when(ready: Callable[[int], object], *arguments: str) -> tuple[str, str]:
    """Run a command line until `ready`, given its process id, is true, and press Ctrl-C as a terminal does.

    Returns what it printed to standard output and error, once it and all processes it started have ended.
    """
    process = started(*arguments)
    while not ready(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells every process in front of it
    out, err = process.communicate(timeout=120)  # until none holds its pipes
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    until = time.monotonic() + 10  # one that has let go of its pipes still has to end
    while left := processes_of(process.pid):
        assert time.monotonic() < until, left
        time.sleep(0.02)
    return out, err


def with_a_worker_killed(*arguments: str) -> str:
    """Run a command line, kill the first of its two workers, and return what it says to standard error.

    It ends as it should: with exit code 1, and without a traceback.
    """
    process = started(*arguments)
    while not two_workers(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = [pid for pid, command in processes_of(process.pid).items() if "spawn_main" in command]
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "one of the processes that share the work was killed" in err
    assert "Traceback" not in err
    return err


def two_workers(session: int) -> bool:
    """Whether an evaluation in that session has started two processes."""
    return sum("spawn_main" in command for command in processes_of(session).values()) == 2


def processes_of(session: int) -> dict[int, str]:
    """Return a session's processes that have not ended: id -> command line."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            _, _, facts = (place / "stat").read_text().rpartition(") ")
            command = (place / "cmdline").read_text()
        except OSError:
            continue
        if facts.split()[3] == str(session) and facts[0] != "Z":
            found[int(place.name)] = command.replace("\0", " ")
    return found


def is_documented(result: Any) -> bool:
    """Whether a result, of a run or a sweep, is as its JSON schema says, with no field beside."""
    kind = Sweep if "cells" in result else Result
    return bool(kind.model_validate(result).model_dump(by_alias=True, exclude_unset=True) == result)
