"""Fits the constants of operator times to a table of measured ones, for one GPU type or for all.

The rooflines' constants are shared by all GPU types, as shares of datasheet rates; a GPU type differs by the
correction on the grid, which is drawn to the one shared by all where its own measurements are few.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import least_squares

from llmpilot.config import Gpu
from llmpilot.operators.forms import FORMS, Constants, Form, Grid
from llmpilot.operators.rates import Rates
from llmpilot.operators.times import LINKS, operators_for

SMOOTH = 1.0
"""Rows that a difference between neighbours on the grid weighs as much as."""
DRAWN = 0.1
"""Rows that the distance of a correction from what it is drawn to weighs as much as."""
_ROWS = 3000
_REPEATS = 300
_FARTHEST = 2.0
Floats = NDArray[np.float64]
Shapes = Callable[[pd.DataFrame], list[Any]]


@dataclass(frozen=True)
class Measured:
    """Measured times of one operator in one number format on one GPU type."""

    form: Form
    rates: Rates
    fmt: str
    shape: Sequence[Floats]
    log_ms: Floats

    def __len__(self) -> int:
        return len(self.log_ms)

    def taken(self, rows: NDArray[Any]) -> "Measured":
        """Return some of the rows: a mask, or their places."""
        return Measured(self.form, self.rates, self.fmt, [s[rows] for s in self.shape], self.log_ms[rows])

    def thinned(self, rows: int) -> "Measured":
        """Return at most so many rows, drawn at random but always the same."""
        if len(self) <= rows:
            return self
        return self.taken(np.random.default_rng(0).choice(len(self), rows, replace=False))

    def misses(self, constants: Constants) -> Floats:
        """Return the log of measured over predicted time, a number for each row."""
        predicted = self.form.time_ms(constants, self.rates, self.fmt, *self.shape)
        missed: Floats = self.log_ms - np.log(np.asarray(predicted))
        return missed


Tables = Mapping[tuple[str, str], Measured]
"""Measured times by operator and number format; by the kind of link for operators between GPUs."""


def fit_operators(table: pd.DataFrame, gpu: Gpu) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the constants of a GPU type from measured times, by operator and number format.

    `table` has a row for each time: `op` and `format` (as in `Operators`), `time_us`, and a column for each
    argument of the operator's method by its name (`value_dim` and `gated` may be missing). What it has no
    rows of keeps the constants that this GPU type has without it.
    """
    known = operators_for(gpu)
    return _own(measured(table, gpu), known.constants)


def measured(table: pd.DataFrame, gpu: Gpu) -> dict[tuple[str, str], Measured]:
    """Return the rows of a table of measured times by operator and number format."""
    tables = {}
    for (op, fmt), rows in table.groupby(["op", "format"]):
        name, key = str(op), LINKS[gpu.link] if str(op) in _BETWEEN_GPUS else str(fmt)
        shape = [np.asarray(size, dtype=float) + np.zeros(len(rows)) for size in _SHAPES[name](rows)]
        times = np.log(rows["time_us"].to_numpy(dtype=float) * 1e-3)
        tables[name, key] = Measured(FORMS[name], Rates(gpu), str(fmt), shape, times)
    return tables


