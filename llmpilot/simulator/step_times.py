"""Step times of one service, quick enough to be asked at every step of a simulation.

Everything is looked up in tables that are made once, a few thousand batches in a handful of array operations,
and interpolated: operators are smooth, nearly linear between neighbours.
"""

from bisect import bisect_right
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from llmpilot.simulator.batch import Batch
from llmpilot.simulator.factors import Factors, multipliers
from llmpilot.simulator.step_model import PARTS, SEQUENCE_MS, BatchArrays, Numbers, StepModel

_BY_TOKENS = ("attention_gemm", "mlp_gemm", "experts", "all_reduce", "element")
_FIXED = ("layer", "expert_layer", "latent_layer", "step")


def _powers(first: int, last: int) -> Numbers:
    return np.exp2(np.arange(first, last + 1))


def _halves(first: int, last: int) -> Numbers:
    """Return the powers of the square root of two from 2^first to 2^last."""
    return np.exp2(np.arange(2 * first, 2 * last + 1) / 2)


SEQUENCES, CONTEXTS = _halves(0, 12), _halves(4, 20)
CHUNKS, LENGTHS, DEPTHS = _powers(0, 8), _halves(2, 18), _halves(1, 20)
MOST_TOKENS = 1 << 18
"""Of all prompts of one step."""


@dataclass(frozen=True)
class StepTables:
    """The tables of one service's step times, factors included.

    `matrices_ms`, `states_ms`, `scans_ms` and `head_ms` are over `tokens` of one of the `ranks`: matrices,
    recurrent states in decoding and in prompts, and the head by the positions that it turns into logits.
    `attention_ms` of decoding is over [SEQUENCES, CONTEXTS], `prompts_ms` over [CHUNKS, LENGTHS, DEPTHS]: the
    attention of so many chunks by their mean length and by how many positions a token attends to on average.
    What prompts add to a step is multiplied with `prefill`, and every step with `scale`.
    """

    ranks: float
    scale: float
    fixed_ms: float
    sequence_ms: float
    prefill: float
    tokens: Numbers
    matrices_ms: Numbers
    states_ms: Numbers
    scans_ms: Numbers
    head_ms: Numbers
    attention_ms: Numbers
    prompts_ms: Numbers


def _tables(service: StepModel, factors: Factors) -> StepTables:
    settings = service.settings
    ranks = float(settings.data_parallel * settings.pipeline_parallel)
    multiplied = multipliers(service, factors)
    weight = dict(zip(PARTS, multiplied[:-1].tolist(), strict=True))
    rows = {name: at for at, name in enumerate(PARTS)}
    grid = _tokens_grid()
    none = np.zeros_like(grid)
    decoding = service.parts(BatchArrays(ranks * grid, none, none, none, none))
    reading = service.parts(BatchArrays(none, none, ranks * grid, none, none))
    n, context = np.meshgrid(SEQUENCES, CONTEXTS, indexing="ij")
    attention = service.decode_attention_ms(n, n * context)
    return StepTables(
        ranks=ranks,
        scale=1.0,
        fixed_ms=float(sum(weight[name] * decoding[rows[name], 0] for name in _FIXED)),
        sequence_ms=weight["sequence"] * SEQUENCE_MS,
        prefill=float(multiplied[-1]),
        tokens=grid,
        matrices_ms=np.asarray(sum(weight[name] * decoding[rows[name]] for name in _BY_TOKENS)),
        states_ms=weight["recurrent"] * decoding[rows["recurrent"]],
        scans_ms=weight["recurrent"] * reading[rows["recurrent"]],
        head_ms=weight["head_gemm"] * decoding[rows["head_gemm"]],
        attention_ms=np.broadcast_to(weight["decode_attention"] * attention, n.shape),
        prompts_ms=weight["prefill_attention"] * _prompts(service),
    )


def _prompts(service: StepModel) -> Numbers:
    """Return the attention of prompts [CHUNKS, LENGTHS, DEPTHS] ms, computed where there are such prompts.

    On average a token attends to half of its chunk at least, and all chunks of a step together have
    MOST_TOKENS at most. Points beyond take the value of the nearest one that is not.
    """
    k, i, j = np.indices((len(CHUNKS), len(LENGTHS), len(DEPTHS)))
    i = np.minimum(i, np.searchsorted(LENGTHS, MOST_TOKENS / CHUNKS[k], side="right") - 1)
    j = np.maximum(j, np.searchsorted(DEPTHS, LENGTHS[i] / 4.1))
    there, where = np.unique(np.ravel_multi_index((k, i, j), k.shape), return_inverse=True)
    k, i, j = np.unravel_index(there, k.shape)
    chunks, tokens = CHUNKS[k], CHUNKS[k] * LENGTHS[i]
    found = service.prefill_attention_ms(chunks, tokens, tokens * DEPTHS[j])
    found = np.broadcast_to(found, tokens.shape)
    return np.asarray(found[where].reshape(len(CHUNKS), len(LENGTHS), len(DEPTHS)))


