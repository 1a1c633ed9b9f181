"""llama.cpp's server: its command line, how the batch weight becomes slots, and how it runs out of memory.

From a `llama-server` binary, or embedded in a Python process of its own through the package xllamacpp.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from llmpilot.config import Gpu, Model, NonNegative, Share
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program, path_of_this_package
from llmpilot.engine.server import Assignment, Command, ServerMetrics, StartedEngine
from llmpilot.errors import ConfigError, PilotError
from llmpilot.sizing import plan_memory

MAX_SLOTS = 256  # LLAMA_MAX_SEQ of llama.cpp
CONTEXT_STEP = 256  # llama.cpp rounds the context of a slot up to a multiple of this
HTTP_THREADS = 512
"""A connection of llama.cpp's HTTP server holds a thread. Its own default is a few more than there are slots:
further users would then wait for a thread, which its metrics (and health check) do not see."""


class LlamaCppEngine(StartedEngine):
    """llama.cpp's HTTP server on one GGUF file.

    llama.cpp knows slots, not tokens: each holds one request and has its own share of the context. Under a
    max batch weight W there are W // (heaviest request) slots of that size, so the cap holds whatever comes,
    but short requests do not make room for more of them, as the batch weight would have it. With
    `unified_kv` all slots share one context of W tokens: short requests then leave room, nothing keeps W
    from being exceeded, and requests that no longer fit fail in the middle of their answer.

    `slots` sets the number of slots by hand. `threads` null: one for each core (set it where cores are
    shared: its threads spin). `gpu_layers` null: all that fit, where its build has a GPU at all.
    With `enable_prefix_caching` a slot keeps its last prompt and answer, for one that begins as they do.
    """

    name: ClassVar[str] = "llamacpp"
    # Context and slots are allocated once, at start (llama_init_from_model): no request alters them.
    live_weight: ClassVar[bool] = False
    metrics: ClassVar[ServerMetrics] = ServerMetrics(
        path="/metrics",
        running="llamacpp:requests_processing",
        waiting="llamacpp:requests_deferred",
        tokens="llamacpp:tokens_predicted_total",
    )
    # Messages of ggml-cuda.cu, ggml-backend.cpp, llama-model.cpp and llama-kv-cache.cpp.
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        r"cudaMalloc failed: out of memory|CUDA error: out of memory|ErrorOutOfDeviceMemory"
        r"|insufficient memory|failed to allocate \w+ buffer of size|unable to allocate \S+ buffer"
        r"|failed to allocate buffer for kv cache|failed to allocate compute|std::bad_alloc",
        re.IGNORECASE,
    )

    model_path: str | None = None
    binary: str | None = None
    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] | None = None
    unified_kv: bool = False
    threads: PositiveInt | None = None
    gpu_layers: Annotated[int, Field(ge=0)] | None = None
    enable_prefix_caching: bool = False
    memory_utilization: Share = 0.95
    reserve_gb_per_gpu: NonNegative = 0.5
    extra_args: tuple[str, ...] = ()

    @property
    def finds_prefixes(self) -> bool:
        """Whether a slot finds in its last prompt what the next one begins with."""
        return self.enable_prefix_caching

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read."""
        return OpenAIEngine(api="completions", prompt="token_ids", dialect="llamacpp")

    def default_max_batch_weight(self, model: Model, gpu: Gpu) -> int:
        """Return the KV cache that the profile's memory holds by the facts of the model [tokens].

        At least 1: whether what is really in the GGUF file fits is for the server to say.
        """
        plan = plan_memory(
            model,
            gpu,
            memory_utilization=self.memory_utilization,
            reserve_gb_per_gpu=self.reserve_gb_per_gpu,
        )
        return max(1, plan.kv_capacity_tokens)

    def weight_is_set_by(self) -> str | None:
        """Return the number of slots, where it is set by hand."""
        return None if self.slots is None else f"engine.slots={self.slots}"

    def weight_step(self, heaviest_request_tokens: int) -> int:
        """Return what one slot holds."""
        return 1 if self.unified_kv else heaviest_request_tokens

    def largest_weight(self, kv_tokens: int, heaviest_request_tokens: int) -> int:
        """Return what the memory holds, in at most as many slots as there can be."""
        return kv_tokens if self.unified_kv else min(kv_tokens, MAX_SLOTS * heaviest_request_tokens)

    def context(self, max_batch_weight: int | None, heaviest_request_tokens: int) -> tuple[int, int]:
        """Return (tokens of context, number of slots) under a max batch weight [tokens].

        Without one there is a slot for each of `slots`, or one, as large as the heaviest request.

        Raises:
            ConfigError: `slots` of them do not hold the heaviest request each.
        """
        if max_batch_weight is None:
            max_batch_weight = heaviest_request_tokens * (self.slots or 1)
        fitting = max(1, max_batch_weight // heaviest_request_tokens)
        slots = self.slots or min(MAX_SLOTS, fitting)
        if self.unified_kv:
            # Slots are then only a bound on the number of requests.
            return max_batch_weight, self.slots or MAX_SLOTS
        if slots > fitting:
            raise ConfigError(
                f"engine.slots={slots} requests of up to {heaviest_request_tokens:,} tokens weigh more than "
                f"max_batch_weight={max_batch_weight:,}",
                cure=f"engine.slots={fitting}, or max_batch_weight={slots * heaviest_request_tokens}",
            )
        return slots * _rounded_up(heaviest_request_tokens), slots

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            ConfigError: no GGUF file was given, or it is not there.
            PilotError: llama.cpp's server is not installed.
        """
        path = self._gguf()  # whoever named it knows in what it is stored
        if assignment.model.kv_format == "fp8":
            raise ConfigError(
                "the KV cache of llama.cpp is set by its own flags",
                given="kv_precision=fp8",
                cure="kv_precision=null engine.extra_args=[--cache-type-k,q8_0,--cache-type-v,q8_0]",
            )
        weight, heaviest = assignment.max_batch_weight, assignment.heaviest_request_tokens
        tokens, slots = self.context(weight, heaviest)
        binary = self._binary()
        if binary is None:
            return self._embedded(assignment, path, tokens, slots)
        argv = [binary, "--model", str(path), "--alias", assignment.model.name]
        argv += ["--host", assignment.host, "--port", str(assignment.port)]
        argv += ["--ctx-size", str(tokens), "--parallel", str(slots), "--metrics"]
        argv += ["--threads", str(self.threads)] if self.threads else []
        argv += ["--n-gpu-layers", str(self.gpu_layers)] if self.gpu_layers is not None else []
        # Settings that not every version has go by environment, which older ones ignore.
        environment: dict[str, str | None] = {
            "LLAMA_ARG_THREADS_HTTP": str(HTTP_THREADS),
            "LLAMA_ARG_KV_UNIFIED": str(int(self.unified_kv)),
            "LLAMA_ARG_CACHE_PROMPT": str(int(self.enable_prefix_caching)),
            "LLAMA_ARG_CACHE_RAM": "0",
            "LLAMA_ARG_FIT": "off",
            "LLAMA_ARG_UI": "0",
        }
        foreign: dict[str, str | None] = {name: None for name in os.environ if name.startswith("LLAMA_ARG_")}
        return Command((*argv, *self.extra_args), {"LLAMA_API_KEY": None} | foreign | environment)

    def _embedded(self, assignment: Assignment, path: Path, tokens: int, slots: int) -> Command:
        if self.extra_args:
            raise ConfigError(
                "engine.extra_args are for the llama-server binary; this is the server within xllamacpp",
                given=" ".join(self.extra_args),
                cure="install llama.cpp's llama-server, or name it with engine.binary=...",
            )
        settings: dict[str, Any] = {
            "model.path": str(path),
            "model_alias": [assignment.model.name],
            "hostnames": [assignment.host],
            "port": assignment.port,
            "n_ctx": tokens,
            "n_parallel": slots,
            "kv_unified": self.unified_kv,
            "n_threads_http": HTTP_THREADS,
            "endpoint_metrics": True,
            "cache_prompt": self.enable_prefix_caching,
            "cache_ram_mib": 0,
            "fit_params": False,
            "ui": False,
        }
        if self.threads:
            settings |= {"cpuparams.n_threads": self.threads, "cpuparams_batch.n_threads": self.threads}
        if self.gpu_layers is not None:
            settings["n_gpu_layers"] = self.gpu_layers
        argv = (sys.executable, "-m", "llmpilot.engine.llamacpp_embedded", json.dumps(settings))
        return Command(argv, {"PYTHONPATH": path_of_this_package()})

    def _gguf(self) -> Path:
        if self.model_path is None:
            raise ConfigError(
                "engine=llamacpp serves a GGUF file, and none was given",
                cure="engine.model_path=FILE.gguf; a tiny random one for trying: "
                "python -m llmpilot.engine.tiny_model tiny.gguf",
            )
        path = Path(self.model_path).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(
                "engine.model_path is no file", given=self.model_path, cure="name an existing GGUF file"
            )
        return path

    def _binary(self) -> str | None:
        """Return the llama-server to start, or None for the embedded one."""
        if self.binary is not None:
            return named_program(
                "engine.binary",
                self.binary,
                cure="name llama.cpp's llama-server, or leave it out to find it on PATH",
            )
        if found := shutil.which("llama-server"):
            return found
        if importlib.util.find_spec("xllamacpp") is None:
            raise PilotError(
                "llama.cpp's server is not installed",
                cure="pip install xllamacpp (prebuilt, 100 MB), or put llama.cpp's llama-server on PATH, "
                "or name it with engine.binary=...",
            )
        return None


def _rounded_up(tokens: int) -> int:
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP
