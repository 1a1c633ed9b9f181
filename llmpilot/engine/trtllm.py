"""TensorRT-LLM's server: its command line, its pool of tokens as the batch weight, and its lack of memory.

Written from its documentation and sources (commands/serve.py, llmapi/llm_args.py); needs a GPU, and we have
never run it. Wants nothing of TensorRT-LLM in our own Python environment.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from llmpilot.config import Gpu, Model
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.engine.server import PYTORCH_OUT_OF_MEMORY, Assignment, Command, flag_if
from llmpilot.errors import ConfigError, PilotError
from llmpilot.precision import to_be_made
from llmpilot.simulator.service_settings import EngineName

TOKENS_PER_BLOCK = 32


class TrtllmEngine(ScheduledEngine):
    """TensorRT-LLM's OpenAI-compatible server with its PyTorch backend.

    A request is admitted when its input and output fit beside those that run (GUARANTEED_NO_EVICT), so nobody
    is preempted and a max batch weight W, its pool of W KV tokens (`kv_cache_config.max_tokens`), is kept as
    the batch weight has it. Where the memory holds less than W the real server takes less; the simulated one
    refuses, so that a tuner finds what the memory holds.

    Data parallelism is of attention layers only, with all GPUs as replicas: `data_parallel` is then the
    profile's count.
    """

    name: ClassVar[str] = "trtllm"
    label: ClassVar[str] = "TensorRT-LLM"
    settings_name: ClassVar[EngineName] = "trtllm"
    step_settings: ClassVar[tuple[str, str]] = ("max_num_tokens", "max_batch_size")
    memory_settings: ClassVar[tuple[str, ...]] = ("kv_cache_free_gpu_memory_fraction", "reserve_gb_per_gpu")
    # Its /metrics tells of iterations in JSON; its Prometheus page has no gauge of requests.
    metrics: ClassVar[None] = None
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        PYTORCH_OUT_OF_MEMORY + r"|Executor creation failed due to insufficient GPU memory"
    )

    binary: str | None = None
    model_path: str | None = None
    max_num_tokens: PositiveInt | None = None
    max_batch_size: PositiveInt | None = None
    kv_cache_free_gpu_memory_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    enable_chunked_context: bool = False
    extra_args: tuple[str, ...] = ()

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read: as much of vLLM's fields as its release takes."""
        return OpenAIEngine(api="completions", prompt="token_ids")

    def told(self) -> dict[str, Any]:
        """Return the settings of its steps and its memory."""
        return {
            "max_num_seqs": self.max_batch_size,
            "max_num_batched_tokens": self.max_num_tokens,
            "block_size": TOKENS_PER_BLOCK,
            "chunked_prefill": self.enable_chunked_context,
            "memory_share": self.kv_cache_free_gpu_memory_fraction,
        }

    def require_gpus(self, gpu: Gpu) -> None:
        """Raise ConfigError unless the kinds of parallelism make up the profile's GPUs."""
        super().require_gpus(gpu)
        if self.data_parallel > 1 and self.tensor_gpus(gpu) > 1:
            raise ConfigError(
                "TensorRT-LLM replicates its attention layers on every GPU or on none",
                given=f"engine.data_parallel={self.data_parallel} on {gpu.label}",
                cure=f"engine.data_parallel={gpu.count}, or leave it out",
            )

    def served_model(self, model: Model) -> str:
        """Return the name that the server gives the model in its API: what it was loaded from."""
        source = self.model_path or model.hf_id
        folder = Path(source).expanduser()
        return folder.name if folder.is_dir() else source

    def weight_step(self, heaviest_request_tokens: int) -> int:
        """Return the tokens of a block."""
        return TOKENS_PER_BLOCK

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            ConfigError: something is set that it cannot be told.
            PilotError: TensorRT-LLM is not installed.
        """
        self.require_real()
        model, gpu = assignment.model, assignment.gpu
        self.require_gpus(gpu)
        to_be_made(model, self.model_path, loads_to=())
        source = self.model_path or model.hf_id
        local = Path(source).expanduser().is_dir()
        argv = [self._binary(), str(Path(source).expanduser().absolute()) if local else source]
        argv += ["--backend", "pytorch", "--host", assignment.host, "--port", str(assignment.port)]
        argv += ["--tp_size", str(gpu.count // self.pipeline_parallel)]
        argv += flag_if("--pp_size", self.pipeline_parallel, unless=1)
        argv += flag_if("--ep_size", self.expert_parallel, unless=1)
        argv += ["--max_seq_len", str(assignment.longest_request_tokens)]
        argv += flag_if("--max_batch_size", self.max_batch_size)
        argv += flag_if("--max_num_tokens", self.max_num_tokens)
        argv += flag_if("--kv_cache_free_gpu_memory_fraction", self.kv_cache_free_gpu_memory_fraction)
        argv += ["--enable_chunked_prefill"] if self.enable_chunked_context else []
        # Unless it is told so, every prompt is new to it. The rest is for a file: JSON is YAML.
        cache: dict[str, Any] = {"enable_block_reuse": self.enable_prefix_caching}
        if self.kv_cache_free_gpu_memory_fraction is not None:  # the file's cache settings replace the flag's
            cache["free_gpu_memory_fraction"] = self.kv_cache_free_gpu_memory_fraction
        if assignment.max_batch_weight is not None:
            cache["max_tokens"] = assignment.max_batch_weight
        if model.kv_format == "fp8":
            cache["dtype"] = "fp8"
        options: dict[str, Any] = {"kv_cache_config": cache}
        if self.data_parallel > 1:
            options["enable_attention_dp"] = True
        path = str(Path(tempfile.gettempdir()) / f"llm-pilot-trtllm-{assignment.port}.json")
        argv += ["--extra_llm_api_options", path, *self.extra_args]
        return Command(tuple(argv), files={path: json.dumps(options)})

    def _binary(self) -> str:
        if self.binary is not None:
            return named_program("engine.binary", self.binary, cure="name TensorRT-LLM's trtllm-serve")
        found = shutil.which("trtllm-serve")
        if found is None:
            raise PilotError(
                "TensorRT-LLM is not installed: there is no trtllm-serve on PATH",
                cure="run LLM-Pilot in its image, nvcr.io/nvidia/tensorrt-llm/release, or name the program: "
                "engine.binary=.../trtllm-serve",
            )
        return found
