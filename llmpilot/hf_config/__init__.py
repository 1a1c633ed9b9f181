"""Derives an LLM's architecture facts from its own Hugging Face config.json, without its code.

Parameters are counted layer by layer, as the checkpoint stores them. Vision towers and multi-token-prediction
heads are left out: they take no part in serving text. This module knows nothing of the catalogue or of Hydra.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmpilot.architecture import Attention, CompressedAttention, Experts, LatentAttention, LayerKind
from llmpilot.config import Model, parse
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.hf_config.families import FAMILIES, Family
from llmpilot.hf_config.keys import language_part, names_of, read_file, read_flag, read_integer, read_word
from llmpilot.hf_config.layers import Layer, encoder_layer_count, head_size, position_limit
from llmpilot.hf_config.parameters import Counts, count_parameters
from llmpilot.hf_config.weights import fp8_format, plain_weights, read_weights

__all__ = ["FAMILIES", "model_from_hf_config"]
QUANTIZATION_FILE = "hf_quant_config.json"


def model_from_hf_config(path: str | Path, *, overrides: dict[str, Any] | None = None) -> Model:
    """Return the facts of the LLM whose config.json is at `path`, a file or a folder that holds one.

    Args:
        path: e.g. `models/my-llm/config.json`, `models/my-llm`, or `models/my-org--my-llm.json`.
        overrides: values for keys of Model that win over what the file says; taken as they are.

    Raises:
        ConfigError: no such file, not a JSON object, a key is missing or impossible, or the architecture is
            one whose layers are not understood.

    Note:
        A checkpoint of NVIDIA's keeps its quantization in a hf_quant_config.json beside: it is read too.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        raw = read_file(file)
        beside = file.parent / QUANTIZATION_FILE
        quantization = read_file(beside) if file.name == "config.json" and beside.is_file() else None
        known = "weight_bytes_per_parameter" in given
        facts = _facts(raw, names_of(file, raw), quantization, weights_known=known)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.wrong}", given=error.given, cure=error.cure) from None
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{file}: its layers are not possible: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ConfigError(wrong, given=first["input"], cure="correct the file") from None
    return parse(Model, {**facts, **given}, "model")


# --- the facts -------------------------------------------------------------------------------------------


def _facts(
    raw: dict[str, Any], names: dict[str, str], beside: dict[str, Any] | None, *, weights_known: bool
) -> dict[str, Any]:
    config = language_part(raw)
    architecture = read_word(config, "model_type", "unknown").removesuffix("_text")
    family = _family(architecture)
    config = {**family.defaults, **config, "model_type": architecture}
    family = _with_switches(config, family)
    counts = count_parameters(config, family)
    weights = plain_weights() if weights_known else read_weights(config, counts, names["hf_id"], beside)
    kinds = [] if family.encoder_decoder else layer_kinds(counts.layers)
    source = "; ".join(filter(None, (f"config.json of {names['hf_id']}", weights.said_by)))
    return {
        **names,
        "architecture": architecture,
        "parameters_b": counts.total / 1e9,
        "active_parameters_b": counts.active / 1e9,
        "encoder_parameters_b": counts.encoder / 1e9,
        "n_layers": len(counts.layers),
        "n_encoder_layers": encoder_layer_count(config) if family.encoder_decoder else 0,
        "d_model": read_integer(config, "hidden_size"),
        **_heads(config, counts),
        "kv_bytes_per_token": kv_bytes(counts.layers),
        "vocabulary_size": read_integer(config, "vocab_size"),
        "max_positions": position_limit(config, family),
        **_experts(counts),
        "weight_bytes_per_parameter": weights.bytes_per_parameter,
        # transformers reads a checkpoint that does not say as float32
        "torch_dtype": read_word(config, "dtype", "float32").removeprefix("torch."),
        "layers": [kind.model_dump() for kind in kinds],
        "formats": weights.formats.model_dump(),
        "kv_format": weights.kv_format,
        "fp8_format": fp8_format(names["hf_id"]),
        "flash_attention": family.flash,
        "source": source,
    }


def _family(architecture: str) -> Family:
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    raise ConfigError(
        f"the layers of {architecture!r} are not understood here",
        given=f"model_type {architecture}",
        cure=f"{did_you_mean(architecture, list(FAMILIES))}describe the model in a file of its own, as "
        "conf/model/llama_3_1_8b.yaml does, with its layers; if they are in truth those of an architecture "
        f"that is known, name that one in the file's model_type. Known are {', '.join(FAMILIES)}",
    )


def layer_kinds(layers: tuple[Layer, ...]) -> list[LayerKind]:
    """Return the layers with equal ones counted together, in the order in which they first come."""
    found: dict[tuple[Any, ...], int] = {}
    for layer in layers:
        key = (layer.mixers, layer.feed_forward)
        found[key] = found.get(key, 0) + 1
    return [
        LayerKind(count=count, mixers=mixers, feed_forward=following)
        for (mixers, following), count in found.items()
    ]


def kv_bytes(layers: tuple[Layer, ...]) -> float:
    """Return what one more token of a long context adds to the KV cache in 16 bits [bytes].

    Windows add nothing there; where all layers have one, what they add until it is full.
    """
    mixers = [mixer for layer in layers for mixer in layer.mixers]
    further = sum(mixer.kv_values_per_further_token for mixer in mixers)
    return 2.0 * (further or sum(mixer.kv_values(1) for mixer in mixers))


def _heads(config: Mapping[str, Any], counts: Counts) -> dict[str, int]:
    """Return heads, KV heads and their width, of the first layer that attends to everything."""
    mixers = [mixer for layer in counts.layers for mixer in layer.mixers]
    plain = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    full = next((mixer for mixer in plain if mixer.window is None), plain[0] if plain else None)
    latent = next((m for m in mixers if isinstance(m, (LatentAttention, CompressedAttention))), None)
    if full is not None:
        return {"n_heads": full.n_heads, "n_kv_heads": full.n_kv_heads, "head_dim": full.head_dim}
    if isinstance(latent, LatentAttention):
        return {"n_heads": latent.n_heads, "n_kv_heads": 1, "head_dim": latent.nope_dim + latent.rope_dim}
    if latent is not None:
        return {"n_heads": latent.n_heads, "n_kv_heads": 1, "head_dim": latent.head_dim}
    heads = read_integer(config, "num_attention_heads")
    return {"n_heads": heads, "n_kv_heads": heads, "head_dim": head_size(config)}


def _experts(counts: Counts) -> dict[str, int]:
    for layer in counts.layers:
        if isinstance(layer.feed_forward, Experts):
            experts = layer.feed_forward
            return {"n_experts": experts.n_experts, "experts_per_token": experts.per_token}
    return {"n_experts": 1, "experts_per_token": 1}


def _with_switches(config: Mapping[str, Any], family: Family) -> Family:
    """Return the family with the switches applied that a config may carry."""
    if family.bias_key:
        on = read_flag(config, family.bias_key, True) != (family.bias_key == "no_bias")
        family = replace(family, qkv_bias=on, out_bias=on, mlp_bias=on)
    if family.qk_norm_key and not read_flag(config, family.qk_norm_key, False):
        family = replace(family, qk_norm="")
    if "attention_bias" in config:
        on = read_flag(config, "attention_bias", False)
        # Where only queries, keys and values have biases by default, only they have them.
        family = replace(family, qkv_bias=on, out_bias=on and (family.out_bias or not family.qkv_bias))
    return replace(family, mlp_bias=read_flag(config, "mlp_bias", family.mlp_bias))
