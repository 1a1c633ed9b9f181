"""Derives an LLM's architecture facts from its own Hugging Face config.json, without its code.

Parameters are counted layer by layer, as the checkpoint stores them. Vision towers and multi-token-prediction
heads are left out: they take no part in serving text. This module knows nothing of the catalogue or of Hydra.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmpilot.config import Model, parse
from llmpilot.errors import ConfigError

# One thing, many names: the first spelling that the file gives is taken. What is not listed has one spelling.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    # T5's num_layers is its encoder's, and its decoder's too unless num_decoder_layers is given.
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_decoder_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "intermediate_size": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "dtype": ("torch_dtype", "dtype"),
}


@dataclass(frozen=True)
class Family:
    """How an architecture differs from llama's; `defaults` are those of its transformers config class.

    `norms` per layer, each of `norm_vectors` vectors (2: scale and bias); `bias_key` is the config key that
    switches all biases; `ffn_ratio` gives the MLP's width where the config leaves it out; `flash` whether the
    common servers batch it without padding.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = True
    norms: int = 2
    norm_vectors: int = 1
    final_norm: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    router_bias: bool = False
    bias_key: str = ""
    tied: bool = False
    learned_positions: int | None = None
    embedding_norm: bool = False
    attention_sinks: bool = False
    ffn_ratio: int | None = None
    relative_bias: str = ""
    encoder_decoder: bool = False
    flash: bool = True


LLAMA = Family()
# GPT-2's kin: plain two-matrix MLP, LayerNorm with a bias, biases everywhere.
GPT = Family(gated=False, norm_vectors=2, qkv_bias=True, out_bias=True, mlp_bias=True, ffn_ratio=4)
GPT2 = replace(GPT, tied=True, learned_positions=0)
GPTJ = replace(GPT, norms=1, qkv_bias=False, out_bias=False, head_bias=True)
GEMMA = Family(tied=True, defaults={"head_dim": 256})
GEMMA3 = Family(
    tied=True,
    norms=4,
    qk_norm=True,
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
)
QWEN3 = Family(qk_norm=True, defaults={"head_dim": 128})
T5 = Family(
    tied=True,
    encoder_decoder=True,
    flash=False,
    relative_bias="stack",
    defaults={"feed_forward_proj": "relu"},
)
MT5 = replace(T5, defaults={"feed_forward_proj": "gated-gelu"})

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, defaults={"num_key_value_heads": 8}),
    "mixtral": replace(LLAMA, defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2}),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen2_moe": replace(LLAMA, qkv_bias=True, defaults={"num_experts_per_tok": 4}),
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3,
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norms=4),
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "phi3": LLAMA,
    "phi": replace(GPT, norms=1, head_bias=True),
    "gpt2": GPT2,
    "gpt_bigcode": replace(GPT2, defaults={"multi_query": True}),
    "gpt_neox": replace(GPT, ffn_ratio=None),
    "gptj": GPTJ,
    "codegen": replace(GPTJ, flash=False),
    "mpt": replace(
        GPT, norm_vectors=1, tied=True, bias_key="no_bias", defaults={"no_bias": True}, flash=False
    ),
    "falcon": replace(GPT, tied=True, bias_key="bias", defaults={"bias": False, "multi_query": True}),
    "opt": replace(GPT2, learned_positions=2, bias_key="enable_bias", ffn_ratio=None, flash=False),
    "bloom": replace(GPT, tied=True, embedding_norm=True, flash=False),
    "starcoder2": replace(GPT, tied=True, bias_key="use_bias", ffn_ratio=None),
    "t5": T5,
    "mt5": MT5,
    "umt5": replace(MT5, relative_bias="layer"),
    "deepseek_v2": LLAMA,
    "deepseek_v3": replace(LLAMA, router_bias=True),
    "kimi_k2": replace(LLAMA, router_bias=True),
    "gpt_oss": replace(
        LLAMA, qkv_bias=True, out_bias=True, mlp_bias=True, router_bias=True, attention_sinks=True
    ),
}

