"""The one rule of decision: from what each option can take, in joint draws, to which to take and how many.

`task=recommend`, the served model, `task=evaluate` and the champion's gate all decide here. An option is a
service on a GPU profile; what one pod of it takes may be counted in users, requests/s or tokens/s, whatever
the load to carry is counted in. Each option is judged by its own draws alone: what is said of it does not
depend on which others there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu
from llmpilot.predict.prediction import Prediction

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CERTAINTY_WORTH = 0.75
"""How many percent more are paid for one percent more of the probability that the promise is kept, where no
largest risk is given; 1 would be the least cost of a kept promise. One value for the paper's services and for
today's: experiments/19_recommendations and experiments/10_predictor score others, with the LLM left out."""
LEAST_CERTAINTY = 0.5
"""Where no largest risk is given, nothing is recommended if no deployment, of whatever size, is as likely as
this to keep the promise. What is recommended may be less likely, if it is cheap enough for that. Chosen on
today's services (experiments/19_recommendations)."""
LUCK_SEED = 20241117
"""Of the draws of which services lose requests: fixed, so that one prediction gives one choice."""


@dataclass(frozen=True)
class Need:
    """The paper's promise: for so many users at once, medians within these limits [ms].

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
class Rule:
    """By which rule a choice is made, as results state it; None for what it makes no use of."""

    name: str
    risk: float | None = None
    certainty_worth: float | None = None
    least_certainty: float | None = None

    @classmethod
    def at(cls, risk: float | None) -> "Rule":
        """Return the rule of `decide` at this risk."""
        if risk is None:
            return cls(
                "least price / probability^certainty_worth, if any deployment reaches least_certainty",
                certainty_worth=CERTAINTY_WORTH,
                least_certainty=LEAST_CERTAINTY,
            )
        return cls("cheapest that keeps the promise with probability 1 - risk", risk=risk)


@dataclass(frozen=True)
class Choice:
    """A deployment: `pods` pods of one GPU profile."""

    profile: Gpu
    pods: int

    @property
    def cost_per_hour(self) -> float:
        """Price of all pods [$ per hour]."""
        return self.pods * self.profile.cost_per_hour


@dataclass(frozen=True)
class Deployments:
    """Of each option the deployment to take [options], and the options in order, best first.

    `pods` is 0 where no number of pods will do; `probability` is that of keeping the promise with these pods;
    `score` is what options are compared by, infinite where none will do. `best` is the option to take; None:
    nothing will do.
    """

    pods: Ints
    probability: Floats
    score: Floats
    order: Ints
    best: int | None


def decide(
    capacity: Floats,
    price_per_hour: Floats,
    load: float,
    risk: float | None = None,
    most_pods: Floats | None = None,
) -> Deployments:
    """Return which deployment carries the load, for every option and over all.

    `capacity` [draws, options] is what one pod takes within the SLA in each draw of what may be true, 0 for
    nothing; `price_per_hour` [options] is that of a pod; `most_pods` [options] caps the number of pods.

    With `risk`, the largest probability with which the promise may be broken, an option needs the fewest pods
    that keep it with 1 - risk, and the cheapest option is best, of equals the surest. Without, price and
    certainty are weighed: best is the least price / probability ^ CERTAINTY_WORTH, if there is any deployment
    that keeps the promise with LEAST_CERTAINTY.
    """
    draws, options = capacity.shape
    with np.errstate(divide="ignore"):
        needed = np.ceil(np.where(capacity > 0, load / np.maximum(capacity, 1e-300), inf) * (1 - 1e-9))
    needed = np.sort(np.maximum(needed, 1.0), axis=0)
    # The last of equal numbers of pods has the probability of all of them.
    probability = np.repeat((np.arange(draws)[:, None] + 1.0) / draws, options, axis=1)
    allowed = np.isfinite(needed)
    if most_pods is not None:
        allowed &= needed <= most_pods
    cost = np.where(allowed, needed, 1.0) * price_per_hour
    if risk is None:
        # Of equal scores the surer deployment: a hair of certainty decides.
        scores = np.where(allowed, cost / probability**CERTAINTY_WORTH, inf)
    else:
        scores = np.where(allowed & (probability >= 1 - risk - 1e-12), cost, inf)
    # The last of equal scores in a column is the surest.
    row = draws - 1 - np.argmin(scores[::-1], axis=0)
    at = np.arange(options)
    score = scores[row, at]
    pods = np.where(np.isfinite(score), needed[row, at], 0).astype(np.int64)
    kept = np.where(np.isfinite(score), (needed <= np.maximum(pods, 1)).mean(axis=0), 0.0)
    order = np.lexsort((at, -kept, np.round(score, 9)))
    hopeless = risk is None and allowed.mean(axis=0).max(initial=0.0) < LEAST_CERTAINTY - 1e-12
    found = len(order) > 0 and np.isfinite(score[order[0]]) and not hopeless
    return Deployments(pods, kept, score, order, int(order[0]) if found else None)


def users_max(within: NDArray[np.bool_], users: Sequence[int]) -> Ints:
    """Return the last user count, going up, before the first that is not within the limits; 0 for none.

    `within` is [..., users]; the result is [...]. This is the paper's u_max (section V).
    """
    kept = np.logical_and.accumulate(within, axis=-1).sum(axis=-1)
    return np.asarray(np.concatenate([[0], np.asarray(users, dtype=np.int64)])[kept])


def choose(prediction: Prediction, need: Need, risk: float | None = None) -> Choice | None:
    """Return the deployment to take, on the ladder of users that was measured; None: nothing will do.

    A prediction without draws is taken for the truth: it is the only draw.
    """
    capacity = drawn_users_max(prediction, need).astype(np.float64)
    prices = np.array([profile.cost_per_hour for profile in prediction.profiles])
    found = decide(capacity, prices, need.users, risk)
    best = found.best
    return None if best is None else Choice(prediction.profiles[best], int(found.pods[best]))


def drawn_users_max(prediction: Prediction, need: Need) -> Ints:
    """Return u_max in every draw, [draw, profile]."""
    draws = prediction.draws
    if draws is None:
        within = (prediction.nttft_ms <= need.nttft_ms) & (prediction.itl_ms <= need.itl_ms)
        if need.count_failures and prediction.failing is not None:
            within &= prediction.failing <= 0.5
        return users_max(within, prediction.users)[None]
    within = draws.logs("nttft_ms") <= np.log(need.nttft_ms)
    within &= draws.logs("itl_ms") <= np.log(need.itl_ms)
    if need.count_failures and prediction.failing is not None:
        # One level of luck a draw and profile: a service that fails under some load fails under more.
        luck = np.random.default_rng(LUCK_SEED).random(within.shape[:2])
        within &= prediction.failing <= luck[:, :, None]
    return users_max(within, prediction.users)
