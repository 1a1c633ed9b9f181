"""Fits what is known of services' speed to measurements: `knowledge.Knowledge`, in about a minute.

Every error stated was judged by the rule that is used: factors and residuals of services, fitted without
what is judged, by the steady state; times to the first token by a sample of simulated levels.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llmpilot
from llmpilot.config import Model
from llmpilot.dataset.measurements import Measurements, joined
from llmpilot.predict.service.batches import fit_batches
from llmpilot.predict.service.first_token import fit_all
from llmpilot.predict.service.fitting import Posterior, fit, prior, tabulated
from llmpilot.predict.service.kin import Case, Covered, Errors, kind_of
from llmpilot.predict.service.knowledge import DATASHEET, Knowledge, Origin
from llmpilot.predict.service.levels import Level
from llmpilot.predict.service.validation import (
    Z_80,
    BatchTraining,
    Training,
    batch_training_of,
    client_key,
    factor_variance,
    fold_of,
    simulated_first_tokens,
    training_of,
)
from llmpilot.processes import Map
from llmpilot.simulator.factors import rounded, service_key
from llmpilot.simulator.first_token import ANY_CLIENT, FirstToken, Key, overhead_of
from llmpilot.simulator.service_scales import NARROWER, Place, Residual, ServiceScales
from llmpilot.simulator.service_settings import NEWEST
from llmpilot.simulator.step_model import Numbers, StepModel

Rows = NDArray[np.int64]
Note = Callable[[str], None]
LEAST_SPREAD = 0.05
"""Of times to the first token beside steps (log units), however well few rows agree."""


def fit_knowledge(
    measurements: Measurements, models: Mapping[str, Model], note: Note, run_on: Map = map
) -> Knowledge:
    """Return what the rows say: those of today's engines in a closed loop, and offline batches of 2024's.

    `models` are LLMs that the catalogue lacks, by Hugging Face id; `note` is told what is being done;
    `run_on` shares the simulations among processes.
    """
    known = training_of(measurements, models)
    note(f"fitting the factors to {len(known.levels)} levels of load")
    old = batch_training_of(measurements, models)
    everything = np.arange(len(known.levels))
    posterior = fit(known.table, known.tpot_ms, everything) if len(everything) else prior()
    whole = posterior
    if len(old.e2e_ms):
        note(f"fitting those of 2024's engines to {len(old.e2e_ms)} offline batches")
        whole = fit_batches(old.batches, old.e2e_ms, np.arange(len(old.e2e_ms)), posterior)
    first = _first_tokens(known, run_on, note)
    errors: dict[Case, Errors] = {}
    spreads: dict[str, float] = {}
    for case, left_out in _CASES.items():
        note(f"judging predictions that do not know {left_out}")
        steps, spread, ttft = _left_out(known, first, case)
        errors[case] = _errors(first, steps, spread, ttft)
        if case == "model":
            spreads = _spreads(first, ttft)
    return Knowledge(
        factors=rounded(whole.factors()),
        covariance=whole.covariance,
        scales=scales_of(known, posterior, everything),
        first_tokens=first.fitted(np.ones(len(first.rows), dtype=bool)),
        first_token_spreads=spreads,
        errors=errors,
        covered=_covered(known.levels),
        origin=_origin(known, old),
    )


_CASES: dict[Case, str] = {
    "service": "the level of load",
    "configuration": "the service and its lengths",
    "model": "the LLM",
    "kind": "any LLM of that kind",
    "gpu": "the GPU type",
    "datasheet": "the GPU type and its kernels",
}
_FOLDS: dict[Case, Any] = {
    "service": "level",
    "configuration": "configuration",
    "model": "model",
    "gpu": "gpu",
    "datasheet": "gpu",
}


def scales_of(known: Training, posterior: Posterior, rows: Rows) -> ServiceScales:
    """Return what factors leave of the services of some rows."""
    if not len(rows):
        return ServiceScales(())
    errors = np.log(known.tpot_ms[rows] / known.table.tpot_ms(posterior.logs, rows))
    of_service: dict[str, list[int]] = {}
    for at, row in enumerate(rows.tolist()):
        of_service.setdefault(service_key(known.levels[row].service), []).append(at)
    found = []
    for key, some in sorted(of_service.items()):
        lengths = {(known.levels[rows[at]].input_tokens, known.levels[rows[at]].output_tokens) for at in some}
        found.append(Residual(Place.of_key(key), float(np.median(errors[some])), len(lengths), len(some)))
    return ServiceScales(tuple(found))


@dataclass(frozen=True)
class _FirstTokens:
    """Some rows [n] simulated: what their sources state, by whose client, and what was simulated [ms]."""

    rows: Rows
    keys: list[Key]
    stated_ms: Numbers
    ttft_ms: Numbers
    tpot_ms: Numbers

    def fitted(self, use: NDArray[np.bool_]) -> dict[Key, FirstToken]:
        """Return the overheads fitted to the rows to use [n], by client, and those of any client."""
        chosen = np.flatnonzero(use).tolist()
        keys = [self.keys[at] for at in chosen]
        given = (self.ttft_ms[chosen], self.tpot_ms[chosen], self.stated_ms[chosen])
        anyone = [(ANY_CLIENT, *key[1:]) for key in keys]
        return fit_all(keys, *given) | fit_all(anyone, *given)


def _first_tokens(known: Training, run_on: Map, note: Note) -> _FirstTokens:
    pairs = list(dict.fromkeys(client_key(level)[:2] for level in known.levels))
    note(f"simulating times to the first token, as {len(pairs)} pairs of a client and an engine have them")
    parts = simulated_first_tokens(known, pairs, run_on)
    none = np.zeros(0)
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(part.rows for part in parts)])
    return _FirstTokens(
        rows,
        [client_key(known.levels[row]) for row in rows.tolist()],
        known.ttft_ms[rows],
        np.concatenate([none, *(part.ttft_ms for part in parts)]),
        np.concatenate([none, *(part.tpot_ms for part in parts)]),
    )


def _left_out(known: Training, first: _FirstTokens, case: Case) -> tuple[Numbers, Numbers, Numbers]:
    """Return errors without what the case leaves out (logs of measured over predicted).

    Of all rows' TPOT [n rows], with the spread that is expected of them [n rows]; and of the sample's times
    to the first token beside their steps [n first].
    """
    folds = np.array([_fold(level, case) for level in known.levels])
    steps, spread, ttft = np.zeros(len(folds)), np.ones(len(folds)), np.zeros(len(first.rows))
    table = known.table
    if case == "datasheet" and len(folds):
        table = tabulated(_without_tables(known.levels))
    for judged, kept in _split(folds):
        posterior = fit(known.table, known.tpot_ms, kept)
        scales = scales_of(known, posterior, kept)
        error = np.log(known.tpot_ms[judged] / table.tpot_ms(posterior.logs, judged))
        places = [Place.of_key(service_key(known.levels[row].service)) for row in judged.tolist()]
        expected = {place.key: scales.mean_and_variance(place) for place in dict.fromkeys(places)}
        mean, variance = np.array([expected[place.key] for place in places]).T
        steps[judged] = error - mean
        variance = variance + factor_variance(table, posterior, judged)
        spread[judged] = NARROWER * np.sqrt(variance + (DATASHEET if case == "datasheet" else 0.0))
        left = np.isin(first.rows, judged)
        if left.any():
            overheads = first.fitted(~left)
            for at in np.flatnonzero(left).tolist():
                one = overhead_of(first.keys[at], overheads)
                seen_ms = one.ttft_ms(first.ttft_ms[at], first.tpot_ms[at])
                ttft[at] = np.log(first.stated_ms[at] / seen_ms)
    return steps, spread, ttft


def _without_tables(levels: Sequence[Level]) -> list[Level]:
    """Return the levels on GPU types of the same datasheets, whose kernels nobody has measured."""
    made: dict[int, StepModel] = {}
    for level in levels:
        service = level.service
        if id(service) not in made:
            unknown = service.gpu.model_copy(update={"name": f"{service.gpu.name}'s datasheet"})
            made[id(service)] = replace(service, gpu=unknown)
    return [replace(level, service=made[id(level.service)]) for level in levels]


def _split(folds: NDArray[Any]) -> Iterator[tuple[Rows, Rows]]:
    for fold in dict.fromkeys(folds.tolist()):
        yield np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)


def _fold(level: Level, case: Case) -> str:
    return kind_of(level.service.model) if case == "kind" else fold_of(level, _FOLDS[case])


def _errors(first: _FirstTokens, steps: Numbers, spread: Numbers, ttft: Numbers) -> Errors:
    def median(logs: Numbers) -> float:
        return round(float(np.median(np.abs(np.expm1(-logs)))), 4)

    # A time to the first token is off by its steps too.
    both = ttft + steps[first.rows]
    return Errors(
        rows=len(steps),
        tpot=median(steps) if len(steps) else 0.0,
        tpot_within_80=round(float(np.mean(np.abs(steps) <= Z_80 * spread)), 4) if len(steps) else 1.0,
        ttft=median(both) if len(both) else None,
    )


def _spreads(first: _FirstTokens, ttft: Numbers) -> dict[str, float]:
    """Return how far times to the first token scatter beside their steps (log units), by engine."""
    engines = np.array([key[1] for key in first.keys])
    return {
        engine: max(LEAST_SPREAD, float(np.percentile(np.abs(ttft[engines == engine]), 80)) / Z_80)
        for engine in sorted(set(engines.tolist()))
    }


def _covered(levels: Sequence[Level]) -> Covered:
    gpus = Counter(level.service.gpu.name for level in levels)
    return Covered(
        {level.family: kind_of(level.service.model) for level in levels},
        tuple(sorted(gpus)),
        round(max((level.input_tokens for level in levels), default=0.0)),
        round(max((level.output_tokens for level in levels), default=0.0)),
    )


def _origin(known: Training, old: BatchTraining) -> Origin:
    rows = joined(known.measurements, old.measurements)
    engines = {str(engine): version for engine, version in NEWEST.items()}
    return Origin(len(known.levels), len(old.e2e_ms), rows.content_hash, engines, llmpilot.__version__)
