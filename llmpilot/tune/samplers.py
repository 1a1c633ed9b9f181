"""Two samplers behind Optuna's interface: one told by the plan (bisection, repeats), one that is TPE."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

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

    The bisection's trials are its start-up trials. The seed is new for every trial, so that workers with the
    same history do not propose the same.
    """

    def __init__(self, lower: int, largest: int, seed: int) -> None:
        self._range = IntDistribution(lower, largest, log=True)
        self._tpe = TPESampler(n_startup_trials=1, constant_liar=True, seed=seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Return TPE's proposal."""
        return int(self._tpe.sample_independent(study, trial, param_name, self._range))
