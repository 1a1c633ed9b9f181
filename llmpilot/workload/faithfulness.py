"""How faithful a workload model is to its trace: marginals and rank correlations. Draws no pictures."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.workload.joint import WorkloadModel
from llmpilot.workload.requests import PARAMETERS, Floats, Ints, Requests, concatenate, encode
from llmpilot.workload.seeds import random_words

MAX_ROWS = 1_000_000


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """A trace against as many samples, drawn jointly and drawn independently.

    `ks_*` is the two-sample Kolmogorov-Smirnov distance of each parameter. The matrices hold Spearman's
    rank correlations of `parameters`, which leaves out those `constant` in the trace. `difference_*` is the
    largest absolute difference of a correlation from the trace's.
    """

    rows: int
    samples: int
    parameters: tuple[str, ...]
    constant: tuple[str, ...]
    ks_joint: dict[str, float]
    ks_independent: dict[str, float]
    trace: Floats
    joint: Floats
    independent: Floats
    difference_joint: float
    difference_independent: float

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in asdict(self).items()
        }


def faithfulness(trace: Requests, model: WorkloadModel, seed: int, n: int) -> Faithfulness:
    """Return how `n` samples of `model` compare with `trace`; of both, at most 1,000,000 rows count."""
    if len(trace) > MAX_ROWS:
        trace = row_sample([trace], MAX_ROWS, seed)
    n = min(n, MAX_ROWS)
    seen = encode(trace)
    joint = encode(model.sample(n, seed))
    independent = encode(model.sample(n, seed, independent=True))
    varying = [p for p, column in enumerate(seen) if len(column) and column.min() < column.max()]
    correlations = [
        rank_correlations([columns[p] for p in varying]) for columns in (seen, joint, independent)
    ]
    return Faithfulness(
        rows=len(trace),
        samples=n,
        parameters=tuple(PARAMETERS[p] for p in varying),
        constant=tuple(name for p, name in enumerate(PARAMETERS) if p not in varying),
        ks_joint=_distances(seen, joint),
        ks_independent=_distances(seen, independent),
        trace=correlations[0],
        joint=correlations[1],
        independent=correlations[2],
        difference_joint=float(np.abs(correlations[1] - correlations[0]).max(initial=0.0)),
        difference_independent=float(np.abs(correlations[2] - correlations[0]).max(initial=0.0)),
    )


def ks_distance(a: Ints, b: Ints) -> float:
    """Return the largest distance between the two samples' distribution functions, 0 to 1."""
    a, b = np.sort(a), np.sort(b)
    at = np.union1d(a, b)
    below = np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b)
    return float(np.abs(below).max())


def rank_correlations(columns: list[Ints]) -> Floats:
    """Return Spearman's rank correlations (columns x columns), ties at their mean rank; a column without
    any spread correlates with nothing: 0, and 1 with itself."""
    from scipy.stats import rankdata

    ranks = np.empty((len(columns), len(columns[0]) if columns else 0))
    for i, column in enumerate(columns):
        ranks[i] = rankdata(column)
        ranks[i] -= ranks[i].mean()
        spread = np.sqrt((ranks[i] ** 2).sum())
        ranks[i] /= spread if spread > 0 else 1.0
    correlations: Floats = np.clip(ranks @ ranks.T, -1.0, 1.0)
    np.fill_diagonal(correlations, 1.0)
    return correlations


def row_sample(chunks: Iterable[Requests], limit: int, seed: int) -> Requests:
    """Return at most `limit` rows of all chunks, each row as likely as any other, in the trace's order.

    A seeded random key belongs to each row and the smallest keys stay: how the rows are chunked changes
    nothing, and memory is bounded by `limit` and the largest chunk.
    """
    bits = random_words(seed)
    kept: list[Requests] = []
    keys: NDArray[np.uint64] = np.empty(0, np.uint64)
    held = 0
    for chunk in chunks:
        kept.append(chunk)
        keys = np.append(keys, bits.random_raw(len(chunk)))
        held += len(chunk)
        if held >= 2 * limit:  # cutting only now and then keeps it linear
            kept, keys = _smallest(kept, keys, limit)
            held = limit
    return _smallest(kept, keys, limit)[0][0]


def _smallest(
    parts: list[Requests], keys: NDArray[np.uint64], limit: int
) -> tuple[list[Requests], NDArray[np.uint64]]:
    rows = concatenate(parts)
    if len(rows) <= limit:
        return [rows], keys
    stay = np.sort(np.argpartition(keys, limit - 1)[:limit])
    return [rows.take(stay)], keys[stay]


def _distances(a: list[Ints], b: list[Ints]) -> dict[str, float]:
    return {name: ks_distance(x, y) for name, x, y in zip(PARAMETERS, a, b, strict=True)}
