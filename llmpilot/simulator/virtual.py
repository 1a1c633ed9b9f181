"""A service under load in virtual time: the clock jumps over stretches in which the batch does not change.

Cost grows with the number of requests: a stretch of decode steps is one entry whatever its length, and
token times are expanded from these entries at the end, in numpy. Deterministic: plain arithmetic only,
and every time that leaves this module is rounded to whole microseconds.
"""

from collections import deque
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmpilot.simulator.batching import Batcher, Decode, Outcome, Sequence
from llmpilot.simulator.service import VirtualService
from llmpilot.workload import Requests, concatenate

CHUNK = 4096
REFUSED_PAUSE_MS = 100.0
"""How long a user waits whose request was refused at the door, as our client of real services does."""
Times = NDArray[np.int64]


class RequestSource(Protocol):
    """An endless or long enough stream of requests."""

    def take(self, n: int) -> Requests:
        """Return the next `n` requests, or fewer where the source ends."""
        ...


@dataclass(frozen=True)
class SimulatedRequests:
    """What happened to every request, in the order of sending; times in whole microseconds from the start.

    `gap_us` holds the gaps between consecutive tokens of one sequence of each request, back to back;
    request i owns `gap_us[gap_offsets[i]:gap_offsets[i + 1]]`. -1 marks a time that never came.
    """

    requests: Requests
    sent_us: Times
    first_token_us: Times
    done_us: Times
    outcome: NDArray[np.int64]
    gap_us: Times
    gap_offsets: Times


def simulate_closed(
    service: VirtualService,
    requests: RequestSource,
    users: int,
    stop_sending_ms: float,
    drain_ms: float,
    *,
    keep_load: bool = True,
) -> SimulatedRequests:
    """Simulate `users` clients of which each sends its next request as soon as the last one ended.

    Users keep the load up until every request sent before `stop_sending_ms` has ended, or `drain_ms` more
    have passed; what is open then is UNFINISHED. Without `keep_load` they send nothing after
    `stop_sending_ms`.
    """
    run = _Run(service, _Feed(requests), stop_sending_ms, drain_ms)
    for _ in range(users):
        run.send(0.0)
    run.resend_until_ms = inf if keep_load else stop_sending_ms
    return run.to_the_end()


def simulate_open(
    service: VirtualService,
    requests: RequestSource,
    arrivals_ms: NDArray[np.float64],
    stop_sending_ms: float,
    drain_ms: float,
) -> SimulatedRequests:
    """Simulate requests that are sent at `arrivals_ms` [n], whatever the service does."""
    run = _Run(service, _Feed(requests), stop_sending_ms, drain_ms)
    for arrival_ms in sorted(arrivals_ms.tolist()):
        run.send(arrival_ms)
    return run.to_the_end()


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


