"""Static policies: "always n pods of this GPU profile", whatever the LLM. What a predictor must beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from llmpilot.config import Ladder
from llmpilot.dataset import Dataset
from llmpilot.predict.decision import Choice, Need, Rule
from llmpilot.predict.paper.table import as_prediction, cells_of
from llmpilot.predict.prediction import Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor
from llmpilot.predict.scores import Score, Truth, judge, score, truth_of

PAPER_PODS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 35)


@dataclass(frozen=True)
class Policy:
    """A deployment for every LLM, and how it scores on those that it was judged by."""

    gpu: str
    count: int
    pods: int
    cost_per_hour: float
    score: Score


@dataclass(frozen=True)
class Settled(Truth):
    """A truth under a single need, its answers computed once for hundreds of policies."""

    most: NDArray[np.int64]
    least: float

    def users_max(self, need: Need) -> NDArray[np.int64]:
        """Return each profile's u_max, [profile]."""
        return self.most

    def least_cost(self, need: Need) -> float:
        """Return the price of the cheapest deployment that takes all users [$ per hour]."""
        return self.least


class Static(Predictor):
    """The policy with the largest S/O on the training LLMs, of equals the cheapest; `pods` are tried."""

    pods: Ladder[PositiveInt]

    def fit(self, data: Dataset, seed: int) -> "FittedStatic":
        """Remember what was measured of each LLM; nothing is random."""
        return FittedStatic(tuple(truth_of(data, llm) for llm in cells_of(data).llms), tuple(self.pods))

    def rule(self, risk: float | None = None) -> Rule:
        """Return the rule of a policy, which knows no risk."""
        return Rule("policy with the largest S/O on the other LLMs")


@dataclass(frozen=True)
class FittedStatic(Fitted):
    """What was measured of the training LLMs."""

    truths: tuple[Truth, ...]
    pods: tuple[int, ...]

    def answer(self, query: Query) -> Prediction:
        """Return a prediction without latencies (NaN): a policy has none to tell."""
        return as_prediction(query, np.full((len(query.profiles) * len(query.users), 2), np.nan))

    def choose(self, prediction: Prediction, need: Need, risk: float | None = None) -> Choice | None:
        """Return the policy for this need; None where its GPU profile is not on offer for the LLM.

        It is the same at every risk.
        """
        policy = policies(self.truths, need, self.pods)[0]
        for profile in prediction.profiles:
            if (profile.name, profile.count) == (policy.gpu, policy.count):
                return Choice(profile, policy.pods)
        return None


def policies(truths: Sequence[Truth], need: Need, pods: Sequence[int] = PAPER_PODS) -> list[Policy]:
    """Return every policy, the best first: the largest S/O, then the least cost.

    On all LLMs, the first is the paper's best policy in hindsight. An LLM that was not measured on a policy's
    profile counts as failed.
    """
    offers = {(gpu.name, gpu.count): gpu for truth in truths for gpu in truth.profiles}
    settled = [
        Settled(**vars(truth), most=truth.users_max(need), least=truth.least_cost(need)) for truth in truths
    ]
    found = []
    for name, count in sorted(offers, key=lambda key: f"{key[1]} x {key[0]}"):
        own = [next((g for g in t.profiles if (g.name, g.count) == (name, count)), None) for t in truths]
        for n in pods:
            choices = [None if gpu is None else Choice(gpu, n) for gpu in own]
            outcomes = [judge(choice, truth, need) for choice, truth in zip(choices, settled, strict=True)]
            cost = n * offers[name, count].cost_per_hour
            found.append(Policy(name, count, n, cost, score(outcomes)))
    return sorted(found, key=lambda policy: (-policy.score.so_score, policy.cost_per_hour))
