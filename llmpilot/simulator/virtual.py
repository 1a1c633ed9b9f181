"""A service under load in virtual time: the clock jumps over stretches in which the batch does not change.

Here are requests that have nothing to do with each other; those of conversations are in turns.py. Users of a
closed loop wait for the answer's end, as they see it, before they go on.
"""

from heapq import heappop, heappush
from math import inf
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmpilot.simulator.level import REFUSED_PAUSE_MS, Run, SimulatedRequests
from llmpilot.simulator.scheduling import Outcome, Sequence
from llmpilot.simulator.service import VirtualService
from llmpilot.workload import Requests, ThinkTimes, concatenate

__all__ = ["RequestSource", "SimulatedRequests", "simulate_closed", "simulate_finite", "simulate_open"]

CHUNK = 4096


class RequestSource(Protocol):
    """An endless or long enough stream of requests."""

    def take(self, n: int) -> Requests:
        """Return the next `n` requests, or fewer where the source ends."""
        ...


def simulate_closed(
    service: VirtualService,
    requests: RequestSource,
    users: int,
    stop_sending_ms: float,
    drain_ms: float,
    *,
    keep_load: bool = True,
    gaps: bool = True,
    thinking: ThinkTimes | None = None,
) -> SimulatedRequests:
    """Simulate `users` clients of which each sends its next request as soon as it saw the last one end.

    With `thinking`, each thinks before every request, the first one, too.

    Users keep the load up until every request sent before `stop_sending_ms` has ended, or `drain_ms` more
    have passed; what is open then is UNFINISHED. Without `keep_load` they send nothing after
    `stop_sending_ms`.
    """
    run = _RequestRun(service, _Feed(requests), stop_sending_ms, drain_ms)
    run.resend_until_ms = inf if keep_load else stop_sending_ms
    run.thinking = thinking
    for _ in range(users):
        run.begin_next()
    return run.to_the_end(gaps)


def simulate_open(
    service: VirtualService,
    requests: RequestSource,
    arrivals_ms: NDArray[np.float64],
    stop_sending_ms: float = inf,
    drain_ms: float = 0.0,
    *,
    gaps: bool = True,
) -> SimulatedRequests:
    """Simulate requests that are sent at `arrivals_ms` [n], whatever the service does.

    It ends when every request sent before `stop_sending_ms` has, or `drain_ms` behind it.
    """
    run = _RequestRun(service, _Feed(requests), stop_sending_ms, drain_ms)
    for arrival_ms in sorted(arrivals_ms.tolist()):
        run.send(arrival_ms)
    return run.to_the_end(gaps)


def simulate_finite(
    service: VirtualService, requests: RequestSource, users: int, n_requests: int, *, gaps: bool = True
) -> SimulatedRequests:
    """Simulate `users` clients that start all at once and send `n_requests` requests in all, to the last end.

    Each sends its next request as soon as its last one ended, as benchmarks of fixed length do.
    """
    run = _RequestRun(service, _Feed(requests), inf, 0.0)
    run.to_send = n_requests
    run.resend_until_ms = inf
    for _ in range(min(users, n_requests)):
        run.send(0.0)
    return run.to_the_end(gaps)


class _Feed:
    """The request stream, one request at a time, as plain integers."""

    def __init__(self, stream: RequestSource) -> None:
        self._stream = stream
        self._chunks: list[Requests] = []
        self._rows: list[tuple[int, int, int]] = []

    def get(self, index: int) -> tuple[int, int, int]:
        """Return (input tokens, output tokens, sequences) of request `index`."""
        while index >= len(self._rows):
            chunk = self._stream.take(CHUNK)
            self._chunks.append(chunk)
            columns = (chunk.input_tokens, chunk.output_tokens, chunk.batch_size)
            self._rows.extend(zip(*(column.tolist() for column in columns), strict=True))
        return self._rows[index]

    def head(self, count: int) -> Requests:
        """Return the first `count` requests as a table."""
        self.get(max(0, count - 1))
        return concatenate(self._chunks).take(slice(count))


class _RequestRun(Run):
    """A level of requests that have nothing to do with each other: the next one of a stream is whose turn it
    is."""

    def __init__(self, service: VirtualService, feed: _Feed, stop_sending_ms: float, drain_ms: float) -> None:
        super().__init__(service, stop_sending_ms, drain_ms)
        self.feed = feed
        self.to_send: float = inf  # requests
        self.paused_until_ms: list[float] = []  # a heap: users who think, or whose request was refused
        self.thinking: ThinkTimes | None = None
        self.thoughts = 0

    def send(self, sent_ms: float) -> None:
        """Let a client send the next request of the stream; calls must not go back in time."""
        index = len(self.log)
        if index < self.to_send:
            self.dispatch(Sequence(index, *self.feed.get(index), sent_ms + self.overhead_ms), sent_ms)

    def go_on(self, sequence: Sequence) -> None:
        """Let the user whose request has ended send its next one."""
        if sequence.outcome is Outcome.TOO_LONG:
            heappush(self.paused_until_ms, self.now_ms + REFUSED_PAUSE_MS)
        else:
            self.begin_next(sequence.late_ms)

    def begin_next(self, late_ms: float = 0.0) -> None:
        """Let a user send its next request: when it saw its last one end, so late, and thought about it."""
        pause_ms = max(0.0, late_ms)
        if self.thinking is not None:
            pause_ms += 1e3 * self.thinking.pause_s(self.thoughts)
            self.thoughts += 1
        elif not pause_ms:
            self.resume_paused()
            self.send(self.now_ms)
            return
        heappush(self.paused_until_ms, self.now_ms + pause_ms)

    def next_pause_ms(self) -> float:
        """Return when the next user ends its pause."""
        return self.paused_until_ms[0] if self.paused_until_ms else inf

    def resume_paused(self) -> None:
        """Let users send whose pauses are over by now."""
        while self.next_pause_ms() <= self.now_ms:
            self.send(heappop(self.paused_until_ms))

    def requests_of(self, log: list[Sequence]) -> Requests:
        """Return the requests that were sent, as a table."""
        return self.feed.head(len(log))
