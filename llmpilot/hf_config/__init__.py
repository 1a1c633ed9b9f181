"""Derives an LLM's architecture facts from its own Hugging Face config.json, without its code.

Parameters are counted layer by layer, as the checkpoint stores them. Vision towers and multi-token-prediction
heads are left out: they take no part in serving text. This module knows nothing of the catalogue or of Hydra.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmpilot.config import Model, parse
from llmpilot.errors import ConfigError
from llmpilot.hf_config.families import FAMILIES, LLAMA, Family
from llmpilot.hf_config.geometry import (
    encoder_layer_count,
    head_size,
    is_latent,
    kv_bytes,
    kv_head_count,
    latent_query_size,
    layer_count,
    position_limit,
)
from llmpilot.hf_config.keys import language_part, names_of, read_file, read_flag, read_integer, read_word
from llmpilot.hf_config.parameters import count_parameters, expert_count
from llmpilot.hf_config.weights import OTHER_BYTES, bytes_per_parameter


def model_from_hf_config(path: str | Path, *, overrides: dict[str, Any] | None = None) -> Model:
    """Return the facts of the LLM whose config.json is at `path`, a file or a folder that holds one.

    Args:
        path: e.g. `models/my-llm/config.json`, or `models/my-llm`.
        overrides: values for keys of Model that win over what the file says; taken as they are.

    Raises:
        ConfigError: no such file, not a JSON object, or a key is missing or impossible.

    Note:
        An unknown `model_type` is read as a llama-like decoder if it has llama's keys; `source` then says so.
        The KV cache of sliding-window layers is counted in full, as engines without a hybrid cache hold it.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        raw = read_file(file)
        facts = _facts(raw, names_of(file, raw), weights_known="weight_bytes_per_parameter" in given)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.wrong}", given=error.given, cure=error.cure) from None
    return parse(Model, {**facts, **given}, "model")


# --- reading ---------------------------------------------------------------------------------------------


def _facts(raw: dict[str, Any], names: dict[str, str], *, weights_known: bool) -> dict[str, Any]:
    config = language_part(raw)
    architecture = read_word(config, "model_type", "unknown")
    family = FAMILIES.get(architecture)
    if family is None and read_flag(config, "is_encoder_decoder", False):
        known = ", ".join(name for name, known in FAMILIES.items() if known.encoder_decoder)
        raise ConfigError(
            f"{architecture!r} is an encoder-decoder that is not known here",
            given=f"model_type {architecture}",
            cure=f"describe it in a file of its own, as in conf/model/flan_t5_xl.yaml; known are {known}",
        )
    source = f"config.json of {names['hf_id']}" + ("" if family else ", read as a llama-like decoder")
    family = family or LLAMA
    config = {**family.defaults, **config}
    family = _with_biases(config, family)
    counts = count_parameters(config, family)
    layers, heads = layer_count(config), read_integer(config, "num_attention_heads")
    moe = expert_count(config) > 1
    weight_bytes = OTHER_BYTES if weights_known else bytes_per_parameter(config, counts)
    return {
        **names,
        "architecture": architecture,
        "parameters_b": counts.total / 1e9,
        "active_parameters_b": counts.active / 1e9,
        "encoder_parameters_b": counts.encoder / 1e9,
        "n_layers": layers,
        "n_encoder_layers": encoder_layer_count(config) if family.encoder_decoder else 0,
        "d_model": read_integer(config, "hidden_size"),
        "n_heads": heads,
        "n_kv_heads": 1 if is_latent(config) else kv_head_count(config),
        "head_dim": latent_query_size(config) if is_latent(config) else head_size(config),
        "kv_bytes_per_token": kv_bytes(config),
        "vocabulary_size": read_integer(config, "vocab_size"),
        "max_positions": position_limit(config, family),
        "n_experts": expert_count(config) if moe else 1,
        "experts_per_token": read_integer(config, "num_experts_per_tok") if moe else 1,
        "weight_bytes_per_parameter": weight_bytes,
        # transformers reads a checkpoint that does not say as float32
        "torch_dtype": read_word(config, "dtype", "float32").removeprefix("torch."),
        "flash_attention": family.flash,
        "source": source,
    }


def _with_biases(config: Mapping[str, Any], family: Family) -> Family:
    """Return the family with the switches applied that a config may carry."""
    if family.bias_key:
        on = read_flag(config, family.bias_key, True) != (family.bias_key == "no_bias")
        family = replace(family, qkv_bias=on, out_bias=on, mlp_bias=on)
    if "attention_bias" in config:
        on = read_flag(config, "attention_bias", False)
        family = replace(family, qkv_bias=on, out_bias=on)
    return replace(family, mlp_bias=read_flag(config, "mlp_bias", family.mlp_bias))
