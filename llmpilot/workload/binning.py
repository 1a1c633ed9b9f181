"""Streaming counts of integers, and the bins of one parameter. Knows nothing of requests."""

from itertools import pairwise

import numpy as np

from llmpilot.workload.requests import Ints

OWN_BIN_SHARE = 10
"""A value with more than 1/10 of the mass gets a bin of its own."""


class Counter:
    """Exact counts of the distinct integers seen, in memory proportional to how many are distinct."""

    def __init__(self) -> None:
        self._values: Ints = np.empty(0, np.int64)
        self._counts: Ints = np.empty(0, np.int64)
        self._pending: list[tuple[Ints, Ints]] = []
        self._n_pending = 0

    def add(self, values: Ints) -> None:
        """Count each of `values` once."""
        distinct, counts = np.unique(values, return_counts=True)
        self._pending.append((distinct, counts.astype(np.int64)))
        self._n_pending += len(distinct)
        if self._n_pending > max(len(self._values), 100_000):
            self._merge()

    def result(self) -> tuple[Ints, Ints]:
        """Return the distinct values, rising, and how often each was seen."""
        self._merge()
        return self._values, self._counts

    def _merge(self) -> None:
        values = np.concatenate([self._values, *(v for v, _ in self._pending)])
        counts = np.concatenate([self._counts, *(c for _, c in self._pending)])
        self._values, inverse = np.unique(values, return_inverse=True)
        self._counts = np.zeros(len(self._values), np.int64)
        np.add.at(self._counts, inverse, counts)
        self._pending, self._n_pending = [], 0


def make_bins(values: Ints, counts: Ints, max_bins: int) -> Ints:
    """Return the bins, rising and apart, as an array (bins x 2) of the least and largest value in each.

    Few values keep a bin each; so does a value with more than a tenth of the mass. Half of the other bins
    have equal frequency. The other half split, one by one, the bin in which a uniform draw departs most
    from what was seen: without that, the last bin of a heavy tail alone can shift the mean by half.
    """
    if len(values) <= max_bins:
        return np.stack([values, values], axis=1)
    total = int(counts.sum())
    mean = float((values * (counts / total)).sum())
    own = counts * OWN_BIN_SHARE > total
    light_budget = max_bins - int(own.sum())
    before = np.cumsum(counts) - counts
    quantile = before * max(light_budget // 2, 1) // total
    # A bin starts where the quantile changes, at a value with a bin of its own, and after one.
    starts = own.copy()
    starts[0] = True
    starts[1:] |= own[:-1]
    room = max_bins - int(starts.sum())
    changes = np.flatnonzero((np.diff(quantile, prepend=quantile[0]) > 0) & ~starts)
    starts[changes[: max(room, 0)]] = True
    edges = [*np.flatnonzero(starts).tolist(), len(values)]
    spans = [_misfit(values, counts, mean, a, b) for a, b in pairwise(edges)]
    while len(spans) < max_bins:
        worst = max(range(len(spans)), key=lambda i: spans[i][0])
        misfit, first, cut, end = spans[worst]
        if misfit <= 0:
            break
        spans[worst : worst + 1] = [
            _misfit(values, counts, mean, first, cut),
            _misfit(values, counts, mean, cut, end),
        ]
    return np.array([[values[first], values[end - 1]] for _, first, _, end in spans], dtype=np.int64)


def _misfit(values: Ints, counts: Ints, mean: float, first: int, end: int) -> tuple[float, int, int, int]:
    """Return (misfit, first, cut, end) of the bin holding values[first:end]: how far uniform draws from it
    are from the data, and the index before which to cut it. The misfit counts requests: the largest
    distance of the distribution functions, plus the shift of the mean in units of the overall `mean`."""
    if end - first < 2:
        return 0.0, first, first, end
    inside, seen = values[first:end], counts[first:end]
    low, high, mass = int(inside[0]), int(inside[-1]), int(seen.sum())
    share = np.cumsum(seen) / mass
    uniform = (inside - low + 1) / (high - low + 1)
    just_below = (inside[1:] - low) / (high - low + 1)  # before the next value is reached
    apart = np.maximum(np.abs(share[:-1] - uniform[:-1]), np.abs(share[:-1] - just_below))
    shift = abs(float((inside * (seen / mass)).sum()) - (low + high) / 2) / max(mean, 1.0)
    cut = first + 1 + int(np.argmax(apart))
    return mass * (float(apart.max()) + shift), first, cut, end
