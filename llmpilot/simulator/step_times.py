"""Step times of one service, quick enough to be asked at every step of a simulation.

Everything is looked up in tables that are made once, a few thousand batches in a handful of array operations,
and interpolated: operators are smooth, nearly linear between neighbours.
"""

from bisect import bisect_right
from copy import copy

import numpy as np

from llmpilot.simulator.batch import Batch
from llmpilot.simulator.factors import Factors, multipliers
from llmpilot.simulator.step_model import PARTS, SEQUENCE_MS, BatchArrays, Numbers, StepModel

_BY_TOKENS = ("attention_gemm", "mlp_gemm", "experts", "all_reduce", "element")
_FIXED = ("layer", "expert_layer", "latent_layer", "step")


class OperatorStepTimes:
    """A StepTime: operators times factors; `scaled`, what measurements of the service say on top of them."""

    def __init__(self, service: StepModel, factors: Factors) -> None:
        self._scale = 1.0
        settings = service.settings
        self._ranks = float(settings.data_parallel * settings.pipeline_parallel)
        multiplied = multipliers(service, factors)
        weight = dict(zip(PARTS, multiplied[:-1].tolist(), strict=True))
        self._prefill = float(multiplied[-1])
        rows = {name: at for at, name in enumerate(PARTS)}
        grid = _tokens_grid()
        none = np.zeros_like(grid)
        decoding = service.parts(BatchArrays(self._ranks * grid, none, none, none, none))
        reading = service.parts(BatchArrays(none, none, self._ranks * grid, none, none))
        states = weight["recurrent"] * decoding[rows["recurrent"]]
        matrices = sum(weight[name] * decoding[rows[name]] for name in _BY_TOKENS)
        self._matrices = _Line(grid, np.asarray(matrices))
        self._states = _Line(grid, states)
        self._scans = _Line(grid, weight["recurrent"] * reading[rows["recurrent"]])
        self._head = _Line(grid, weight["head_gemm"] * decoding[rows["head_gemm"]])
        self._fixed = float(sum(weight[name] * decoding[rows[name], 0] for name in _FIXED))
        self._sequence: float = weight["sequence"] * SEQUENCE_MS
        sequences, contexts = _halves(0, 12), _halves(4, 20)
        n, context = np.meshgrid(sequences, contexts, indexing="ij")
        attention = service.decode_attention_ms(n, n * context)
        self._attention = _Plane(sequences, contexts, weight["decode_attention"] * attention)
        chunks, lengths, depths = _powers(0, 8), _halves(2, 18), _halves(1, 20)
        k, length, depth = np.meshgrid(chunks, lengths, depths, indexing="ij")
        attention = service.prefill_attention_ms(k, k * length, k * length * depth)
        attention = weight["prefill_attention"] * np.broadcast_to(attention, k.shape)
        self._chunks: list[float] = chunks.tolist()
        self._prompts = [_Plane(lengths, depths, plane) for plane in attention]

    def scaled(self, scale: float) -> "OperatorStepTimes":
        """Return the same times, each multiplied with `scale`."""
        other = copy(self)
        other._scale = self._scale * scale
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


def _powers(first: int, last: int) -> Numbers:
    return np.exp2(np.arange(first, last + 1))


def _halves(first: int, last: int) -> Numbers:
    """Return the powers of the square root of two from 2^first to 2^last."""
    return np.exp2(np.arange(2 * first, 2 * last + 1) / 2)
