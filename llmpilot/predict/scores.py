"""Judge recommendations by what was measured: success, overspend, S/O and efficiency.

The paper's rule (section V): a recommendation succeeds if its pods, at the measured u_max of their GPU
profile, take all users; it overspends by how much more it costs than the cheapest that does. S/O is the
harmonic mean of the success rate S and max(0, 1 - O), O the mean overspend of those that succeed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, nan

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu, Model
from llmpilot.dataset import Dataset
from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.prediction import FAILURES_ALLOWED, Floats


@dataclass(frozen=True)
class Truth:
    """What was measured of one LLM: [profile, users], NaN where it was not; profiles in the table's order.

    Units: nTTFT in ms per input token, ITL in ms, failure rates as shares.
    """

    model: Model
    profiles: tuple[Gpu, ...]
    users: tuple[int, ...]
    nttft_ms: Floats
    itl_ms: Floats
    failure_rate: Floats

    def users_max(self, need: Need) -> NDArray[np.int64]:
        """Return each profile's u_max under the need's limits, [profile]; a missing level says nothing."""
        within = (self.nttft_ms <= need.nttft_ms) & (self.itl_ms <= need.itl_ms)
        if need.count_failures:
            within &= ~(self.failure_rate > FAILURES_ALLOWED)
        measured = np.isfinite(self.nttft_ms)
        kept = np.logical_and.accumulate(within | ~measured, axis=-1) & measured
        return np.asarray(np.where(kept, np.asarray(self.users), 0).max(axis=-1))

    def least_cost(self, need: Need) -> float:
        """Return the price of the cheapest deployment that takes all users [$ per hour]; inf for none."""
        most = self.users_max(need)
        costs = [
            ceil(need.users / int(m)) * gpu.cost_per_hour
            for m, gpu in zip(most, self.profiles, strict=True)
            if m
        ]
        return min(costs, default=inf)


@dataclass(frozen=True)
class Outcome:
    """What became of one recommendation. `overspend` is relative, NaN without a success; `efficiency` is
    the least possible cost over the cost paid, 0 without a success."""

    success: bool
    overspend: float
    efficiency: float


@dataclass(frozen=True)
class Score:
    """Over LLMs, as fractions: success rate S, mean overspend O of the successes, S/O, mean efficiency."""

    success_rate: float
    overspend: float
    so_score: float
    efficiency: float


def truth_of(data: Dataset, model: str) -> Truth:
    """Return what `data` knows of one LLM; of a cell measured more than once, the mean.

    Profiles are in the order of the paper's table, which decides between equals: as text, `1 x A10` first.
    """
    rows = data.table[data.table["model"] == model]
    keys = sorted({(gpu, int(count)) for gpu, count in zip(rows["gpu"], rows["count"], strict=True)})
    keys.sort(key=lambda key: f"{key[1]} x {key[0]}")
    users = tuple(sorted(int(u) for u in rows["users"].unique()))
    figures = ["nttft_ms", "itl_ms", "failure_rate"]
    cells = rows.groupby(["gpu", "count", "users"], as_index=False)[figures].mean()
    values = np.full((3, len(keys), len(users)), np.nan)
    for gpu, count, level, *cell in cells.itertuples(index=False):
        values[:, keys.index((gpu, int(count))), users.index(int(level))] = cell
    profiles = tuple(data.gpus[gpu].model_copy(update={"count": count}) for gpu, count in keys)
    return Truth(data.models[model], profiles, users, *values)


def judge(choice: Choice | None, truth: Truth, need: Need) -> Outcome:
    """Return what becomes of a choice; where nothing measured suffices, to choose nothing is the success."""
    least = truth.least_cost(need)
    if choice is None or least == inf:
        right = choice is None and least == inf
        return Outcome(right, 0.0 if right else nan, float(right))
    most = truth.users_max(need)[truth.profiles.index(choice.profile)]
    if choice.pods * most < need.users:
        return Outcome(False, nan, 0.0)
    return Outcome(True, choice.cost_per_hour / least - 1, least / choice.cost_per_hour)


def score(outcomes: Sequence[Outcome]) -> Score:
    """Return the score of one recommendation for each LLM."""
    overspends = [outcome.overspend for outcome in outcomes if outcome.success]
    success_rate = len(overspends) / len(outcomes)
    overspend = float(np.mean(overspends)) if overspends else nan
    thrift = max(0.0, 1 - overspend) if overspends else 0.0
    total = success_rate + thrift
    return Score(
        success_rate=success_rate,
        overspend=overspend,
        so_score=2 * success_rate * thrift / total if total else 0.0,
        efficiency=float(np.mean([outcome.efficiency for outcome in outcomes])),
    )


def mean_score(scores: Iterable[Score]) -> Score:
    """Return the mean of each figure over settings; overspend over those with any success."""
    rows = [(one.success_rate, one.overspend, one.so_score, one.efficiency) for one in scores]
    table = np.array(rows)
    overspend = table[:, 1][np.isfinite(table[:, 1])]
    return Score(
        success_rate=float(table[:, 0].mean()),
        overspend=float(overspend.mean()) if len(overspend) else nan,
        so_score=float(table[:, 2].mean()),
        efficiency=float(table[:, 3].mean()),
    )


def grid_of(
    nttft_ms: Sequence[float], itl_ms: Sequence[float], users: Sequence[int], *, count_failures: bool = False
) -> list[Need]:
    """Return every combination of limits and users."""
    return [
        Need(users=u, nttft_ms=a, itl_ms=b, count_failures=count_failures)
        for a, b, u in product(nttft_ms, itl_ms, users)
    ]
