"""What a checkpoint's weights are stored as: matrix by matrix, as its quantization config names them.

Knows the quantization methods; which matrices there are follows from the layers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Any, Literal

from llmpilot.architecture import (
    BYTES,
    Attention,
    CompressedAttention,
    Experts,
    Formats,
    KvFormat,
    LatentAttention,
    LinearAttention,
    Mixer,
    NumberFormat,
    Precision,
    conventional_formats,
    parameters_by_group,
)
from llmpilot.errors import ConfigError
from llmpilot.hf_config.keys import read_flag, read_integer, read_word
from llmpilot.hf_config.layers import Layer
from llmpilot.hf_config.parameters import Counts

OTHER_BYTES = 2.0  # engines serve in fp16 or bf16, also checkpoints stored as fp32
Stored = tuple[NumberFormat, float]
"""A number format, and the bytes of one weight with its share of the scales."""
PLAIN: Stored = ("bf16", OTHER_BYTES)
BLOCK_FP8 = ("deepseek-ai/", "minimaxai/", "qwen/", "stepfun-ai/", "xiaomimimo/")
"""Makers whose fp8 checkpoints have a scale for each block of weights."""
FP8_METHODS = ("fp8", "fbgemm_fp8")


@dataclass(frozen=True)
class Weights:
    """Bytes of a parameter on average, formats by group, the KV cache's, and where all that is from."""

    bytes_per_parameter: float
    formats: Formats
    kv_format: KvFormat
    said_by: str = ""


def read_weights(
    config: Mapping[str, Any], counts: Counts, hf_id: str, beside: Mapping[str, Any] | None
) -> Weights:
    """Return how the checkpoint stores its weights.

    `beside` is what a hf_quant_config.json next to the file says. Where nothing says anything but the name
    (NVFP4, FP8), the convention of such repackagings is taken, and `said_by` tells so.

    Raises:
        ConfigError: the quantization method is not known here, or its settings are not possible.
    """
    settings = config.get("quantization_config")
    if settings is None and beside is not None:
        settings = beside.get("quantization", beside)
    if settings is None:
        return _by_name(config, counts, hf_id)
    if not isinstance(settings, dict):
        raise ConfigError("quantization_config is not a JSON object", given=repr(settings)[:80])
    nested = settings.get("quantization")
    settings = {**settings, **nested} if isinstance(nested, dict) else settings
    settings = {key: value for key, value in settings.items() if value is not None}
    rules = _rules(settings, config)
    return _weigh(rules, config, counts, _kv_format(settings))


def fp8_format(hf_id: str) -> Literal["fp8", "fp8_block"]:
    """Return how the maker of a model quantizes to fp8."""
    return "fp8_block" if hf_id.lower().startswith(BLOCK_FP8) else "fp8"


def plain_weights() -> Weights:
    """Return what is taken where a caller knows the bytes of a weight itself."""
    return Weights(OTHER_BYTES, Formats(), "bf16")


def _by_name(config: Mapping[str, Any], counts: Counts, hf_id: str) -> Weights:
    words = set(re.split(r"[-_.]", hf_id.rpartition("/")[2].upper()))
    precision: Precision | None = "nvfp4" if words & {"NVFP4", "FP4"} else "fp8" if "FP8" in words else None
    if precision is None:
        return plain_weights()
    d = read_integer(config, "hidden_size")
    kinds = tuple((1, layer.mixers, layer.feed_forward) for layer in counts.layers)
    formats = conventional_formats(precision, kinds, fp8_format(hf_id))
    groups = parameters_by_group(kinds, d)
    saved = sum(size * (OTHER_BYTES - BYTES[getattr(formats, group)]) for group, size in groups.items())
    kept = ", ".join(f"{group} in {getattr(formats, group)}" for group in groups)
    return Weights(
        round(OTHER_BYTES - saved / counts.total, 4),
        formats,
        "fp8" if hf_id.lower().startswith("nvidia/") else "bf16",
        f"weights by the convention of {precision} repackagings ({kept}), as no quantization config is there",
    )


# --- rules: which matrix is stored how ---------------------------------------------------------------------


