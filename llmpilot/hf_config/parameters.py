"""Counts an architecture's parameters layer by layer, as its checkpoint stores them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmpilot.errors import ConfigError
from llmpilot.hf_config.families import Family
from llmpilot.hf_config.geometry import (
    encoder_layer_count,
    head_size,
    is_latent,
    kv_head_count,
    latent_query_size,
    layer_count,
)
from llmpilot.hf_config.keys import read_flag, read_integer, read_word


@dataclass(frozen=True)
class Counts:
    """Parameters: all, those of one token's path, the encoder's, those in linear layers, those in experts."""

    total: int
    active: int
    encoder: int
    linear: int
    experts: int


def count_parameters(config: Mapping[str, Any], family: Family) -> Counts:
    """Return the parameters of the whole architecture and of its experts."""
    layers, d = layer_count(config), read_integer(config, "hidden_size")
    family = replace(family, gated=_gated(config, family), norms=_norms(config, family))
    norm = family.norm_vectors * d
    attention = _mla(config) if is_latent(config) else _attention(config, family)
    heads = read_integer(config, "num_attention_heads")
    small = family.norms * norm
    small += 2 * head_size(config) if family.qk_norm else 0
    small += heads if family.attention_sinks else 0

    sparse = _sparse_layers(config)
    dense_mlp = _mlp(d, _mlp_width(config, family), family) if sparse < layers else 0
    expert, shared, router = _moe(config, family) if sparse else (0, 0, 0)
    experts = sparse * expert_count(config) * expert
    # an encoder-decoder's layers attend twice: to themselves and to the encoder
    linear = layers * attention * (2 if family.encoder_decoder else 1)
    linear += (layers - sparse) * dense_mlp + sparse * shared
    other = (
        layers * small + sparse * router + (norm if family.final_norm else 0) + _embeddings(config, family)
    )

    encoder = 0
    if family.encoder_decoder:
        other += layers * norm + _relative_bias(config, family, layers)
        n = encoder_layer_count(config)
        encoder_linear = n * (attention + dense_mlp)
        linear += encoder_linear
        encoder = encoder_linear + n * small + norm + _relative_bias(config, family, n)
        other += encoder - encoder_linear

    total = linear + experts + other
    return Counts(total, total - _idle(config, family, sparse, expert), encoder, linear + experts, experts)


def _idle(config: Mapping[str, Any], family: Family, sparse: int, expert: int) -> int:
    """Return what one token does not pass through: the experts not chosen, and the input embedding.

    That table is looked up, not multiplied with; makers of models with experts mostly leave it out, and those
    of dense models count it. So do we, to be comparable with both.
    """
    if not sparse:
        return 0
    resting = max(expert_count(config) - read_integer(config, "num_experts_per_tok"), 0)
    lookup = read_integer(config, "vocab_size") * read_integer(config, "hidden_size")
    return sparse * resting * expert + (0 if _tied(config, family) else lookup)


def _attention(config: Mapping[str, Any], family: Family) -> int:
    d, dim = read_integer(config, "hidden_size"), head_size(config)
    queries, keys = read_integer(config, "num_attention_heads") * dim, kv_head_count(config) * dim
    biases = (queries + 2 * keys if family.qkv_bias else 0) + (d if family.out_bias else 0)
    return d * (queries + 2 * keys) + queries * d + biases


def _mla(config: Mapping[str, Any]) -> int:
    d, heads = read_integer(config, "hidden_size"), read_integer(config, "num_attention_heads")
    rank, rope = read_integer(config, "kv_lora_rank"), read_integer(config, "qk_rope_head_dim")
    value = read_integer(config, "v_head_dim")
    queries = heads * latent_query_size(config)
    q_rank = read_integer(config, "q_lora_rank", 0, least=0)
    to_queries = d * q_rank + q_rank + q_rank * queries if q_rank else d * queries
    to_latent = d * (rank + rope) + rank
    from_latent = rank * heads * (read_integer(config, "qk_nope_head_dim") + value)
    return to_queries + to_latent + from_latent + heads * value * d


def _mlp(d: int, width: int, family: Family) -> int:
    inner = 2 if family.gated else 1
    return (inner + 1) * d * width + (inner * width + d if family.mlp_bias else 0)


def _mlp_width(config: Mapping[str, Any], family: Family) -> int:
    if family.ffn_ratio is None:
        return read_integer(config, "intermediate_size")
    ratio = read_integer(config, "expansion_ratio", family.ffn_ratio)
    return read_integer(config, "intermediate_size", ratio * read_integer(config, "hidden_size"))


def _gated(config: Mapping[str, Any], family: Family) -> bool:
    if not family.encoder_decoder:
        return family.gated
    return read_word(config, "feed_forward_proj", "relu").startswith("gated")


def _norms(config: Mapping[str, Any], family: Family) -> int:
    """Return the norms per layer; Falcon's count depends on which of its decoders it is."""
    if read_word(config, "model_type", "") != "falcon":
        return family.norms
    if read_flag(config, "new_decoder_architecture", False):
        return read_integer(config, "num_ln_in_parallel_attn", 2)
    return 1 if read_flag(config, "parallel_attn", True) else 2


