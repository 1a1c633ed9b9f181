"""One level of load in virtual time: the engine's actions and the clock between them, whoever sends.

Clients of today's engines see tokens later than the engine makes them (`FirstToken`): all of an answer by as
much, so that the gaps between them stay.

Cost grows with the number of requests: a stretch of decode steps is one entry whatever its length, and
token times are expanded from these entries at the end, in numpy. Deterministic: plain arithmetic only,
and every time that leaves this module is rounded to whole microseconds.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmpilot.simulator.scheduling import Action, Outcome, Sequence
from llmpilot.simulator.service import VirtualService
from llmpilot.workload import Requests

if TYPE_CHECKING:
    from llmpilot.simulator.first_token import FirstToken  # it knows operators: slow to import

TPOT_REQUESTS = 100
"""The mean TPOT, of which the first token is late a multiple, is that of about so many requests that ended
last: of the load as it is, and not of the one request's few tokens."""
REFUSED_PAUSE_MS = 100.0
"""How long a user waits whose request was refused at the door, as our client of real services does."""
Times = NDArray[np.int64]


@dataclass(frozen=True)
class SimulatedRequests:
    """What happened to every request, in the order of sending; times in whole microseconds from the start.

    `gap_us` holds the gaps between consecutive tokens of one sequence of each request, back to back;
    request i owns `gap_us[gap_offsets[i]:gap_offsets[i + 1]]`. They are most of what long outputs cost; with
    `gaps=False` there are none. -1 marks a time that never came. Of conversations, `conversation` is whose
    turn it was, `turn` counts from 0, and `cached_tokens` of its prompt were in the prefix cache (-1: it was
    never let in).
    """

    requests: Requests
    sent_us: Times
    first_token_us: Times
    done_us: Times
    outcome: NDArray[np.int64]
    gap_us: Times
    gap_offsets: Times
    conversation: Times | None = None
    turn: Times | None = None
    cached_tokens: Times | None = None


