"""When tokens are made: by a simulated engine's core on the real clock, or at fixed times.

Of what clients see beside queue and prefill (`simulator.first_token`), a simulated engine imitates
`offset_ms` alone: its first tokens come at once when their prefill has ended, where those of
`task=characterize` come some tokens' time later, as those of published measurements do.

Both pace themselves by the time at which a step was due, not by when it was done, so that being late once
does not make everything after it late. Neither knows HTTP.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from enum import IntEnum, auto
from heapq import heappop, heappush
from time import monotonic_ns
from typing import Protocol

from llmpilot.emulator.alarm import Alarm
from llmpilot.emulator.answer import Stream, emit_all
from llmpilot.emulator.options import FixedTiming
from llmpilot.emulator.prefixes import KeptPrefixes, Words
from llmpilot.simulator import VirtualService
from llmpilot.simulator.scheduling import Action, Sequence
from llmpilot.simulator.tgis import TgisCore

SLIP_NS = 50_000_000
"""Further behind than this, a schedule starts anew from now: the machine cannot keep it."""
MAX_LEAD = 8
"""A burst of writes begins at most a step's eighth before it is due."""
OUT_OF_MEMORY = "CUDA out of memory. (emulated: the batch outgrew the memory of the GPU profile)"
TOO_HEAVY = "the request is heavier than the largest batch"


class Engine(Protocol):
    """Makes the tokens of streams; `slips` counts how often it could not keep its own pace, `preemptions` how
    often a sequence lost its place."""

    slips: int
    preemptions: int

    def submit(self, stream: Stream, arrived_ns: int) -> None:
        """Take a stream whose request arrived at `arrived_ns`."""
        ...

    def cancel(self, stream: Stream) -> None:
        """Forget a stream: its place is free."""
        ...

    def gauges(self) -> tuple[int, int, float]:
        """Return sequences running, sequences waiting, and the share of the KV cache in use."""
        ...

    def close(self) -> None:
        """Stop, and free the clock."""
        ...


class Place(IntEnum):
    """Where in the engine a stream is."""

    DOOR = auto()
    WAITING = auto()  # or being prefilled
    DECODING = auto()
    GONE = auto()


class Ticket(Sequence):
    """A sequence of the core that knows its stream."""

    __slots__ = ("door_ns", "place", "stream")

    def __init__(self, index: int, stream: Stream, door_ns: int, enqueued_ms: float) -> None:
        super().__init__(index, stream.input_tokens, stream.total, stream.copies, enqueued_ms)
        self.content = stream.words()
        self.stream, self.door_ns, self.place = stream, door_ns, Place.DOOR


