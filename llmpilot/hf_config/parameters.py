"""Counts an architecture's parameters from its layers, as its checkpoint stores them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmpilot.architecture import Experts
from llmpilot.hf_config.families import Family
from llmpilot.hf_config.keys import read_flag, read_integer, read_word
from llmpilot.hf_config.layers import Layer, encoder_layer_count, layer_count, norm_size, read_layers


@dataclass(frozen=True)
class Counts:
    """Parameters: all, those of one token's path, and the encoder's; and the layers they were counted over.

    `embeddings` are all that are no matrices of layers, `head` those of an output head of its own.
    `layers`: the decoder's, in an encoder-decoder with `repeated` further ones, counted as the first.
    """

    total: int
    active: int
    encoder: int
    head: int
    layers: tuple[Layer, ...]
    repeated: float = 1.0


def count_parameters(config: Mapping[str, Any], family: Family) -> Counts:
    """Return the parameters of the whole architecture, and its layers.

    Raises:
        ConfigError: a key is missing or impossible, or a layer is of a kind that is not understood.
    """
    d = read_integer(config, "hidden_size")
    family = replace(family, norms=_norms(config, family))
    layers = read_layers(config, family)
    norm = norm_size(config, family)
    decoder = sum(_layer(layer, d) for layer in layers)
    other = (norm if family.final_norm else 0) + _embeddings(config, family)

    encoder = 0
    if family.encoder_decoder:
        n, count = encoder_layer_count(config), layer_count(config)
        cross = sum(mixer.parameters(d) for layer in layers for mixer in layer.mixers)
        other += cross + count * norm + _relative_bias(config, family, count)
        encoder = round(decoder / count * n) + norm + _relative_bias(config, family, n)

    total = decoder + other + encoder
    head = 0 if is_tied(config, family) else read_integer(config, "vocab_size") * d
    active = total - _idle(config, family, layers)
    return Counts(total, active, encoder, head, tuple(layers))


def _layer(layer: Layer, d: int) -> int:
    count = layer.small + sum(mixer.parameters(d) for mixer in layer.mixers)
    following = layer.feed_forward
    if isinstance(following, Experts):
        count += following.n_experts * layer.small_per_expert
    return count + (following.parameters(d) if following is not None else 0)


def _idle(config: Mapping[str, Any], family: Family, layers: list[Layer]) -> int:
    """Return what one token does not pass through: the experts not chosen, and the input embedding.

    That table is looked up, not multiplied with; makers of models with experts mostly leave it out, and those
    of dense models count it. So do we, to be comparable with both.
    """
    d, resting = read_integer(config, "hidden_size"), 0
    sparse = [layer for layer in layers if isinstance(layer.feed_forward, Experts)]
    for layer in sparse:
        experts = layer.feed_forward
        assert isinstance(experts, Experts)
        one = experts.one_expert_parameters(d) + layer.small_per_expert
        resting += max(experts.n_experts - experts.per_token, 0) * one
    lookup = read_integer(config, "vocab_size") * d
    return resting + (0 if not sparse or is_tied(config, family) else lookup)


def _norms(config: Mapping[str, Any], family: Family) -> int:
    """Return the norms per layer; Falcon's count depends on which of its decoders it is."""
    if read_word(config, "model_type", "") != "falcon":
        return family.norms
    if read_flag(config, "new_decoder_architecture", False):
        return read_integer(config, "num_ln_in_parallel_attn", 2)
    return 1 if read_flag(config, "parallel_attn", True) else 2


def _embeddings(config: Mapping[str, Any], family: Family) -> int:
    """Return the parameters of token and position embeddings and of the output head."""
    vocabulary, d = read_integer(config, "vocab_size"), read_integer(config, "hidden_size")
    width = read_integer(config, "word_embed_proj_dim", d)  # OPT-350m embeds narrower than it computes
    count = vocabulary * width + (0 if width == d else 2 * width * d)
    if not is_tied(config, family):
        count += vocabulary * width + (vocabulary if family.head_bias else 0)
    if family.learned_positions is not None:
        count += (read_integer(config, "max_position_embeddings") + family.learned_positions) * d
    return count + (family.norm_vectors * d if family.embedding_norm else 0)


def is_tied(config: Mapping[str, Any], family: Family) -> bool:
    """Whether the output head is the input embedding."""
    return read_flag(config, "tie_word_embeddings", family.tied)


def _relative_bias(config: Mapping[str, Any], family: Family, layers: int) -> int:
    buckets = read_integer(config, "relative_attention_num_buckets", 32)
    return (
        buckets
        * read_integer(config, "num_attention_heads")
        * (layers if family.relative_bias == "layer" else 1)
    )
