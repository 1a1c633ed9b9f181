"""Gaussian quantities that are sums of named components, what evidence says of them, and joint draws.

A component is a standard normal with a name; quantities that have names in common vary together. Draws come
from generators seeded with the names, so that a quantity's own draws are the same whatever else is asked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np

from llmpilot.simulator.step_model import Numbers

Components = Mapping[str, float]
"""Weights of components, by name."""
KEPT = 8192


@dataclass(frozen=True)
class Evidence:
    """A quantity that was observed as `value`, with noise of this `variance` that has a name too."""

    name: str
    components: Components
    value: float
    variance: float


@dataclass(frozen=True)
class Known:
    """Quantities given evidence of some of them."""

    evidence: Sequence[Evidence]
    _solved: dict[tuple[int, int], Numbers] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def mean_and_variance(self, components: Components) -> tuple[float, float]:
        """Return what to expect of a quantity, and the variance that is left."""
        prior = sum(weight**2 for weight in components.values())
        if not self.evidence:
            return 0.0, prior
        across = self._across(components)
        values = np.array([one.value for one in self.evidence])
        explained = self._inverse @ across
        return float(values @ explained), max(prior - float(across @ explained), 0.0)

    def draws(self, components: Components, n: int, seed: int) -> Numbers:
        """Return draws [n] of a quantity, less what is expected of it.

        Quantities are drawn from what was known before, evidence too, and corrected by how far the drawn
        evidence is off (Matheron's rule). Then a quantity's draws are moved, in their order, to the
        quantiles of its distribution, so that few draws have its mean and spread.
        """
        _, variance = self.mean_and_variance(components)
        drawn = _sum(components, n, seed)
        if self.evidence:
            drawn = drawn - self._across(components) @ self._off(n, seed)
        ranks = np.argsort(np.argsort(drawn))
        return np.asarray(np.sqrt(variance) * _quantiles(n)[ranks])

    @cached_property
    def _names(self) -> dict[str, int]:
        return {
            name: at
            for at, name in enumerate({name: None for one in self.evidence for name in one.components})
        }

    @cached_property
    def _weights(self) -> Numbers:
        """Weights of the components in the evidence [n evidence, n names]."""
        return np.array([self._row(one.components) for one in self.evidence])

    def _row(self, components: Components) -> Numbers:
        found = np.zeros(len(self._names))
        for name, weight in components.items():
            if name in self._names:
                found[self._names[name]] = weight
        return found

    def _across(self, components: Components) -> Numbers:
        """Return a quantity's covariance with the evidence [n evidence]."""
        return np.asarray(self._weights @ self._row(components))

    @cached_property
    def _inverse(self) -> Numbers:
        noise = np.diag([one.variance for one in self.evidence])
        return np.asarray(np.linalg.inv(self._weights @ self._weights.T + noise))

    def _off(self, n: int, seed: int) -> Numbers:
        """Return what corrects drawn evidence [n evidence, n], per unit of covariance with it."""
        if (n, seed) not in self._solved:
            drawn = np.array(
                [
                    _sum(one.components, n, seed) + np.sqrt(one.variance) * _normals(one.name, n, seed)
                    for one in self.evidence
                ]
            )
            self._solved[n, seed] = self._inverse @ drawn
        return self._solved[n, seed]


def _sum(components: Components, n: int, seed: int) -> Numbers:
    total = np.zeros(n)
    for name, weight in components.items():
        total += weight * _normals(name, n, seed)
    return total


@lru_cache(maxsize=KEPT)
def _normals(name: str, n: int, seed: int) -> Numbers:
    """Return a component's draws [n]."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(n)


@lru_cache(maxsize=8)
def _quantiles(n: int) -> Numbers:
    """Return the standard normal's quantiles in the middle of n equal shares, of variance 1."""
    middles = np.array([NormalDist().inv_cdf((at + 0.5) / n) for at in range(n)])
    return middles / middles.std() if n > 1 else middles