@dataclass
class _Stretches:
    """Runs of decode steps with an unchanged batch: start time, steps, first duration, increment."""

    start_ms: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    increment_ms: list[float] = field(default_factory=list)

    def add(self, now_ms: float, steps: int, action: Action) -> None:
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
        # In the order of Action.duration_ms: the last step ends when the clock says, to the last bit.
        return _microseconds(
            np.asarray(self.start_ms)[stretch] + (done * first + increment * (done * (done - 1) // 2))
        )


class _Late:
    """How late clients see the tokens of each request that ended, beside what passes before the queue."""

    def __init__(self, first_token: "FirstToken | None") -> None:
        self.first_token = first_token
        self.tpot_ms = 0.0
        self.requests = 0

    def end(self, sequence: Sequence) -> None:
        """Note that a request has all its tokens."""
        if self.first_token is None:
            return
        if sequence.output_tokens > 1:
            self.requests += 1
            decoded_ms = sequence.done_ms - sequence.first_token_ms
            tpot_ms = decoded_ms / (sequence.output_tokens - 1)
            self.tpot_ms += (tpot_ms - self.tpot_ms) / min(self.requests, TPOT_REQUESTS)
        sequence.late_ms = self.of(sequence)

    def of(self, sequence: Sequence) -> float:
        """Return how late a request's tokens are, given the TPOT of those that ended last [ms]."""
        if self.first_token is None or sequence.first_token_ms < 0:
            return 0.0
        ttft_ms = sequence.first_token_ms - sequence.enqueued_ms
        return float(self.first_token.later_ms(ttft_ms, self.tpot_ms))


class Run(ABC):
    """One simulated level: clients' sends, the engine's actions, and the virtual clock between them."""

    def __init__(self, service: VirtualService, stop_sending_ms: float, drain_ms: float) -> None:
        self.core = service.core()
        self.overhead_ms = service.request_overhead_ms
        self.late = _Late(service.first_token)
        self.stop_sending_ms, self.deadline_ms = stop_sending_ms, stop_sending_ms + drain_ms
        self.resend_until_ms = 0.0
        self.now_ms = 0.0
        self.awaited = 0  # requests sent before `stop_sending_ms` and not yet ended
        self.log: list[Sequence] = []  # every request, in the order of sending
        self.arrivals: deque[Sequence] = deque()  # sent, and not yet at the engine's door
        self.stretches = _Stretches()

    @abstractmethod
    def go_on(self, sequence: Sequence) -> None:
        """Let the client whose request has ended go on."""

    @abstractmethod
    def next_pause_ms(self) -> float:
        """Return when the next client ends its pause."""

    @abstractmethod
    def resume_paused(self) -> None:
        """Let clients send whose pauses are over by now."""

    @abstractmethod
    def requests_of(self, log: list[Sequence]) -> Requests:
        """Return the requests that were sent, as a table."""

    def dispatch(self, sequence: Sequence, sent_ms: float) -> None:
        """Send a request; calls must not go back in time."""
        sequence.sent_ms = sent_ms
        self.log.append(sequence)
        self.awaited += sent_ms < self.stop_sending_ms
        self.arrivals.append(sequence)

    def to_the_end(self, gaps: bool) -> SimulatedRequests:
        """Run until no awaited request is open, then expand the records."""
        core = self.core
        while (
            self.awaited or self.next_pause_ms() < self.stop_sending_ms
        ) and self.now_ms < self.deadline_ms:
            self._let_in()
            action = core.begin(self.now_ms)
            if action is None:
                if self._next_arrival_ms() == inf:
                    break
                self.now_ms = max(self.now_ms, self._next_arrival_ms())
            else:
                self._let_pass(action)
        return self._records(gaps)

    def _next_arrival_ms(self) -> float:
        arrival_ms = self.arrivals[0].enqueued_ms if self.arrivals else inf
        return min(arrival_ms, self.next_pause_ms())

    def _let_in(self) -> None:
        self.resume_paused()
        arrivals, enqueue = self.arrivals, self.core.enqueue
        while arrivals and arrivals[0].enqueued_ms <= self.now_ms:
            sequence = arrivals.popleft()
            if not enqueue(sequence):
                self._end([sequence], Outcome.TOO_LONG)

    def _let_pass(self, action: Action) -> None:
        steps = action.steps
        if steps > 1:
            until_ms = self.deadline_ms
            if action.waits_for_arrivals:
                until_ms = min(until_ms, self._next_arrival_ms())
            steps = _steps_until(action, until_ms - self.now_ms)
        if action.decodes and steps:
            self.stretches.add(self.now_ms, steps, action)
        self.now_ms += action.duration_ms(steps)
        started, done, lost = self.core.finish(action, steps)
        for sequence in started:
            sequence.started_ms = self.now_ms
            if sequence.first_token_ms < 0:
                sequence.first_token_ms = self.now_ms
        self._end(done, Outcome.OK)
        self._end(lost, Outcome.OUT_OF_MEMORY)

    def _end(self, sequences: list[Sequence], outcome: Outcome) -> None:
        now_ms, step = self.now_ms, self.core.step
        for sequence in sequences:
            sequence.done_ms, sequence.last_step, sequence.outcome = now_ms, step, outcome
            if outcome is Outcome.OK:
                self.late.end(sequence)
            self.awaited -= sequence.sent_ms < self.stop_sending_ms
            if now_ms + max(0.0, sequence.late_ms) >= self.resend_until_ms:
                continue
            self.go_on(sequence)

    def _records(self, gaps: bool) -> SimulatedRequests:
        # What an open loop would have sent after the end was never sent.
        log = [sequence for sequence in self.log if sequence.sent_ms <= self.now_ms]
        first_token_ms = np.array([s.first_token_ms for s in log])
        done_ms = np.array([s.done_ms for s in log])
        outcome = np.array([s.outcome for s in log], dtype=np.int64)
        for sequence in log:
            if sequence.outcome is Outcome.UNFINISHED:
                sequence.last_step = self.core.step
                sequence.late_ms = self.late.of(sequence)
        late_us = _microseconds(np.array([s.late_ms for s in log]))
        gap_us, offsets = np.empty(0, dtype=np.int64), np.zeros(len(log) + 1, dtype=np.int64)
        if gaps:
            gap_us, offsets = _expand_gaps(self.stretches.step_end_us(), log)
        return SimulatedRequests(
            requests=self.requests_of(log),
            sent_us=_microseconds(np.array([s.sent_ms for s in log])),
            first_token_us=np.where(first_token_ms >= 0, _microseconds(first_token_ms) + late_us, -1),
            done_us=np.where(done_ms >= 0, _microseconds(done_ms) + late_us, -1),
            outcome=outcome,
            gap_us=gap_us,
            gap_offsets=offsets,
        )


def _steps_until(action: Action, wait_ms: float) -> int:
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


def _expand_gaps(step_end_us: Times, log: list[Sequence]) -> tuple[Times, Times]:
    """Return the gaps between the tokens of every request [sum of gaps] and where each request's begin.

    A request's tokens come at the end of consecutive decode steps, but for the first of each time that it
    ran, which ends a prefill.
    """
    step_gap_us = np.diff(step_end_us, prepend=0)
    # For each time that a request ran: its first token's time, the decode steps before and with its last.
    rows = [(s.index, s.started_ms, s.first_step, s.last_step) for s in log if s.first_step >= 0]
    again = [(s.index, *run) for s in log if s.earlier for run in s.earlier]
    if again:
        # Sorting is stable, and `again` has each request's runs in order: its last one stays behind them.
        rows = sorted(again + rows, key=lambda row: row[0])
    if not rows:
        return np.empty(0, dtype=np.int64), np.zeros(len(log) + 1, dtype=np.int64)
    index, started_ms, first_step, last_step = (np.array(column) for column in zip(*rows, strict=True))
    started_us, gaps = _microseconds(started_ms), last_step - first_step
    # Sequences of a batch share its steps: a run's gaps are a slice, copied whole and not token by token.
    resumed = np.append(False, index[1:] == index[:-1])
    counts = gaps + resumed
    ends = np.cumsum(counts)
    starts = ends - counts
    gap_us = np.empty(ends[-1], dtype=np.int64)
    for at, step, n in zip((starts + resumed).tolist(), first_step.tolist(), gaps.tolist(), strict=True):
        gap_us[at : at + n] = step_gap_us[step : step + n]
    several = gaps > 0
    gap_us[(starts + resumed)[several]] = step_end_us[first_step[several]] - started_us[several]
    if again:
        last_token_us = started_us.copy()
        last_token_us[several] = step_end_us[last_step[several] - 1]
        gap_us[starts[resumed]] = (started_us - np.roll(last_token_us, 1))[resumed]
    offsets = np.zeros(len(log) + 1, dtype=np.int64)
    np.add.at(offsets, index + 1, counts)
    return gap_us, np.cumsum(offsets)


def _microseconds(ms: NDArray[np.float64]) -> Times:
    return np.rint(ms * 1000.0).astype(np.int64)