class _Names:
    """A list of modules as quantization configs write it: names, parts of names, globs and re:expressions."""

    def __init__(self, patterns: Any, key: str) -> None:
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError(f"{key} is not possible", given=repr(patterns)[:80], cure="a list of modules")
        self.all_linear = "Linear" in patterns
        self._exact = {pattern for pattern in patterns if "*" not in pattern and "re:" not in pattern}
        self._parts = [f".{p}." for p in self._exact if not re.search(r"\.\d+\.|\.\d+$", p)]
        stars = [pattern for pattern in patterns if "*" in pattern and not pattern.startswith("re:")]
        plain = [pattern[:-1] for pattern in stars if pattern.count("*") == 1 and pattern.endswith("*")]
        self._starts = tuple(start for start in plain if start)
        globs = [translate(pattern) for pattern in stars if pattern[:-1] not in self._starts]
        try:
            self._globs = [re.compile(pattern) for pattern in globs]
            self._expressions = [re.compile(p[3:]) for p in patterns if p.startswith("re:")]
        except re.error as error:
            raise ConfigError(f"{key} is not possible", given=str(error), cure="a list of modules") from None

    def name(self, module: str) -> bool:
        """Whether a module, or one that it is part of, is in the list."""
        if self.all_linear or module.startswith(self._starts):
            return True
        wholes = [module[:at] for at, letter in enumerate(module) if letter == "."] + [module]
        return (
            any(whole in self._exact for whole in wholes)
            or any(part in f".{module}." for part in self._parts)
            or any(glob.match(whole) for glob in self._globs for whole in wholes)
            or any(expression.match(module) for expression in self._expressions)
        )


@dataclass(frozen=True)
class _Rule:
    """So the matrices are stored whose module `named` names and `spared` does not; None: all, none."""

    stored: Stored
    named: _Names | None = None
    spared: _Names | None = None
    experts_only: bool = False

    def holds(self, group: str, modules: Iterable[str]) -> bool:
        if self.experts_only and group != "experts":
            return False
        if group == "head" and (self.named is None or self.named.all_linear):
            return False  # quantized only where it is named: it is no linear layer to engines
        modules = list(modules)
        named = self.named is None or any(map(self.named.name, modules))
        return named and not (self.spared is not None and any(map(self.spared.name, modules)))


def _rules(settings: Mapping[str, Any], config: Mapping[str, Any]) -> list[_Rule]:
    """Return the rules of a quantization config; the first that holds for a matrix counts."""
    spared: list[Any] = []
    for key in ("ignore", "modules_to_not_convert", "exclude_modules", "exclude", "ignored_layers"):
        listed = settings.get(key, [])
        _Names(listed, key)  # so that an impossible one is named
        spared += listed
    ignored = _Names(spared, "ignore")
    method = read_word(settings, "quant_method", "modelopt" if "quant_algo" in settings else "unknown")
    if method in FP8_METHODS:
        block = _block_fp8(settings)
        if "moe_quant_algo" in settings:  # NVIDIA's DeepSeek-V4: what it spares stays as its maker stores it
            return [
                _Rule(_by_algorithm(settings["moe_quant_algo"], settings), experts_only=True),
                _Rule(block),
            ]
        if config.get("expert_dtype") == "fp4":  # DeepSeek-V4's own
            return [_Rule(("mxfp4", BYTES["mxfp4"]), experts_only=True), _Rule(block, spared=ignored)]
        return [_Rule(block, spared=ignored)]
    if method == "mxfp4":
        return [_Rule(("mxfp4", BYTES["mxfp4"]), spared=ignored, experts_only=True)]
    if method in ("awq", "gptq", "gptq_marlin", "awq_marlin"):
        return [_Rule(_grouped_integers(settings), spared=ignored)]
    if method == "bitsandbytes":
        four = read_flag(settings, "load_in_4bit", False)
        return [_Rule(("int4", 0.5) if four else ("int8", 1.0), spared=ignored)]
    if method == "quark":
        return [_Rule(_quark(settings), spared=ignored)]
    if method == "modelopt" and isinstance(settings.get("quantized_layers"), dict):
        alike: dict[Stored, list[str]] = defaultdict(list)
        for name, layer in settings["quantized_layers"].items():
            alike[_by_algorithm(_part(layer).get("quant_algo"), _part(layer))].append(name)
        return [_Rule(stored, _Names(named, "quantized_layers")) for stored, named in alike.items()]
    if method == "modelopt" and "quant_algo" in settings:
        return [_Rule(_by_algorithm(settings["quant_algo"], settings), spared=ignored)]
    if method in ("compressed-tensors", "modelopt"):
        groups = _part(settings.get("config_groups")).values()
        return [
            _Rule(
                _by_description(_part(_part(group).get("weights")), settings),
                _Names(_part(group).get("targets", ["Linear"]), "targets"),
                ignored,
            )
            for group in groups
        ]
    raise _unknown(f"quant_method {method}")


def _unknown(method: str) -> ConfigError:
    return ConfigError(
        f"quantization method {method.partition(' ')[2]!r} is not known here",
        given=f"quantization_config.{method}",
        cure="say how many bytes a weight takes, on average: model.weight_bytes_per_parameter=0.56",
    )


