"""How much slower or faster a service is than factors alone say: as it was measured, or as its kin were.

What the factors leave of measured services (log of measured over predicted time per output token) is a
Gaussian process over services: an LLM has a part in common everywhere, parts on an engine and on a GPU type,
a part that changes smoothly with the number of GPUs, and one of the service alone. A measured service has
its own, an unmeasured one what its kin say, an LLM that nobody measured none. Characterize, tune and
recommend take a service's speed from here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import log2, sqrt
from typing import Any

import numpy as np

from llmpilot.simulator.factors import SHIPPED, service_key
from llmpilot.simulator.step_model import Numbers, StepModel

FAMILY, ENGINE, GPU, BOTH, SERVICE = 0.002, 0.002, 0.003, 0.006, 0.003
"""Variances (log units squared) of what services share within an LLM, within it on an engine, on a GPU type
in one precision, on both, and of what a service has alone."""
CURVE, LEVEL = 0.005, 0.006
"""Variances of what lengths of requests, and a level of load under them, have beside their service."""
GPUS = 1.5
"""How many doublings of the number of GPUs apart services on one engine and GPU type are still alike."""
MOST = 0.5
"""An error beyond it (log units) is another thing than a somewhat faster service: it counts as this."""
NARROWER = 0.85
"""Spreads are drawn in by it: as they are, with the LLM left out, 80% intervals held 87% of the values."""
_MOST_DOUBLINGS = 5


@dataclass(frozen=True)
class Place:
    """What a service shares with others: LLM, engine generation, GPU type and precision, GPUs' number."""

    key: str
    family: str
    engine: str
    gpu: str
    doublings: float
    """Logarithm to the base of two of its GPUs."""

    @property
    def profile(self) -> str:
        """`2 x H100`: GPUs as tables and plots call them."""
        return f"{round(2**self.doublings)} x {self.gpu.split(' ')[0]}"

    @classmethod
    def of_key(cls, key: str) -> "Place":
        """Return the place that a `factors.service_key` tells."""
        family, engine, profile, formats = key.split(" | ")
        gpu, shape = profile.rsplit(" ", 1)
        tensor, data, _, *pipeline = (int(size) for size in shape.split("x"))
        gpus = tensor * data * (pipeline[0] if pipeline else 1)
        return cls(key, family, engine, f"{gpu} {formats}", log2(gpus))

    @cached_property
    def components(self) -> dict[str, float]:
        """The independent standard normals, by name, that the error of the service is a sum of, weighted.

        Two services have in common what these have: the sum of the products of the weights of one name is
        their covariance.
        """
        on_both = f"{self.family} | {self.engine} | {self.gpu}"
        smooth = {
            f"{on_both} | ~{at}": sqrt(BOTH) * weight for at, weight in enumerate(_smooth(self.doublings))
        }
        return smooth | {
            self.family: sqrt(FAMILY),
            f"{self.family} | {self.engine}": sqrt(ENGINE),
            f"{self.family} | {self.gpu}": sqrt(GPU),
            self.key: sqrt(SERVICE),
        }


@cache
def _smooth(doublings: float) -> tuple[float, ...]:
    """Return weights whose products fall off with the distance of two numbers of GPUs as a Gaussian does."""
    grid = np.arange(_MOST_DOUBLINGS + 1.0)

    def alike(a: Numbers, b: Numbers) -> Numbers:
        return np.asarray(np.exp(-((a[:, None] - b[None]) ** 2) / (2 * GPUS**2)))

    values, vectors = np.linalg.eigh(alike(grid, grid))
    inverse_root = vectors @ np.diag(1.0 / np.sqrt(values)) @ vectors.T
    here = np.array([min(doublings, float(_MOST_DOUBLINGS))])
    weights = (alike(here, grid) @ inverse_root)[0]
    return tuple((weights / np.linalg.norm(weights)).tolist())


def covariance(a: Sequence[Place], b: Sequence[Place]) -> Numbers:
    """Return how alike the errors of services are [len(a), len(b)] (log units squared)."""
    names = {name: at for at, name in enumerate({name: None for one in (*a, *b) for name in one.components})}
    return np.asarray(_weights(a, names) @ _weights(b, names).T)


def _weights(places: Sequence[Place], names: Mapping[str, int]) -> Numbers:
    found = np.zeros((len(places), len(names)))
    for row, one in enumerate(places):
        for name, weight in one.components.items():
            found[row, names[name]] = weight
    return found


@dataclass(frozen=True)
class Residual:
    """What the factors leave of one measured service.

    `error` is the median over its `levels` (log of measured over predicted time per output token), `curves`
    how many lengths of requests these are of.
    """

    place: Place
    error: float
    curves: int
    levels: int

    @property
    def noise(self) -> float:
        """Variance of the error about that of the service under any lengths and load."""
        return CURVE / self.curves + LEVEL / self.levels


@dataclass(frozen=True)
class ServiceScales:
    """What measured services say of all: the residuals of each, by `factors.service_key`."""

    residuals: tuple[Residual, ...]

    @classmethod
    def from_dict(cls, content: Mapping[str, Mapping[str, Any]]) -> "ServiceScales":
        """Return what `to_dict` gave."""
        return cls(
            tuple(
                Residual(Place.of_key(key), float(one["error"]), int(one["curves"]), int(one["levels"]))
                for key, one in content.items()
            )
        )

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain values, errors to four digits."""
        return {
            one.place.key: {
                "error": float(f"{one.error:.4g}"),
                "curves": one.curves,
                "levels": one.levels,
            }
            for one in self.residuals
        }

    @cached_property
    def families(self) -> dict[str, tuple[Residual, ...]]:
        """The residuals by LLM: those of one say nothing of another's."""
        found: dict[str, list[Residual]] = {}
        for one in self.residuals:
            found.setdefault(one.place.family, []).append(one)
        return {family: tuple(some) for family, some in found.items()}

    def mean_and_variance(self, place: Place) -> tuple[float, float]:
        """Return the expected error of a service (log units), and its variance over lengths and loads."""
        total = FAMILY + ENGINE + GPU + BOTH + SERVICE + CURVE + LEVEL
        known = self.families.get(place.family, ())
        if not known:
            return 0.0, total
        places = [one.place for one in known]
        noisy = covariance(places, places) + np.diag([one.noise for one in known])
        across = covariance([place], places)[0]
        solved = np.linalg.solve(noisy, across)
        errors = np.clip([one.error for one in known], -MOST, MOST)
        return float(solved @ errors), float(total - solved @ across)


@cache
def shipped_scales() -> ServiceScales:
    """Return what the measured services that come with the package say."""
    content: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return ServiceScales.from_dict(content["residuals"])


def service_scale(service: StepModel) -> tuple[float, float]:
    """Return the expected logarithm of a service's step times over what factors say, and its spread.

    The spread is that of a level of load of the service, without what the factors themselves leave open.
    """
    mean, variance = shipped_scales().mean_and_variance(Place.of_key(service_key(service)))
    return mean, NARROWER * sqrt(variance)
