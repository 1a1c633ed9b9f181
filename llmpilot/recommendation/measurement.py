"""Which one measurement is worth most: how much better the choice would be with it, before it is made.

The value of information, from the prediction's own joint draws: each draw in turn is taken for the truth of
what a run on a GPU profile would show, all draws are conditioned on that, and one chooses again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmpilot.config import Gpu
from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.prediction import Draws, Floats, Prediction
from llmpilot.recommendation.ranking import Ints, drawn_users_max

Decide = Callable[[Prediction], Choice | None]

HYPOTHETICAL = 24
"""Outcomes that are tried for each measurement."""
DRAWS = 128
"""Draws that each of them conditions."""
RIVALS = 16
"""Profiles that may be chosen: those that are most often within NEAR times the least price."""
NEAR = 2.0
NOISE = 0.04
"""Standard deviation, in logs, between two runs of the same service."""


@dataclass(frozen=True)
class Measurement:
    """One characterization on a GPU profile.

    `cost` is its price [$]; `gain` what it saves in expectation [$ per hour of serving]; `settles` the share
    of its possible outcomes that change the choice.
    """

    profile: Gpu
    gain: float
    cost: float
    settles: float


def worth_of_measuring(
    prediction: Prediction, need: Need, decide: Decide, candidates: Sequence[Gpu], hours_per_run: float
) -> list[Measurement]:
    """Return what a measurement of each candidate is worth, in their order.

    A choice that keeps the SLA loses what it costs more than the best one; one that breaks it, or no choice
    where there is one, loses as much as paying the best one twice. `decide` chooses from a prediction with
    draws. Candidates are profiles of the prediction.
    """
    logs = _logs(prediction)
    rivals = _rivals(prediction, decide(prediction), need)
    reduced = _part(prediction, rivals, logs[_thinned(len(logs))][:, :, rivals])
    now = decide(reduced)
    measurements = []
    for gpu in candidates:
        gained, changed = 0.0, 0
        for moved in _after_measuring(logs, prediction.profiles.index(gpu), rivals):
            after = _part(prediction, rivals, moved)
            then = decide(after)
            if then != now:
                most = drawn_users_max(after, need)
                gained += _loss(now, after, most, need) - _loss(then, after, most, need)
                changed += 1
        gain, cost = max(0.0, gained / HYPOTHETICAL), hours_per_run * gpu.cost_per_hour
        measurements.append(Measurement(gpu, gain, cost, changed / HYPOTHETICAL))
    return measurements


def _after_measuring(logs: Floats, measured: int, rivals: list[int]) -> Iterator[Floats]:
    """Yield the rivals' log latencies [draw, metric, profile, users] after each of several outcomes.

    Draws are conditioned as an ensemble Kalman filter does it: each moves by the regression of all latencies
    on the measured ones, times how far its own measurement, with noise, is from the outcome.
    """
    count = len(logs)
    wanted = logs[:, :, rivals]
    flat = wanted.reshape(count, -1)
    seen = logs[:, :, measured].reshape(count, -1)
    observed = seen + np.random.default_rng(measured).normal(0.0, NOISE, seen.shape)
    spread, spread_seen = flat - flat.mean(axis=0), seen - seen.mean(axis=0)
    covariance = spread_seen.T @ spread_seen / (count - 1) + NOISE**2 * np.eye(seen.shape[1])
    regression = np.linalg.solve(covariance, spread_seen.T @ spread / (count - 1))
    few = _thinned(count)
    for outcome in observed[np.linspace(0, count - 1, HYPOTHETICAL).astype(int)]:
        moved = flat[few] + (outcome - observed[few]) @ regression
        yield moved.reshape(-1, *wanted.shape[1:])


def _thinned(count: int) -> slice:
    """Return every so many draws: neighbours may come from one part of a predictor."""
    return slice(None, None, max(1, count // DRAWS))


def _rivals(prediction: Prediction, chosen: Choice | None, need: Need) -> list[int]:
    """Return the indices of the profiles that are most often among the cheapest, and of the one chosen."""
    costs = _costs(prediction.profiles, drawn_users_max(prediction, need), need)
    near = (costs <= NEAR * costs.min(axis=1, keepdims=True)) & np.isfinite(costs)
    share = near.mean(axis=0)
    if chosen is not None:
        share[prediction.profiles.index(chosen.profile)] = 1.0
    return sorted(np.argsort(-share, kind="stable")[:RIVALS].tolist())


def _logs(prediction: Prediction) -> Floats:
    assert prediction.draws is not None
    return np.stack([prediction.draws.logs("nttft_ms"), prediction.draws.logs("itl_ms")], axis=1)


def _part(prediction: Prediction, profiles: list[int], logs: Floats) -> Prediction:
    """Return the prediction for some profiles, with these draws [draw, metric, profile, users]."""
    nttft, itl = logs[:, 0], logs[:, 1]
    return replace(
        prediction,
        profiles=tuple(prediction.profiles[p] for p in profiles),
        nttft_ms=np.median(np.exp(nttft), axis=0),
        itl_ms=np.median(np.exp(itl), axis=0),
        failing=None if prediction.failing is None else prediction.failing[profiles],
        draws=Draws.of_logs(nttft, itl),
    )


def _loss(choice: Choice | None, prediction: Prediction, most: Ints, need: Need) -> float:
    """Return the mean loss of a choice over the draws [$ per hour], `most` being their u_max."""
    best = _costs(prediction.profiles, most, need).min(axis=1)
    possible = np.isfinite(best)
    if choice is None:
        return float(np.where(possible, best, 0.0).mean())
    kept = choice.pods * most[:, prediction.profiles.index(choice.profile)] >= need.users
    broken = np.where(possible, best, choice.cost_per_hour)
    return float(np.where(kept, choice.cost_per_hour - np.where(kept, best, 0.0), broken).mean())


def _costs(profiles: Sequence[Gpu], most: Ints, need: Need) -> Floats:
    """Return the price of what suffices of each profile in each draw [draw, profile]; infinity: nothing."""
    prices = np.array([gpu.cost_per_hour for gpu in profiles])
    return np.where(most > 0, np.ceil(need.users / np.maximum(most, 1)) * prices, np.inf)
