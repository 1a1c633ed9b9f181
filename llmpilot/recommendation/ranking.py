"""From a prediction to a ranking: on every GPU profile the fewest pods that keep the SLA at a level of risk.

Pure arithmetic on arrays, fast enough to answer each request of a server. Knows nothing of configuration.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu
from llmpilot.predict.decision import Need
from llmpilot.predict.prediction import Draws, Floats, Metric, Prediction

INTERVAL = (0.1, 0.9)
"""Quantiles of the intervals that are stated: 8 of 10 services should lie within."""
LUCK_SEED = 7
"""Of which draw's service loses requests: fixed, so that one prediction gives one ranking."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Option:
    """What one GPU profile comes to.

    Feasible: `pods` pods of it keep the SLA with at least the probability asked for. `users_per_pod` is the
    load that each then has, and `p_sla` and the latencies [ms] hold at that load; `users_max` is what one pod
    could take at this risk. Not feasible: pods and users_per_pod are None, and `p_sla` and the latencies are
    those of a single user; the latencies are None too where the model does not even fit. Intervals hold 80%;
    None from a predictor without uncertainty. `reason` says why it is not the one to take.
    """

    profile: Gpu
    feasible: bool
    p_sla: float
    users_max: int = 0
    pods: int | None = None
    users_per_pod: int | None = None
    nttft_ms: float | None = None
    itl_ms: float | None = None
    nttft_ms_interval: tuple[float, float] | None = None
    itl_ms_interval: tuple[float, float] | None = None
    reason: str = ""

    @property
    def cost_per_hour(self) -> float | None:
        """Price of all pods [$ per hour]; None where no number of pods will do."""
        return None if self.pods is None else self.pods * self.profile.cost_per_hour


@dataclass(frozen=True)
class Ranking:
    """All options, best first: the feasible by price, then the others by how near they come.

    `recommended` is the first, or None with the `reason` why there is none.
    """

    options: tuple[Option, ...]
    recommended: Option | None
    reason: str