@dataclass
class _Stretches:
    """Runs of decode steps with an unchanged batch: start time, steps, first duration, increment."""

    start_ms: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    increment_ms: list[float] = field(default_factory=list)

    def add(self, now_ms: float, steps: int, action: Decode) -> None:
        self.start_ms.append(now_ms)
        self.steps.append(steps)
        self.first_ms.append(action.first_ms)
        self.increment_ms.append(action.increment_ms)

    def step_end_us(self) -> Times:
        """Return when every decode step ended [total steps], in whole microseconds."""
        steps = np.asarray(self.steps, dtype=np.int64)
        stretch = np.repeat(np.arange(len(steps)), steps)
        done = np.arange(1, len(stretch) + 1) - (np.cumsum(steps) - steps)[stretch]
        first = np.asarray(self.first_ms)[stretch]
        increment = np.asarray(self.increment_ms)[stretch]
        ends = np.asarray(self.start_ms)[stretch] + done * first + increment * (done * (done - 1) // 2)
        return _microseconds(ends)


class _Run:
    """One simulated level: clients' sends, the engine's actions, and the virtual clock between them."""

    def __init__(self, service: VirtualService, feed: _Feed, stop_sending_ms: float, drain_ms: float) -> None:
        self.batcher = Batcher(service.rule, service.step_times, service.kv_capacity_tokens)
        self.feed = feed
        self.overhead_ms = service.request_overhead_ms
        self.stop_sending_ms, self.deadline_ms = stop_sending_ms, stop_sending_ms + drain_ms
        self.resend_until_ms = 0.0
        self.now_ms = 0.0
        self.awaited = 0  # requests sent before `stop_sending_ms` and not yet ended
        self.log: list[Sequence] = []  # every request, in the order of sending
        self.arrivals: deque[Sequence] = deque()  # sent, and not yet at the engine's door
        self.paused_until_ms: deque[float] = deque()  # users whose request was refused
        self.stretches = _Stretches()

    def send(self, sent_ms: float) -> None:
        """Let a client send the next request of the stream; calls must not go back in time."""
        index = len(self.log)
        sequence = Sequence(index, *self.feed.get(index), sent_ms + self.overhead_ms)
        sequence.sent_ms = sent_ms
        self.log.append(sequence)
        self.awaited += sent_ms < self.stop_sending_ms
        self.arrivals.append(sequence)

    def to_the_end(self) -> SimulatedRequests:
        """Run until no awaited request is open, then expand the records."""
        batcher = self.batcher
        while (
            self.awaited or self._next_pause_ms() < self.stop_sending_ms
        ) and self.now_ms < self.deadline_ms:
            self._let_in()
            action = batcher.next_action(self.now_ms)
            if action is None:
                if self._next_arrival_ms() == inf:
                    break
                self.now_ms = max(self.now_ms, self._next_arrival_ms())
            elif isinstance(action, Decode):
                self._decode(action)
            else:
                self.now_ms += action.duration_ms
                if action.out_of_memory:
                    batcher.drop_prefill()
                    self._end(action.sequences, Outcome.OUT_OF_MEMORY)
                    continue
                for sequence in action.sequences:
                    sequence.first_token_ms = self.now_ms
                self._end(batcher.finish_prefill(action), Outcome.OK)
        return self._records()

    def _next_pause_ms(self) -> float:
        return self.paused_until_ms[0] if self.paused_until_ms else inf

    def _next_arrival_ms(self) -> float:
        arrival_ms = self.arrivals[0].enqueued_ms if self.arrivals else inf
        return min(arrival_ms, self._next_pause_ms())

    def _resume_paused(self) -> None:
        while self._next_pause_ms() <= self.now_ms:
            self.send(self.paused_until_ms.popleft())

    def _let_in(self) -> None:
        self._resume_paused()
        arrivals, enqueue = self.arrivals, self.batcher.enqueue
        while arrivals and arrivals[0].enqueued_ms <= self.now_ms:
            sequence = arrivals.popleft()
            if not enqueue(sequence):
                self._end([sequence], Outcome.TOO_LONG)

    def _decode(self, action: Decode) -> None:
        steps = _steps_until(action, min(self._next_arrival_ms(), self.deadline_ms) - self.now_ms)
        if steps:
            self.stretches.add(self.now_ms, steps, action)
            self.now_ms += action.duration_ms(steps)
            self._end(self.batcher.finish_decode(steps), Outcome.OK)
        if action.out_of_memory and steps == action.steps:
            self._end(self.batcher.lose_batch(), Outcome.OUT_OF_MEMORY)

    def _end(self, sequences: list[Sequence], outcome: Outcome) -> None:
        now_ms, step = self.now_ms, self.batcher.step
        for sequence in sequences:
            sequence.done_ms, sequence.last_step, sequence.outcome = now_ms, step, outcome
            self.awaited -= sequence.sent_ms < self.stop_sending_ms
            if now_ms >= self.resend_until_ms:
                continue
            if outcome is Outcome.TOO_LONG:
                self.paused_until_ms.append(now_ms + REFUSED_PAUSE_MS)
            else:
                self._resume_paused()
                self.send(now_ms)

    def _records(self) -> SimulatedRequests:
        # What an open loop would have sent after the end was never sent.
        log = [sequence for sequence in self.log if sequence.sent_ms <= self.now_ms]
        step_end_us = self.stretches.step_end_us()
        first_token_ms = np.array([s.first_token_ms for s in log])
        done_ms = np.array([s.done_ms for s in log])
        first_token_us = _microseconds(first_token_ms)
        started = first_token_ms >= 0
        outcome = np.array([s.outcome for s in log], dtype=np.int64)
        first_step = np.array([max(s.first_step, 0) for s in log], dtype=np.int64)
        last_step = np.array([s.last_step for s in log], dtype=np.int64)
        last_step = np.where(outcome == Outcome.UNFINISHED, self.batcher.step, last_step)
        gaps = np.where(started, last_step - first_step, 0)
        gap_us, offsets = _expand_gaps(step_end_us, first_token_us, first_step, gaps)
        return SimulatedRequests(
            requests=self.feed.head(len(log)),
            sent_us=_microseconds(np.array([s.sent_ms for s in log])),
            first_token_us=np.where(started, first_token_us, -1),
            done_us=np.where(done_ms >= 0, _microseconds(done_ms), -1),
            outcome=outcome,
            gap_us=gap_us,
            gap_offsets=offsets,
        )


def _steps_until(action: Decode, wait_ms: float) -> int:
    """Return after how many steps the time `wait_ms` from now has been reached, at most `action.steps`."""
    if action.duration_ms(action.steps) <= wait_ms:
        return action.steps
    half = action.increment_ms / 2
    linear = action.first_ms - half
    if half > 0:
        guess = int((sqrt(linear * linear + 4 * half * max(0.0, wait_ms)) - linear) / (2 * half))
    else:
        guess = int(wait_ms / linear)
    steps = max(1, min(guess, action.steps))
    while steps < action.steps and action.duration_ms(steps) < wait_ms:
        steps += 1
    while steps > 1 and action.duration_ms(steps - 1) >= wait_ms:
        steps -= 1
    return steps


def _expand_gaps(
    step_end_us: Times, first_token_us: Times, first_step: Times, gaps: Times
) -> tuple[Times, Times]:
    """Return the gaps between the tokens of every request [sum of gaps] and where each request's begin."""
    offsets = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    step_gap_us = np.diff(step_end_us, prepend=0)
    # Sequences of a batch share its steps: a request's gaps are a slice, copied whole and not token by token.
    parts = [step_gap_us[at : at + n] for at, n in zip(first_step.tolist(), gaps.tolist(), strict=True) if n]
    gap_us = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    several = gaps > 0
    gap_us[offsets[:-1][several]] = step_end_us[first_step[several]] - first_token_us[several]
    return gap_us, offsets


def _microseconds(ms: NDArray[np.float64]) -> Times:
    return np.rint(ms * 1000.0).astype(np.int64)
