"""Step times out of tables: what each part of one layer took on one GPU, for the shapes that were measured.

A folder of tables is what casys-kaist/LLMServingSim's profiler writes for one LLM on one GPU type: for each
degree of tensor parallelism `tpN_dense.csv` (layer, tokens, time_us), `tpN_attention.csv` (prefill_chunk,
kv_prefill, n_decode, kv_decode, time_us) and `tpN_per_sequence.csv` (layer, sequences, time_us), for mixtures
of experts `tp1_moe.csv` (tokens, activated_experts, time_us), and a `*meta.yaml` that says how.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from llmpilot.config import Model
from llmpilot.errors import ConfigError
from llmpilot.simulator.batch import Batch

ONCE = ("embedding", "final_layernorm")
"""Parts that a step computes once, not once a layer."""
NORMS_PER_LAYER = 2
CAPTURED = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Batches of so many tokens have a CUDA graph in vLLM; smaller ones are padded to the next."""
FAR = 2048
"""Tokens before a chunk, to see what each of them costs."""


@dataclass(frozen=True)
class Curve:
    """A function of one number, a straight line between points, and beyond them as between the last two."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, x: float) -> float:
        """Return the value at `x`."""
        at, share = _place(self.x, x)
        return self.y[at] + share * (self.y[at + 1] - self.y[at]) if share else self.y[at]


def _place(grid: tuple[float, ...], x: float) -> tuple[int, float]:
    """Return between which points of a grid `x` lies, and how far from the first to the second."""
    at = min(max(bisect_right(grid, x) - 1, 0), max(0, len(grid) - 2))
    if len(grid) == 1 or x <= grid[0]:
        return 0, 0.0
    return at, (x - grid[at]) / (grid[at + 1] - grid[at])


Slice = tuple[tuple[float, ...], tuple[float, ...], list[list[float]]]


@dataclass(frozen=True)
class AttentionTable:
    """Attention [us] of one prompt's chunk and of sequences that decode, together in one kernel.

    `values` has for each (chunk, sequences) the times over (tokens before the chunk, context of each).
    """

    chunks: tuple[float, ...]
    sequences: tuple[float, ...]
    values: dict[tuple[float, float], Slice]

    def __call__(self, chunk: float, before: float, sequences: float, context: float) -> float:
        """Return the time, with straight lines between the measured points."""
        total = 0.0
        chunk_at, chunk_share = _place(self.chunks, chunk)
        decode_at, decode_share = _place(self.sequences, sequences)
        for i, chunk_weight in ((chunk_at, 1 - chunk_share), (chunk_at + 1, chunk_share)):
            if not chunk_weight:
                continue
            for j, weight in ((decode_at, 1 - decode_share), (decode_at + 1, decode_share)):
                if weight and (self.chunks[i] or self.sequences[j]):
                    total += chunk_weight * weight * self._at(i, j, before, context)
        return total

    def _at(self, i: int, j: int, before: float, context: float) -> float:
        befores, contexts, rows = self.values[self.chunks[i], self.sequences[j]]
        row, row_share = _place(befores, before)
        column, share = _place(contexts, context)
        value = 0.0
        for at, weight in ((row, 1 - row_share), (row + 1, row_share)):
            if weight:
                times = rows[at]
                value += weight * (times[column] + (share and share * (times[column + 1] - times[column])))
        return value


@dataclass(frozen=True)
class LayerTables:
    """Step times of a model of `n_layers` equal layers on one GPU out of the service's; a StepTime.

    `experts` has the times of the expert layer by the experts that are touched: of `n_experts` in all, of
    which every token takes `per_token` at random, this GPU has those of `expert_share`. Sequences of unequal
    context take longer than the table's equal ones: as if each had, on top of the mean, the share `skew` of
    what the longest has more. With tensor parallelism `sum_ms` is the time to sum so many tokens' vectors
    over the GPUs, twice a layer; with replicas `share_ms` is the time to gather so many tokens' vectors from
    all of them and to give each its own back, once a layer. `router_ms`, the time to choose the experts of so
    many tokens, is not in the tables either. `host_ms` comes to every step.
    """

    n_layers: int
    dense: dict[str, Curve]
    attention: AttentionTable
    per_sequence: dict[str, Curve]
    experts: dict[int, Curve] = field(default_factory=dict)
    n_experts: int = 0
    per_token: int = 0
    expert_share: float = 1.0
    skew: float = 0.0
    sum_ms: Callable[[int], float] | None = None
    share_ms: Callable[[int], float] | None = None
    router_ms: Callable[[int], float] | None = None
    host_ms: float = 0.0
    _known_us: dict[tuple[str, int], float] = field(default_factory=dict, repr=False)

    def step_ms(self, batch: Batch) -> float:
        """Return the duration of one step [ms]."""
        return self.replicas_ms([batch])

    def replicas_ms(self, batches: Sequence[Batch]) -> float:
        """Return the duration of a step of replicas [ms], which share the experts and meet in each layer."""
        tokens = [batch.decodes + batch.prefill_tokens for batch in batches]
        padded = _captured(max(tokens))
        if padded is not None:
            tokens = [padded] * len(tokens)
        layer_us = max(
            self._known("dense", own, self._dense_us) + self.attention_us(batch)
            for own, batch in zip(tokens, batches, strict=True)
        )
        if self.experts:
            layer_us += self._known("experts", sum(tokens), self._experts_us)
        if self.sum_ms is not None:
            layer_us += 2e3 * self.sum_ms(max(tokens))
        if self.share_ms is not None and len(batches) > 1:
            layer_us += 1e3 * self.share_ms(len(tokens) * max(tokens))
        sequences = max(batch.decodes + batch.prefills for batch in batches)
        once_us = self._known("sequences", sequences, self._sequences_us)
        once_us += sum(self.dense[name](max(tokens)) for name in ONCE if name in self.dense)
        return self.host_ms + (self.n_layers * layer_us + once_us) / 1e3

    def attention_us(self, batch: Batch) -> float:
        """Return the attention of one layer [us]."""
        decodes, tokens = batch.decodes, batch.prefill_tokens
        context = batch.decode_context_tokens / decodes if decodes else 0.0
        if decodes:
            context += self.skew * max(0.0, batch.longest_context_tokens - context)
        if not tokens:
            return self.attention(0, 0, decodes, context) if decodes else 0.0
        # As one chunk with the same pairs; several short prompts have fewer than one chunk from its start.
        before = batch.prefill_pairs / tokens - (tokens + 1) / 2
        if before >= 0:
            return self.attention(tokens, before, decodes, context)
        whole_us = self.attention(tokens, 0, decodes, context)
        per_token_us = (self.attention(tokens, FAR, decodes, context) - whole_us) / FAR
        return max(whole_us / batch.prefills, whole_us + before * per_token_us)

    def _known(self, part: str, size: int, compute: Callable[[int], float]) -> float:
        value = self._known_us.get((part, size))
        if value is None:
            value = self._known_us[part, size] = compute(size)
        return value

    def _dense_us(self, tokens: int) -> float:
        total_us = 1e3 * self.router_ms(tokens) if self.router_ms is not None else 0.0
        for name, curve in self.dense.items():
            if name not in ONCE:
                total_us += curve(tokens) * (NORMS_PER_LAYER if name == "layernorm" else 1)
        return total_us

    def _sequences_us(self, sequences: int) -> float:
        return sum(curve(sequences) for curve in self.per_sequence.values())

    def _experts_us(self, tokens: int) -> float:
        touched = self.n_experts * (1 - (1 - self.per_token / self.n_experts) ** tokens)
        return _between(self.experts, touched * self.expert_share, tokens)


def _captured(tokens: int) -> int | None:
    """Return how many tokens the CUDA graph has that a batch of so many runs in; None for none."""
    at = bisect_left(CAPTURED, tokens)
    return CAPTURED[at] if at < len(CAPTURED) else None


def _between(curves: dict[int, Curve], at: float, x: float) -> float:
    """Return the value at `x` of the curve for `at`, a straight line between the curves there are."""
    known = tuple(sorted(curves))
    first, share = _place(known, at)
    low = curves[known[first]](x)
    return low + share * (curves[known[first + 1]](x) - low) if share else low


def read_layer_tables(
    folder: Path,
    model: Model,
    tensor_parallel: int = 1,
    *,
    expert_parallel: int = 1,
    sum_ms: Callable[[int], float] | None = None,
    share_ms: Callable[[int], float] | None = None,
    router_ms: Callable[[int], float] | None = None,
    host_ms: float = 0.0,
) -> LayerTables:
    """Return the step times that a folder of tables makes up for a model whose layers are all alike.

    `expert_parallel` GPUs have whole experts each; without it every GPU has its part of all of them, for
    which there are no tables: that part of the time of whole ones stands for it.

    Raises:
        ConfigError: the folder has no tables for this degree of tensor parallelism, or the layers differ.
    """
    if len(model.layer_kinds) > 1:
        raise ConfigError(
            "tables of one layer cannot stand for layers that differ",
            given=model.name,
            cure="take a model whose layers are all alike",
        )
    prefix = folder / f"tp{tensor_parallel}_"
    experts_at = folder / "tp1_moe.csv"
    try:
        dense, per_sequence, attention = (
            pd.read_csv(f"{prefix}{name}.csv") for name in ("dense", "per_sequence", "attention")
        )
        experts = pd.read_csv(experts_at) if experts_at.exists() else None
        about = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*meta.yaml")]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"no tables of layers can be read: {error}",
            given=str(folder),
            cure=f"name a folder with tp{tensor_parallel}_dense.csv, _attention.csv and _per_sequence.csv",
        ) from error
    if experts is not None and expert_parallel == 1:
        experts["time_us"] /= tensor_parallel
    return LayerTables(
        n_layers=model.n_layers,
        dense=_curves(dense, "layer", "tokens"),
        attention=_attention(attention),
        per_sequence=_curves(per_sequence, "layer", "sequences"),
        experts={} if experts is None else _curves(experts, "activated_experts", "tokens"),
        n_experts=model.n_experts,
        per_token=model.experts_per_token,
        expert_share=1 / expert_parallel,
        skew=_skew(about[0] if about else {}, tensor_parallel),
        sum_ms=sum_ms,
        share_ms=share_ms,
        router_ms=router_ms,
        host_ms=host_ms,
    )


def _skew(about: dict[str, Any], tensor_parallel: int) -> float:
    """Return the share that the profiler measured with unequal contexts; 0 where it did not."""
    fit = about.get("skew_fit") or {}
    if not fit.get("enabled"):
        return 0.0
    return float((fit.get("per_tp") or {}).get(tensor_parallel, {}).get("alpha_default", 0.0))


def _curves(table: pd.DataFrame, of: str, over: str) -> dict[Any, Curve]:
    curves = {}
    for name, rows in table.sort_values(over).groupby(of):
        curves[name] = Curve(tuple(rows[over].astype(float)), tuple(rows["time_us"].astype(float)))
    return curves


def _attention(table: pd.DataFrame) -> AttentionTable:
    values: dict[Any, Slice] = {}
    for key, rows in table.groupby(["prefill_chunk", "n_decode"]):
        grid = rows.pivot_table(index="kv_prefill", columns="kv_decode", values="time_us")
        grid = grid.sort_index().sort_index(axis=1).interpolate(axis=1, limit_direction="both")
        axes = (tuple(axis.astype(float).tolist()) for axis in (grid.index, grid.columns))
        values[key] = (*axes, grid.to_numpy().tolist())  # type: ignore[assignment]
    chunks, sequences = (tuple(sorted(table[c].unique().tolist())) for c in ("prefill_chunk", "n_decode"))
    return AttentionTable(chunks, sequences, values)
