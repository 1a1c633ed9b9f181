"""What to try next, and when to stop: pure functions of the trials there are. Knows nothing of Optuna.

Four stages: bisection for the largest weight that survives; repeats there, which give the noise; TPE below
it; repeats of what is too close to call. Every decision follows from the trials alone, so that a killed
study goes on where it was and several workers need no other agreement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite, log, sqrt
from statistics import fmean, stdev
from typing import Final, Literal

from llmpilot.tune.settings import COST, Tuner

Question = Literal["feasible", "best", "repeat"]
FEASIBLE: Final = "feasible"
BEST: Final = "best"
REPEAT: Final = "repeat"
NOISE_WIDTH = 2.0  # standard deviations within which two figures are taken for equal


@dataclass(frozen=True)
class Bounds:
    """Between which weights the answer lies [tokens], both included.

    Services differ from one multiple of `step` to the next (a slot of llama.cpp, a block of vLLM).
    """

    lower: int
    upper: int
    step: int = 1

    def snap(self, weight: int) -> int:
        """Return `weight`, or the last one below it that is served differently from its neighbours."""
        return max(self.lower, weight // self.step * self.step)


@dataclass(frozen=True)
class Seen:
    """A trial as the plan needs it; `feasible` None while it runs.

    A value counts as the objective's only where the measurement was `whole`; `ladder` holds those on the way:
    users -> value.
    """

    number: int
    question: Question
    weight: int
    seed: int
    feasible: bool | None
    reason: str | None = None
    value: float | None = None
    whole: bool = True
    ladder: Mapping[int, float] = field(default_factory=dict)

    @property
    def settles(self) -> bool:
        """Whether its weight needs no other whole measurement with its seed."""
        if self.feasible is None:
            return self.question != FEASIBLE
        return self.whole or not self.feasible or self.question != FEASIBLE


@dataclass(frozen=True)
class Step:
    """The next trial; a weight of None is the sampler's to propose."""

    question: Question
    weight: int | None
    seed: int


@dataclass(frozen=True)
class Wait:
    """What comes next depends on trials that other workers run now."""


@dataclass(frozen=True)
class Stop:
    """The search is over, and why."""

    because: str


@dataclass(frozen=True)
class Answer:
    """The chosen weight (None: nothing is feasible), the objective's mean there, and the noise of it.

    `noise` is one standard deviation relative to the mean, over seeds; None before there were repeats.
    """

    weight: int | None
    value: float | None
    noise: float | None


def boundary(seen: Sequence[Seen]) -> tuple[int | None, int | None]:
    """Return the largest weight that survived and the smallest that did not.

    A weight above one that failed is not trusted, whatever it did.
    """
    failed = min((s.weight for s in seen if s.feasible is False), default=None)
    held = [s.weight for s in seen if s.feasible and (failed is None or s.weight < failed)]
    return max(held, default=None), failed


def lowest_running(seen: Sequence[Seen], bounds: Bounds) -> bool:
    """Whether the lowest weight is being tested now."""
    return any(s.feasible is None and s.weight == bounds.lower for s in seen)


def is_of_the_weight(seen: Sequence[Seen], weight: int) -> bool:
    """Whether a service that does not come up under `weight`, for a reason other than memory, tells of it.

    It does where one came up and held under a smaller weight, and none did under this or a larger one.
    Otherwise the cause is the same for every weight (a missing library, a wrong key), or it has passed.
    """
    held = [s.weight for s in seen if s.feasible]
    return bool(held) and min(held) < weight and max(held) < weight


def next_step(seen: Sequence[Seen], settings: Tuner, bounds: Bounds, seed: int) -> Step | Wait | Stop:
    """Return the next trial to run, or why there is none."""
    held, failed = boundary(seen)
    weight = _bisect(seen, bounds, settings.tolerance, held, failed)
    if weight is not None:
        return Step(FEASIBLE, weight, seed) if weight else Wait()
    if held is None:
        reason = next(s.reason for s in seen if s.feasible is False and s.weight == failed)
        return Stop(f"nothing is feasible: even {bounds.lower:,} tokens fail: {reason}")
    if failed is None:
        found = f"even the upper bound, {bounds.upper:,} tokens, is feasible"
    else:
        found = f"{held:,} tokens are feasible and {failed:,} are not"
    if settings.question == FEASIBLE:
        return Stop(found)

    if (step := _repeat(seen, [held], settings, seed)) is not None:
        return step
    noise = noise_of(seen)
    proposed = [s for s in seen if s.question == BEST]
    idle = _without_gain(seen, noise, settings)
    fresh = any_untested(seen, bounds, held)
    if len(proposed) < settings.trials and idle < settings.patience and fresh:
        return Step(BEST, None, seed)
    if any(s.feasible is None for s in proposed):
        return Wait()
    if (step := _repeat(seen, _contenders(seen, noise, settings), settings, seed)) is not None:
        return step
    if settings.trials == 0:
        return Stop(f"{found}; no trials below it were asked for")
    if idle >= settings.patience:
        ended = f"{idle} proposals in a row gained nothing beyond the noise"
    elif len(proposed) >= settings.trials:
        n = settings.trials
        ended = f"all {n} proposals are measured" if n != 1 else "the one proposal is measured"
    else:
        ended = "every weight that is served differently is measured"
    return Stop(f"{found}; {ended}{f' ({noise:.2%})' if noise is not None else ''}")


