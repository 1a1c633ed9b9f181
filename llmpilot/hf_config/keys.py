"""Reads single keys of a config.json: one thing has many spellings, and any value may be nonsense."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpilot.errors import ConfigError

# One thing, many names: the first spelling that the file gives is taken. What is not listed has one spelling.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    # T5's num_layers is its encoder's, and its decoder's too unless num_decoder_layers is given.
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_decoder_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"),
    "head_dim": ("head_dim", "d_kv", "attention_head_dim"),
    "intermediate_size": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    "n_shared_experts": ("n_shared_experts", "num_shared_experts"),
    "mamba_num_heads": ("mamba_num_heads", "mamba_n_heads"),
    "mamba_head_dim": ("mamba_head_dim", "mamba_d_head"),
    "mamba_n_groups": ("mamba_n_groups", "n_groups"),
    "mamba_d_state": ("mamba_d_state", "ssm_state_size"),
    "mamba_d_conv": ("mamba_d_conv", "conv_kernel"),
    "dtype": ("torch_dtype", "dtype"),
}

MOST_LAYERS = 10_000
MOST = 10**9  # of anything else: beyond it, the file is not an LLM's


def read_file(file: Path) -> dict[str, Any]:
    """Return the JSON object of a config file; raise ConfigError if it is none."""
    cure = "give the config.json of a Hugging Face model, or the folder that holds it: model.config=PATH"
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError("there is no such file", cure=cure) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", cure=cure) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError("is not JSON", given=str(error)[:200], cure=cure) from None
    if not isinstance(raw, dict):
        raise ConfigError("is not a JSON object", given=type(raw).__name__, cure=cure)
    return raw


def names_of(file: Path, raw: dict[str, Any]) -> dict[str, str]:
    """Return the model's name and hub id, as the file (`org--name.json`, `name/config.json`) tells them."""
    stem = file.resolve().parent.name if file.name == "config.json" else file.stem
    name = stem or "model"
    hub = raw.get("_name_or_path")
    on_hub = isinstance(hub, str) and hub.count("/") == 1 and all(hub.split("/")) and hub[0] not in "./~"
    organization, between, model = name.partition("--")
    if file.name != "config.json" and organization and between and model:
        return {"name": model, "hf_id": f"{organization}/{model}"}
    return {"name": name, "hf_id": str(hub) if on_hub else name}


def language_part(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that describe the text decoder, nulls dropped; nested ones win over outer ones."""
    parts_of_text = (raw.get(key) for key in ("text_config", "llm_config"))
    nested = next((part for part in parts_of_text if isinstance(part, dict)), None)
    inner = nested if nested is not None and "hidden_size" not in raw else {}
    attention = raw.get("attn_config")
    hoisted = attention if isinstance(attention, dict) else {}  # MPT keeps its KV heads there
    parts = [hoisted, raw, inner]
    return {key: value for part in parts for key, value in part.items() if value is not None}


def find_key(config: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """Return the spelling and value of `key`, or its first spelling and None."""
    spellings = SPELLINGS.get(key, (key,))
    found = next((name for name in spellings if config.get(name) is not None), spellings[0])
    return found, config.get(found)


def read_integer(
    config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1, most: int = MOST
) -> int:
    """Return a whole number between the bounds; raise ConfigError if it is missing or none."""
    name, value = find_key(config, key)
    if value is None and default is not None:
        return default
    if value is None:
        known = " or ".join(SPELLINGS.get(key, (key,)))
        raise ConfigError(
            f"{name} is missing, which {config.get('model_type', 'an architecture')!r} needs",
            cure=f"add {known} to the file, or describe the model as conf/model/llama_7b.yaml does",
        )
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{name} is not possible", given=repr(value)[:80], cure=f"a whole number from {least} to {most}"
        )
    return value


def read_flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return true or false; raise ConfigError if it is something else."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is not possible", given=repr(value)[:80], cure="true or false")
    return value


def read_word(config: Mapping[str, Any], key: str, default: str) -> str:
    """Return a string; raise ConfigError if it is something else."""
    name, value = find_key(config, key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"{name} is not possible", given=repr(value)[:80], cure="a text in quotes")
    return value


def read_list(config: Mapping[str, Any], key: str, length: int) -> list[Any]:
    """Return the first `length` entries of a list that has one for each layer; else raise ConfigError.

    A list may be longer: some go on over the layers that only speculate.
    """
    value = config.get(key)
    if not isinstance(value, list) or len(value) < length:
        raise ConfigError(
            f"{key} is not possible",
            given=repr(value)[:80],
            cure=f"a list with an entry for each of {length} layers",
        )
    return value[:length]
