"""Two samplers behind Optuna's interface: one told by the plan (bisection, repeats), one that is TPE."""

from collections.abc import Collection
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from llmpilot.tune.plan import Bounds

__all__ = ["Planned", "Proposed"]


class _OneByOne(BaseSampler):
    """A sampler of a single parameter: there is nothing to sample jointly."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class Planned(_OneByOne):
    """Proposes the weight that the plan decided on."""

    def __init__(self, weight: int) -> None:
        self._weight = weight

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Return the weight."""
        return self._weight


class Proposed(_OneByOne):
    """TPE over the weights up to `largest`: what is known not to survive is not proposed again.

    Nor is a weight that was `had`, as long as there is another. The bisection's trials are its start-up
    trials. The seed is new for every trial, so that workers with the same history do not propose the same.
    """

    def __init__(self, bounds: Bounds, largest: int, had: Collection[int], seed: int) -> None:
        self._bounds, self._largest, self._had = bounds, largest, set(had)
        self._range = IntDistribution(bounds.lower, largest, log=True)
        self._tpe = TPESampler(n_startup_trials=1, constant_liar=True, seed=seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Return TPE's proposal, or the nearest weight to it that is new."""
        drawn = int(self._tpe.sample_independent(study, trial, param_name, self._range))
        proposal, step = self._bounds.snap(drawn), self._bounds.step
        for away in range(len(self._had) + 1):
            for weight in (proposal - away * step, proposal + away * step):
                near = self._bounds.snap(weight)
                if near <= self._largest and near not in self._had:
                    return near
        return proposal
