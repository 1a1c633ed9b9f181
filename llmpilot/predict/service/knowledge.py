"""What is known of how fast services are: expected speed, how sure that is, and what it rests on.

Factors with their covariance, the errors of measured services, and how far times to the first token scatter
beside them. It ships fitted to published measurements (`simulator/fitted/services.json`, written by
`learning.fit_knowledge`), and the user's own runs condition it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpilot.config import Model
from llmpilot.predict.service.curves import Speeds
from llmpilot.predict.service.evidence import Components, Evidence, Known
from llmpilot.predict.service.kin import Case, Covered, Errors, Kin, by_datasheet, kin_of, with_lengths
from llmpilot.simulator.factors import FACTORS, NAMES, SHIPPED, Factors, design, family_of, service_key
from llmpilot.simulator.first_token import ANY_CLIENT, FirstToken, Key, first_tokens_of, overhead_of
from llmpilot.simulator.service_scales import (
    CURVE,
    LEVEL,
    MOST,
    NARROWER,
    Place,
    ServiceScales,
)
from llmpilot.simulator.steady import ClosedLoads, steady_parts, time_per_output_token
from llmpilot.simulator.step_model import Numbers, StepModel

if TYPE_CHECKING:
    from llmpilot.predict.service.own_levels import OwnLevel

FIRST_TOKEN_SPREAD = 0.45
"""Of TTFT (log units) beside TPOT's, of an engine without any row that states it."""
SHARES = {"engine": 0.1, "family": 0.2, "service": 0.35, "level": 0.35}
"""Of the variance of TTFT beside TPOT: what an engine has in common, an LLM on it, a service; the rest."""
DATASHEET = 0.015
"""Variance (log units squared) that services on a GPU type share which is known by its datasheet only. With
their tables kept away, those that have some are off hardly more than with them; but the constants of all were
found with these tables, and on AMD's GPUs, which have none, offline batches were off by 8 and 13% in the
median (experiments/18_services_of_today)."""
NOMINAL = {"input_tokens": 1024.0, "output_tokens": 256.0, "users": 32.0}
"""The load at which it is reckoned how much of a service's step times each factor is."""
_STEP = 1e-4


@dataclass(frozen=True)
class Origin:
    """What the knowledge was fitted to: `rows_hash` is `Measurements.content_hash` of all rows used."""

    rows: int
    batches: int
    rows_hash: str
    engines: Mapping[str, str]
    version: str


@dataclass(frozen=True)
class OwnResidual:
    """What one of the user's own levels showed beside the factors: logs of measured over expected times.

    `slopes` are by how much the log of the service's step times rises with the log of each factor; `sheet` is
    its GPU type, where that is known by its datasheet only.
    """

    key: str
    engine: str
    sheet: str | None
    slopes: Mapping[str, float]
    steps: float
    first_token: float | None