class OperatorStepTimes:
    """A StepTime: operators times factors; `scaled`, what measurements of the service say on top of them.

    `tables` are the numbers that it looks up, for who asks for many steps at once.
    """

    def __init__(self, service: StepModel, factors: Factors) -> None:
        self.tables = tables = _tables(service, factors)
        self._scale, self._ranks, self._prefill = tables.scale, tables.ranks, tables.prefill
        self._fixed, self._sequence = tables.fixed_ms, tables.sequence_ms
        self._matrices = _Line(tables.tokens, tables.matrices_ms)
        self._states = _Line(tables.tokens, tables.states_ms)
        self._scans = _Line(tables.tokens, tables.scans_ms)
        self._head = _Line(tables.tokens, tables.head_ms)
        self._attention = _Plane(SEQUENCES, CONTEXTS, tables.attention_ms)
        self._chunks: list[float] = CHUNKS.tolist()
        self._prompts = [_Plane(LENGTHS, DEPTHS, plane) for plane in tables.prompts_ms]

    def scaled(self, scale: float) -> "OperatorStepTimes":
        """Return the same times, each multiplied with `scale`."""
        other = copy(self)
        other._scale = self._scale * scale
        other.tables = replace(self.tables, scale=other._scale)
        return other

    def step_ms(self, batch: Batch) -> float:
        """Return the duration of one step [ms]."""
        return self._scale * self._unscaled_ms(batch)

    def _unscaled_ms(self, batch: Batch) -> float:
        ranks = self._ranks
        decodes, tokens = batch.decodes / ranks, batch.prefill_tokens / ranks
        base = self._fixed + self._sequence * max(batch.decodes, 1)
        before = self._matrices(decodes)
        base += before + self._states(decodes)
        if decodes:
            base += self._attention(decodes, batch.decode_context_tokens / batch.decodes)
        if not tokens:
            return base + self._head(decodes)
        chunks = max(1.0, batch.prefills / ranks)
        added = self._matrices(decodes + tokens) - before + self._scans(tokens)
        attention = self._prompt(chunks, tokens / chunks, batch.prefill_pairs / batch.prefill_tokens)
        # Ranks that share less than one chunk have it in turns.
        added += attention * min(1.0, batch.prefills / ranks)
        head = self._head(decodes + min(batch.prefills / ranks, tokens))
        return base + head + self._prefill * added

    def _prompt(self, chunks: float, length: float, depth: float) -> float:
        """Return attention's time for chunks of so many tokens each, which attend to `depth` on average."""
        grid = self._chunks
        at = min(bisect_right(grid, chunks), len(grid) - 1)
        low, high = grid[at - 1], grid[at]
        below = self._prompts[at - 1](length, depth)
        if chunks == low:
            return below
        return below + (self._prompts[at](length, depth) - below) * (chunks - low) / (high - low)


class _Line:
    """A function of one number: linear between the points of a rising grid, and beyond its ends."""

    __slots__ = ("_points", "_values")

    def __init__(self, points: Numbers, values: Numbers) -> None:
        self._points: list[float] = points.tolist()
        self._values: list[float] = values.tolist()

    def __call__(self, x: float) -> float:
        points, values = self._points, self._values
        at = bisect_right(points, x)
        at = min(max(at, 1), len(points) - 1)
        low, below = points[at - 1], values[at - 1]
        return below + (values[at] - below) * (x - low) / (points[at] - low)


class _Plane:
    """A function of two numbers, linear in each between the points of two rising grids."""

    __slots__ = ("_across", "_down", "_values")

    def __init__(self, down: Numbers, across: Numbers, values: Numbers) -> None:
        self._down: list[float] = down.tolist()
        self._across: list[float] = across.tolist()
        self._values: list[list[float]] = np.broadcast_to(values, (len(down), len(across))).tolist()

    def __call__(self, x: float, y: float) -> float:
        down, across = self._down, self._across
        i = min(max(bisect_right(down, x), 1), len(down) - 1)
        j = min(max(bisect_right(across, y), 1), len(across) - 1)
        left = across[j - 1]
        share = (y - left) / (across[j] - left)
        row = self._values[i - 1]
        above = row[j - 1] + (row[j] - row[j - 1]) * share
        row = self._values[i]
        below = row[j - 1] + (row[j] - row[j - 1]) * share
        top = down[i - 1]
        return above + (below - above) * (x - top) / (down[i] - top)


def _tokens_grid() -> Numbers:
    """Return numbers of tokens [n]: each of the first, then a tile apart, then ever further apart."""
    near = np.concatenate([np.arange(0, 65), np.arange(80, 513, 16)])
    far = np.round(np.geomspace(576, 1 << 18, 96) / 64) * 64
    return np.unique(np.concatenate([near, far])).astype(np.float64)