def expert_count(config: Mapping[str, Any]) -> int:
    """Return the number of routed experts in a sparse layer, 0 for a dense model."""
    return read_integer(config, "num_experts", 0, least=0)


def _sparse_layers(config: Mapping[str, Any]) -> int:
    """Return how many layers have experts; the others have a plain MLP."""
    layers = layer_count(config)
    if expert_count(config) < 2:
        return 0
    first = read_integer(config, "first_k_dense_replace", 0, least=0)
    step = read_integer(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers", [])
    if not isinstance(dense, list):
        raise ConfigError(
            "mlp_only_layers is not possible", given=repr(dense)[:80], cure="a list of layer numbers"
        )
    return sum(1 for layer in range(first, layers) if layer not in dense and (layer + 1) % step == 0)


def _moe(config: Mapping[str, Any], family: Family) -> tuple[int, int, int]:
    """Return the parameters of one expert, of what all tokens share, and of the router, in one layer."""
    d, experts = read_integer(config, "hidden_size"), expert_count(config)
    width = read_integer(config, "moe_intermediate_size", 0, least=0) or _mlp_width(config, family)
    shared_width = read_integer(config, "n_shared_experts", 0, least=0) * width
    shared_width = read_integer(config, "shared_expert_intermediate_size", shared_width, least=0)
    shared = _mlp(d, shared_width, family) if shared_width else 0
    gate = d if config.get("shared_expert_intermediate_size") else 0
    router = d * experts + (experts if family.router_bias else 0)
    return _mlp(d, width, family), shared, router + gate


def _embeddings(config: Mapping[str, Any], family: Family) -> int:
    """Return the parameters of token and position embeddings and of the output head."""
    vocabulary, d = read_integer(config, "vocab_size"), read_integer(config, "hidden_size")
    width = read_integer(config, "word_embed_proj_dim", d)  # OPT-350m embeds narrower than it computes
    count = vocabulary * width + (0 if width == d else 2 * width * d)
    if not _tied(config, family):
        count += vocabulary * width + (vocabulary if family.head_bias else 0)
    if family.learned_positions is not None:
        count += (read_integer(config, "max_position_embeddings") + family.learned_positions) * d
    return count + (family.norm_vectors * d if family.embedding_norm else 0)


def _tied(config: Mapping[str, Any], family: Family) -> bool:
    return read_flag(config, "tie_word_embeddings", family.tied)


def _relative_bias(config: Mapping[str, Any], family: Family, layers: int) -> int:
    buckets = read_integer(config, "relative_attention_num_buckets", 32)
    return (
        buckets
        * read_integer(config, "num_attention_heads")
        * (layers if family.relative_bias == "layer" else 1)
    )


# --- quantization ----------------------------------------------------------------------------------------
