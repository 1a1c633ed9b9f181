"""The settings of one service of today's engines that decide its batches and its memory, defaults filled in.

Facts only: the same object describes a service that is simulated, one that was measured elsewhere (a row of a
table), and one that we start. How an engine uses them is its scheduler's business.
"""

import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from llmpilot.architecture import Experts, Mlp
from llmpilot.config import Gpu, Model
from llmpilot.schema import Facts, NonNegative, Share
from llmpilot.sizing import GB, MemoryPlan, plan_memory

EngineName = Literal["vllm", "sglang", "trtllm"]
NEWEST: dict[EngineName, str] = {"vllm": "0.19", "sglang": "0.5.10", "trtllm": "1.3"}
"""The newest release of each engine among the measurements that factors are fitted to."""
ENGINE_NAMES: tuple[EngineName, ...] = ("vllm", "sglang", "trtllm")
HBM_GB_S = 890
"""Slower memory is GDDR6 with error correction: T4, A10, L4, L40S."""
RUNTIME_GB = 0.75
"""CUDA context, graphs and kernels' workspaces of one GPU."""


class ServiceSettings(Facts):
    """What an engine is told, each setting under vLLM's name for it whatever the engine calls it.

    | here | SGLang | TensorRT-LLM |
    |---|---|---|
    | max_num_batched_tokens | chunked_prefill_size | max_num_tokens |
    | max_num_seqs | max_running_requests | max_batch_size |
    | memory_share | mem_fraction_static | kv_cache_free_gpu_memory_fraction |
    | block_size | page_size | tokens_per_block |
    | chunked_prefill | chunked_prefill_size > 0 | enable_chunked_context |

    With `data_parallel` each replica of the attention layers has `tensor_parallel` GPUs and a batch of its
    own, to which `max_num_seqs` and `max_num_batched_tokens` apply; `expert_parallel` GPUs share the experts.
    `memory_share` is of the GPU's memory for weights, activations and KV cache (vLLM, SGLang), or of what the
    weights leave free (TensorRT-LLM). `prefix_hit_share` of every prompt's tokens are cached already.
    `overlapped`: the host prepares the next step while the GPU computes this one.
    """

    engine: EngineName
    version: str | None = None
    """Null: the newest that the fitted factors know (NEWEST)."""
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    data_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt
    chunked_prefill: bool = True
    prefix_caching: bool = True
    """Whether blocks of a request that lost its place, and prefixes of conversations, are found again."""
    prefix_hit_share: Share = 0.0
    memory_share: Share
    reserve_gb_per_gpu: NonNegative | None = None
    """Kept by the runtime and for activations; null: as `activations_gb` reckons."""
    overlapped: bool = True

    @model_validator(mode="after")
    def _experts_on_the_gpus(self) -> "ServiceSettings":
        if self.gpus % self.expert_parallel:
            raise ValueError(
                f"expert_parallel={self.expert_parallel} does not divide the service's {self.gpus} GPUs"
            )
        return self

    @property
    def gpus(self) -> int:
        """GPUs of the service."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    def memory(self, model: Model, gpu: Gpu, context_tokens: float | None = None) -> MemoryPlan:
        """Return where the service's memory goes, summed over its GPUs.

        `context_tokens`: how long sequences are on average, which decides what windows and states take.
        The KV cache is in whole blocks. Replicas of the attention layers (`data_parallel`) hold all weights
        but the experts' once each.
        """
        gpu = gpu.model_copy(update={"memory_gb": physical_memory_gb(gpu)})
        replica = gpu.model_copy(update={"count": self.tensor_parallel * self.pipeline_parallel})
        held = model.model_copy(
            update={
                "weight_bytes_per_parameter": model.weight_bytes_per_parameter
                * (1 - expert_share(model) * (1 - 1 / self.data_parallel))
            }
        )
        reserve_gb = self.reserve_gb_per_gpu
        if reserve_gb is None:
            reserve_gb = RUNTIME_GB + activations_gb(model, self)
        share = self.memory_share
        if self.engine == "trtllm":  # a share of what weights and activations leave
            free_gb = replica.count * (gpu.memory_gb - reserve_gb) - held.weight_bytes / GB
            share = 1 - (1 - share) * max(0.0, free_gb) / (replica.count * gpu.memory_gb)
        plan = plan_memory(
            held,
            replica,
            memory_utilization=share,
            reserve_gb_per_gpu=reserve_gb,
            context_tokens=context_tokens,
        )
        n = self.data_parallel
        return replace(
            plan,
            total_gb=n * plan.total_gb,
            usable_gb=n * plan.usable_gb,
            weights_gb=n * plan.weights_gb,
            reserve_gb=n * plan.reserve_gb,
            kv_capacity_tokens=n * (plan.kv_capacity_tokens // self.block_size * self.block_size),
        )


def physical_memory_gb(gpu: Gpu) -> float:
    """Return what a process can have of one GPU's memory [1e9 bytes]: datasheets count in powers of two.

    Drivers show H100 80 GB as 81,559 MiB, H200 141 GB as 143,771, B200 180 GB as 183,359, and keep some
    of it. Data centre types with GDDR6 lose a sixteenth to error correction (L4 24 GB: 23,034 MiB).
    """
    graphics_memory = gpu.vendor == "nvidia" and gpu.bandwidth_gb_s < HBM_GB_S
    return gpu.memory_gb * 2**30 / GB * (0.98 * 15 / 16 if graphics_memory else 0.98)


def service_settings(engine: EngineName, gpu: Gpu, **given: Any) -> ServiceSettings:
    """Return the settings of a service on a GPU profile: the given ones, else the engine's own defaults.

    A setting that is None counts as not given. Without any parallelism given the model is sharded over all
    GPUs of the profile; with some of it, tensor parallelism takes what the rest leaves.

    Raises:
        pydantic.ValidationError: an impossible setting.
    """
    known = {key: value for key, value in given.items() if value is not None}
    version = known.get("version")
    others = known.get("pipeline_parallel", 1) * known.get("data_parallel", 1)
    known.setdefault("tensor_parallel", max(1, gpu.count // others))
    if engine == "vllm" and "max_num_batched_tokens" in known and "max_num_seqs" not in known:
        # Each sequence that runs has a token in every step.
        most = _vllm(gpu, version, known["tensor_parallel"])["max_num_seqs"]
        known["max_num_seqs"] = min(most, known["max_num_batched_tokens"])
    return ServiceSettings.model_validate(_DEFAULTS[engine](gpu, version, known["tensor_parallel"]) | known)


def expert_share(model: Model) -> float:
    """Return the share of the model's parameters that are routed experts'."""
    experts = [
        kind.count * kind.feed_forward.n_experts * kind.feed_forward.one_expert_parameters(model.d_model)
        for kind in model.layer_kinds
        if isinstance(kind.feed_forward, Experts)
    ]
    return min(1.0, sum(experts) / (1e9 * model.parameters_b))


def activations_gb(model: Model, settings: ServiceSettings) -> float:
    """Return what one step's activations take on each GPU: the widest layer's, and the logits in float32.

    With RUNTIME_GB this is the 1.2 GB that vLLM 0.19 keeps for Llama-3.1-8B on an RTX 4090 (its log), and
    grows with the step as vLLM's own measurement at start does.
    """
    layers = [kind.feed_forward for kind in model.layer_kinds]
    widths = [layer.width for layer in layers if isinstance(layer, Mlp)]
    experts = [layer for layer in layers if isinstance(layer, Experts)]
    widths += [layer.width * layer.per_token + layer.shared_width for layer in experts]
    widest = max([4 * model.d_model, *(3 * width for width in widths)]) / settings.tensor_parallel
    tokens = settings.max_num_batched_tokens
    logits = 2 * 4.0 * min(settings.max_num_seqs, tokens) * model.vocabulary_size
    return (2.0 * tokens * widest + logits) / GB


def version_numbers(version: str | None) -> tuple[int, ...] | None:
    """Return `(0, 19, 0)` for `0.19.0` or `0.19.0rc1.post2`; None for what is no number, or no version."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(int(part) for part in found[1].split(".")) if found else None


