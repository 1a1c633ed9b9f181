"""The seam between an engine's scheduler, its step times and a clock.

A scheduler knows neither times nor a clock: it is told who arrived and who left, says what the next step
holds, and is told when that step is over. A StepTime (batch.py) says how long the step takes. A core is the
two together: what a clock drives, be it virtual (virtual.py) or real (the emulator's).
"""

from enum import IntEnum
from typing import NamedTuple, Protocol

from llmpilot.simulator.batch import Batch, StepTime
from llmpilot.simulator.prefix_cache import Content

STRAIGHT_STEPS = 64
"""Over so many decode steps the step time is a straight line in the context, whatever the context is; over
more, while the context grows by less than a quarter."""


class Outcome(IntEnum):
    """How a request ended; the name is the failure's kind in reports."""

    OK = 0
    OUT_OF_MEMORY = 1
    TOO_LONG = 2
    UNFINISHED = 3


class Sequence:
    """A request inside the engine: `copies` equal sequences that are admitted and decoded together.

    The times are the clock's notes [ms], -1 for what has not come. The steps count decode steps. Whoever was
    preempted has in `earlier` what came before: for each time that it ran, when its first token came, and
    the decode steps after which it joined and left. Its client sees its tokens `late_ms` after they came.
    With `content`, a prefix cache may know its beginning: `hits` tokens when it was first let in, else -1.
    """

    __slots__ = (
        "blocks",
        "cached",
        "computed",
        "content",
        "copies",
        "done_ms",
        "earlier",
        "enqueued_ms",
        "finish_step",
        "first_step",
        "first_token_ms",
        "generated",
        "hits",
        "index",
        "input_tokens",
        "last_step",
        "late_ms",
        "outcome",
        "output_tokens",
        "sent_ms",
        "started_ms",
        "target",
        "weight",
    )

    def __init__(
        self, index: int, input_tokens: int, output_tokens: int, copies: int, enqueued_ms: float
    ) -> None:
        self.index = index
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.copies = copies
        self.weight = copies * (input_tokens + output_tokens)
        self.enqueued_ms = enqueued_ms
        self.first_step = self.finish_step = self.last_step = -1
        self.sent_ms = self.first_token_ms = self.started_ms = self.done_ms = -1.0
        self.late_ms = 0.0
        self.outcome = Outcome.UNFINISHED
        self.earlier: list[tuple[float, int, int]] | None = None
        self.generated = self.computed = self.cached = self.blocks = 0
        self.target = input_tokens
        self.content: Content | None = None
        self.hits = -1


class Step(NamedTuple):
    """What the engine computes next.

    `steps` such steps may follow each other, more than one only where nothing is prefilled: each decode adds
    a token to its context. `waits_for_arrivals`: somebody who arrives before then is to be let in first.
    `starts` sequences get their first token when it ends. `preempted` lost their places when it was composed,
    and will be prefilled again.
    """

    batch: Batch
    steps: int
    waits_for_arrivals: bool
    starts: int
    preempted: tuple[Sequence, ...]


class Ended(NamedTuple):
    """What a step brought: who got a first token (again, after a preemption) beside those that decoded, who
    has all its tokens, and who was lost as memory ran out."""

    started: list[Sequence]
    done: list[Sequence]
    lost: list[Sequence]


class Gauges(NamedTuple):
    """Sequences that run and that wait, and the KV cache in use [tokens]."""

    running: int
    waiting: int
    kv_tokens: int


class Scheduler(Protocol):
    """An engine's rule of who is in the next step."""

    @property
    def step(self) -> int:
        """How many steps had sequences that decoded."""
        ...

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never be served."""
        ...

    def next_step(self) -> Step | None:
        """Return what the engine computes next, or None when it has nothing to do."""
        ...

    def finish(self, steps: int) -> Ended:
        """Count the first `steps` steps of the last `next_step` as done."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is: its client went away."""
        ...

    def gauges(self) -> Gauges:
        """Return how much runs and waits."""
        ...


class Action(NamedTuple):
    """What the engine does next, with its time: at most `steps` steps, of which number k (from 0) takes
    `first_ms` + k `increment_ms`; `decodes`: running sequences get a token in each. The rest is as in Step.

    With `out_of_memory` memory runs out behind these steps; see Ended.lost.
    """

    steps: int
    first_ms: float
    increment_ms: float
    decodes: bool
    waits_for_arrivals: bool
    starts: int = 0
    preempted: tuple[Sequence, ...] = ()
    out_of_memory: bool = False

    def duration_ms(self, steps: int) -> float:
        """Return how long the first `steps` steps take."""
        return steps * self.first_ms + self.increment_ms * (steps * (steps - 1) // 2)


class Core(Protocol):
    """An engine as a clock sees it: scheduler and step times together."""

    @property
    def step(self) -> int:
        """How many steps had sequences that decoded."""
        ...

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never be served."""
        ...

    def begin(self, now_ms: float) -> Action | None:
        """Return what the engine does from `now_ms` on, or None when it has nothing to do."""
        ...

    def finish(self, action: Action, steps: int) -> Ended:
        """Count the first `steps` steps of an action as done."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is."""
        ...

    def gauges(self) -> Gauges:
        """Return how much runs and waits."""
        ...


class SteppedCore:
    """A scheduler with step times."""

    def __init__(self, scheduler: Scheduler, step_times: StepTime) -> None:
        self.scheduler, self.step_times = scheduler, step_times

    @property
    def step(self) -> int:
        """How many steps had sequences that decoded."""
        return self.scheduler.step

    def begin(self, now_ms: float) -> Action | None:
        """Return what the engine does next, or None when it has nothing to do."""
        step = self.scheduler.next_step()
        if step is None:
            return None
        batch, steps, waits_for_arrivals, starts, preempted = step
        first_ms = self.step_times.step_ms(batch)
        increment_ms = 0.0
        if steps > 1:
            decodes, context, *_ = batch
            steps = min(steps, max(STRAIGHT_STEPS, context // (4 * decodes)))
            last = batch._replace(
                decode_context_tokens=context + (steps - 1) * decodes,
                longest_context_tokens=batch.longest_context_tokens + steps - 1,
            )
            increment_ms = (self.step_times.step_ms(last) - first_ms) / (steps - 1)
        return Action(steps, first_ms, increment_ms, batch.decodes > 0, waits_for_arrivals, starts, preempted)

    def finish(self, action: Action, steps: int) -> Ended:
        """Count the first `steps` steps of an action as done."""
        return self.scheduler.finish(steps)

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never be served."""
        return self.scheduler.enqueue(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is."""
        self.scheduler.leave(sequence)

    def gauges(self) -> Gauges:
        """Return how much runs and waits."""
        return self.scheduler.gauges()
