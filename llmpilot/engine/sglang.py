"""SGLang's server: its command line, its pool of tokens as the batch weight, and how it runs out of memory.

Written from its documentation (docs.sglang.io, server arguments) and sources; needs a GPU, and we have never
run it. Wants nothing of SGLang in our own Python environment.
"""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program
from llmpilot.engine.server import (
    PYTORCH_OUT_OF_MEMORY,
    Assignment,
    Command,
    ServerMetrics,
    StartedEngine,
)
from llmpilot.errors import PilotError


class SglangEngine(StartedEngine):
    """SGLang's OpenAI-compatible server, the model sharded over the GPUs of the profile.

    A max batch weight W becomes `--max-total-tokens W`, its pool of KV tokens. It admits requests on an
    estimate of their output and retracts some when the pool runs out, so W bounds what runs, but not as a
    promise to finish; and where the memory holds less than W, it warns in its log and takes less.

    `python` is the interpreter of the environment that SGLang is installed in.
    """

    name: ClassVar[str] = "sglang"
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
    tensor_parallel: PositiveInt | None = None
    mem_fraction_static: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_running_requests: PositiveInt | None = None
    extra_args: tuple[str, ...] = ()

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read."""
        return OpenAIEngine(dialect="vllm")

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            PilotError: no environment with SGLang was named.
        """
        model = assignment.model
        argv = [self._interpreter(), "-m", "sglang.launch_server"]
        argv += ["--model-path", self.model_path or model.hf_id, "--served-model-name", model.name]
        argv += ["--host", assignment.host, "--port", str(assignment.port)]
        argv += ["--tp-size", str(self.tensor_parallel or assignment.gpu.count)]
        argv += ["--enable-metrics", "--disable-radix-cache"]
        if self.weights == "dummy":
            argv += ["--load-format", "dummy"]
        if assignment.max_batch_weight is not None:
            argv += ["--max-total-tokens", str(assignment.max_batch_weight)]
        if self.mem_fraction_static is not None:
            argv += ["--mem-fraction-static", f"{self.mem_fraction_static:g}"]
        if self.max_running_requests is not None:
            argv += ["--max-running-requests", str(self.max_running_requests)]
        return Command((*argv, *self.extra_args))

    def _interpreter(self) -> str:
        if self.python is None:
            raise PilotError(
                "engine=sglang needs an environment of its own with SGLang in it (and a GPU)",
                cure="pip install sglang there, and name its Python: engine.python=.../bin/python",
            )
        return named_program("engine.python", self.python, cure="name a Python interpreter")