def is_newer(engine: EngineName, version: str | None) -> bool:
    """Whether a version is newer than the newest that the fitted factors know; a patch of that one is not."""
    numbers, newest = version_numbers(version), version_numbers(NEWEST[engine])
    if numbers is None or newest is None or numbers[0] >= 2000:  # a year, see is_of_2024
        return False
    return numbers[: len(newest)] > newest


def is_of_2024(engine: EngineName, version: str | None) -> bool:
    """Whether a version is of 2024 or before: vLLM's first engine (until 0.7), TensorRT-LLM until 0.16.

    A year in place of a version (`2023`) is understood; no version is a new one.
    """
    numbers = version_numbers(version)
    if numbers is None:
        return False
    if numbers[0] >= 2000:
        return numbers[0] <= 2024
    return numbers < {"vllm": (0, 8), "trtllm": (0, 17), "sglang": (0, 4)}[engine]


def generation(settings: ServiceSettings) -> str:
    """Return the engine's name; one of 2024 is another one than today's of the same name."""
    return settings.engine + (" of 2024" if is_of_2024(settings.engine, settings.version) else "")


def _vllm(gpu: Gpu, version: str | None, tensor_parallel: int) -> dict[str, Any]:
    """Defaults of vLLM's server (engine/arg_utils.py, get_batch_defaults; before 0.8 its first scheduler)."""
    numbers = version_numbers(version)
    first = is_of_2024("vllm", version)
    # 70 GiB and more, but for the A100, whose smaller rate makes long steps too long.
    large = gpu.memory_gb >= 70 and not gpu.name.startswith("A100")
    return {
        "engine": "vllm",
        "max_num_seqs": 1024 if large and not first else 256,
        "max_num_batched_tokens": 8192 if large or first else 2048,
        "block_size": 16,
        "chunked_prefill": not first,
        "memory_share": 0.9,
        "overlapped": not first and (numbers is None or numbers >= (0, 14)),
    }


def _sglang(gpu: Gpu, version: str | None, tensor_parallel: int) -> dict[str, Any]:
    """Defaults of SGLang's server (srt/server_args.py): they follow the memory of one GPU."""
    rungs = ((35, 2048), (60, 4096), (160, 8192))
    chunk = next((tokens for below_gb, tokens in rungs if gpu.memory_gb < below_gb), 16384)
    graphs = 512 if gpu.memory_gb >= 60 else 160
    reserve_gb = (1.5 * chunk + 2 * graphs + 128 * tensor_parallel) / 1024
    return {
        "engine": "sglang",
        "max_num_seqs": 2048,
        "max_num_batched_tokens": chunk,
        "block_size": 1,
        "memory_share": round(1 - reserve_gb / gpu.memory_gb, 3),
        # Its share is what weights and cache may take: activations come out of the rest.
        "reserve_gb_per_gpu": 0.0,
    }


def _trtllm(gpu: Gpu, version: str | None, tensor_parallel: int) -> dict[str, Any]:
    """Defaults of trtllm-serve (llmapi/llm_args.py)."""
    return {
        "engine": "trtllm",
        "max_num_seqs": 2048,
        "max_num_batched_tokens": 8192,
        "block_size": 32,
        "chunked_prefill": False,
        "memory_share": 0.9,
    }


_DEFAULTS = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}
