"""Times of single operators on a GPU type, from fitted constants and datasheet rates.

The constants are in fitted.json: of a GPU type where tables of its kernels exist, else universal ones, which
are shares of datasheet rates. README.md says where they come from; forms.py what the times are made of.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot.architecture import KvFormat, NumberFormat
from llmpilot.config import Gpu
from llmpilot.operators.forms import FORMS, Constants, with_grid
from llmpilot.operators.rates import Numbers, Rates

LINKS = {
    "pcie3": "pcie",
    "pcie4": "pcie",
    "pcie5": "pcie",
    "nvlink": "nvlink",
    "infinity-fabric": "infinity-fabric",
}
"""Kinds of link that have constants of their own, in place of the number formats of other operators."""
KIN = {
    "A100-40GB": "A100-80GB",
    "B300": "B200",
    "GB200": "B200",
    "GB300": "B200",
    "GH200": "H100",
    "H20": "H100",
}
"""GPU types without tables that are another trim of a chip with tables: its shares of the rates hold."""


OWN_SHARE = 0.5
"""How much a GPU type's own tables count against what is common to all of them (geometric mean). A table is
of one engine's kernels of one version: services on others lie between it and the common."""


def operators_for(gpu: Gpu) -> "Operators":
    """Return the operator times of a GPU type: its own tables' where it has any, half way to the common.

    With `gpu.profile`, what was measured on this very GPU comes first.

    Raises:
        ConfigError: `gpu.profile` is no file that task=profile wrote.
    """
    if gpu.profile is not None:
        from llmpilot.operators.profile import profiled_operators  # it fits: slow to import, seldom needed

        return profiled_operators(gpu).operators
    fitted = _fitted()
    return Operators(gpu, fitted["gpus"].get(KIN.get(gpu.name, gpu.name), {}), fitted["universal"])


@cache
def _fitted() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("fitted.json").read_text())
    return content


