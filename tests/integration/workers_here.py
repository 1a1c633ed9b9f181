"""The load test's workers as threads of the test: their processes take a second each to start."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe

from llmpilot.loadtest import worker


@contextmanager
def in_threads(jobs: list[worker.Job]) -> Iterator[list[Connection]]:
    """Yield a channel to a running worker for each job, as `client._started` does; not for exact times."""
    channels, threads = [], []
    for job in jobs:
        ours, theirs = Pipe()

        def work(job: worker.Job = job, channel: Connection = theirs) -> None:
            channel.send(("done", worker._run(worker._level(job, channel))))

        channels.append(ours)
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
    yield channels
    for thread in threads:
        thread.join()
