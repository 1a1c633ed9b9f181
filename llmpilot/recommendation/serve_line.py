"""How to serve a model on a GPU profile with vLLM: the command line that a person or a pod types."""

from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.precision import precision_flags
from llmpilot.sizing import plan_memory

PORT = 8000
SHARE_OF_CACHE = 0.9
"""Of the KV cache that one request may fill: vLLM's own account of memory is not ours to the last byte."""


def vllm_argv(model: Model, gpu: Gpu, host: str | None = None) -> tuple[str, ...]:
    """Return `vllm serve ...`, the model sharded over the profile's GPUs.

    The longest request is the model's own limit, or what the KV cache holds where that is less: vLLM does not
    start otherwise.

    Raises:
        ConfigError: vLLM does not serve models of this kind or in this precision, or would not find this one.
    """
    if "/" not in model.hf_id:
        raise ConfigError(
            "where vLLM would find this model is not known: its config.json names no model of a hub",
            given=f"model.hf_id={model.hf_id}",
            cure="model.hf_id=ORG/NAME, or the path of a folder that holds it",
        )
    if model.encoder_decoder:
        raise ConfigError(
            "vLLM does not serve encoder-decoder models",
            given=model.name,
            cure="serve it with an engine that does, e.g. Text Generation Inference",
        )
    argv = ["vllm", "serve", model.hf_id, "--served-model-name", model.name]
    argv += ["--host", host] if host else []
    argv += ["--port", str(PORT), "--tensor-parallel-size", str(gpu.count)]
    argv += precision_flags(model, "fp8")
    argv += ["--max-model-len", str(longest_request(model, gpu))]
    if _before_ampere(gpu) and model.torch_dtype == "bfloat16":
        argv += ["--dtype", "half"]  # no bfloat16 before Ampere
    return tuple(argv)


def longest_request(model: Model, gpu: Gpu) -> int:
    """Return the most tokens, input and output, of one request that the profile can serve."""
    capacity = int(SHARE_OF_CACHE * plan_memory(model, gpu).kv_capacity_tokens)
    return min(model.max_positions or capacity, capacity)


def _before_ampere(gpu: Gpu) -> bool:
    return gpu.architecture in ("volta", "turing")
