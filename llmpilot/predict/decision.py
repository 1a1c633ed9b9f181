"""From predicted latencies to a choice: which GPU profile, and how many pods of it.

Two rules. Without uncertainty, the paper's: take the prediction for the truth, and the cheapest deployment
that then suffices. With joint draws of what may be true, the deployment that promises the largest expected
utility, where overspending costs as much as the S/O score makes it cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu
from llmpilot.predict.prediction import Prediction

Ints = NDArray[np.int64]

LEAST_PROBABILITY = 0.02
"""A deployment that succeeds in a smaller share of the draws is never taken."""
MOST_OVERSPEND = 4.0
"""Overspending counts up to this multiple of the best price."""
SUCCESS_WORTH = 0.9
"""What one success is worth, in overspend: to first order, what the S/O score makes of it. From its slopes in
S and O follows E^2 / S + 1 - E, E = 1 - O; that is 0.91 at S 90% and O 20%, and 1 wherever S = E."""
LUCK_SEED = 20241117
"""Of the draws of which services lose requests: fixed, so that one prediction gives one choice."""


@dataclass(frozen=True)
class Need:
    """What a service must do: for so many users at once, medians within these limits [ms].

    With `count_failures`, at most 1% of the requests may fail too.
    """

    users: int
    nttft_ms: float = inf
    itl_ms: float = inf
    count_failures: bool = False

    def counting_failures(self) -> "Need":
        """Return the same need, failures counted."""
        return replace(self, count_failures=True)


@dataclass(frozen=True)
class Choice:
    """A deployment: `pods` pods of one GPU profile."""

    profile: Gpu
    pods: int

    @property
    def cost_per_hour(self) -> float:
        """Price of all pods [$ per hour]."""
        return self.pods * self.profile.cost_per_hour


def users_max(within: NDArray[np.bool_], users: Sequence[int]) -> Ints:
    """Return the last user count, going up, before the first that is not within the limits; 0 for none.

    `within` is [..., users]; the result is [...]. This is the paper's u_max (section V).
    """
    kept = np.logical_and.accumulate(within, axis=-1).sum(axis=-1)
    return np.asarray(np.concatenate([[0], np.asarray(users, dtype=np.int64)])[kept])


def choose(prediction: Prediction, need: Need) -> Choice | None:
    """Return the deployment to take; None if none is expected to do."""
    return take_at_face_value(prediction, need) if prediction.draws is None else weigh(prediction, need)


def take_at_face_value(prediction: Prediction, need: Need) -> Choice | None:
    """Return the cheapest deployment that suffices if the prediction is the truth; the first of equals."""
    within = (prediction.nttft_ms <= need.nttft_ms) & (prediction.itl_ms <= need.itl_ms)
    if need.count_failures and prediction.failing is not None:
        within &= prediction.failing <= 0.5
    best: Choice | None = None
    for profile, most in zip(prediction.profiles, users_max(within, prediction.users), strict=True):
        if most:
            option = Choice(profile, ceil(need.users / int(most)))
            if best is None or option.cost_per_hour < best.cost_per_hour:
                best = option
    return best


def weigh(prediction: Prediction, need: Need) -> Choice | None:
    """Return the deployment with the largest mean utility over the draws.

    A deployment that succeeds is worth SUCCESS_WORTH minus its relative overspend over the cheapest that
    would have succeeded in that draw; one that fails is worth nothing.
    """
    most = _drawn_users_max(prediction, need)  # [draw, profile]
    prices = np.array([profile.cost_per_hour for profile in prediction.profiles])
    with np.errstate(divide="ignore"):
        cost = np.where(most > 0, np.ceil(need.users / np.maximum(most, 1)) * prices, inf)
    best = cost.min(axis=1)
    best_utility = SUCCESS_WORTH * float(np.mean(~np.isfinite(best)))  # of answering that nothing will do
    choice: Choice | None = None
    for users_per_pod in prediction.users:
        pods = ceil(need.users / users_per_pod)
        success = pods * most >= need.users
        overspend = np.minimum(pods * prices / best[:, None] - 1, MOST_OVERSPEND)
        utility = (success * (SUCCESS_WORTH - overspend)).mean(axis=0)
        utility[success.mean(axis=0) < LEAST_PROBABILITY] = -inf
        at = int(np.argmax(utility))
        if utility[at] > best_utility:
            best_utility, choice = float(utility[at]), Choice(prediction.profiles[at], pods)
    return choice


def _drawn_users_max(prediction: Prediction, need: Need) -> Ints:
    """Return u_max in every draw, [draw, profile]."""
    draws = prediction.draws
    assert draws is not None
    within = draws.logs("nttft_ms") <= np.log(need.nttft_ms)
    within &= draws.logs("itl_ms") <= np.log(need.itl_ms)
    if need.count_failures and prediction.failing is not None:
        # One level of luck a draw and profile: a service that fails under some load fails under more.
        luck = np.random.default_rng(LUCK_SEED).random(within.shape[:2])
        within &= prediction.failing <= luck[:, :, None]
    return users_max(within, prediction.users)