def rank(prediction: Prediction, need: Need, risk: float, unfit: Iterable[tuple[Gpu, str]] = ()) -> Ranking:
    """Return the ranking of all profiles: those of the prediction, and the `unfit` with their reasons.

    The one to recommend is the cheapest that keeps the SLA with probability 1 - `risk` or more; of equally
    cheap ones the surest. Between the predicted user counts, latencies are interpolated linearly; a pod never
    gets more users than were predicted.
    """
    keeps = _probability_to_keep(drawn_users_max(prediction, need), prediction.users[-1])
    most = (keeps >= 1 - risk).sum(axis=1)
    pods = -(-need.users // np.maximum(most, 1))
    load = np.where(most > 0, -(-need.users // pods), 1)
    p_sla = keeps[np.arange(len(load)), load - 1]
    feasible = (most > 0).tolist()
    nttft, nttft_intervals = latency_at(load, prediction, "nttft_ms")
    itl, itl_intervals = latency_at(load, prediction, "itl_ms")
    most, pods, load, p_sla = most.tolist(), pods.tolist(), load.tolist(), p_sla.tolist()
    options = [
        Option(
            profile,
            feasible=feasible[p],
            p_sla=p_sla[p],
            users_max=most[p],
            pods=pods[p] if feasible[p] else None,
            users_per_pod=load[p] if feasible[p] else None,
            nttft_ms=nttft[p],
            itl_ms=itl[p],
            nttft_ms_interval=nttft_intervals[p],
            itl_ms_interval=itl_intervals[p],
        )
        for p, profile in enumerate(prediction.profiles)
    ]
    return _in_order(options, [Option(gpu, False, 0.0, reason=why) for gpu, why in unfit], need, risk)


def drawn_users_max(prediction: Prediction, need: Need) -> Ints:
    """Return the most users that a pod takes within the limits in every draw, [draw, profile]; 0 for none.

    That is where the first of its metrics, going up, leaves its limit. Without draws, the prediction itself
    is the only one.
    """
    draws = prediction.draws or Draws(prediction.nttft_ms[None], prediction.itl_ms[None])
    shape = draws.logs("itl_ms").shape
    reached = np.full(shape[:2], float(prediction.users[-1]))
    metrics: tuple[tuple[Metric, float], ...] = (("nttft_ms", need.nttft_ms), ("itl_ms", need.itl_ms))
    for metric, limit in metrics:
        if isfinite(limit):
            limits = np.broadcast_to(np.log(limit), shape[:2])
            reached = np.minimum(reached, _crossing(draws.logs(metric), limits, prediction.users, np.exp))
    if need.count_failures and prediction.failing is not None:
        failing = _crossing(prediction.failing[None], _luck(*shape[:2]), prediction.users, np.asarray)
        reached = np.minimum(reached, failing)
    # A hair more, so that rounding never makes n - 1 of n.
    return np.floor(reached * (1 + 1e-9)).astype(np.int64)


@cache
def _luck(draws: int, profiles: int) -> Floats:
    """Return one even spread of probabilities a profile over the draws, [draw, profile].

    A service that loses requests under some load loses them under more. Without draws it is at 1/2.
    """
    even = np.tile((np.arange(draws)[:, None] + 0.5) / draws, profiles)
    return np.random.default_rng(LUCK_SEED).permuted(even, axis=0)


def _crossing(
    values: Floats, limits: Floats, users: Sequence[int], unit: Callable[[Floats], Floats]
) -> Floats:
    """Return the users at which `values` [draw, profile, users] first exceed `limits`, [draw, profile].

    Values that are the same in every draw may have a first axis of one.
    0 where the first already does, the last where none does. Between two user counts the straight line
    decides, drawn in the unit that `unit` turns values and limits into: a batch's latency grows by as much
    with every sequence in it.
    """
    counts = np.asarray(users, dtype=float)
    within, steps = np.ones(limits.shape, dtype=bool), np.zeros(limits.shape, dtype=np.int16)
    for level in range(len(users)):
        within &= ~(values[:, :, level] > limits)
        steps += within
    crossed = np.where(within, counts[-1], 0.0).ravel()
    between = np.flatnonzero((steps > 0) & ~within)
    right = steps.ravel()[between].astype(np.int64)
    rows = values.reshape(-1, len(users))
    flat, place = rows.reshape(-1), between % len(rows) * len(users) + right
    below, above = unit(flat[place - 1]), unit(flat[place])
    share = (unit(limits.ravel()[between]) - below) / (above - below)
    crossed[between] = counts[right - 1] + share * (counts[right] - counts[right - 1])
    return crossed.reshape(limits.shape)


def _probability_to_keep(most: Ints, largest: int) -> Floats:
    """Return the share of draws in which a pod takes 1, 2, ... `largest` users, [profile, users]."""
    draws, profiles = most.shape
    flat = most + np.arange(profiles) * (largest + 1)
    counts = np.bincount(flat.ravel(), minlength=profiles * (largest + 1)).reshape(profiles, largest + 1)
    return np.asarray(counts[:, :0:-1].cumsum(axis=1)[:, ::-1] / draws, dtype=float)


def latency_at(
    load: Ints, prediction: Prediction, metric: Metric, profiles: Ints | None = None
) -> tuple[list[float], list[tuple[float, float] | None]]:
    """Return the latencies [ms] of `profiles` [n], indices, or of all, each under its `load` [n] in users.

    With each goes the interval that holds 80% of the draws, where there are draws. Linear between the user
    counts of the prediction.
    """
    users = np.asarray(prediction.users, dtype=float)
    right = np.clip(np.searchsorted(users, load), min(1, len(users) - 1), len(users) - 1)
    left = np.maximum(right - 1, 0)
    share = (load - users[left]) / np.where(right > left, users[right] - users[left], 1.0)
    which = np.arange(len(load)) if profiles is None else profiles

    def between(low: Floats, high: Floats) -> Floats:
        return np.asarray(low + share * (high - low))

    median = getattr(prediction, metric)
    middle = between(median[which, left], median[which, right]).tolist()
    if prediction.draws is None:
        return middle, [None] * len(middle)
    logs = prediction.draws.logs(metric)
    drawn = between(np.exp(logs[:, which, left]), np.exp(logs[:, which, right]))
    return middle, _intervals(np.ascontiguousarray(drawn.T))


def _intervals(drawn: Floats) -> list[tuple[float, float] | None]:
    """Return the quantiles INTERVAL of each row as np.quantile does, which is slower than to sort."""
    rows = np.sort(drawn, axis=1)
    places = np.asarray(INTERVAL) * (rows.shape[1] - 1)
    first = places.astype(int)
    low, high = rows[:, first], rows[:, np.minimum(first + 1, rows.shape[1] - 1)]
    return [(one, other) for one, other in (low + (places - first) * (high - low)).tolist()]


# --- the order, and the reasons --------------------------------------------------------------------------


def _in_order(options: list[Option], unfit: list[Option], need: Need, risk: float) -> Ranking:
    feasible = sorted((o for o in options if o.feasible), key=lambda o: (_rounded_cost(o), -o.p_sla))
    slow = sorted((o for o in options if not o.feasible), key=lambda o: -o.p_sla)
    slow = [_because(option, _too_slow(option, need)) for option in slow]
    if feasible:
        best = feasible[0]
        dear = [_because(option, _too_dear(option, best)) for option in feasible[1:]]
        return Ranking((best, *dear, *slow, *unfit), best, "")
    wanted = f"no GPU profile keeps the SLA with a probability of {1 - risk:.0%} or more"
    if slow:
        nearest = f"nearest comes {slow[0].profile.label}, {slow[0].reason.removeprefix('too slow: ')}"
    else:
        nearest = "the model fits on none of them"
    return Ranking((*slow, *unfit), None, f"{wanted}: {nearest}")


def _because(option: Option, reason: str) -> Option:
    """Return the option with its reason: a third of what dataclasses.replace takes."""
    return Option(**(vars(option) | {"reason": reason}))


def _rounded_cost(option: Option) -> float:
    """Return the price of all pods; what is below a hundredth of a cent is rounding and makes none dearer."""
    assert option.cost_per_hour is not None
    return round(option.cost_per_hour, 4)


def _too_dear(option: Option, best: Option) -> str:
    cost, least = option.cost_per_hour, best.cost_per_hour
    assert cost is not None
    assert least is not None
    if _rounded_cost(option) == _rounded_cost(best):
        than = "but less sure" if option.p_sla < best.p_sla else "and no surer either"
        return f"no dearer than {best.profile.label}, {than}"
    more, share = cost - least, cost / least - 1
    dollars = f"{more:,.2f}" if more >= 0.005 else f"{more:.1g}"
    percent = f"+{share:.0%}" if share >= 0.005 else "less than 1%"
    return f"too dear: +${dollars}/h ({percent})"


def _too_slow(option: Option, need: Need) -> str:
    """Say which limit a single user's latencies do not keep surely enough."""
    told = []
    for name, value, interval, limit in (
        ("nTTFT", option.nttft_ms, option.nttft_ms_interval, need.nttft_ms),
        ("ITL", option.itl_ms, option.itl_ms_interval, need.itl_ms),
    ):
        worst = value if interval is None else interval[1]
        if worst is not None and value is not None and worst > limit:
            within = "" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})"
            told.append(f"{name} {value:.3g} ms{within}, limit {limit:g}")
    failing = "" if told else "too many requests may fail; "
    return (
        f"too slow: with one user {failing}{'; '.join(told)}{'; ' if told else ''}P(SLA) {option.p_sla:.2f}"
    )
