"""Which number formats a GPU type takes: what engines would refuse, and what they compute in another format.

Follows vLLM's and its kernels' support: Marlin reads fp8 and 4-bit weights on NVIDIA GPUs since Ampere and
multiplies in bf16; AMD's GPUs emulate mxfp4 where they have fp8.
"""

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


def precision_flags(model: Model, fp8_cache: str) -> list[str]:
    """Return what vLLM and SGLang are told of a model's number formats; what a checkpoint says, they read.

    `fp8_cache`: their word for a KV cache in fp8.

    Raises:
        ConfigError: they do not quantize to that while they load: it takes a checkpoint that is stored so.
    """
    flags = []
    if model.quantize_to == "fp8":
        flags += ["--quantization", "fp8"]
    elif model.quantize_to is not None:
        raise ConfigError(
            f"engines do not bring {model.hf_id} to {model.quantize_to} while they load it",
            given=f"precision={model.quantize_to}",
            cure="name a checkpoint that is stored so, as +model=nvidia/Qwen3-32B-NVFP4; or precision=fp8",
        )
    return flags + (["--kv-cache-dtype", fp8_cache] if model.kv_format == "fp8" else [])