def _part(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _by_algorithm(algorithm: Any, settings: Mapping[str, Any]) -> Stored:
    """Return what one of ModelOpt's algorithms stores."""
    word = str(algorithm).upper()
    if word in ("NONE", ""):
        return PLAIN
    if "NVFP4" in word:
        return "nvfp4", BYTES["nvfp4"]
    if "MXFP4" in word:
        return "mxfp4", BYTES["mxfp4"]
    if word.startswith("FP8_PB"):
        return _block_fp8({"weight_block_size": [128, 128], **settings})
    if word.startswith("FP8") or word == "MXFP8":
        return "fp8", BYTES["fp8"]
    if "W4A" in word or "INT4" in word:
        return _grouped_integers(settings)
    if "W8A" in word or "INT8" in word:
        return "int8", BYTES["int8"]
    raise _unknown(f"quant_algo {word[:40]}")


def _by_description(weights: Mapping[str, Any], settings: Mapping[str, Any]) -> Stored:
    """Return what a group of compressed-tensors stores."""
    bits, kind = read_integer(weights, "num_bits", most=16), read_word(weights, "type", "int")
    group = read_integer(weights, "group_size", 0, least=-1)
    if bits == 16:
        return PLAIN
    if kind == "float" and bits == 8:
        blocks = {"weight_block_size": weights["block_structure"]} if "block_structure" in weights else {}
        return _block_fp8(blocks)
    if kind == "float" and bits == 4:
        form: NumberFormat = "mxfp4" if group == 32 else "nvfp4"
        return form, BYTES[form]
    zero_point = 0.0 if read_flag(weights, "symmetric", True) else bits / 8
    size = bits / 8 + ((2 + zero_point) / group if group > 0 else 0.0)
    return ("int4" if bits <= 4 else "int8"), size


def _quark(settings: Mapping[str, Any]) -> Stored:
    weight = _part(_part(settings.get("global_quant_config")).get("weight"))
    kind = read_word({"kind": weight.get("dtype")}, "kind", "")
    if kind.startswith("fp8"):
        return "fp8", BYTES["fp8"]
    if kind.startswith("fp4"):
        return "mxfp4", BYTES["mxfp4"]
    if kind in ("int8", "uint8"):
        return "int8", BYTES["int8"]
    if kind in ("int4", "uint4"):
        return _grouped_integers(weight)
    raise _unknown(f"global_quant_config.weight.dtype {kind[:40]}")


def _grouped_integers(settings: Mapping[str, Any]) -> Stored:
    bits, group = (
        read_integer(settings, "bits", 4, most=16),
        read_integer(settings, "group_size", 128, least=-1),
    )
    # each group has a two-byte scale and a zero point as wide as a weight; -1 is one group per row
    size = bits / 8 + ((2 + bits / 8) / group if group > 0 else 0.0)
    return ("int4" if bits <= 4 else "int8"), size


def _block_fp8(settings: Mapping[str, Any]) -> Stored:
    block = settings.get("weight_block_size")
    if block is None:
        return "fp8", BYTES["fp8"]
    if not (isinstance(block, list) and len(block) == 2):
        raise ConfigError(
            "weight_block_size is not possible", given=repr(block)[:80], cure="two numbers, as [128, 128]"
        )
    rows, columns = (read_integer({"weight_block_size": side}, "weight_block_size") for side in block)
    return "fp8_block", 1.0 + 4 / (rows * columns)


def _kv_format(settings: Mapping[str, Any]) -> KvFormat:
    scheme = settings.get("kv_cache_scheme", settings.get("kv_cache_quant_algo"))
    bits = scheme.get("num_bits") if isinstance(scheme, dict) else None
    eight = bits == 8 or (isinstance(scheme, str) and scheme.upper().startswith("FP8"))
    return "fp8" if eight else "bf16"


# --- matrices ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """What an architecture calls its modules within a layer."""

    attention: str = "self_attn"
    linear: str = "linear_attn"
    mamba: str = "mamba"
    mlp: str = "mlp"
    experts: str = "mlp.experts"
    shared: tuple[str, ...] = ("mlp.shared_experts", "mlp.shared_expert")


PLACES = {
    "mixtral": _Places(experts="block_sparse_moe.experts"),
    "minimax_m1": _Places(experts="block_sparse_moe.experts", linear="self_attn"),
    "minimax_text_01": _Places(experts="block_sparse_moe.experts", linear="self_attn"),
    "minimax_m2": _Places(experts="block_sparse_moe.experts"),
    "kimi_linear": _Places(experts="block_sparse_moe.experts", linear="self_attn"),
    "llama4": _Places(
        mlp="feed_forward", experts="feed_forward.experts", shared=("feed_forward.shared_expert",)
    ),
    "gemma4": _Places(experts="experts", shared=("mlp",)),
    "nemotron_h": _Places(
        attention="mixer",
        mamba="mixer",
        mlp="mixer",
        experts="mixer.experts",
        shared=("mixer.shared_experts",),
    ),
    "deepseek_v4": _Places(
        attention="attn", mlp="ffn", experts="ffn.experts", shared=("ffn.shared_experts",)
    ),
}
PREFIXES = ("model.", "model.language_model.", "language_model.model.", "backbone.", "")
Matrix = tuple[str, int, tuple[str, ...]]
"""Group, parameters, and the names of the module within its layer."""


def _weigh(rules: list[_Rule], config: Mapping[str, Any], counts: Counts, kv_format: KvFormat) -> Weights:
    d = read_integer(config, "hidden_size")
    saved = 0.0
    held: dict[str, dict[NumberFormat, int]] = defaultdict(lambda: defaultdict(int))
    for group, size, modules in _matrices(config, counts, d):
        form, each = next((rule.stored for rule in rules if rule.holds(group, modules)), PLAIN)
        saved += size * (OTHER_BYTES - each)
        held[group][form] += size
    formats = {group: max(forms, key=lambda form: forms[form]) for group, forms in held.items()}
    return Weights(round(OTHER_BYTES - saved / counts.total, 4), Formats(**formats), kv_format)


def _matrices(config: Mapping[str, Any], counts: Counts, d: int) -> Iterable[Matrix]:
    places = PLACES.get(read_word(config, "model_type", ""), _Places())
    for at, layer in enumerate(counts.layers):
        for group, size, names in _layer_matrices(layer, places, d):
            yield group, size, tuple(f"{prefix}layers.{at}.{name}" for prefix in PREFIXES for name in names)
    if counts.head:
        yield "head", counts.head, ("lm_head", "language_model.lm_head", "head")


def _layer_matrices(layer: Layer, places: _Places, d: int) -> Iterable[Matrix]:
    for mixer in layer.mixers:
        for place, size in _projections(mixer, places, d):
            yield "attention", size, (place,)
    following = layer.feed_forward
    if following is None:
        return
    ends = ("gate_proj", "up_proj", "down_proj") if following.gated else ("up_proj", "down_proj")
    if isinstance(following, Experts):
        each = following.n_experts * following.one_expert_parameters(d)
        yield "experts", each, (f"{places.experts}.0.up_proj",)
        shared = following.shared_parameters(d)
        for end in ends if shared else ():
            yield "mlp", shared // len(ends), tuple(f"{place}.{end}" for place in places.shared)
        return
    for end in ends:
        yield "mlp", following.parameters(d) // len(ends), (f"{places.mlp}.{end}",)


def _projections(mixer: Mixer, places: _Places, d: int) -> list[tuple[str, int]]:
    """Return the modules of a mixer and their parameters."""
    if isinstance(mixer, Attention):
        value_dim = mixer.value_dim or mixer.head_dim
        sizes = {
            "q_proj": d * mixer.n_heads * mixer.head_dim * (2 if mixer.output_gate else 1),
            "k_proj": d * mixer.n_kv_heads * mixer.head_dim,
            "v_proj": 0 if mixer.tied_values else d * mixer.n_kv_heads * value_dim,
            "o_proj": d * mixer.n_heads * value_dim,
        }
        return [(f"{places.attention}.{name}", size) for name, size in sizes.items()]
    if isinstance(mixer, LatentAttention):
        queries = mixer.n_heads * (mixer.nope_dim + mixer.rope_dim)
        rank = mixer.query_rank
        sizes = {
            "q_a_proj": d * rank,
            ("q_b_proj" if rank else "q_proj"): (rank or d) * queries,
            "kv_a_proj_with_mqa": d * (mixer.kv_rank + mixer.rope_dim),
            "kv_b_proj": mixer.kv_rank * mixer.n_heads * (mixer.nope_dim + mixer.value_dim),
            "o_proj": mixer.n_heads * mixer.value_dim * d,
        }
        sizes["indexer.wq_b"] = mixer.parameters(d) - sum(sizes.values())
        return [(f"{places.attention}.{name}", size) for name, size in sizes.items()]
    if isinstance(mixer, CompressedAttention):
        return [(f"{places.attention}.wq_b", mixer.parameters(d))]
    if isinstance(mixer, LinearAttention):
        output = d * mixer.value_dim
        gate = d * mixer.value_dim if mixer.output_gate else 0
        sizes = {"in_proj_qkv": mixer.parameters(d) - output - gate, "in_proj_z": gate, "out_proj": output}
        return [(f"{places.linear}.{name}", size) for name, size in sizes.items()]
    output = mixer.inner * d
    return [(f"{places.mamba}.in_proj", mixer.parameters(d) - output), (f"{places.mamba}.out_proj", output)]
