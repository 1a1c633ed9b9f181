"""Work shared among processes, which end with this one whatever happens: Ctrl-C, an error, a killed worker.

The library's pool will not do: work that waits in its queue when its processes are ended keeps the
interpreter from ending (its feeder thread goes on writing to a pipe that nobody reads).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from llmpilot import interrupts
from llmpilot.errors import PilotError

Map = Callable[..., Iterator[Any]]


class WorkerDiedError(PilotError):
    """One of the processes was killed."""

    exit_code = 1


Process = tuple[BaseProcess, Connection]


@contextmanager
def workers(count: int, option: str = "workers") -> Iterator[Map]:
    """Yield a `map` that runs on `count` processes, in order, one thread each; 1: in this one.

    Functions and values are pickled, the function once a process. A map that is read to its end leaves its
    processes to the next one. `option` is the key that sets `count`, for the error.

    Raises:
        WorkerDiedError: one of the processes was killed.
    """
    if count == 1:
        yield map
        return
    started: list[Process] = []
    resting: list[list[Process]] = []

    def run(function: Callable[..., Any], *values: Any) -> Iterator[Any]:
        processes = resting.pop() if resting else _start(count, started)
        try:
            yield from _in_order(function, processes, list(zip(*values, strict=True)))
        except (EOFError, ConnectionError):
            raise WorkerDiedError(
                "one of the processes that share the work was killed, for want of memory perhaps",
                given=f"{count} processes",
                cure=f"use one: {option}=1",
            ) from None
        resting.append(processes)

    try:
        yield run
    finally:
        _end(started)  # what they are at is of no more use, and takes long


def _start(count: int, started: list[Process]) -> list[Process]:
    """Start processes, and note each in `started`."""
    context = get_context("spawn")
    fresh: list[Process] = []
    # It would be started with the first process, and let signals through again that are held back here.
    resource_tracker.ensure_running()
    # OMP_NUM_THREADS is read once, when the libraries of the new processes load.
    with interrupts.held(), _environment("OMP_NUM_THREADS", "1"):
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # or a process that has died would leave its end open
            fresh.append((process, ours))
            started.append((process, ours))
    return fresh


def _work(tasks: Connection) -> None:
    """Take a function, or values of the last one to answer with its result, until the other end is closed."""
    function: Callable[..., Any] | None = None
    while True:
        try:
            values = tasks.recv()
        except EOFError:
            return
        if not isinstance(values, tuple):
            function = values
            continue
        assert function is not None
        try:
            answer = (True, function(*values))
        except Exception as error:
            answer = (False, error)
        try:
            tasks.send(answer)
        except BrokenPipeError:
            return


def _in_order(
    function: Callable[..., Any], processes: list[Process], tasks: list[tuple[Any, ...]]
) -> Iterator[Any]:
    """Yield what becomes of the tasks, in their order; a process gets its next one when it has answered."""
    answers: dict[int, Any] = {}
    at_work: dict[Connection, int] = {}
    idle = [connection for _, connection in processes]
    for one in idle:
        one.send(function)
    following = 0
    for wanted in range(len(tasks)):
        while wanted not in answers:
            while idle and following < len(tasks):
                idle[-1].send(tasks[following])
                at_work[idle.pop()] = following
                following += 1
            for connection in wait(list(at_work)):
                assert isinstance(connection, Connection)
                succeeded, answer = connection.recv()
                if not succeeded:
                    raise answer
                answers[at_work.pop(connection)] = answer
                idle.append(connection)
        yield answers.pop(wanted)


def _end(processes: list[Process]) -> None:
    for process, connection in processes:
        process.terminate()
        connection.close()
    for process, _ in processes:
        process.join()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
