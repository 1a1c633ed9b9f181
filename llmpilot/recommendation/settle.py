"""Which one measurement is worth most: how much better the choice would be with it, before it is made.

The value of information, from the joint draws of what pods take: each draw in turn is taken for the truth of
what a run on one option would show, all draws are conditioned on that, and one chooses again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu
from llmpilot.predict.decision import decide
from llmpilot.recommendation.answer import NextMeasurement
from llmpilot.recommendation.question import Choosing

Floats = NDArray[np.float64]
Chosen = tuple[int, int] | None
"""An option and its pods; None: nothing will do."""

OUTCOMES = 24
"""Outcomes that are tried for each measurement."""
RIVALS = 16
"""Options that may be chosen: those that are most often within NEAR times the least price."""
NEAR = 2.0
NOISE = 0.04
"""Standard deviation, in logs, between two runs of the same service."""
CANDIDATES = 14
"""Measurements that are weighed against each other, at most."""
RUN_HOURS = 0.4
"""A characterization: the image is pulled, weights are loaded (5 minutes), and eight levels of 130 s."""


@dataclass(frozen=True)
class Stakes:
    """What is chosen among: the price of a pod of each option [$ per hour], the load to carry, the risk, and
    how many pods of each option there may be (None: any number)."""

    prices: Floats
    load: float
    risk: float | None = None
    most_pods: Floats | None = None

    def among(self, options: Sequence[int]) -> "Stakes":
        """Return the same of some options only."""
        kept = list(options)
        most = None if self.most_pods is None else self.most_pods[kept]
        return replace(self, prices=self.prices[kept], most_pods=most)

    def choice(self, capacity: Floats) -> Chosen:
        """Return what is chosen by what pods take in each draw [draws, options]."""
        found = decide(capacity, self.prices, self.load, self.risk, self.most_pods)
        return None if found.best is None else (found.best, int(found.pods[found.best]))

    def costs(self, capacity: Floats) -> Floats:
        """Return the price of what suffices of each option in each draw [draws, options]; inf: nothing."""
        with np.errstate(divide="ignore"):
            pods = np.ceil(self.load / np.where(capacity > 0, capacity, np.nan))
        possible = np.isfinite(pods)
        if self.most_pods is not None:
            possible &= pods <= self.most_pods
        return np.asarray(np.where(possible, pods * self.prices, np.inf))

    def loss(self, choice: Chosen, capacity: Floats) -> float:
        """Return the mean loss of a choice over the draws [$ per hour]."""
        best = self.costs(capacity).min(axis=1)
        possible = np.isfinite(best)
        if choice is None:
            return float(np.where(possible, best, 0.0).mean())
        option, pods = choice
        cost = pods * self.prices[option]
        kept = pods * capacity[:, option] >= self.load
        broken = np.where(possible, best, cost)
        return float(np.where(kept, cost - np.where(kept, best, 0.0), broken).mean())


@dataclass(frozen=True)
class Worth:
    """What measuring one option is worth: `gain` saved in expectation [$ per hour of serving], `settles` the
    share of its possible outcomes that change the choice."""

    option: int
    gain: float
    settles: float


def worth_of_measuring(capacity: Floats, stakes: Stakes, measured: Sequence[int]) -> list[Worth]:
    """Return what a measurement of each of the options in `measured` is worth, in their order.

    A choice that carries the load loses what it costs more than the best one; one that does not, or no choice
    where there is one, loses as much as paying the best one twice.
    """
    now = stakes.choice(capacity)
    rivals = _rivals(capacity, stakes, None if now is None else now[0])
    theirs = stakes.among(rivals)
    first = theirs.choice(capacity[:, rivals])
    found = []
    for option in measured:
        gained, changed = 0.0, 0
        for moved in _after_measuring(capacity, option, rivals):
            then = theirs.choice(moved)
            if then != first:
                gained += theirs.loss(first, moved) - theirs.loss(then, moved)
                changed += 1
        found.append(Worth(option, max(0.0, gained / OUTCOMES), changed / OUTCOMES))
    return found


def settled_by(
    worth: Sequence[Worth],
    profiles: Sequence[Gpu],
    choosing: Choosing,
    command: Callable[[int], str] | None = None,
) -> NextMeasurement:
    """Return the measurement that is worth most beyond its own cost, or why there is none.

    `command` says how an option is measured.
    """

    def net(one: Worth) -> float:
        return one.gain * choosing.hours - RUN_HOURS * profiles[one.option].cost_per_hour

    best = max(worth, key=net, default=None)
    if best is None or net(best) <= 0:
        return NextMeasurement(
            "nothing that one more run could show is expected to pay for it: the choice is settled"
        )
    profile = profiles[best.option]
    cost = RUN_HOURS * profile.cost_per_hour
    return NextMeasurement(
        f"a characterization on {profile.label} costs about ${cost:,.2f} and is expected to save "
        f"${best.gain:,.2f} an hour, for {choosing.hours:g} hours; {best.settles:.0%} of what it may show "
        "changes the choice",
        profile,
        best.gain,
        cost,
        None if command is None else command(best.option),
    )


def _after_measuring(capacity: Floats, option: int, rivals: Sequence[int]) -> list[Floats]:
    """Return the rivals' capacities [draws, rivals] after each of several outcomes of measuring an option.

    Where it is found to take nothing, the draws in which it does are left. Else the others are, conditioned
    as an ensemble Kalman filter does it: each moves by the regression of all log capacities on the measured
    one, times how far its own measurement, with noise, is from the outcome.
    """
    takes = capacity[:, option] > 0
    count = round(OUTCOMES * float(takes.mean()))
    after = [capacity[~takes][:, rivals]] * (OUTCOMES - count)
    if not count:
        return after
    capacity = capacity[takes]
    noise = NOISE * np.random.default_rng(0).standard_normal(len(takes))[takes]
    seen = np.log(capacity[:, option]) + noise
    none = capacity[:, rivals] <= 0
    wanted = np.log(np.where(none, 1.0, capacity[:, rivals]))
    spread = seen - seen.mean()
    regression = (spread @ (wanted - wanted.mean(axis=0))) / max(float(spread @ spread), 1e-12)
    outcomes = np.sort(seen)[np.linspace(0, len(seen) - 1, count).astype(int)]
    return after + [
        np.where(none, 0.0, np.exp(wanted + (outcome - seen)[:, None] * regression[None]))
        for outcome in outcomes
    ]


def _rivals(capacity: Floats, stakes: Stakes, chosen: int | None) -> list[int]:
    costs = stakes.costs(capacity)
    with np.errstate(invalid="ignore"):
        near = (costs <= NEAR * costs.min(axis=1, keepdims=True)) & np.isfinite(costs)
    share = near.mean(axis=0)
    if chosen is not None:
        share[chosen] = 1.0
    return sorted(np.argsort(-share, kind="stable")[:RIVALS].tolist())