@dataclass(frozen=True)
class Knowledge:
    """What is known of services' speed. `errors` are by what was left out, a `kin.Case`."""

    factors: Factors
    covariance: Numbers
    scales: ServiceScales
    first_tokens: Mapping[Key, FirstToken]
    first_token_spreads: Mapping[str, float]
    errors: Mapping[Case, Errors]
    covered: Covered
    origin: Origin
    own: tuple[OwnResidual, ...] = ()
    _slopes: dict[str, Numbers] = field(default_factory=dict, init=False, repr=False, compare=False)

    def scale(self, service: StepModel) -> float:
        """Return how many times as long a service's steps are expected to be as factors alone say."""
        mean, _ = self._steps.mean_and_variance(self._step_components(service))
        return exp(mean)

    def spread(self, service: StepModel) -> float:
        """Return the standard deviation of the log of a service's step times about what is expected."""
        _, variance = self._steps.mean_and_variance(self._step_components(service))
        return NARROWER * sqrt(variance)

    def speeds(self, services: Sequence[StepModel], draws: int, seed: int) -> list[Speeds]:
        """Return joint draws of what may be true of each service beside what is expected of it.

        Expected are step times by factors and `scale`, and simulated times to the first token as
        `first_token` has clients see them. A service's own draws are the same whichever others are asked for.
        """
        found = []
        for service in services:
            first = self._first_token_components(service)
            expected, _ = self._first_tokens.mean_and_variance(first)
            found.append(
                Speeds(
                    np.exp(NARROWER * self._steps.draws(self._step_components(service), draws, seed)),
                    np.exp(expected + self._first_tokens.draws(first, draws, seed)),
                )
            )
        return found

    def first_token(self, service: StepModel, client: str = ANY_CLIENT) -> FirstToken:
        """Return what a client sees of a service's time to the first token beside queue and prefill."""
        key = (client, service.settings.engine, service.gpu.architecture)
        return overhead_of(key, self.first_tokens)

    def kin(
        self, service: StepModel, input_tokens: float | None = None, output_tokens: float | None = None
    ) -> Kin:
        """Return what a service's prediction rests on, for requests of these mean lengths where given."""
        own: dict[str, int] = {}
        for one in self.own:
            own[one.key] = own.get(one.key, 0) + 1
        found = kin_of(service, self.scales, self.covered, self.errors, own)
        return with_lengths(found, self.covered, input_tokens or 0.0, output_tokens or 0.0)

    def conditioned_on(self, own: "Sequence[OwnLevel]") -> "Knowledge":
        """Return what is known after the user's own levels too, each simulated as it was measured."""
        from llmpilot.predict.service.own_levels import residual_of  # it simulates: slow to import

        found = tuple(residual_of(self, one) for one in own)
        return replace(self, own=(*self.own, *found))

    def slopes(self, service: StepModel) -> Numbers:
        """Return by how much the log of a service's step times rises with the log of each factor [factors].

        At a nominal load, and by the steady state.
        """
        key = f"{service_key(service)} {service.settings.max_num_batched_tokens} {service.model.kv_format}"
        if key not in self._slopes:
            one = np.ones(1)
            settings = service.settings
            room = float(settings.max_num_batched_tokens * settings.data_parallel)
            loads = ClosedLoads(
                one * NOMINAL["input_tokens"],
                one * NOMINAL["output_tokens"],
                one * NOMINAL["users"],
                one * room,
            )
            moved = self._logs + _STEP * np.vstack([np.zeros(len(NAMES)), np.eye(len(NAMES))])
            times = np.log(
                time_per_output_token(steady_parts(service, loads), np.exp(moved @ design(service)))
            )
            self._slopes[key] = (times[1:] - times[0]) / _STEP
        return self._slopes[key]

    def own_facts(self, model: Model) -> dict[str, Any]:
        """Return how many levels the user measured of an LLM, and on which GPU profiles."""
        places = [place for one in self.own if (place := Place.of_key(one.key)).family == family_of(model)]
        return {"rows": len(places), "profiles": sorted({place.profile for place in places})}

    @property
    def content_hash(self) -> str:
        """SHA-256 of what `to_dict` gives."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it: `from_dict` makes the same of it."""
        rows, names = [], [name for name, known in zip(NAMES, self._moved, strict=True) if known]
        for at, name in enumerate(names):
            i = NAMES.index(name)
            rows.append([_digits(self.covariance[i, NAMES.index(other)], 4) for other in names[: at + 1]])
        return {
            "source": "rows of llmpilot/dataset/services, whose README names sources and licences, where "
            "nothing else was given",
            "rows": self.origin.rows,
            "offline_batches_of_2024": self.origin.batches,
            "rows_hash": self.origin.rows_hash,
            "engines": dict(self.origin.engines),
            "llmpilot": self.origin.version,
            "factors": {name: _digits(self.factors[name], 5) for name in NAMES},
            "covariance": dict(zip(names, (" ".join(map(repr, row)) for row in rows), strict=True)),
            "residuals": self.scales.to_dict(),
            "first_token_spreads": {
                engine: _digits(spread, 3) for engine, spread in self.first_token_spreads.items()
            },
            "first_tokens": {
                " | ".join(key): [_digits(value, 4) for value in (one.offset_ms, one.scale, one.lag_tokens)]
                for key, one in self.first_tokens.items()
            },
            "errors": {
                case: {
                    "rows": one.rows,
                    "tpot": one.tpot,
                    "tpot_within_80": one.tpot_within_80,
                    "ttft": one.ttft,
                }
                for case, one in self.errors.items()
            },
            "covered": {
                "kinds": dict(self.covered.kinds),
                "gpus": list(self.covered.gpus),
                "input_tokens": self.covered.input_tokens,
                "output_tokens": self.covered.output_tokens,
            },
            "own": [
                {
                    "key": one.key,
                    "engine": one.engine,
                    "sheet": one.sheet,
                    "slopes": dict(one.slopes),
                    "steps": one.steps,
                    "first_token": one.first_token,
                }
                for one in self.own
            ],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Knowledge":
        """Return what `to_dict` gave."""
        covariance = np.diag(np.array([factor.spread for factor in FACTORS]) ** 2)
        names = list(content["covariance"])
        for at, row in enumerate(content["covariance"].values()):
            i = NAMES.index(names[at])
            for other, value in zip(names, map(float, row.split()), strict=False):
                j = NAMES.index(other)
                covariance[i, j] = covariance[j, i] = value
        covered = content["covered"]
        return cls(
            factors={name: float(value) for name, value in content["factors"].items()},
            covariance=covariance,
            scales=ServiceScales.from_dict(content["residuals"]),
            first_tokens=first_tokens_of(content),
            first_token_spreads=dict(content["first_token_spreads"]),
            errors={case: Errors(**one) for case, one in content["errors"].items()},
            covered=Covered(
                dict(covered["kinds"]),
                tuple(covered["gpus"]),
                covered["input_tokens"],
                covered["output_tokens"],
            ),
            origin=Origin(
                content["rows"],
                content["offline_batches_of_2024"],
                content["rows_hash"],
                dict(content["engines"]),
                content["llmpilot"],
            ),
            own=tuple(OwnResidual(**one) for one in content["own"]),
        )

    @cached_property
    def _logs(self) -> Numbers:
        return np.array([log(self.factors[name]) for name in NAMES])

    @cached_property
    def _moved(self) -> list[bool]:
        """Which factors are not at their prior [factors]."""
        prior = np.diag(np.array([factor.spread for factor in FACTORS]) ** 2)
        return [bool(np.any(mine != before)) for mine, before in zip(self.covariance, prior, strict=True)]

    @cached_property
    def _root(self) -> Numbers:
        """A square root of the covariance [factors, factors]."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))

    @cached_property
    def _steps(self) -> Known:
        """The logs of step times over what factors say, given measured services and the user's own levels.

        What measured services have beside the factors is after the factors were fitted to them; an own level
        tells of both.
        """
        measured = [
            Evidence(
                f"rows of {one.place.key}",
                one.place.components,
                float(np.clip(one.error, -MOST, MOST)),
                one.noise,
            )
            for one in self.scales.residuals
        ]
        slopes = [np.array([own.slopes.get(name, 0.0) for name in NAMES]) for own in self.own]
        mine = [
            Evidence(
                f"own level {at}",
                self._components(own.key, slope, own.sheet),
                float(np.clip(own.steps, -MOST, MOST)),
                LEVEL,
            )
            for at, (own, slope) in enumerate(zip(self.own, slopes, strict=True))
        ]
        return Known((*measured, *mine))

    @cached_property
    def _first_tokens(self) -> Known:
        """The logs of times to the first token over what is expected beside step times."""
        found = []
        for at, own in enumerate(self.own):
            if own.first_token is not None:
                *shared, level = self._first_token_parts(own.key, own.engine).items()
                found.append(Evidence(f"own first token {at}", dict(shared), own.first_token, level[1] ** 2))
        return Known(tuple(found))

    def _step_components(self, service: StepModel) -> Components:
        key = service_key(service)
        sheet = service.gpu.name if by_datasheet(service) else None
        return {**self._components(key, self.slopes(service), sheet), f"level | {key}": sqrt(LEVEL)}

    def _components(self, key: str, slopes: Numbers, sheet: str | None) -> Components:
        """Return what a service's step times under one workload are made of, beside what is expected."""
        found = {f"factor | {at}": weight for at, weight in enumerate((slopes @ self._root).tolist())}
        found |= Place.of_key(key).components
        found[f"curve | {key}"] = sqrt(CURVE)
        if sheet is not None:
            found[f"datasheet | {sheet}"] = sqrt(DATASHEET)
        return found

    def _first_token_components(self, service: StepModel) -> Components:
        return self._first_token_parts(service_key(service), service.settings.engine)

    def _first_token_parts(self, key: str, engine: str) -> dict[str, float]:
        """Return what a service's times to the first token are made of beside its steps; the level's last."""
        spread = self.first_token_spreads.get(engine, FIRST_TOKEN_SPREAD)
        names = {
            "engine": f"first token | {engine}",
            "family": f"first token | {engine} | {Place.of_key(key).family}",
            "service": f"first token | {key}",
            "level": f"level of first token | {key}",
        }
        return {names[part]: spread * sqrt(share) for part, share in SHARES.items()}


@cache
def shipped_knowledge() -> Knowledge:
    """Return what comes with the package."""
    content: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return Knowledge.from_dict(content)


def _digits(value: Any, digits: int) -> float:
    return float(f"{float(value):.{digits}g}")