MOST_LAYERS = 10_000
MOST = 10**9  # of anything else: beyond it, the file is not an LLM's
OTHER_BYTES = 2.0  # engines serve in fp16 or bf16, also checkpoints stored as fp32


@dataclass(frozen=True)
class Counts:
    """Parameters: all, those of one token's path, the encoder's, those in linear layers, those in experts."""

    total: int
    active: int
    encoder: int
    linear: int
    experts: int


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
        raw = _read(file)
        facts = _facts(raw, _names(file, raw), weights_known="weight_bytes_per_parameter" in given)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.wrong}", given=error.given, cure=error.cure) from None
    return parse(Model, {**facts, **given}, "model")


# --- reading ---------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, Any]:
    cure = "give the config.json of a Hugging Face model, or the folder that holds it: model.config=PATH"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there is no such file", cure=cure) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", cure=cure) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError("is not JSON", given=str(error)[:200], cure=cure) from None
    if not isinstance(raw, dict):
        raise ConfigError("is not a JSON object", given=type(raw).__name__, cure=cure)
    return raw


def _names(file: Path, raw: dict[str, Any]) -> dict[str, str]:
    stem = file.resolve().parent.name if file.name == "config.json" else file.stem
    name = stem or "model"
    hub = raw.get("_name_or_path")
    on_hub = isinstance(hub, str) and hub.count("/") == 1 and all(hub.split("/")) and hub[0] not in "./~"
    return {"name": name, "hf_id": str(hub) if on_hub else name}