class BatchingEngine:
    """The simulated service in real time, `speed` times as fast."""

    def __init__(
        self,
        service: VirtualService,
        speed: float,
        out_of_memory_above_weight: int | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.slips = self.preemptions = 0
        self._core = service.core()
        self._kv_capacity_tokens = service.kv_capacity_tokens
        self._ns_per_ms = 1e6 / speed
        self._overhead_ns = int(service.request_overhead_ms * self._ns_per_ms)
        self._out_of_memory_above = out_of_memory_above_weight
        self._door: deque[Ticket] = deque()
        self._live: list[Stream] = []
        self._action: Action | None = None
        self._due_ns = self._write_ns = 0
        self._busy = False
        self._count = 0
        self._alarm = Alarm(loop, self._ring)

    def submit(self, stream: Stream, arrived_ns: int) -> None:
        """Take a stream in; it is queued after the service's overhead."""
        door_ns = arrived_ns + self._overhead_ns
        self._count += 1
        stream.ticket = Ticket(self._count, stream, door_ns, door_ns / self._ns_per_ms)
        self._door.append(stream.ticket)
        if self._action is None and not self._busy and len(self._door) == 1:
            self._alarm.set(door_ns)

    def cancel(self, stream: Stream) -> None:
        """Forget a stream, wherever it is."""
        ticket: Ticket = stream.ticket
        if ticket.place in (Place.WAITING, Place.DECODING):
            self._core.leave(ticket)
        if ticket.place is Place.DECODING:
            self._live = [other for other in self._live if other is not stream]
        ticket.place = Place.GONE

    def gauges(self) -> tuple[int, int, float]:
        """Return sequences running and waiting, and the share of the KV cache in use."""
        running, waiting, kv_tokens = self._core.gauges()
        waiting += sum(ticket.copies for ticket in self._door)
        return running, waiting, min(1.0, kv_tokens / max(1, self._kv_capacity_tokens))

    def close(self) -> None:
        """Stop, and free the clock."""
        self._alarm.close()

    def _ring(self) -> None:
        self._busy = True
        action, due_ns = self._action, self._due_ns
        if action is not None:
            self._finish(action, due_ns)
        else:
            due_ns = self._door[0].door_ns if self._door else monotonic_ns()
        now_ns = monotonic_ns()
        if now_ns - due_ns > SLIP_NS:
            self.slips += 1
            due_ns = now_ns
        self._begin(due_ns)
        self._busy = False
        for stream in self._live:
            stream.prepare()

    def _finish(self, action: Action, due_ns: int) -> None:
        if action.decodes and action.steps:
            self._learn(emit_all(self._live, due_ns))
        started, done, lost = self._core.finish(action, min(1, action.steps))
        for ticket in _tickets(done):
            ticket.place = Place.GONE
        for ticket in _tickets(started):
            if ticket.place is not Place.GONE:
                ticket.place = Place.DECODING
                self._live.append(ticket.stream)
            ticket.stream.found(ticket.hits // ticket.copies)
            ticket.stream.emit(due_ns)
        self._fail([ticket for ticket in _tickets(lost) if ticket.place is not Place.GONE])
        if done:
            self._drop_dead()

    def _drop_dead(self) -> None:
        self._live = [stream for stream in self._live if stream.ticket.place is Place.DECODING]

    def _begin(self, now_ns: int) -> None:
        """Let in who has arrived by `now_ns`, start what the core says, and set the alarm for its end."""
        while True:
            self._let_in(now_ns)
            action = self._core.begin(now_ns / self._ns_per_ms)
            if action is None or action.steps:
                break
            self._finish(action, now_ns)  # memory ran out before the first step
        self._action = action
        if action is None:
            if self._door:
                self._alarm.set(self._door[0].door_ns)
            return
        for ticket in _tickets(action.preempted):
            ticket.place = Place.WAITING
        if action.preempted:
            self.preemptions += len(action.preempted)
            self._drop_dead()
        limit = self._out_of_memory_above
        if limit is not None and isinstance(self._core, TgisCore) and self._core.heaviest_next() > limit:
            self._action = action._replace(out_of_memory=True)
        step_ns = int(action.first_ms * self._ns_per_ms)
        self._due_ns = now_ns + step_ns
        # Writing to all clients takes its time: begin early, so that the one in the middle is on time.
        writes = action.starts + (len(self._live) if action.decodes else 0)
        self._alarm.set(self._due_ns - min(writes * self._write_ns // 2, step_ns // MAX_LEAD))

    def _learn(self, write_ns: int) -> None:
        """Follow, slowly, how long one write takes."""
        if write_ns:
            self._write_ns += (write_ns - self._write_ns) // 8

    def _let_in(self, now_ns: int) -> None:
        while self._door and self._door[0].door_ns <= now_ns:
            ticket = self._door.popleft()
            if ticket.place is Place.GONE:
                continue
            ticket.place = Place.WAITING
            ticket.stream.prepare()
            if not self._core.enqueue(ticket):
                ticket.place = Place.GONE
                ticket.stream.answer.fail(400, TOO_HEAVY, "too_long")

    def _fail(self, tickets: list[Ticket]) -> None:
        """These ran out of memory and are in the core no more."""
        for ticket in tickets:
            ticket.place = Place.GONE
        if tickets:
            self._drop_dead()
        for ticket in tickets:
            ticket.stream.answer.fail(500, OUT_OF_MEMORY, "out_of_memory")


def _tickets(sequences: Iterable[Sequence]) -> list[Ticket]:
    return [ticket for ticket in sequences if isinstance(ticket, Ticket)]


class FixedEngine:
    """Every stream by itself, at exact distances from its request's arrival.

    With `kept` prefixes, what a cache would hold is told, and changes no time: of a prompt from its first
    token on, and of its answer when that has ended.
    """

    BURST = 512
    """Tokens made in one turn of the event loop at most, so that reading goes on."""

    def __init__(
        self,
        timing: FixedTiming,
        speed: float,
        loop: asyncio.AbstractEventLoop,
        kept: KeptPrefixes | None = None,
    ) -> None:
        self.slips = self.preemptions = 0
        self._ttft_ns = int((timing.ttft_ms or 0.0) * 1e6 / speed)
        self._itl_ns = int((timing.itl_ms or 0.0) * 1e6 / speed)
        self._due: list[tuple[int, int, Stream]] = []
        self._kept = kept
        self._words: dict[Stream, Words] = {}
        self._running = 0
        self._count = 0
        self._alarm = Alarm(loop, self._ring)

    def submit(self, stream: Stream, arrived_ns: int) -> None:
        """Take a stream in; its first token is due at a fixed time from now."""
        self._count += 1
        self._running += stream.copies
        stream.ticket = stream.copies
        if self._kept is not None:
            words = self._words[stream] = stream.words()
            stream.found(self._kept.find(words, stream.input_tokens))
        stream.prepare()
        due_ns = arrived_ns + self._ttft_ns
        heappush(self._due, (due_ns, self._count, stream))
        if self._due[0][1] == self._count:
            self._alarm.set(due_ns)

    def cancel(self, stream: Stream) -> None:
        """Forget a stream."""
        self._running -= stream.ticket
        stream.ticket = 0
        self._keep(stream)

    def gauges(self) -> tuple[int, int, float]:
        """Return sequences running; nobody waits here, and there is no KV cache."""
        return self._running, 0, 0.0

    def close(self) -> None:
        """Stop, and free the clock."""
        self._alarm.close()

    def _ring(self) -> None:
        due, now_ns = self._due, monotonic_ns()
        went_on: list[Stream] = []
        ended: list[Stream] = []
        for _ in range(self.BURST):
            if not due or due[0][0] > now_ns:
                break
            due_ns, count, stream = heappop(due)
            if not stream.ticket:  # its client went away
                continue
            stream.emit(due_ns)
            if not stream.ticket:
                continue
            if stream.made == stream.total:
                ended.append(stream)
                continue
            heappush(due, (due_ns + self._itl_ns, count, stream))
            went_on.append(stream)
        for stream in ended:
            self.cancel(stream)
        for stream in went_on:
            stream.prepare()
            if stream.made == 1:
                self._keep(stream)
        if due:
            self._alarm.set(due[0][0])

    def _keep(self, stream: Stream) -> None:
        words = self._words.get(stream) if stream.ticket else self._words.pop(stream, None)
        if self._kept is None or words is None or not stream.made:
            return
        # As in engines, the last token of an answer is sent, and nothing was computed from it.
        self._kept.keep(words, stream.input_tokens + stream.made - 1)
