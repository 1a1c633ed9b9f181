"""Bytes per parameter of a checkpoint: its dtype, or what its quantization config says."""

from collections.abc import Mapping
from typing import Any

from llmpilot.errors import ConfigError
from llmpilot.hf_config.keys import read_flag, read_integer, read_word
from llmpilot.hf_config.parameters import Counts

OTHER_BYTES = 2.0  # engines serve in fp16 or bf16, also checkpoints stored as fp32


def bytes_per_parameter(config: Mapping[str, Any], counts: Counts) -> float:
    """Return bytes per parameter on average: quantized ones with their scales, the rest at two bytes."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return OTHER_BYTES
    if not isinstance(quantization, dict):
        raise ConfigError("quantization_config is not a JSON object", given=repr(quantization)[:80])
    settings = {key: value for key, value in quantization.items() if value is not None}
    method = read_word(settings, "quant_method", "unknown")
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
        bits, group = (
            read_integer(settings, "bits", 4, most=16),
            read_integer(settings, "group_size", 128, least=-1),
        )
        # each group has a two-byte scale and a zero point as wide as a weight; -1 is one group per row
        return bits / 8 + ((2 + bits / 8) / group if group > 0 else 0.0)
    if method == "bitsandbytes":
        return 0.5 if read_flag(settings, "load_in_4bit", False) else 1.0
    if method == "compressed-tensors":
        return read_integer(_first_weight_group(settings), "num_bits", most=16) / 8
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
    rows, columns = (read_integer({"weight_block_size": side}, "weight_block_size") for side in block)
    return 4 / (rows * columns)


def _first_weight_group(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = settings.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    return weights if isinstance(weights, dict) else {}
