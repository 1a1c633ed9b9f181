"""Layers, heads and the KV cache of an architecture, from its config."""

from collections.abc import Mapping
from typing import Any

from llmpilot.errors import ConfigError
from llmpilot.hf_config.families import Family
from llmpilot.hf_config.keys import MOST_LAYERS, find_key, read_flag, read_integer


def layer_count(config: Mapping[str, Any]) -> int:
    """Return the number of decoder layers."""
    return read_integer(config, "num_hidden_layers", most=MOST_LAYERS)


def encoder_layer_count(config: Mapping[str, Any]) -> int:
    """Return the number of encoder layers of an encoder-decoder."""
    return read_integer(config, "num_layers", layer_count(config), most=MOST_LAYERS)


def kv_head_count(config: Mapping[str, Any]) -> int:
    """Return the number of heads that the KV cache keeps."""
    heads = read_integer(config, "num_attention_heads")
    # Falcon writes num_kv_heads also where it means one: only its newer decoder reads that key.
    grouped = read_flag(config, "new_decoder_architecture", False) or not read_flag(
        config, "multi_query", False
    )
    kv_heads = read_integer(config, "num_key_value_heads", heads) if grouped else 1
    if heads % kv_heads:
        raise ConfigError(
            f"{heads} attention heads cannot share {kv_heads} key-value heads",
            given=f"num_attention_heads {heads}, num_key_value_heads {kv_heads}",
            cure="the first must be a multiple of the second",
        )
    return kv_heads


def head_size(config: Mapping[str, Any]) -> int:
    """Return the width of one attention head."""
    hidden, heads = read_integer(config, "hidden_size"), read_integer(config, "num_attention_heads")
    if find_key(config, "head_dim")[1] is None and hidden % heads:
        raise ConfigError(
            f"{heads} attention heads do not divide a hidden size of {hidden}",
            given=f"hidden_size {hidden}, num_attention_heads {heads}",
            cure="correct one of them, or add head_dim",
        )
    return read_integer(config, "head_dim", hidden // heads)


def is_latent(config: Mapping[str, Any]) -> bool:
    """Whether the KV cache is latent (multi-head latent attention)."""
    return "kv_lora_rank" in config


def latent_query_size(config: Mapping[str, Any]) -> int:
    """Return the width of one query head under latent attention."""
    return read_integer(config, "qk_nope_head_dim") + read_integer(config, "qk_rope_head_dim")


def kv_bytes(config: Mapping[str, Any]) -> float:
    """Return the fp16 KV cache of one decoder position [bytes]: keys and values of every layer.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) keeps one latent and one rotary
    key for all heads instead.
    """
    if is_latent(config):
        return (
            2.0
            * layer_count(config)
            * (read_integer(config, "kv_lora_rank") + read_integer(config, "qk_rope_head_dim"))
        )
    return 2.0 * 2 * layer_count(config) * kv_head_count(config) * head_size(config)


def position_limit(config: Mapping[str, Any], family: Family) -> int | None:
    """Return the longest sequence, or None: T5's relative positions have no end, despite its n_positions."""
    if family.relative_bias or find_key(config, "max_position_embeddings")[1] is None:
        return None
    return read_integer(config, "max_position_embeddings")


# --- counting --------------------------------------------------------------------------------------------
