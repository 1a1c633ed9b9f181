"""SGLang's server: its command line, its pool of tokens as the batch weight, and how it runs out of memory.

Written from its documentation (docs.sglang.io, server arguments) and sources; needs a GPU, and we have never
run it. Wants nothing of SGLang in our own Python environment.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.engine.server import (
    PYTORCH_OUT_OF_MEMORY,
    Assignment,
    Command,
    ServerMetrics,
    flag_if,
)
from llmpilot.errors import PilotError
from llmpilot.precision import precision_flags
from llmpilot.simulator.service_settings import EngineName

MAX_PREFILL_TOKENS = 16_384
"""Its bound on the prompts of one step where they are not cut."""


class SglangEngine(ScheduledEngine):
    """SGLang's OpenAI-compatible server, the model sharded over the GPUs of the profile.

    A max batch weight W becomes `--max-total-tokens W`, its pool of KV tokens. It admits requests on an
    estimate of their output and retracts some when the pool runs out, so W bounds what runs, but not as a
    promise to finish. Where the memory holds less than W, the real server warns in its log and takes less;
    the simulated one refuses, so that a tuner finds what the memory holds.

    `chunked_prefill_size` -1: prompts are not cut. With `data_parallel` the attention layers are replicated
    where the model has experts (`--enable-dp-attention`), else the whole model. `python` is the interpreter
    of the environment that SGLang is installed in.
    """

    name: ClassVar[str] = "sglang"
    label: ClassVar[str] = "SGLang"
    settings_name: ClassVar[EngineName] = "sglang"
    step_settings: ClassVar[tuple[str, str]] = ("chunked_prefill_size", "max_running_requests")
    memory_settings: ClassVar[tuple[str, ...]] = ("mem_fraction_static", "reserve_gb_per_gpu")
    # Its /set_internal_state takes a cap on requests, below the one at start, but not on the pool of tokens.
    live_weight: ClassVar[bool] = False
    metrics: ClassVar[ServerMetrics] = ServerMetrics(
        path="/metrics",
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
        kv_use="sglang:token_usage",
        tokens="sglang:generation_tokens_total",
    )
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        PYTORCH_OUT_OF_MEMORY + r"|Not enough memory\. Please try to increase --mem-fraction-static"
    )

    python: str | None = None
    model_path: str | None = None
    weights: Literal["real", "dummy"] = "real"
    chunked_prefill_size: PositiveInt | Literal[-1] | None = None
    mem_fraction_static: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_running_requests: PositiveInt | None = None
    extra_args: tuple[str, ...] = ()

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read."""
        return OpenAIEngine(api="completions", prompt="token_ids", dialect="vllm")

    def told(self) -> dict[str, Any]:
        """Return the settings of its steps and its memory."""
        whole = self.chunked_prefill_size == -1
        return {
            "max_num_seqs": self.max_running_requests,
            "max_num_batched_tokens": MAX_PREFILL_TOKENS if whole else self.chunked_prefill_size,
            "chunked_prefill": False if whole else None,
            "memory_share": self.mem_fraction_static,
        }

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            ConfigError: something is set that it cannot be told.
            PilotError: no environment with SGLang was named.
        """
        self.require_real()
        model, gpu = assignment.model, assignment.gpu
        replicated = self.data_parallel > 1 and model.n_experts > 1
        argv = [self._interpreter(), "-m", "sglang.launch_server"]
        argv += ["--model-path", self.model_path or model.hf_id, "--served-model-name", model.name]
        argv += ["--host", assignment.host, "--port", str(assignment.port)]
        # With attention replicated, its tensor parallelism counts all GPUs.
        argv += ["--tp-size", str(self.tensor_gpus(gpu) * (self.data_parallel if replicated else 1))]
        argv += precision_flags(model, "fp8_e4m3", self.model_path)
        argv += flag_if("--pp-size", self.pipeline_parallel, unless=1)
        argv += flag_if("--dp-size", self.data_parallel, unless=1)
        argv += ["--enable-dp-attention"] if replicated else []
        argv += flag_if("--ep-size", self.expert_parallel, unless=1)
        argv += ["--enable-metrics", *([] if self.enable_prefix_caching else ["--disable-radix-cache"])]
        # Or its usage does not say how much of a prompt was cached.
        argv += ["--enable-cache-report"] if self.enable_prefix_caching else []
        if self.weights == "dummy":
            argv += ["--load-format", "dummy"]
        if assignment.max_batch_weight is not None:
            argv += ["--max-total-tokens", str(assignment.max_batch_weight)]
        argv += flag_if("--mem-fraction-static", self.mem_fraction_static)
        argv += flag_if("--max-running-requests", self.max_running_requests)
        argv += flag_if("--chunked-prefill-size", self.chunked_prefill_size)
        return Command((*argv, *self.extra_args))

    def _interpreter(self) -> str:
        if self.python is None:
            raise PilotError(
                "engine=sglang needs an environment of its own with SGLang in it (and a GPU)",
                cure="pip install sglang there, and name its Python: engine.python=.../bin/python",
            )
        return named_program("engine.python", self.python, cure="name a Python interpreter")