@dataclass(frozen=True)
class Operators:
    """Times of single operators on one GPU type.

    Every method returns the duration of one call on one GPU [ms]: a float for floats, an array for arrays,
    which broadcast. No work (no tokens, no sequences, one GPU to communicate with) takes no time. `own` and
    `universal` hold constants by operator and number format, or kind of link for operators between GPUs;
    where there are both, times are a geometric mean, in which `own` counts by `own_share`; but those
    `measured` (operator and format) on this very GPU count alone.
    """

    gpu: Gpu
    own: Mapping[str, Mapping[str, Constants]]
    universal: Mapping[str, Mapping[str, Constants]]
    own_share: float = OWN_SHARE
    measured: frozenset[tuple[str, str]] = frozenset()
    _chosen: dict[tuple[str, str], Constants] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _common: dict[tuple[str, str], Constants] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def rates(self) -> Rates:
        """The datasheet's rates of this GPU type."""
        return Rates(self.gpu)

    def gemm_ms(self, fmt: NumberFormat, m: Numbers, n: Numbers, k: Numbers) -> Numbers:
        """Return the time of `m` tokens times weights of `n` x `k`, as this GPU holds them."""
        return _where(m, self._time_ms("gemm", fmt, m, n, k))

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
        width = head_dim + (head_dim if value_dim is None else value_dim)
        time = self._time_ms(
            "decode_attention", kv_format, sequences, context_tokens, n_heads, n_kv_heads, width
        )
        return _where(sequences, time)

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
        width = head_dim + (head_dim if value_dim is None else value_dim)
        time = self._time_ms(
            "prefill_attention", kv_format, chunks, tokens, pairs, n_heads, n_kv_heads, width
        )
        return _where(tokens, time)

    def latent_decode_ms(
        self,
        kv_format: KvFormat,
        sequences: Numbers,
        context_tokens: Numbers,
        n_heads: Numbers,
        kv_rank: Numbers,
        rope_dim: Numbers,
    ) -> Numbers:
        """Return the time of latent attention over the cache, where all heads read the same latents."""
        time = self._time_ms(
            "latent_decode", kv_format, sequences, context_tokens, n_heads, kv_rank, rope_dim
        )
        return _where(sequences, time)

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
        width = nope_dim + rope_dim + value_dim
        return _where(tokens, self._time_ms("latent_prefill", kv_format, chunks, pairs, n_heads, width))

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
        `tensor_parallel` of each of them. Routing is skewed as in the tables (README.md).
        """
        matrices = 3.0 if gated else 2.0
        width = width / tensor_parallel
        time = self._time_ms(
            "experts", fmt, tokens, d_model, width, per_token, n_experts, expert_parallel, matrices
        )
        return _where(tokens, time)

    def recurrent_ms(
        self,
        sequences: Numbers,
        prefill_tokens: Numbers,
        state_values: Numbers,
        state_bytes_per_value: Numbers,
        value_dim: Numbers,
    ) -> Numbers:
        """Return the time of linear attention or a state-space mixer, its projections left out.

        Each of `sequences` that decode reads and writes its state; `prefill_tokens` are of all chunks. No
        table covers it: launch and shares are a guess.
        """
        time = self._time_ms(
            "recurrent", "bf16", sequences, prefill_tokens, state_values, state_bytes_per_value, value_dim
        )
        return _where(sequences + prefill_tokens, time)

    def all_reduce_ms(self, message_bytes: Numbers, gpus: Numbers) -> Numbers:
        """Return the time to sum a message of so many bytes, which each of `gpus` has, on all of them."""
        return self._between_gpus_ms("all_reduce", message_bytes, gpus)

    def all_gather_ms(self, message_bytes: Numbers, gpus: Numbers) -> Numbers:
        """Return the time until each GPU has the whole message, of which each had its share before."""
        return self._between_gpus_ms("all_gather", message_bytes, gpus)

    def reduce_scatter_ms(self, message_bytes: Numbers, gpus: Numbers) -> Numbers:
        """Return the time to sum a message that each GPU has whole, each keeping a share of the sum."""
        return self._between_gpus_ms("reduce_scatter", message_bytes, gpus)

    def all_to_all_ms(self, message_bytes: Numbers, gpus: Numbers) -> Numbers:
        """Return the time until each GPU has sent a message of so many bytes, an equal share to each."""
        return self._between_gpus_ms("all_to_all", message_bytes, gpus)

    def element_ms(self, moved_bytes: Numbers) -> Numbers:
        """Return the time of norms, activations and residuals that read and write so many bytes in all.

        No launch is counted: how many kernels they are fused into is the engine's affair.
        """
        return self._time_ms("element", "bf16", moved_bytes)

    def spread(self, operator: str, fmt: str = "bf16") -> float:
        """Return the standard deviation of the log of measured over predicted time of this operator.

        With constants of its own, over shapes left out; with universal ones, over GPU types left out.
        """
        return float(self.constants(operator, self._link if operator in _BETWEEN_GPUS else fmt)["spread"])

    def constants(self, operator: str, fmt: str) -> Constants:
        """Return the constants that this operator's times come from.

        A format without constants of its own has those of the nearest: `mxfp4` those of `nvfp4`, `int8` those
        of `fp8`. What the hardware has no units for has those of `int4`, which is multiplied as bf16 too, or
        of `bf16`, with its own bytes.
        """
        known = self._chosen.get((operator, fmt))
        if known is None:
            known = self._chosen[operator, fmt] = self._choose(operator, fmt)
        return known

    def _time_ms(self, operator: str, fmt: str, *shape: Numbers) -> Numbers:
        form, constants = FORMS[operator], self.constants(operator, fmt)
        time = form.time_ms(constants, self.rates, fmt, *shape)
        common = self._common.get((operator, fmt))
        if common is None or self.own_share == 1.0:
            return time
        return time**self.own_share * form.time_ms(common, self.rates, fmt, *shape) ** (1.0 - self.own_share)

    def _between_gpus_ms(self, operator: str, message_bytes: Numbers, gpus: Numbers) -> Numbers:
        if not isinstance(gpus, np.ndarray) and gpus <= 1:
            return 0.0 * message_bytes
        return _where(message_bytes * (gpus - 1), self._time_ms(operator, self._link, message_bytes, gpus))

    @property
    def _link(self) -> str:
        return LINKS[self.gpu.link]

    def _choose(self, operator: str, fmt: str) -> Constants:
        candidates = [fmt]
        if self.rates.computes_in(fmt):
            candidates += {"mxfp4": ["nvfp4"], "int8": ["fp8"]}.get(fmt, [])
        elif fmt not in ("bf16", *LINKS.values()):
            candidates = ["int4", "bf16"]
        candidates += ["bf16", "nvlink"]
        for candidate in candidates:
            for source in (self.own, self.universal):
                if candidate in source.get(operator, {}):
                    averaged = source is self.own and (operator, candidate) not in self.measured
                    if averaged and candidate in self.universal.get(operator, {}):
                        common = self.universal[operator][candidate]
                        self._common[operator, fmt] = with_grid(operator, common)
                    return with_grid(operator, source[operator][candidate])
        raise KeyError((operator, fmt))


_BETWEEN_GPUS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def _where(work: Numbers, time: Numbers) -> Numbers:
    """Return the time where there is work, and zero where there is none."""
    if isinstance(work, np.ndarray):
        return np.where(work > 0, time, 0.0)
    return time if work > 0 else 0.0 * time