def _language_part(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that describe the text decoder, nulls dropped; nested ones win over outer ones."""
    nested = raw.get("text_config")
    inner = nested if isinstance(nested, dict) and "hidden_size" not in raw else {}
    attention = raw.get("attn_config")
    hoisted = attention if isinstance(attention, dict) else {}  # MPT keeps its KV heads there
    parts = [hoisted, raw, inner]
    return {key: value for part in parts for key, value in part.items() if value is not None}


def _find(config: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """Return the spelling and value of `key`, or its first spelling and None."""
    spellings = SPELLINGS.get(key, (key,))
    found = next((name for name in spellings if config.get(name) is not None), spellings[0])
    return found, config.get(found)


def _integer(
    config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1, most: int = MOST
) -> int:
    name, value = _find(config, key)
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


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is not possible", given=repr(value)[:80], cure="true or false")
    return value


def _text(config: Mapping[str, Any], key: str, default: str) -> str:
    name, value = _find(config, key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"{name} is not possible", given=repr(value)[:80], cure="a text in quotes")
    return value


# --- the facts -------------------------------------------------------------------------------------------


def _facts(raw: dict[str, Any], names: dict[str, str], *, weights_known: bool) -> dict[str, Any]:
    config = _language_part(raw)
    architecture = _text(config, "model_type", "unknown")
    family = FAMILIES.get(architecture)
    if family is None and _flag(config, "is_encoder_decoder", False):
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
    counts = _count(config, family)
    layers, heads = _layers(config), _integer(config, "num_attention_heads")
    moe = _experts(config) > 1
    weight_bytes = OTHER_BYTES if weights_known else _weight_bytes(config, counts)
    return {
        **names,
        "architecture": architecture,
        "parameters_b": counts.total / 1e9,
        "active_parameters_b": counts.active / 1e9,
        "encoder_parameters_b": counts.encoder / 1e9,
        "n_layers": layers,
        "n_encoder_layers": _encoder_layers(config) if family.encoder_decoder else 0,
        "d_model": _integer(config, "hidden_size"),
        "n_heads": heads,
        "n_kv_heads": 1 if _is_mla(config) else _kv_heads(config),
        "head_dim": _mla_query_dim(config) if _is_mla(config) else _head_dim(config),
        "kv_bytes_per_token": _kv_bytes_per_token(config),
        "vocabulary_size": _integer(config, "vocab_size"),
        "max_positions": _max_positions(config, family),
        "n_experts": _experts(config) if moe else 1,
        "experts_per_token": _integer(config, "num_experts_per_tok") if moe else 1,
        "weight_bytes_per_parameter": weight_bytes,
        # transformers reads a checkpoint that does not say as float32
        "torch_dtype": _text(config, "dtype", "float32").removeprefix("torch."),
        "flash_attention": family.flash,
        "source": source,
    }


def _with_biases(config: Mapping[str, Any], family: Family) -> Family:
    """Return the family with the switches applied that a config may carry."""
    if family.bias_key:
        on = _flag(config, family.bias_key, True) != (family.bias_key == "no_bias")
        family = replace(family, qkv_bias=on, out_bias=on, mlp_bias=on)
    if "attention_bias" in config:
        on = _flag(config, "attention_bias", False)
        family = replace(family, qkv_bias=on, out_bias=on)
    return replace(family, mlp_bias=_flag(config, "mlp_bias", family.mlp_bias))


def _layers(config: Mapping[str, Any]) -> int:
    return _integer(config, "num_hidden_layers", most=MOST_LAYERS)


def _encoder_layers(config: Mapping[str, Any]) -> int:
    return _integer(config, "num_layers", _layers(config), most=MOST_LAYERS)


def _kv_heads(config: Mapping[str, Any]) -> int:
    heads = _integer(config, "num_attention_heads")
    # Falcon writes num_kv_heads also where it means one: only its newer decoder reads that key.
    grouped = _flag(config, "new_decoder_architecture", False) or not _flag(config, "multi_query", False)
    kv_heads = _integer(config, "num_key_value_heads", heads) if grouped else 1
    if heads % kv_heads:
        raise ConfigError(
            f"{heads} attention heads cannot share {kv_heads} key-value heads",
            given=f"num_attention_heads {heads}, num_key_value_heads {kv_heads}",
            cure="the first must be a multiple of the second",
        )
    return kv_heads


def _head_dim(config: Mapping[str, Any]) -> int:
    hidden, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    if _find(config, "head_dim")[1] is None and hidden % heads:
        raise ConfigError(
            f"{heads} attention heads do not divide a hidden size of {hidden}",
            given=f"hidden_size {hidden}, num_attention_heads {heads}",
            cure="correct one of them, or add head_dim",
        )
    return _integer(config, "head_dim", hidden // heads)


def _is_mla(config: Mapping[str, Any]) -> bool:
    return "kv_lora_rank" in config


def _mla_query_dim(config: Mapping[str, Any]) -> int:
    return _integer(config, "qk_nope_head_dim") + _integer(config, "qk_rope_head_dim")


def _kv_bytes_per_token(config: Mapping[str, Any]) -> float:
    """Return the fp16 KV cache of one decoder position [bytes]: keys and values of every layer.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) keeps one latent and one rotary
    key for all heads instead.
    """
    if _is_mla(config):
        return (
            2.0 * _layers(config) * (_integer(config, "kv_lora_rank") + _integer(config, "qk_rope_head_dim"))
        )
    return 2.0 * 2 * _layers(config) * _kv_heads(config) * _head_dim(config)


def _max_positions(config: Mapping[str, Any], family: Family) -> int | None:
    """Return the longest sequence, or None: T5's relative positions have no end, despite its n_positions."""
    if family.relative_bias or _find(config, "max_position_embeddings")[1] is None:
        return None
    return _integer(config, "max_position_embeddings")


# --- counting --------------------------------------------------------------------------------------------