def answer(seen: Sequence[Seen], settings: Tuner) -> Answer:
    """Return the best weight so far. Of weights within the noise of the best one, the largest is taken:
    it costs nothing and leaves room for more load."""
    held, _ = boundary(seen)
    if held is None or settings.question == FEASIBLE:
        values = _values(seen).get(held or 0) or _values(seen, parts=True).get(held or 0)
        return Answer(held, fmean(values) if values else None, noise_of(seen))
    noise = noise_of(seen)
    contenders = _contenders(seen, noise, settings)
    if not contenders:
        return Answer(held, None, noise)
    means = {weight: fmean(values) for weight, values in _values(seen).items() if weight in contenders}
    weight = max(_close_to_best(means, (noise or 0.0) / sqrt(settings.repeats), settings))
    return Answer(weight, means[weight], noise)


def noise_of(seen: Sequence[Seen]) -> float | None:
    """Return the standard deviation over seeds relative to the mean, pooled over the repeated weights."""
    spread = [stdev(v) / fmean(v) for v in _values(seen).values() if len(v) > 1 and fmean(v)]
    return sqrt(fmean([s * s for s in spread])) if spread else None


def limit_of(seen: Sequence[Seen], settings: Tuner) -> Callable[[int], float | None]:
    """Return, for each level of a trial's ladder, the cost beyond which it has no hope; None: go on.

    It is compared with the best trial at the same users. The other objectives have one level only, and to
    look at a first part of it on its own costs more than it saves: experiments/07_batch_weight.
    """
    values = _values(seen)
    if settings.prune_beyond is None or settings.objective != COST or not values:
        return lambda _: None
    margin = 1 + settings.prune_beyond + NOISE_WIDTH * (noise_of(seen) or 0.0)
    whole = (s for s in seen if s.feasible and s.whole and s.value is not None and s.weight in values)
    ladder = min(whole, key=lambda s: s.value or 0.0).ladder
    return lambda users: ladder[users] * margin if users in ladder else None


def any_untested(seen: Sequence[Seen], bounds: Bounds, largest: int) -> bool:
    """Whether there is a weight up to `largest` that no settling trial has had."""
    had = {bounds.snap(s.weight) for s in seen if s.settles and s.weight <= largest}
    return len(had) < largest // bounds.step - bounds.lower // bounds.step + 1


def _bisect(
    seen: Sequence[Seen], bounds: Bounds, tolerance: float, held: int | None, failed: int | None
) -> int | None:
    """Return the weight to test, 0 to wait for others, None when the boundary is known.

    Weights that others test now divide the interval too, so every worker takes a gap of its own.
    """
    running = {s.weight for s in seen if s.feasible is None and s.question == FEASIBLE}
    tested = {s.weight for s in seen if s.feasible is not None} | running
    for end in (bounds.lower, bounds.upper):
        if end not in tested and (failed is None or end < failed):
            return end
    if held is None:
        return 0 if running else None
    if failed is None:
        return 0 if bounds.upper in running else None
    if failed / held <= 1 + tolerance or failed - held <= bounds.step:
        return None
    points = sorted({held, failed} | {w for w in running if held < w < failed})
    low, high = max(pairwise(points), key=lambda pair: log(pair[1] / pair[0]))
    if high / low <= 1 + tolerance or high - low <= bounds.step:
        return 0
    middle = bounds.snap(round(sqrt(low * high)))
    return middle if low < middle < high else bounds.snap(low + bounds.step)


def _repeat(seen: Sequence[Seen], weights: Sequence[int], settings: Tuner, seed: int) -> Step | Wait | None:
    """Return the first repeat that one of `weights` still lacks; None when all have theirs."""
    for weight in weights:
        done = {s.seed for s in seen if s.weight == weight and s.settles}
        for repeat in range(settings.repeats):
            if seed + repeat not in done:
                return Step(REPEAT, weight, seed + repeat)
    waiting = any(s.feasible is None and s.weight in weights for s in seen)
    return Wait() if waiting else None


def _values(seen: Sequence[Seen], *, parts: bool = False) -> dict[int, list[float]]:
    """Return weight -> values of what survived; with `parts`, also those of a part of the measurement."""
    values: dict[int, list[float]] = {}
    _, failed = boundary(seen)
    for s in seen:
        if not s.feasible or s.value is None or not (s.whole or parts):
            continue
        if isfinite(s.value) and (failed is None or s.weight < failed):
            values.setdefault(s.weight, []).append(s.value)
    return values


def _contenders(seen: Sequence[Seen], noise: float | None, settings: Tuner) -> list[int]:
    """Return the weights too close to the best one to call, the largest first.

    Only the first seed counts, which every weight was measured with: the same requests for all.
    """
    first = min((s.seed for s in seen), default=0)
    values = _values([s for s in seen if s.seed == first or s.feasible is False])
    close = _close_to_best({weight: fmean(v) for weight, v in values.items()}, noise or 0.0, settings)
    return sorted(close, reverse=True)[: settings.contenders]


def _close_to_best(figures: dict[int, float], noise: float, settings: Tuner) -> list[int]:
    if not figures:
        return []
    best = (max if settings.maximize else min)(figures.values())
    return [w for w, figure in figures.items() if abs(figure - best) <= NOISE_WIDTH * noise * abs(best)]


def _without_gain(seen: Sequence[Seen], noise: float | None, settings: Tuner) -> int:
    """Return how many proposals in a row, up to the last finished one, gained nothing beyond the noise."""
    sign = -1.0 if settings.maximize else 1.0
    record: float | None = None
    idle = 0
    for s in sorted(seen, key=lambda item: (item.question == BEST, item.number)):
        if s.feasible is None:
            continue
        value = None if s.value is None or not s.feasible or not s.whole else sign * s.value
        gained = value is not None and (
            record is None or value < record - NOISE_WIDTH * (noise or 0) * abs(record)
        )
        if value is not None:
            record = value if record is None else min(record, value)
        if s.question == BEST:
            idle = 0 if gained else idle + 1
    return idle
