"""What sources call engines, GPU types and precisions, in the words of the table of measurements.

A word that is not known stays as it is: whoever uses the row decides whether to refuse it.
"""

import re
from functools import cache

from llmpilot import catalog

ENGINES = {
    "tensorrt-llm": "trtllm",
    "tensorrt_llm": "trtllm",
    "tensorrtllm": "trtllm",
    "trt-llm": "trtllm",
    "text-generation-inference": "tgi",
    "simulated": "tgis",  # what LLM-Pilot called its simulation of TGIS
}
GPUS = {
    # LLM-Inference-Bench's: its KV cache runs full where 40 GB a GPU would, see services/README.md.
    "a100_sxm_memory_not_stated_in_file": "a100",
    "h100_sxm": "h100",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "rtxpro6000": "rtx_pro_6000",
    "rtx4090": "rtx_4090",
}
"""Names that no option of the catalogue has, where they mean one type for certain."""
PRECISIONS = (
    (r"mxfp4", "mxfp4"),
    (r"nvfp4|fp4", "nvfp4"),
    (r"int4|awq|gptq|w4a|4bit", "int4"),
    (r"fp8|f8|e4m3", "fp8"),
    (r"bf16|bfloat16|fp16|float16|half", "bf16"),
)
"""First match wins. fp16 counts as bf16: the same bytes and rates."""


def engine(word: str) -> str:
    """Return the engine's name as an option of the engine group spells it."""
    plain = word.strip().lower()
    return ENGINES.get(plain, plain)


def gpu(word: str) -> str:
    """Return the option of the GPU catalogue that the word means, or the word as it is."""
    options = _gpu_options()
    plain = re.sub(r"[^a-z0-9]+", "_", word.strip().lower()).strip("_")
    if plain in options:
        return plain
    return GPUS.get(plain) or {name: option for option, name in options.items()}.get(plain) or word.strip()


@cache
def _gpu_options() -> dict[str, str]:
    """Return option -> the name of its GPU type, spelled as an option."""
    return {
        option: re.sub(r"[^a-z0-9]+", "_", one.name.lower()).strip("_")
        for option, one in catalog.gpus().items()
    }


def precision(word: str, model: str) -> str | None:
    """Return which of the table's precisions the source's word means for this model, or None.

    "fp4" is a number of bits: NVIDIA's format, but for the gpt-oss models, which come in mxfp4 only.
    """
    plain = word.strip().lower()
    for pattern, name in PRECISIONS:
        if re.search(pattern, plain):
            return "mxfp4" if name == "nvfp4" and "gpt-oss" in model.lower() else name
    return None


def kv_precision(word: str) -> str | None:
    """Return which precision of the KV cache the word means; None: another one, or the engine's choice."""
    known = precision(word, "")
    return known if known in ("bf16", "fp8") else None