def _count(config: Mapping[str, Any], family: Family) -> Counts:
    layers, d = _layers(config), _integer(config, "hidden_size")
    family = replace(family, gated=_gated(config, family), norms=_norms(config, family))
    norm = family.norm_vectors * d
    attention = _mla(config) if _is_mla(config) else _attention(config, family)
    heads = _integer(config, "num_attention_heads")
    small = family.norms * norm
    small += 2 * _head_dim(config) if family.qk_norm else 0
    small += heads if family.attention_sinks else 0

    sparse = _sparse_layers(config)
    dense_mlp = _mlp(d, _mlp_width(config, family), family) if sparse < layers else 0
    expert, shared, router = _moe(config, family) if sparse else (0, 0, 0)
    experts = sparse * _experts(config) * expert
    # an encoder-decoder's layers attend twice: to themselves and to the encoder
    linear = layers * attention * (2 if family.encoder_decoder else 1)
    linear += (layers - sparse) * dense_mlp + sparse * shared
    other = (
        layers * small + sparse * router + (norm if family.final_norm else 0) + _embeddings(config, family)
    )

    encoder = 0
    if family.encoder_decoder:
        other += layers * norm + _relative_bias(config, family, layers)
        n = _encoder_layers(config)
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
    resting = max(_experts(config) - _integer(config, "num_experts_per_tok"), 0)
    lookup = _integer(config, "vocab_size") * _integer(config, "hidden_size")
    return sparse * resting * expert + (0 if _tied(config, family) else lookup)


def _attention(config: Mapping[str, Any], family: Family) -> int:
    d, dim = _integer(config, "hidden_size"), _head_dim(config)
    queries, keys = _integer(config, "num_attention_heads") * dim, _kv_heads(config) * dim
    biases = (queries + 2 * keys if family.qkv_bias else 0) + (d if family.out_bias else 0)
    return d * (queries + 2 * keys) + queries * d + biases


def _mla(config: Mapping[str, Any]) -> int:
    d, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    rank, rope = _integer(config, "kv_lora_rank"), _integer(config, "qk_rope_head_dim")
    value = _integer(config, "v_head_dim")
    queries = heads * _mla_query_dim(config)
    q_rank = _integer(config, "q_lora_rank", 0, least=0)
    to_queries = d * q_rank + q_rank + q_rank * queries if q_rank else d * queries
    to_latent = d * (rank + rope) + rank
    from_latent = rank * heads * (_integer(config, "qk_nope_head_dim") + value)
    return to_queries + to_latent + from_latent + heads * value * d


def _mlp(d: int, width: int, family: Family) -> int:
    inner = 2 if family.gated else 1
    return (inner + 1) * d * width + (inner * width + d if family.mlp_bias else 0)


def _mlp_width(config: Mapping[str, Any], family: Family) -> int:
    if family.ffn_ratio is None:
        return _integer(config, "intermediate_size")
    ratio = _integer(config, "expansion_ratio", family.ffn_ratio)
    return _integer(config, "intermediate_size", ratio * _integer(config, "hidden_size"))


def _gated(config: Mapping[str, Any], family: Family) -> bool:
    if not family.encoder_decoder:
        return family.gated
    return _text(config, "feed_forward_proj", "relu").startswith("gated")


def _norms(config: Mapping[str, Any], family: Family) -> int:
    """Return the norms per layer; Falcon's count depends on which of its decoders it is."""
    if _text(config, "model_type", "") != "falcon":
        return family.norms
    if _flag(config, "new_decoder_architecture", False):
        return _integer(config, "num_ln_in_parallel_attn", 2)
    return 1 if _flag(config, "parallel_attn", True) else 2


def _experts(config: Mapping[str, Any]) -> int:
    return _integer(config, "num_experts", 0, least=0)


