"""Times of single operators from fitted constants and datasheet rates: a roofline each, with soft edges.

The constants are in fitted.json: of a GPU type where tables of its kernels exist, else universal ones, which
are shares of datasheet rates. README.md says where they come from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.architecture import KvFormat, NumberFormat
from llmpilot.config import Gpu
from llmpilot.operators.rates import Rates, bytes_of

Numbers = float | NDArray[np.float64]
"""A number, or an array of them: methods answer arrays for arrays and a float for floats."""
Constants = Mapping[str, float]


def operators_for(gpu: Gpu) -> "Operators":
    """Return the operator times of a GPU type: its own constants where it has any, universal ones else."""
    fitted = _fitted()
    return Operators(gpu, fitted["gpus"].get(gpu.name, {}), fitted["universal"], fitted["spread"])


@cache
def _fitted() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("fitted.json").read_text())
    return content


@dataclass(frozen=True)
class Operators:
    """Times of single operators on one GPU type.

    Every method returns the duration of one call on one GPU [ms]. Sizes are floats or numpy arrays, which
    broadcast; no work (no tokens, no sequences, one GPU to communicate with) takes no time. `own` and
    `universal` hold constants by operator and number format, `spreads` the standard deviation of the log of
    measured over predicted on GPU types left out.
    """

    gpu: Gpu
    own: Mapping[str, Mapping[str, Constants]]
    universal: Mapping[str, Mapping[str, Constants]]
    spreads: Mapping[str, float]
    _chosen: dict[tuple[str, str], Constants] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def rates(self) -> Rates:
        """Return the datasheet's rates of this GPU type."""
        return Rates(self.gpu)

    def gemm_ms(self, fmt: NumberFormat, m: Numbers, n: Numbers, k: Numbers) -> Numbers:
        """Return the time of `m` tokens times weights of `n` x `k`, as this GPU holds them."""
        c = self._constants("gemm", fmt)
        n, k = _larger(n, 128.0), _larger(k, 128.0)
        rows = _where(m <= 64, m, 64.0 * _ceil(m / 64))
        moved = (n * k + m * k) * bytes_of(fmt) + 2.0 * m * n
        time = c["launch_us"] * 1e-3 + _edge(
            c["sharpness"],
            moved / (self.rates.bandwidth * c["bandwidth_share"]),
            2.0 * rows * n * k / (self.rates.compute(fmt) * c["compute_share"]),
            c["per_k_ns"] * 1e-6 * k,
        )
        return _where(m > 0, time, 0.0)

    def decode_attention_ms(
        self,
        kv_format: KvFormat,
        sequences: Numbers,
        context_tokens: Numbers,
        n_heads: Numbers,
        n_kv_heads: Numbers,
        head_dim: Numbers,
        value_dim: Numbers | None = None,
    ) -> Numbers:
        """Return the time of one token of each sequence attending to `context_tokens` over all sequences."""
        c = self._constants("decode_attention", kv_format)
        width = head_dim + (head_dim if value_dim is None else value_dim)
        moved = context_tokens * n_kv_heads * width * bytes_of(kv_format)
        operations = 2.0 * context_tokens * _larger(n_heads, 16.0 * n_kv_heads) * width
        time = (
            c["launch_us"] * 1e-3
            + _edge(
                c["sharpness"],
                moved / (self.rates.bandwidth * c["bandwidth_share"]),
                operations / (self.rates.compute("bf16") * c["compute_share"]),
            )
            + c["per_head_ns"] * 1e-6 * sequences * n_heads
        )
        return _where(sequences > 0, time, 0.0)

    def prefill_attention_ms(
        self,
        kv_format: KvFormat,
        chunks: Numbers,
        tokens: Numbers,
        pairs: Numbers,
        n_heads: Numbers,
        n_kv_heads: Numbers,
        head_dim: Numbers,
        value_dim: Numbers | None = None,
    ) -> Numbers:
        """Return the time of chunks of prompts of `tokens` in all, attending to `pairs` positions in all."""
        c = self._constants("prefill_attention", kv_format)
        width = head_dim + (head_dim if value_dim is None else value_dim)
        chunks = _larger(chunks, 1.0)
        # A chunk of q tokens behind c that are cached has q (c + q / 2) pairs: its c + q positions follow.
        positions = pairs / _larger(tokens, 1.0) * chunks + tokens / 2.0
        moved = tokens * n_heads * width * 2.0 + positions * n_kv_heads * width * bytes_of(kv_format)
        time = (
            c["launch_us"] * 1e-3
            + _edge(
                c["sharpness"],
                moved / (self.rates.bandwidth * c["bandwidth_share"]),
                2.0 * n_heads * width * pairs / (self.rates.compute("bf16") * c["compute_share"]),
            )
            + c["per_head_ns"] * 1e-6 * chunks * n_heads
        )
        return _where(tokens > 0, time, 0.0)

    def latent_decode_ms(
        self,
        kv_format: KvFormat,
        sequences: Numbers,
        context_tokens: Numbers,
        n_heads: Numbers,
        kv_rank: Numbers,
        rope_dim: Numbers,
    ) -> Numbers:
        """Return the time of latent attention over the cache: every head reads the same latent."""
        c = self._constants("latent_decode", kv_format)
        moved = context_tokens * (kv_rank + rope_dim) * bytes_of(kv_format)
        operations = 2.0 * context_tokens * _larger(n_heads, 16.0) * (2.0 * kv_rank + rope_dim)
        time = (
            c["launch_us"] * 1e-3
            + moved / (self.rates.bandwidth * c["bandwidth_share"])
            + operations / (self.rates.compute("bf16") * c["compute_share"])
        )
        return _where(sequences > 0, time, 0.0)

    def latent_prefill_ms(
        self,
        kv_format: KvFormat,
        chunks: Numbers,
        tokens: Numbers,
        pairs: Numbers,
        n_heads: Numbers,
        nope_dim: Numbers,
        rope_dim: Numbers,
        value_dim: Numbers,
    ) -> Numbers:
        """Return the time of latent attention in prefill, where latents are unpacked to keys and values."""
        c = self._constants("latent_prefill", kv_format)
        operations = 2.0 * n_heads * (nope_dim + rope_dim + value_dim) * pairs
        time = c["launch_us"] * 1e-3 + operations / (self.rates.compute("bf16") * c["compute_share"])
        return _where(tokens > 0, time + 0.0 * chunks, 0.0)

    def experts_ms(
        self,
        fmt: NumberFormat,
        tokens: Numbers,
        d_model: Numbers,
        width: Numbers,
        per_token: Numbers,
        n_experts: Numbers,
        tensor_parallel: Numbers = 1,
        expert_parallel: Numbers = 1,
        gated: bool = True,
    ) -> Numbers:
        """Return the time of a layer's routed experts for `tokens` of the whole service.

        Each of `expert_parallel` groups holds its share of the experts, each GPU of a group `width` /
        `tensor_parallel` of theirs. An expert's weights are read if any token is sent to it; how many are is
        counted with half the tokens after the first, which is what skewed routing comes to.
        """
        c = self._constants("experts", fmt)
        slice_width = width / tensor_parallel
        weights = (3.0 if gated else 2.0) * d_model * slice_width
        touched = (
            n_experts / expert_parallel * (1.0 - (1.0 - per_token / n_experts) ** ((1.0 + tokens) / 2.0))
        )
        rows = tokens * per_token / expert_parallel
        moved = touched * weights * bytes_of(fmt) + 4.0 * rows * (d_model + 2.0 * slice_width)
        time = (
            c["launch_us"] * 1e-3
            + _edge(
                c["sharpness"],
                moved / (self.rates.bandwidth * c["bandwidth_share"]),
                2.0
                * (rows + touched * c["tile_rows"])
                * weights
                / (self.rates.compute(fmt) * c["compute_share"]),
            )
            + c["per_expert_us"] * 1e-3 * touched
        )
        return _where(tokens > 0, time, 0.0)

    def recurrent_ms(
        self,
        sequences: Numbers,
        prefill_tokens: Numbers,
        state_values: Numbers,
        state_bytes_per_value: Numbers,
        value_dim: Numbers,
    ) -> Numbers:
        """Return the time of linear attention or a state-space mixer, its projections left out.

        Each of `sequences` that decode reads and writes its state. Prefill works in chunks of 64 tokens:
        the state is read out and updated, and the tokens of a chunk attend to each other.
        """
        c = self._constants("recurrent", "bf16")
        moved = 2.0 * sequences * state_values * state_bytes_per_value
        operations = prefill_tokens * (6.0 * state_values + 4.0 * 64.0 * value_dim)
        time = (
            c["launch_us"] * 1e-3
            + moved / (self.rates.bandwidth * c["bandwidth_share"])
            + operations / (self.rates.compute("bf16") * c["compute_share"])
        )
        return _where(sequences + prefill_tokens > 0, time, 0.0)

    def all_reduce_ms(self, message_bytes: Numbers, gpus: int) -> Numbers:
        """Return the time to sum a message of so many bytes, which each of `gpus` has, on all of them."""
        return self._communication_ms("all_reduce", 2.0 * message_bytes, gpus)

    def all_gather_ms(self, message_bytes: Numbers, gpus: int) -> Numbers:
        """Return the time until each GPU has the whole message, of which each had its share before."""
        return self._communication_ms("all_gather", message_bytes, gpus)

    def reduce_scatter_ms(self, message_bytes: Numbers, gpus: int) -> Numbers:
        """Return the time to sum a message that each GPU has whole, each keeping a share of the sum."""
        return self._communication_ms("reduce_scatter", message_bytes, gpus)

    def all_to_all_ms(self, message_bytes: Numbers, gpus: int) -> Numbers:
        """Return the time until each GPU has sent a message of so many bytes, an equal share to each."""
        return self._communication_ms("all_to_all", message_bytes, gpus)

    def element_ms(self, moved_bytes: Numbers) -> Numbers:
        """Return the time of norms, activations and residuals that read and write so many bytes in all."""
        return moved_bytes / (self.rates.bandwidth * self._constants("element", "bf16")["bandwidth_share"])

    def spread(self, operator: str, fmt: str = "bf16") -> float:
        """Return the standard deviation of the log of measured over predicted for this operator."""
        return self.spreads[operator]

    def _communication_ms(self, operator: str, sent_bytes: Numbers, gpus: int) -> Numbers:
        if gpus <= 1:
            return 0.0 * sent_bytes
        c = self._constants(operator, "bf16")
        start = c["launch_us"] * 1e-3 * (1.0 + c["growth"] * (gpus - 2) / 6.0)
        moved = sent_bytes * (gpus - 1) / gpus
        return _where(sent_bytes > 0, start + moved / (self.rates.link(gpus) * c["bandwidth_share"]), 0.0)

    def _constants(self, operator: str, fmt: str) -> Constants:
        known = self._chosen.get((operator, fmt))
        if known is None:
            known = self._chosen[operator, fmt] = self._choose(operator, fmt)
        return known

    def _choose(self, operator: str, fmt: str) -> Constants:
        stand_ins = [fmt]
        if fmt == "mxfp4":
            stand_ins.append("nvfp4")
        if fmt == "int8":
            stand_ins.append("fp8")
        native = self.rates.computes_in(fmt)
        for candidate in stand_ins:
            for source in (self.own, self.universal):
                constants = source.get(operator, {})
                if candidate in constants and (native or candidate in ("bf16", "int4")):
                    return constants[candidate]
        # Stored in this format and multiplied as bf16: bf16's kernel with fewer bytes.
        own = self.own.get(operator, {})
        return own["bf16"] if "bf16" in own else self.universal[operator]["bf16"]


def _edge(sharpness: float, *times: Numbers) -> Numbers:
    """Return the norm of several times: their largest for a great `sharpness`, their sum for 1."""
    total: Numbers = 0.0
    for time in times:
        total = total + time**sharpness
    return total ** (1.0 / sharpness)


def _larger(one: Numbers, other: Numbers) -> Numbers:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.maximum(one, other)
    return one if one > other else other


def _ceil(number: Numbers) -> Numbers:
    return np.ceil(number) if isinstance(number, np.ndarray) else float(-(-number // 1))


def _where(condition: Any, yes: Numbers, no: Numbers) -> Numbers:
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no
