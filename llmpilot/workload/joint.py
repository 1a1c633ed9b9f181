"""The workload model: the joint distribution of all request parameters, as bins and non-empty cells.

Non-parametric, as in the paper (LLM-Pilot, section III): correlations survive because the cells are joint.
Sampling is integer arithmetic on raw PCG64 words, so a seed gives the same bytes on every machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmpilot.errors import ConfigError, TraceError
from llmpilot.workload.binning import Counter, make_bins
from llmpilot.workload.requests import (
    PARAMETERS,
    STEPS_PER_UNIT,
    Ints,
    Requests,
    concatenate,
    decode,
    encode,
)
from llmpilot.workload.seeds import random_words

MIN_BINS, MAX_BINS = 20, 256
CHUNK = 65_536
"""Requests that a stream draws at once: bounds its memory (about 12 MB)."""


@dataclass(frozen=True, eq=False)
class WorkloadModel:
    """What users send: `bins[p]` holds the (low, high) of each bin of parameter p in integer steps,
    `cells` the bin of each parameter (parameters x cells), `weights` how many requests fell into each cell.

    `about` says where it comes from: name, source, licence, description. Equal content, equal
    `content_hash`, whatever `about` says. `cached_share` of every prompt's tokens is known to the server
    already (a system prompt, the conversation so far); None: nothing is said of it.
    """

    bins: tuple[Ints, ...]
    cells: NDArray[np.int32]
    weights: Ints
    about: Mapping[str, str] = field(default_factory=dict)
    cached_share: float | None = None

    @property
    def rows(self) -> int:
        """How many requests the model was fitted on: the sum of all weights."""
        return int(self.weights.sum())

    @property
    def name(self) -> str:
        """The workload's name in tables."""
        return self.about.get("name", "workload")

    @cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of the distribution itself: two models with this in common draw the same requests."""
        text = {
            "parameters": PARAMETERS,
            "steps": STEPS_PER_UNIT,
            "bins": [b.tolist() for b in self.bins],
        }
        digest = hashlib.sha256(json.dumps(text, sort_keys=True, separators=(",", ":")).encode())
        digest.update(np.ascontiguousarray(self.cells).astype("<i4").tobytes())
        digest.update(self.weights.astype("<i8").tobytes())
        return digest.hexdigest()

    def longest(self) -> tuple[int, int]:
        """Return the largest input tokens and the largest output tokens that it can draw."""
        return int(self.bins[0][:, 1].max()), int(self.bins[1][:, 1].max())

    @property
    def heaviest_weight(self) -> int:
        """The largest batch weight of one request that it can draw [tokens]."""
        inputs, outputs, batch = (self.bins[p][self.cells[p], 1] for p in range(3))
        return int((batch * (inputs + outputs)).max())

    def stream(self, seed: int, *, independent: bool = False) -> "RequestStream":
        """Return an endless stream of requests; `independent` draws each parameter from its own marginal,
        as generators do that ignore correlations: for comparison only."""
        return RequestStream(self, seed, independent=independent)

    def sample(self, n: int, seed: int, *, independent: bool = False) -> Requests:
        """Return the first `n` requests of `stream(seed)`."""
        return self.stream(seed, independent=independent).take(n)

    def spread(self, n: int, seed: int) -> Requests:
        """Return `n` requests that stand for all: of each cell as many as its weight says, to one request.

        They are in the order of output tokens, then of input tokens; chance decides within bins only.
        """
        order = np.lexsort((self.cells[0], self.cells[1]))
        cumulative = np.cumsum(self.weights[order])
        middles = (2 * np.arange(n) + 1) * (int(cumulative[-1]) / (2 * n))
        picks = order[np.searchsorted(cumulative, middles, side="right")]
        words = random_words(seed).random_raw(n * len(PARAMETERS)).reshape(len(PARAMETERS), n)
        columns = []
        for bins, cells, word in zip(self.bins, self.cells, words, strict=True):
            low, high = bins[cells[picks]].T
            columns.append(low + (word % (high - low + 1).astype(np.uint64)).astype(np.int64))
        return decode(columns)

    def marginal(self, parameter: str) -> Ints:
        """Return the weight of each bin of one parameter."""
        p = PARAMETERS.index(parameter)
        weights = np.zeros(len(self.bins[p]), np.int64)
        np.add.at(weights, self.cells[p], self.weights)
        return weights

    @staticmethod
    def steps(parameter: str) -> int:
        """Return how many integer steps of `bins` make one unit of the parameter: 1 for whole numbers."""
        return STEPS_PER_UNIT.get(parameter, 1)

    def mean(self, parameter: str) -> float:
        """Return the mean of one parameter, in its own unit: bins count with their middle."""
        middles = self.bins[PARAMETERS.index(parameter)].sum(axis=1) / 2
        value = float((middles * self.marginal(parameter)).sum()) / self.rows
        return value / self.steps(parameter)

    def save(self, path: str | Path) -> None:
        """Write the model to `path` as Parquet, at once or not at all."""
        from llmpilot.workload.store import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> "WorkloadModel":
        """Return the model saved at `path`; TraceError if it is missing, foreign or damaged."""
        from llmpilot.workload.store import load

        return load(Path(path))


class RequestStream:
    """Requests one after the other, endlessly. How they are split into takes changes nothing."""

    def __init__(self, model: WorkloadModel, seed: int, *, independent: bool = False) -> None:
        self._bits = random_words(seed)
        self._model = model
        self._independent = independent
        if independent:
            self._cumulative = [np.cumsum(model.marginal(name)).astype(np.uint64) for name in PARAMETERS]
        else:
            self._cumulative = [np.cumsum(model.weights).astype(np.uint64)]
        self._lows = [b[:, 0] for b in model.bins]
        self._widths = [(b[:, 1] - b[:, 0] + 1).astype(np.uint64) for b in model.bins]

    def take(self, n: int) -> Requests:
        """Return the next `n` requests."""
        parts = [self._draw(min(CHUNK, n - done)) for done in range(0, n, CHUNK)]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _draw(self, n: int) -> Requests:
        # A fixed number of words per request (the cell's, then one per parameter) makes takes chunk-free.
        # Modulo is biased by less than weight / 2^64: nothing, for weights below 2^40.
        chosen, inside = len(self._cumulative), len(PARAMETERS)
        words = self._bits.random_raw(n * (chosen + inside)).reshape(n, chosen + inside)
        picks = [
            np.searchsorted(cumulative, words[:, i] % cumulative[-1], side="right")
            for i, cumulative in enumerate(self._cumulative)
        ]
        columns: list[Ints] = []
        for p in range(inside):
            bins = picks[p] if self._independent else self._model.cells[p, picks[0]]
            offset = words[:, chosen + p] % self._widths[p][bins]
            columns.append(self._lows[p][bins] + offset.astype(np.int64))
        return decode(columns)


def fit(
    chunks: Callable[[], Iterable[Requests]], max_bins: int = 64, about: Mapping[str, str] | None = None
) -> WorkloadModel:
    """Return the model of all requests of `chunks()`, which is called twice: for the marginals, then for
    the joint cells. Memory grows with the distinct values and cells, not with the rows.

    Raises:
        ConfigError: max_bins is not between 20 and 256.
        TraceError: there are no requests, or the second pass saw others than the first.
    """
    if not MIN_BINS <= max_bins <= MAX_BINS:
        cure = f"set it between {MIN_BINS} and {MAX_BINS}; 64 is usual"
        raise ConfigError("max_bins is not possible", given=max_bins, cure=cure)
    counters = [Counter() for _ in PARAMETERS]
    for chunk in chunks():
        for counter, column in zip(counters, encode(chunk), strict=True):
            counter.add(column)
    marginals = [counter.result() for counter in counters]
    rows = int(marginals[0][1].sum())
    if rows == 0:
        raise TraceError("there are no requests to fit a model on", cure="give a trace with at least one row")
    bins = tuple(make_bins(values, counts, max_bins) for values, counts in marginals)
    sizes = [len(b) for b in bins]
    joint = Counter()
    for chunk in chunks():
        joint.add(_keys(encode(chunk), bins))
    keys, weights = joint.result()
    if int(weights.sum()) != rows:
        raise _changed()
    cells = np.stack(np.unravel_index(keys, sizes)).astype(np.int32)
    return WorkloadModel(bins, cells, weights, dict(about or {}))


def _keys(columns: list[Ints], bins: tuple[Ints, ...]) -> Ints:
    """Return one integer per row that names its cell: bin indices in a mixed radix, below 2^56."""
    key = np.zeros(len(columns[0]), np.int64)
    for column, edges in zip(columns, bins, strict=True):
        index = np.searchsorted(edges[:, 0], column, side="right") - 1
        # A row that no bin holds was not there in the first pass.
        if len(column) and (int(index.min()) < 0 or bool((column > edges[index, 1]).any())):
            raise _changed()
        key = key * len(edges) + index
    return key


def _changed() -> TraceError:
    return TraceError("the trace changed while it was read", cure="run again once nothing writes to it")
