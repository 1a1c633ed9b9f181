"""A worker process of the load test: one event loop, its share of the users, and their log.

Started by `client` as `python -m llmpilot.loadtest.worker FD`; speaks pickles over that socket: a Job comes
in, then ("ready",), the start time, ("quiet",), the end, and ("done", Part) go back and forth.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import time
import traceback
from array import array
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection as Channel
from typing import Any

import numpy as np

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.errors import PilotError
from llmpilot.loadtest.traffic import Traffic
from llmpilot.loadtest.worker_log import Log, Part
from llmpilot.loadtest.worker_sender import SECOND, Plan, Sender
from llmpilot.loadtest.worker_talks import ClosedTalks, OpenTalks, TurnWriter
from llmpilot.loadtest.worker_users import ClosedLoop, OpenLoop, Rows, Writer
from llmpilot.openai_client.access import Target, resolve
from llmpilot.openai_client.connecting import said_of
from llmpilot.openai_client.http import clock_ns
from llmpilot.openai_client.reading import read_answer
from llmpilot.secrets import redact, redact_foreign, remember
from llmpilot.workload import ConversationSource

MAX_CONNECTIONS_AHEAD = 64
RAMP_SHARE = 0.5
"""Of the warm-up, in which closed-loop users begin one after the other."""


@dataclass(frozen=True)
class Job:
    """One worker's share of a level: worker `index` of `workers`. `nonce` makes its prompts new ones.

    `secrets` are to be hidden in what servers say.
    """

    endpoint: HttpEndpoint
    traffic: Traffic
    level: float
    index: int
    workers: int
    nonce: int
    secrets: tuple[str, ...] = field(default=(), repr=False)


def main(fd: int) -> None:
    """Do the job that comes over `fd`, and return the worker's Part."""
    # Ctrl-C reaches the whole process group: our parent decides, and ends us by closing the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(fd)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            job: Job = channel.recv()
            _more_files()
            part = _run(_level(job, channel))
            channel.send(("done", part))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except PilotError as error:
            channel.send(("refused", error))
        except BaseException:
            channel.send(("error", traceback.format_exc()))


def _run(level: Any) -> Part:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(level)  # type: ignore[no-any-return]
    return uvloop.run(level)  # type: ignore[no-any-return]


async def _level(job: Job, channel: Channel) -> Part:
    loop = asyncio.get_running_loop()
    load, endpoint = job.traffic.load, job.endpoint
    remember((*job.secrets, *_credentials(endpoint)))
    target = await loop.run_in_executor(None, _found, endpoint)
    log = Log()
    sender = await _prepare(job, log, target, lambda: channel.send(("quiet",)))
    gc.collect()
    gc.freeze()
    gc.disable()

    channel.send(("ready",))
    start_ns: int = await loop.run_in_executor(None, channel.recv)
    stop_ns = start_ns + round((load.warmup_s + load.duration_s) * SECOND)
    plan = Plan(start_ns, stop_ns, stop_ns + round(load.drain_s * SECOND))
    over = asyncio.Event()
    loop.add_reader(channel.fileno(), over.set)
    busy: list[tuple[int, int]] = []

    def look_at_the_clocks() -> None:
        busy.append((time.thread_time_ns(), clock_ns()))

    sender.begin(plan)
    sender.at(start_ns + round(load.warmup_s * SECOND), look_at_the_clocks)
    sender.at(stop_ns, look_at_the_clocks)
    sender.at(plan.deadline_ns, over.set)
    await over.wait()
    loop.remove_reader(channel.fileno())
    os.set_blocking(channel.fileno(), True)  # which uvloop's reader has changed
    if channel.poll() and channel.recv() != "end":
        raise EOFError
    sender.finish()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.enable()
    part = log.read(read_answer, partial(_hidden, _credentials(endpoint)))
    part.notes |= _own_state(sender, busy)
    return part


async def _prepare(job: Job, log: Log, target: Any, on_quiet: Any) -> Sender:
    load, traffic = job.traffic.load, job.traffic
    links = (job.endpoint, target, log, on_quiet)
    if load.arrival == "closed":
        lanes = int(job.level)
        users, ramp_ns = range(job.index, lanes, job.workers), round(load.warmup_s * RAMP_SHARE * SECOND)
        if traffic.conversations is not None:
            talks = ClosedTalks(*links)
            talks.hold(_turns(job, traffic.conversations))
            await talks.prepare(users, lanes, ramp_ns)
            return talks
        closed = ClosedLoop(*links)
        closed.writer, closed.thinking = _writer(job, lanes), traffic.think_times()
        await closed.prepare(users, lanes, ramp_ns)
        return closed
    until_s = load.warmup_s + load.duration_s + load.drain_s
    arrivals_s = traffic.arrivals_s(job.level, until_s)[job.index :: job.workers]
    arrivals_ns = array("q", np.rint(arrivals_s * SECOND).astype(np.int64).tobytes())
    ahead = min(MAX_CONNECTIONS_AHEAD, 1 + int(len(arrivals_s) / until_s))
    if traffic.conversations is not None:
        begun = OpenTalks(*links)
        begun.hold(_turns(job, traffic.conversations))
        await begun.prepare(arrivals_ns, job.index, job.workers, ahead)
        return begun
    opened = OpenLoop(*links)
    opened.writer = _writer(job, job.workers)
    await opened.prepare(arrivals_ns, job.index, job.workers, ahead)
    return opened


def _writer(job: Job, lanes: int) -> Writer:
    return Writer(job.endpoint, Rows(job.traffic.requests(), lanes), job.traffic.seed, job.nonce)


def _turns(job: Job, conversations: ConversationSource) -> TurnWriter:
    return TurnWriter(job.endpoint, conversations, job.traffic.seed, job.nonce)


def _found(endpoint: HttpEndpoint) -> Target:
    """Return where the service is.

    Raises:
        PilotError: its name is known no more.
    """
    try:
        return resolve(endpoint.access)
    except OSError as error:
        raise PilotError(
            "the service cannot be found any more",
            given=said_of(error),
            cure="look at the network and its name server, then start again: the same command goes on "
            "behind the levels that are there",
        ) from None


def _hidden(credentials: tuple[str, ...], text: str) -> str:
    return redact_foreign(redact(text, credentials))


def _credentials(endpoint: HttpEndpoint) -> tuple[str, ...]:
    """Return what the requests' headers hold, which a server may repeat: `Bearer KEY`, and KEY by itself."""
    return tuple(part for value in endpoint.headers.values() for part in {value, value.rpartition(" ")[2]})


def _own_state(sender: Sender, busy: list[tuple[int, int]]) -> dict[str, Any]:
    """Return how busy this worker was in the window, and how late its loop ran [ms]."""
    share = None
    if len(busy) == 2 and busy[1][1] > busy[0][1]:
        share = (busy[1][0] - busy[0][0]) / (busy[1][1] - busy[0][1])
    lags_ms = np.asarray(sender.lags_ns, dtype=np.float64) / 1e6
    p50, p99 = np.percentile(lags_ms, (50, 99)).tolist() if len(lags_ms) else (None, None)
    return {
        "histories": sender.histories(),
        "busy_share": share,
        "lag_ms_p50": p50,
        "lag_ms_p99": p99,
        "loop": type(sender.loop).__module__,
    }


def _more_files() -> None:
    """Allow as many open connections as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
