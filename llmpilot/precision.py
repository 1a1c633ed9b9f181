"""Which number formats a GPU type takes: what engines would refuse, and what they compute in another format.

Follows vLLM's and its kernels' support: Marlin reads fp8 and 4-bit weights on NVIDIA GPUs since Ampere and
multiplies in bf16; AMD's GPUs emulate mxfp4 where they have fp8.
"""

import json
from pathlib import Path

from llmpilot.architecture import Precision
from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError

BEFORE_AMPERE = ("volta", "turing")


def require_units(model: Model, gpu: Gpu) -> str:
    """Return what is computed in another format than it is stored in, for a line to a user; empty: nothing.

    Raises:
        ConfigError: engines have no way to run the model's number formats on this GPU type.
    """
    formats = set(model.formats.model_dump().values())
    eight = bool(formats & {"fp8", "fp8_block"})
    four = sorted(formats & {"nvfp4", "mxfp4"})
    old = gpu.architecture in BEFORE_AMPERE
    no_fp8, no_fp4 = gpu.tflops_fp8 is None, gpu.tflops_fp4 is None
    weight_only = gpu.vendor == "nvidia" and not old
    for form, lacking, possible in (
        ("fp8", eight and no_fp8, weight_only),
        ("nvfp4", "nvfp4" in four and no_fp4, weight_only),
        ("mxfp4", "mxfp4" in four and no_fp4, weight_only or (gpu.vendor == "amd" and not no_fp8)),
    ):
        if lacking and not possible:
            raise ConfigError(
                f"{gpu.name} has no units for {form}, and engines cannot do without them there",
                given=f"{model.name}, stored in {form}",
                cure="precision=bf16, or a GPU type that has them: +gpu="
                + ("h100" if form == "fp8" else "b200"),
            )
    if model.kv_format == "fp8" and (old or (gpu.vendor == "amd" and no_fp8)):
        raise ConfigError(
            f"engines keep no KV cache in fp8 on {gpu.name}",
            given=f"{model.name}, whose KV cache is in fp8",
            cure="kv_precision=bf16",
        )
    emulated = [*(["fp8"] if eight and no_fp8 else []), *(four if no_fp4 else [])]
    if not emulated:
        return ""
    return f"{gpu.name} has no units for {' and '.join(emulated)}: weights are stored so and computed in bf16"


def to_be_made(
    model: Model, checkpoint: str | None = None, loads_to: tuple[Precision, ...] = ("fp8",)
) -> Precision | None:
    """Return the precision that an engine is to make of the weights while it loads them; None: as they are.

    `checkpoint` is where they are loaded from, if not from the model's own: in what they are stored, its
    config.json says, or whoever named it knows. `loads_to` are those that the engine can make.

    Raises:
        ConfigError: it cannot make this one: it takes a checkpoint that is stored so.
    """
    wanted = model.quantize_to
    if wanted is None or (checkpoint is not None and _is_quantized(checkpoint)):
        return None
    if wanted in loads_to:
        return wanted
    raise ConfigError(
        f"engines do not bring {model.hf_id} to {wanted} while they load it",
        given=f"precision={wanted}",
        cure="name a checkpoint that is stored so, as +model=nvidia/Qwen3-32B-NVFP4 or engine.model_path=..."
        + (f"; or precision={loads_to[0]}" if loads_to else ""),
    )


def precision_flags(model: Model, fp8_cache: str, checkpoint: str | None = None) -> list[str]:
    """Return what vLLM and SGLang are told of a model's number formats; what a checkpoint says, they read.

    `fp8_cache`: their word for a KV cache in fp8. `checkpoint`: as for `to_be_made`.

    Raises:
        ConfigError: they do not quantize to that while they load: it takes a checkpoint that is stored so.
    """
    made = to_be_made(model, checkpoint)
    flags = [] if made is None else ["--quantization", made]
    return flags + (["--kv-cache-dtype", fp8_cache] if model.kv_format == "fp8" else [])


def _is_quantized(checkpoint: str) -> bool:
    """Return whether a checkpoint is quantized, as its config.json says; of one that is not here, yes."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        return True
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
