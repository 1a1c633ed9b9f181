"""How to start exactly the service that was simulated: the command line that a person or a pod types.

Written from each engine's documentation and sources: vLLM 0.19 (engine/arg_utils.py), SGLang 0.5.10
(srt/server_args.py) and TensorRT-LLM 1.3 (commands/serve.py, llmapi/llm_args.py).
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.precision import BEFORE_AMPERE, precision_flags, to_be_made
from llmpilot.simulator.service_settings import EngineName, ServiceSettings, service_settings

PORT = 8000
SHARE_OF_CACHE = 0.9
"""Of the KV cache that one request may fill: an engine's account of memory is not ours to the last byte."""
LABELS: dict[EngineName, str] = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
DEFAULT_BLOCK: dict[EngineName, int] = {"vllm": 16, "sglang": 1, "trtllm": 32}
TRTLLM_FILE = "trtllm.json"


@dataclass(frozen=True)
class ServeLine:
    """A command line, and the files that it reads: path -> text."""

    argv: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    def shell(self, *, becomes_it: bool = False) -> str:
        """Return it for a shell, which writes the files first; `becomes_it`: and then becomes the engine."""
        writes = [f"printf %s {shlex.quote(text)} > {shlex.quote(path)}" for path, text in self.files.items()]
        return " && ".join([*writes, ("exec " if becomes_it else "") + shlex.join(self.argv)])


def serve_line(
    model: Model,
    gpu: Gpu,
    settings: ServiceSettings | None = None,
    *,
    host: str | None = None,
    folder: str = "",
) -> ServeLine:
    """Return how to start a service of these settings on a GPU profile; without any, vLLM by its defaults.

    The longest request is the model's own limit, or what the KV cache holds where that is less: engines do
    not start otherwise, or stall. Files that the engine reads are written to `folder`.

    Raises:
        ConfigError: the engine does not serve models of this kind or in this precision, would not find this
            one, has no room for it, or the settings are not of this profile.
    """
    told = service_settings("vllm", gpu) if settings is None else settings
    require_servable(model, told.engine)
    if told.gpus != gpu.count:
        raise ConfigError(
            f"the service takes {told.gpus} GPUs, which are not those of the profile",
            given=gpu.label,
            cure=f"a profile with {told.gpus} GPUs, or other kinds of parallelism",
        )
    length = longest_request(model, gpu, told)
    if told.engine == "sglang":
        return _sglang(model, gpu, told, host, length)
    if told.engine == "trtllm":
        path = f"{folder.rstrip('/')}/{TRTLLM_FILE}" if folder else TRTLLM_FILE
        return _trtllm(model, told, host, length, path)
    return _vllm(model, gpu, told, host, length)


def require_servable(model: Model, engine: EngineName = "vllm") -> None:
    """Raise ConfigError where no line would start the engine with the model, on whatever GPUs.

    Raises:
        ConfigError: as `serve_line`, but for room and GPUs.
    """
    if "/" not in model.hf_id:
        raise ConfigError(
            f"where {LABELS[engine]} would find this model is not known: its config.json names no model of a "
            "hub",
            given=f"model.hf_id={model.hf_id}",
            cure="model.hf_id=ORG/NAME, or the path of a folder that holds it",
        )
    if model.encoder_decoder:
        raise ConfigError(
            f"{LABELS[engine]} does not serve encoder-decoder models",
            given=model.name,
            cure="serve it with an engine that does, e.g. Text Generation Inference",
        )
    to_be_made(model, loads_to=() if engine == "trtllm" else ("fp8",))


def longest_request(model: Model, gpu: Gpu, settings: ServiceSettings) -> int:
    """Return the most tokens, input and output, of one request that the service can hold.

    Raises:
        ConfigError: it can hold none.
    """
    # A request lives in one replica of the attention layers.
    cache = settings.memory(model, gpu).kv_capacity_tokens // settings.data_parallel
    capacity = int(SHARE_OF_CACHE * cache)
    if capacity < 1:
        raise ConfigError(
            f"{model.name} leaves no room for a KV cache on {gpu.label}",
            cure="more GPUs, or a smaller precision",
        )
    return min(model.max_positions or capacity, capacity)


