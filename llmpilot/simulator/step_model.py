"""What one step of an engine costs: the sum of its operators over the layers of the LLM, and the host's time.

`StepModel` says what a batch costs, part by part; `factors` says what each part is multiplied with; and
`step_times` puts both together, quick enough to be asked at every step of a simulation. All figures are
milliseconds on one GPU, all GPUs of a service being alike.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.architecture import (
    Attention,
    CompressedAttention,
    LatentAttention,
    LayerKind,
    LinearAttention,
    Mixer,
    Mlp,
)
from llmpilot.config import Gpu, Model
from llmpilot.operators import Operators, operators_for
from llmpilot.simulator.batch import Batch
from llmpilot.simulator.service_settings import ServiceSettings

PARTS = (
    "attention_gemm",
    "mlp_gemm",
    "head_gemm",
    "experts",
    "decode_attention",
    "prefill_attention",
    "recurrent",
    "all_reduce",
    "element",
    "layer",
    "expert_layer",
    "latent_layer",
    "sequence",
    "step",
)
"""What a step's time is the sum of. The last five are the host's and the launches': a layer (more for experts
and for latent attention), a sequence, a step."""
LAYER_MS, EXPERT_LAYER_MS, LATENT_LAYER_MS = 8e-3, 10e-3, 10e-3
SEQUENCE_MS, STEP_MS = 5e-3, 0.3
"""Before any factor: launches that a CUDA graph does not hide, and what the host does between two steps."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class StepModel:
    """The operators of one LLM on one GPU type, as `settings` shard it, in its weights' number formats."""

    model: Model
    gpu: Gpu
    settings: ServiceSettings

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is quickly found again: services travel between processes."""
        return {"model": self.model, "gpu": self.gpu, "settings": self.settings}

    @cached_property
    def operators(self) -> Operators:
        """The operators of the GPU type."""
        return operators_for(self.gpu)

    @property
    def stage_gpus(self) -> int:
        """GPUs that compute a layer together."""
        return self.settings.tensor_parallel * self.settings.data_parallel

    def parts(self, batch: "Batch | BatchArrays") -> Numbers:
        """Return what a step costs before factors [parts] ms, or [parts, n] of arrays of batches."""
        settings, kinds = self.settings, self.model.layer_kinds
        ranks = settings.data_parallel * settings.pipeline_parallel
        decodes, context = _array(batch.decodes) / ranks, _array(batch.decode_context_tokens) / ranks
        prefill, pairs = _array(batch.prefill_tokens) / ranks, _array(batch.prefill_pairs) / ranks
        chunks = _array(batch.prefills) / ranks
        tokens = decodes + prefill
        found = {name: np.zeros(np.shape(tokens)) for name in PARTS}
        for kind in kinds:
            for mixer in kind.mixers:
                for name, ms in self._projections(mixer, tokens, decodes, prefill).items():
                    found[name] = found[name] + kind.count * ms
            for name, ms in self._feed_forward(kind, tokens).items():
                found[name] = found[name] + kind.count * ms
        found["decode_attention"] = _array(self.decode_attention_ms(decodes, context))
        found["prefill_attention"] = _array(self.prefill_attention_ms(chunks, prefill, pairs))
        found["head_gemm"] = _array(self.head_ms(decodes + np.minimum(chunks, prefill)))
        found["layer"] = found["layer"] + sum(kind.count for kind in kinds) * LAYER_MS
        found["sequence"] = found["sequence"] + SEQUENCE_MS * np.maximum(batch.decodes, 1.0)
        found["step"] = found["step"] + STEP_MS
        return np.stack([np.broadcast_to(found[name], np.shape(tokens)) for name in PARTS])

    def head_ms(self, emitted: Any) -> Any:
        """Return the time to turn `emitted` positions into logits."""
        width = self.model.vocabulary_size / self.settings.tensor_parallel
        rows = np.maximum(emitted, 1.0)
        return self.operators.gemm_ms(self.model.formats.head, rows, width, self.model.d_model)

    def decode_attention_ms(self, decodes: Any, context: Any) -> Any:
        """Return the time of all layers' attention for sequences that decode over `context` tokens in all."""
        ops, kv, tensor = self.operators, self.model.kv_format, self.settings.tensor_parallel
        total: Any = 0.0
        for kind in self.model.layer_kinds:
            for mixer in kind.mixers:
                if isinstance(mixer, Attention):
                    limit = mixer.window or mixer.top_k
                    reach = np.minimum(context, decodes * limit) if limit else context
                    heads, kv_heads = _sharded_heads(mixer, tensor)
                    dim, value = mixer.head_dim, mixer.value_dim
                    ms = ops.decode_attention_ms(kv, decodes, reach, heads, kv_heads, dim, value)
                elif isinstance(mixer, LatentAttention):
                    reach = np.minimum(context, decodes * mixer.top_k) if mixer.top_k else context
                    heads = max(1, mixer.n_heads // tensor)
                    ms = ops.latent_decode_ms(kv, decodes, reach, heads, mixer.kv_rank, mixer.rope_dim)
                    if mixer.index_heads:
                        heads, dim = mixer.index_heads, mixer.index_dim
                        ms = ms + ops.decode_attention_ms("fp8", decodes, context, heads, 1, dim, 1)
                elif isinstance(mixer, CompressedAttention):
                    reach = _compressed(mixer, context, decodes)
                    heads = max(1, mixer.n_heads // tensor)
                    ms = ops.latent_decode_ms(kv, decodes, reach, heads, mixer.head_dim, 0)
                    if mixer.index_heads:
                        entries, heads = context / mixer.ratio, mixer.index_heads
                        ms = ms + ops.decode_attention_ms(
                            "fp8", decodes, entries, heads, 1, mixer.index_dim, 1
                        )
                else:
                    continue
                total = total + kind.count * ms
        return total

    def prefill_attention_ms(self, chunks: Any, tokens: Any, pairs: Any) -> Any:
        """Return the time of all layers' attention for chunks of prompts.

        Of less than one chunk a step, on average, some steps have one and the others none.
        """
        ops, kv, tensor = self.operators, self.model.kv_format, self.settings.tensor_parallel
        share = np.minimum(chunks, 1.0)
        chunks, tokens, pairs = np.maximum(chunks, 1.0), _per(tokens, share), _per(pairs, share)
        total: Any = 0.0
        for kind in self.model.layer_kinds:
            for mixer in kind.mixers:
                if isinstance(mixer, Attention):
                    limit = mixer.window or mixer.top_k
                    seen = np.minimum(pairs, tokens * limit) if limit else pairs
                    heads, kv_heads = _sharded_heads(mixer, tensor)
                    dim, value = mixer.head_dim, mixer.value_dim
                    ms = ops.prefill_attention_ms(kv, chunks, tokens, seen, heads, kv_heads, dim, value)
                elif isinstance(mixer, LatentAttention):
                    seen = np.minimum(pairs, tokens * mixer.top_k) if mixer.top_k else pairs
                    dims = mixer.nope_dim, mixer.rope_dim, mixer.value_dim
                    heads = max(1, mixer.n_heads // tensor)
                    ms = ops.latent_prefill_ms(kv, chunks, tokens, seen, heads, *dims)
                    if mixer.index_heads:
                        heads, dim = mixer.index_heads, mixer.index_dim
                        ms = ms + ops.prefill_attention_ms("fp8", chunks, tokens, pairs, heads, 1, dim, 1)
                elif isinstance(mixer, CompressedAttention):
                    seen = _compressed(mixer, pairs, tokens)
                    heads = max(1, mixer.n_heads // tensor)
                    ms = ops.prefill_attention_ms(kv, chunks, tokens, seen, heads, 1, mixer.head_dim)
                    if mixer.index_heads:
                        entries, heads, dim = pairs / mixer.ratio, mixer.index_heads, mixer.index_dim
                        ms = ms + ops.prefill_attention_ms("fp8", chunks, tokens, entries, heads, 1, dim, 1)
                else:
                    continue
                total = total + kind.count * ms
        return share * total

    def _projections(self, mixer: Mixer, tokens: Any, decodes: Any, prefill: Any) -> dict[str, Any]:
        """Return the matrices around one layer's mixer, its state where it has one, and what follows it."""
        d, tensor, ops = self.model.d_model, self.settings.tensor_parallel, self.operators
        form = self.model.formats.attention
        found: dict[str, Any] = {"all_reduce": self._all_reduce(tokens), "element": self._element(tokens, d)}
        if isinstance(mixer, Attention):
            heads, kv_heads = _sharded_heads(mixer, tensor)
            dim, value = mixer.head_dim, mixer.value_dim or mixer.head_dim
            keys_values = kv_heads * (dim if mixer.tied_values else dim + value)
            inner = heads * dim * (2 if mixer.output_gate else 1) + keys_values
            gemms = ops.gemm_ms(form, tokens, inner, d) + ops.gemm_ms(form, tokens, d, heads * value)
        elif isinstance(mixer, LatentAttention):
            heads = max(1, mixer.n_heads // tensor)
            query = mixer.nope_dim + mixer.rope_dim
            into = mixer.query_rank + mixer.kv_rank + mixer.rope_dim + mixer.index_dim
            gemms = ops.gemm_ms(form, tokens, into, d)
            gemms = gemms + ops.gemm_ms(form, tokens, heads * query, mixer.query_rank or d)
            gemms = gemms + ops.gemm_ms(form, tokens, d, heads * mixer.value_dim)
            # Queries are brought into the latent space, and values out of it, by matrices kept in bf16.
            gemms = gemms + ops.gemm_ms("bf16", tokens, heads * mixer.nope_dim, mixer.kv_rank)
            gemms = gemms + ops.gemm_ms("bf16", tokens, heads * mixer.value_dim, mixer.kv_rank)
            found["latent_layer"] = LATENT_LAYER_MS
        elif isinstance(mixer, CompressedAttention):
            heads, rank = max(1, mixer.n_heads // tensor), mixer.output_rank * mixer.output_groups
            gemms = ops.gemm_ms(form, tokens, mixer.query_rank + mixer.head_dim, d)
            gemms = gemms + ops.gemm_ms(form, tokens, heads * mixer.head_dim, mixer.query_rank)
            # A group's heads are brought to its own low rank: as many weights as one matrix of that rank.
            gemms = gemms + ops.gemm_ms(form, tokens, mixer.output_rank, heads * mixer.head_dim)
            gemms = gemms + ops.gemm_ms(form, tokens, d, rank / tensor)
            found["latent_layer"] = LATENT_LAYER_MS
        else:
            if isinstance(mixer, LinearAttention):
                inner = 2 * mixer.key_dim + mixer.value_dim * (2 if mixer.output_gate else 1)
                out = mixer.value_dim
            else:
                inner = 2 * mixer.inner + 2 * mixer.n_groups * mixer.state_size + mixer.n_heads
                out = mixer.inner
            gemms = ops.gemm_ms(form, tokens, inner / tensor, d) + ops.gemm_ms(form, tokens, d, out / tensor)
            held, width = mixer.state_values / tensor, out / tensor
            found["recurrent"] = ops.recurrent_ms(decodes, prefill, held, mixer.state_bytes_per_value, width)
        return found | {"attention_gemm": gemms}

    def _feed_forward(self, kind: LayerKind, tokens: Any) -> dict[str, Any]:
        layer = kind.feed_forward
        if layer is None:
            return {}
        d, settings, ops, formats = self.model.d_model, self.settings, self.operators, self.model.formats
        if isinstance(layer, Mlp):
            return {
                "mlp_gemm": self._mlp_ms(formats.mlp, tokens, layer.width, layer.gated),
                "all_reduce": self._all_reduce(tokens),
                "element": self._element(tokens, d, layer.width / settings.tensor_parallel),
            }
        everywhere = tokens * settings.data_parallel  # all ranks' tokens meet at the experts
        expert = max(1, min(settings.expert_parallel, self.stage_gpus))
        cut = max(1, self.stage_gpus // expert)
        experts = ops.experts_ms(
            formats.experts,
            everywhere,
            layer.latent_dim or d,
            layer.width,
            layer.per_token,
            layer.n_experts,
            cut,
            expert,
            layer.gated,
        )
        gemms = ops.gemm_ms("bf16", tokens, layer.n_experts, d)
        if layer.latent_dim:
            gemms = gemms + ops.gemm_ms(formats.mlp, tokens, layer.latent_dim, d)
            gemms = gemms + ops.gemm_ms(formats.mlp, tokens, d, layer.latent_dim)
        if layer.shared_width:
            gemms = gemms + self._mlp_ms(formats.mlp, tokens, layer.shared_width, layer.gated)
        active = layer.width * layer.per_token / self.stage_gpus * settings.data_parallel
        return {
            "mlp_gemm": gemms,
            "experts": experts,
            "all_reduce": self._gather(tokens) if settings.data_parallel > 1 else self._all_reduce(tokens),
            "element": self._element(tokens, d, active),
            "expert_layer": EXPERT_LAYER_MS,
        }

    def _mlp_ms(self, form: Any, tokens: Any, width: int, gated: bool) -> Any:
        d, tensor, ops = self.model.d_model, self.settings.tensor_parallel, self.operators
        return ops.gemm_ms(form, tokens, (2 if gated else 1) * width / tensor, d) + ops.gemm_ms(
            form, tokens, d, width / tensor
        )

    def _all_reduce(self, tokens: Any) -> Any:
        """Return the time to add up what the GPUs of a rank found for their tokens."""
        if self.settings.tensor_parallel == 1:
            return np.zeros(np.shape(tokens))
        moved = 2.0 * tokens * self.model.d_model
        return (tokens > 0) * self.operators.all_reduce_ms(moved, self.settings.tensor_parallel)

    def _gather(self, tokens: Any) -> Any:
        """Return the time to bring all ranks' tokens to the experts and the results back."""
        moved = 2.0 * tokens * self.settings.data_parallel * self.model.d_model
        return (tokens > 0) * self.operators.all_reduce_ms(moved, self.stage_gpus)

    def _element(self, tokens: Any, d: float, active: float = 0.0) -> Any:
        """Return the time of norms, activations and residuals: bytes read and written beside the matrices.

        About five times the layer's width, half in each of its two sublayers, and three times what the
        feed-forward is active on; 2 bytes each.
        """
        return self.operators.element_ms(2.0 * tokens * (5.0 * d + 3.0 * active))


@dataclass(frozen=True)
class BatchArrays:
    """Many batches at once: the fields of `Batch`, each an array [n]; or one, of numbers that need not be
    whole."""

    decodes: Numbers | float
    decode_context_tokens: Numbers | float
    prefill_tokens: Numbers | float
    prefill_pairs: Numbers | float
    prefills: Numbers | float


def _array(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64)


def _per(total: Any, share: Any) -> Any:
    """Return what a step has that has any, where only the share of all steps has."""
    return total / np.where(share > 0, share, 1.0)


def _compressed(mixer: CompressedAttention, seen: Any, tokens: Any) -> Any:
    """Return what `tokens` attend to of the `seen` positions: a window, and entries of the rest."""
    entries = seen / mixer.ratio if mixer.ratio else 0.0
    if mixer.top_k:
        entries = np.minimum(entries, tokens * mixer.top_k)
    return np.minimum(seen, tokens * mixer.window) + entries


def _sharded_heads(mixer: Attention, tensor_parallel: int) -> tuple[int, int]:
    """Return the query heads and KV heads of one GPU; fewer KV heads than GPUs are kept more than once."""
    return max(1, mixer.n_heads // tensor_parallel), max(1, mixer.n_kv_heads // tensor_parallel)