def _sparse_layers(config: Mapping[str, Any]) -> int:
    """Return how many layers have experts; the others have a plain MLP."""
    layers = _layers(config)
    if _experts(config) < 2:
        return 0
    first = _integer(config, "first_k_dense_replace", 0, least=0)
    step = _integer(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers", [])
    if not isinstance(dense, list):
        raise ConfigError(
            "mlp_only_layers is not possible", given=repr(dense)[:80], cure="a list of layer numbers"
        )
    return sum(1 for layer in range(first, layers) if layer not in dense and (layer + 1) % step == 0)


def _moe(config: Mapping[str, Any], family: Family) -> tuple[int, int, int]:
    """Return the parameters of one expert, of what all tokens share, and of the router, in one layer."""
    d, experts = _integer(config, "hidden_size"), _experts(config)
    width = _integer(config, "moe_intermediate_size", 0, least=0) or _mlp_width(config, family)
    shared_width = _integer(config, "n_shared_experts", 0, least=0) * width
    shared_width = _integer(config, "shared_expert_intermediate_size", shared_width, least=0)
    shared = _mlp(d, shared_width, family) if shared_width else 0
    gate = d if config.get("shared_expert_intermediate_size") else 0
    router = d * experts + (experts if family.router_bias else 0)
    return _mlp(d, width, family), shared, router + gate


def _embeddings(config: Mapping[str, Any], family: Family) -> int:
    """Return the parameters of token and position embeddings and of the output head."""
    vocabulary, d = _integer(config, "vocab_size"), _integer(config, "hidden_size")
    width = _integer(config, "word_embed_proj_dim", d)  # OPT-350m embeds narrower than it computes
    count = vocabulary * width + (0 if width == d else 2 * width * d)
    if not _tied(config, family):
        count += vocabulary * width + (vocabulary if family.head_bias else 0)
    if family.learned_positions is not None:
        count += (_integer(config, "max_position_embeddings") + family.learned_positions) * d
    return count + (family.norm_vectors * d if family.embedding_norm else 0)


def _tied(config: Mapping[str, Any], family: Family) -> bool:
    return _flag(config, "tie_word_embeddings", family.tied)


def _relative_bias(config: Mapping[str, Any], family: Family, layers: int) -> int:
    buckets = _integer(config, "relative_attention_num_buckets", 32)
    return (
        buckets * _integer(config, "num_attention_heads") * (layers if family.relative_bias == "layer" else 1)
    )


# --- quantization ----------------------------------------------------------------------------------------


def _weight_bytes(config: Mapping[str, Any], counts: Counts) -> float:
    """Return bytes per parameter on average: quantized ones with their scales, the rest at two bytes."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return OTHER_BYTES
    if not isinstance(quantization, dict):
        raise ConfigError("quantization_config is not a JSON object", given=repr(quantization)[:80])
    settings = {key: value for key, value in quantization.items() if value is not None}
    method = _text(settings, "quant_method", "unknown")
    quantized = counts.experts if method == "mxfp4" else counts.linear
    size = _quantized_bytes(method, settings)
    return round((quantized * size + (counts.total - quantized) * OTHER_BYTES) / counts.total, 4)


def _quantized_bytes(method: str, settings: Mapping[str, Any]) -> float:
    """Return the bytes of one quantized parameter, its share of the scales included."""
    if method == "mxfp4":
        return 4 / 8 + 1 / 32  # OCP Microscaling v1.0: one scale byte for each block of 32
    if method in ("fp8", "fbgemm_fp8"):
        return 1.0 + _block_scale_bytes(settings)
    if method in ("awq", "gptq"):
        bits, group = _integer(settings, "bits", 4, most=16), _integer(settings, "group_size", 128, least=-1)
        # each group has a two-byte scale and a zero point as wide as a weight; -1 is one group per row
        return bits / 8 + ((2 + bits / 8) / group if group > 0 else 0.0)
    if method == "bitsandbytes":
        return 0.5 if _flag(settings, "load_in_4bit", False) else 1.0
    if method == "compressed-tensors":
        return _integer(_first_weight_group(settings), "num_bits", most=16) / 8
    raise ConfigError(
        f"quantization method {method!r} is not known here",
        given=f"quantization_config.quant_method {method}",
        cure="say how many bytes a weight takes, on average: model.weight_bytes_per_parameter=0.56",
    )


def _block_scale_bytes(settings: Mapping[str, Any]) -> float:
    block = settings.get("weight_block_size")
    if block is None:
        return 0.0
    if not (isinstance(block, list) and len(block) == 2):
        raise ConfigError(
            "weight_block_size is not possible", given=repr(block)[:80], cure="two numbers, as [128, 128]"
        )
    rows, columns = (_integer({"weight_block_size": side}, "weight_block_size") for side in block)
    return 4 / (rows * columns)


def _first_weight_group(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = settings.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    return weights if isinstance(weights, dict) else {}
