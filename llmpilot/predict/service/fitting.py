"""The factors of the service model, fitted to measured times per output token by their steady state.

Maximum a posteriori in logarithms: every family of LLMs counts alike however many rows it has, far errors
count linearly, and the likelihood is tempered, since rows of one curve err together. About the maximum the
posterior is taken for a normal distribution of the factors' logarithms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from llmpilot.predict.service.levels import Level
from llmpilot.simulator.factors import FACTORS, NAMES, design
from llmpilot.simulator.steady import ClosedLoads, SteadyParts, steady_parts, time_per_output_token
from llmpilot.simulator.step_model import Numbers, StepModel

SPREAD = 0.12
"""Of a row's error (log units): up to it errors count squared, beyond it linearly."""
TEMPER = 0.15
"""What a row's likelihood is raised to: rows of one curve are not independent."""
FEW_ROWS = 50
"""A family of LLMs with so many rows counts half as much as one with very many."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Closed-loop levels [n rows], what their steps are made of, and which factors act on their services."""

    levels: Sequence[Level]
    parts: SteadyParts
    service: Rows
    designs: Numbers
    families: NDArray[Any]

    def tpot_ms(self, logs: Numbers, rows: Rows | None = None) -> Numbers:
        """Return the mean time per output token of the rows under factors given as logarithms [factors]."""
        chosen = np.arange(len(self.levels)) if rows is None else rows
        multipliers = np.exp(np.tensordot(self.designs, logs, ([1], [0])))
        return time_per_output_token(_taken(self.parts, chosen), multipliers[self.service[chosen]])


@dataclass(frozen=True)
class Posterior:
    """What measurements leave of the factors: the most probable logarithms, and their covariance."""

    logs: Numbers
    covariance: Numbers

    def factors(self) -> dict[str, float]:
        """Return the most probable factors, by name."""
        return dict(zip(NAMES, np.exp(self.logs).tolist(), strict=True))


def tabulated(levels: Sequence[Level]) -> Table:
    """Return closed-loop levels with what their steps are made of."""
    services: dict[int, StepModel] = {id(level.service): level.service for level in levels}
    index = {key: at for at, key in enumerate(services)}
    service = np.array([index[id(level.service)] for level in levels], dtype=np.int64)
    collected: dict[str, Numbers] = {}
    for at, one in enumerate(services.values()):
        rows = np.flatnonzero(service == at)
        loads = closed_loads([levels[row] for row in rows.tolist()])
        for name, values in _fields(steady_parts(one, loads)).items():
            place = collected.setdefault(name, np.empty((len(levels), *values.shape[1:])))
            place[rows] = values
    return Table(
        levels,
        _of_fields(collected),
        service,
        np.stack([design(one) for one in services.values()]),
        np.array([level.family for level in levels]),
    )


def closed_loads(levels: Sequence[Level]) -> ClosedLoads:
    """Return levels with users as loads of one service's steady state."""
    return ClosedLoads(
        np.array([level.input_tokens for level in levels]),
        np.array([level.output_tokens for level in levels]),
        np.array([max(1.0, min(level.users or level.at_once or 1.0, level.capacity)) for level in levels]),
        np.array([float(level.settings.max_num_batched_tokens) for level in levels])
        * np.array([float(level.service.settings.data_parallel) for level in levels]),
    )


def prior() -> Posterior:
    """Return what is known of the factors before any measurement."""
    middle = np.log([factor.median for factor in FACTORS])
    return Posterior(middle, np.diag(np.array([factor.spread for factor in FACTORS]) ** 2))


def fit(table: Table, measured_tpot_ms: Numbers, rows: Rows) -> Posterior:
    """Return the posterior of the factors after the given rows [m] of the table; of no rows, the prior.

    Factors of 2024's engines stay at their priors: see `batches.fit_batches`.
    """
    free = np.array([not factor.of_2024 for factor in FACTORS])
    return most_probable(
        lambda logs: table.tpot_ms(logs, rows), measured_tpot_ms[rows], table.families[rows], free, prior()
    )


def most_probable(
    predicted: Callable[[Numbers], Numbers],
    measured: Numbers,
    families: NDArray[Any],
    free: NDArray[np.bool_],
    known: Posterior,
) -> Posterior:
    """Return `known` with its `free` factors [factors] as measurements [m] leave them.

    `predicted` says what it would be under factors given as logarithms; `families` are the rows' LLMs. The
    factors that are not free stay as they are known.
    """
    if not len(measured):
        return known
    middle = np.log([factor.median for factor in FACTORS])[free]
    spreads = np.array([factor.spread for factor in FACTORS])[free]
    targets = np.log(measured)
    root = np.sqrt(TEMPER * _weights(families)) / SPREAD

    def whole(chosen: Numbers) -> Numbers:
        logs = known.logs.copy()
        logs[free] = chosen
        return logs

    def errors(chosen: Numbers) -> Numbers:
        return np.asarray(np.log(predicted(whole(chosen))) - targets)

    def residuals(chosen: Numbers) -> Numbers:
        error = errors(chosen)
        soft = np.sign(error) * SPREAD * np.sqrt(2 * (np.sqrt(1 + (error / SPREAD) ** 2) - 1))
        return np.concatenate([root * soft, (chosen - middle) / spreads])

    found = least_squares(residuals, middle, x_scale=spreads, max_nfev=15).x
    at = errors(found)
    slopes = np.column_stack([(errors(found + step) - at) / 1e-4 for step in 1e-4 * np.eye(len(found))])
    # Of a soft error the curvature is less, the further out it is.
    curved = root**2 / np.sqrt(1 + (at / SPREAD) ** 2)
    precision = slopes.T @ (curved[:, None] * slopes) + np.diag(spreads**-2)
    covariance = known.covariance.copy()
    covariance[np.ix_(free, free)] = np.linalg.inv(precision)
    return Posterior(whole(found), covariance)


def _weights(families: NDArray[Any]) -> Numbers:
    """Return weights [n rows] of mean 1: families count alike, those of few rows as far as they have any."""
    _, inverse, counts = np.unique(families, return_inverse=True, return_counts=True)
    each = (1.0 / (counts + FEW_ROWS))[inverse]
    return np.asarray(each / each.mean(), dtype=np.float64)


def _fields(parts: SteadyParts) -> dict[str, Numbers]:
    loads = parts.loads
    return {
        "input_tokens": loads.input_tokens,
        "output_tokens": loads.output_tokens,
        "running": loads.running,
        "step_tokens": loads.step_tokens,
        "decode": parts.decode,
        "mixed": parts.mixed,
        "single": parts.single,
        "share": parts.share,
        "chunks": parts.chunks,
        "chunk_tokens": parts.chunk_tokens,
    }


def _of_fields(values: dict[str, Numbers]) -> SteadyParts:
    loads = ("input_tokens", "output_tokens", "running", "step_tokens")
    return SteadyParts(
        ClosedLoads(*(values[name] for name in loads)),
        **{name: array for name, array in values.items() if name not in loads},
    )


def _taken(parts: SteadyParts, rows: Rows) -> SteadyParts:
    return _of_fields({name: values[rows] for name, values in _fields(parts).items()})