def _vllm(model: Model, gpu: Gpu, told: ServiceSettings, host: str | None, length: int) -> ServeLine:
    if told.expert_parallel not in (1, told.gpus):
        raise ConfigError(
            "vLLM spreads experts over all GPUs or shards each over all",
            given=f"expert_parallel={told.expert_parallel} on {gpu.label}",
            cure=f"expert_parallel={told.gpus}, or 1",
        )
    argv = ["vllm", "serve", model.hf_id, "--served-model-name", model.name]
    argv += ["--host", host] if host else []
    argv += ["--port", str(PORT), "--tensor-parallel-size", str(told.tensor_parallel)]
    argv += _unless(1, "--pipeline-parallel-size", told.pipeline_parallel)
    argv += _unless(1, "--data-parallel-size", told.data_parallel)
    argv += ["--enable-expert-parallel"] if told.expert_parallel > 1 else []
    argv += precision_flags(model, "fp8")
    argv += ["--max-model-len", str(length)]
    argv += ["--max-num-seqs", str(told.max_num_seqs)]
    argv += ["--max-num-batched-tokens", str(told.max_num_batched_tokens)]
    argv += _unless(0.9, "--gpu-memory-utilization", told.memory_share)
    argv += _unless(DEFAULT_BLOCK["vllm"], "--block-size", told.block_size)
    argv += [] if told.chunked_prefill else ["--no-enable-chunked-prefill"]
    argv += [] if told.prefix_caching else ["--no-enable-prefix-caching"]
    return ServeLine((*argv, *_dtype(model, gpu)))


def _sglang(model: Model, gpu: Gpu, told: ServiceSettings, host: str | None, length: int) -> ServeLine:
    # Attention layers are replicated within one tensor-parallel group, whose limits are then shared out among
    # the replicas (srt/server_args.py): they are told as a sum. A model without experts is replicated whole.
    within = told.data_parallel if model.n_experts > 1 else 1
    argv = ["python", "-m", "sglang.launch_server", "--model-path", model.hf_id]
    argv += ["--served-model-name", model.name]
    argv += ["--host", host] if host else []
    argv += ["--port", str(PORT), "--tp-size", str(told.tensor_parallel * within)]
    argv += _unless(1, "--pp-size", told.pipeline_parallel)
    argv += _unless(1, "--dp-size", told.data_parallel)
    argv += ["--enable-dp-attention"] if within > 1 else []
    argv += _unless(1, "--ep-size", told.expert_parallel)
    argv += precision_flags(model, "fp8_e4m3")
    argv += ["--context-length", str(length)]
    argv += ["--max-running-requests", str(told.max_num_seqs * within)]
    if told.chunked_prefill:
        argv += ["--chunked-prefill-size", str(told.max_num_batched_tokens * within)]
    else:
        argv += ["--chunked-prefill-size", "-1", "--max-prefill-tokens", str(told.max_num_batched_tokens)]
    argv += ["--mem-fraction-static", f"{told.memory_share:g}"]
    argv += _unless(DEFAULT_BLOCK["sglang"], "--page-size", told.block_size)
    argv += [] if told.prefix_caching else ["--disable-radix-cache"]
    argv += [] if told.overlapped else ["--disable-overlap-schedule"]
    return ServeLine((*argv, *_dtype(model, gpu)))


def _trtllm(model: Model, told: ServiceSettings, host: str | None, length: int, path: str) -> ServeLine:
    argv = ["trtllm-serve", model.hf_id, "--backend", "pytorch"]
    argv += ["--host", host] if host else []
    argv += ["--port", str(PORT), "--tp_size", str(told.gpus // told.pipeline_parallel)]
    argv += _unless(1, "--pp_size", told.pipeline_parallel)
    argv += _unless(1, "--ep_size", told.expert_parallel)
    argv += ["--max_seq_len", str(length)]
    argv += ["--max_batch_size", str(told.max_num_seqs), "--max_num_tokens", str(told.max_num_batched_tokens)]
    argv += ["--enable_chunked_prefill"] if told.chunked_prefill else []
    # Its settings of the cache are of a file, which replaces what flags say of it; JSON is YAML.
    cache: dict[str, object] = {"free_gpu_memory_fraction": told.memory_share}
    cache |= {} if told.prefix_caching else {"enable_block_reuse": False}
    cache |= {} if told.block_size == DEFAULT_BLOCK["trtllm"] else {"tokens_per_block": told.block_size}
    cache |= {"dtype": "fp8"} if model.kv_format == "fp8" else {}
    options: dict[str, object] = {"kv_cache_config": cache}
    options |= {"enable_attention_dp": True} if told.data_parallel > 1 else {}
    return ServeLine((*argv, "--config", path), {path: json.dumps(options)})


def _unless(default: float, flag: str, value: float) -> list[str]:
    return [] if value == default else [flag, str(value)]


def _dtype(model: Model, gpu: Gpu) -> list[str]:
    """Return the flag for GPUs from before Ampere, which have no bfloat16."""
    before = gpu.architecture in BEFORE_AMPERE
    return ["--dtype", "half"] if before and model.torch_dtype == "bfloat16" else []