def fit_universal(by_gpu: Sequence[Tables]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return constants that serve all GPU types, by operator and number format; GPU types count alike.

    The correction is the mean of the GPU types' own, drawn to zero corner by corner as far as they differ.
    """
    fitted: dict[str, dict[str, dict[str, Any]]] = {}
    for op, fmt in sorted({key for tables in by_gpu for key in tables}):
        parts = [tables[op, fmt].thinned(4 * _ROWS) for tables in by_gpu if (op, fmt) in tables]
        constants: dict[str, Any] = dict(fit_roofline([part.thinned(_ROWS) for part in parts]))
        if parts[0].form.knots:
            own = np.array([_correction(part, constants, None) for part in parts])
            mean = own.mean(axis=0)
            of_mean = own.var(axis=0, ddof=1) / len(parts) if len(parts) > 1 else np.zeros_like(mean)
            drawn = mean * mean**2 / (mean**2 + of_mean + 1e-9)
            constants["correction"] = _percent(_growing(parts[0], constants, drawn))
        fitted.setdefault(op, {})[fmt] = constants
    return fitted


def fit_own(
    tables: Tables, universal: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return a GPU type's constants: the universal ones with a correction of its own."""
    return _own(tables, lambda op, fmt: universal[op][fmt])


def _own(
    tables: Tables, shared: Callable[[str, str], Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    fitted: dict[str, dict[str, dict[str, Any]]] = {}
    for (op, fmt), part in tables.items():
        known = {name: value for name, value in shared(op, fmt).items() if name not in ("grid", "spread")}
        if part.form.knots:
            drawn = _correction(part, known, known.get("correction"))
            own = known | {"correction": _percent(_growing(part, known, drawn))}
        else:
            own = known | dict(fit_roofline([part]))
        fitted.setdefault(op, {})[fmt] = own
    return fitted


def fit_roofline(parts: Sequence[Measured]) -> dict[str, float]:
    """Return the constants that fit these rows best without a correction, each GPU type weighing the same."""
    form = parts[0].form
    names = list(form.constants)
    first, low, high = np.log(np.array([form.constants[name] for name in names]).T + 1e-12)
    parts = [part for part in parts if len(part)]

    def misses(logs: Floats) -> Floats:
        constants = dict(zip(names, np.exp(logs), strict=True))
        return np.concatenate([part.misses(constants) / np.sqrt(len(part)) for part in parts])

    rows = np.mean([len(part) for part in parts])
    found = least_squares(
        lambda logs: misses(logs) * np.sqrt(rows), first, bounds=(low, high), loss="soft_l1", f_scale=0.1
    )
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(found.x), strict=True)}


def _correction(part: Measured, constants: Constants, drawn_to: Sequence[float] | None) -> Floats:
    """Return the logs on the grid that make up for what the roofline misses.

    Ridge regression on the grid's corners: neighbours are alike, and what no row tells is drawn to `drawn_to`
    shifted by what the rows are off on the whole.
    """
    form = part.form
    grid = Grid(form.knots, form.alone, [])
    drawn = np.zeros(grid.size) if drawn_to is None else np.array(drawn_to) / 100
    corners, weights = grid.weights(form.coordinates(*part.shape))
    at = np.repeat(np.arange(len(part)), weights.shape[1])
    matrix = sparse.csr_matrix((weights.ravel(), (at, corners.ravel())), shape=(len(part), grid.size))
    missed = part.misses({name: constants[name] for name in form.constants}) - matrix @ drawn
    lower, upper = _edges([len(axis) for axis in form.knots])
    edges = np.tile(np.arange(len(lower)), 2)
    signs = np.repeat([1.0, -1.0], len(lower))
    differences = sparse.csr_matrix(
        (signs, (edges, np.concatenate([upper, lower]))), shape=(len(lower), grid.size)
    )
    penalty = SMOOTH * (differences.T @ differences) + DRAWN * sparse.eye(grid.size)
    level = np.full((grid.size, 1), 1.0 / (1 + len(form.alone)))  # so that all corners of a point sum to one
    wide = sparse.hstack([matrix, sparse.csr_matrix(matrix @ level)], format="csr")
    normal = (wide.T @ wide).toarray() + 1e-3 * np.eye(grid.size + 1)
    normal[:-1, :-1] += penalty.toarray()
    solved: Floats = np.linalg.solve(normal, wide.T @ np.clip(missed, -_FARTHEST, _FARTHEST))
    values: Floats = drawn + solved[:-1] + solved[-1] * level[:, 0]
    return values


def _percent(values: Floats) -> list[int]:
    return [round(100 * float(value)) for value in values]


def _edges(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corners at both ends of every edge of the grid, the smaller size first."""
    places = np.arange(np.prod(counts)).reshape(counts)
    lower = [np.moveaxis(places, axis, 0)[:-1].ravel() for axis in range(len(counts))]
    upper = [np.moveaxis(places, axis, 0)[1:].ravel() for axis in range(len(counts))]
    return np.concatenate(lower), np.concatenate(upper)


def _growing(part: Measured, constants: Constants, values: Floats) -> Floats:
    """Return the values nearest to these with which no larger size takes less time.

    Along every edge the correction falls by no more than the roofline rises where it rises least, which is at
    the smaller end, as a roofline is convex in logs. Dykstra's projections on these half-spaces.
    """
    form = part.form
    corners = [axis.ravel() for axis in np.meshgrid(*[np.array(a, float) for a in form.knots], indexing="ij")]
    lower, upper = _edges([len(axis) for axis in form.knots])
    places = np.stack(corners)

    def roofline(at: Floats) -> Floats:
        shape = form.example(*[2.0**axis for axis in at])
        logs: Floats = np.log(np.asarray(form.roofline(constants, part.rates, part.fmt, *shape)))
        return logs

    step = places[:, upper] - places[:, lower]
    rise = roofline(places[:, lower] + step / 64) - roofline(places[:, lower])
    rise = 0.9 * np.maximum(64 * rise, 0.0)
    values, owed = values.copy(), np.zeros(len(lower))
    for _ in range(_REPEATS):
        for parity in range(2):
            for axis in range(len(form.knots)):
                cell = np.searchsorted(np.array(form.knots[axis], float), places[axis, lower])
                now = (step[axis] > 0) & (cell % 2 == parity)
                short = values[lower[now]] - values[upper[now]] - rise[now]
                push = np.maximum(owed[now] + short / 2, 0.0)
                values[lower[now]] -= push - owed[now]
                values[upper[now]] += push - owed[now]
                owed[now] = push
    return values


def _widths(rows: pd.DataFrame) -> Any:
    return rows["head_dim"] + (
        rows["value_dim"].fillna(rows["head_dim"]) if "value_dim" in rows else rows["head_dim"]
    )


def _matrices(rows: pd.DataFrame) -> Any:
    return np.where(rows["gated"].fillna(True).astype(bool), 3.0, 2.0) if "gated" in rows else 3.0


def _sizes(*names: str) -> Shapes:
    return lambda rows: [rows[name] for name in names]


_BETWEEN_GPUS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
_SHAPES: dict[str, Shapes] = {
    "gemm": _sizes("m", "n", "k"),
    "decode_attention": lambda t: [
        *_sizes("sequences", "context_tokens", "n_heads", "n_kv_heads")(t),
        _widths(t),
    ],
    "prefill_attention": lambda t: [
        *_sizes("chunks", "tokens", "pairs", "n_heads", "n_kv_heads")(t),
        _widths(t),
    ],
    "latent_decode": _sizes("sequences", "context_tokens", "n_heads", "kv_rank", "rope_dim"),
    "latent_prefill": lambda t: [
        *_sizes("chunks", "pairs", "n_heads")(t),
        t["nope_dim"] + t["rope_dim"] + t["value_dim"],
    ],
    "experts": lambda t: [
        *_sizes("tokens", "d_model")(t),
        t["width"] / t["tensor_parallel"],
        *_sizes("per_token", "n_experts", "expert_parallel")(t),
        _matrices(t),
    ],
    "recurrent": _sizes("sequences", "prefill_tokens", "state_values", "state_bytes_per_value", "value_dim"),
    "element": _sizes("moved_bytes"),
    **{name: _sizes("message_bytes", "gpus") for name in _BETWEEN_GPUS},
}
