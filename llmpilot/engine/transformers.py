"""Our own minimal engine on PyTorch alone: how it is started on this machine, and what it refuses to serve.

The engine itself is `torch_server`; this module knows only its command line, and needs no PyTorch.
"""

import importlib.util
import json
import os
import re
import sys
from dataclasses import asdict
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from llmpilot.config import Gpu, Model
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program, path_of_this_package
from llmpilot.engine.server import (
    PYTORCH_OUT_OF_MEMORY,
    VLLM_METRICS,
    Assignment,
    Command,
    MeasuredEngine,
    ServerMetrics,
)
from llmpilot.engine.torch_server.shape import shape_of
from llmpilot.errors import ConfigError, PilotError

PACKAGE = "llmpilot.engine.torch_server"


class TransformersEngine(MeasuredEngine):
    """A decoder of the model's sizes with random weights, on one GPU (or the CPU), in plain PyTorch.

    For machines where PyTorch is all there is. The speed of a server does not depend on what its weights
    are; it does depend on its kernels: this engine has neither CUDA graphs nor fused kernels, and is slower
    than vLLM. What is measured is real, and is this engine's.

    The max batch weight W is kept exactly: requests whose input and output fit into W beside those that run
    are admitted in order of arrival, the others wait, and prefill goes before decoding. Nobody is preempted:
    the KV cache of a request is reserved when it is admitted. `max_num_seqs` caps their number besides;
    `max_prefill_tokens` bounds one prefill. W null: what the memory leaves, at most what so many of the
    longest requests could use.

    Every answer has exactly `max_tokens` tokens: random weights know no end of text.
    """

    name: ClassVar[str] = "transformers"
    # The KV cache is allocated at start.
    live_weight: ClassVar[bool] = False
    metrics: ClassVar[ServerMetrics] = VLLM_METRICS
    # Besides PyTorch's own words on GPUs, those on CPUs and the engine's.
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        PYTORCH_OUT_OF_MEMORY + r"|can't allocate memory|(?<=error: )out of memory"
    )

    weights: Literal["real", "dummy"] = "dummy"
    python: str | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    threads: PositiveInt | None = None
    max_num_seqs: PositiveInt = 256
    max_prefill_tokens: PositiveInt = 4096
    memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("weights")
    @classmethod
    def _random_weights_only(cls, weights: str) -> str:
        if weights != "dummy":
            raise ValueError(
                "engine=transformers serves random weights only: engine.weights=dummy (or leave it out); for "
                "a checkpoint take engine=vllm"
            )
        return weights

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read: as to vLLM, every chunk with its token ids."""
        return OpenAIEngine(dialect="vllm")

    def default_max_batch_weight(self, model: Model, gpu: Gpu) -> None:
        """Return None: without a cap the server takes what its memory leaves, and says how much.

        Raises:
            ConfigError: it cannot serve this model on this profile.
        """
        _require_one_gpu(gpu)
        shape_of(model)

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            ConfigError: it cannot serve this model on this profile.
            PilotError: PyTorch is not installed.
        """
        model = assignment.model
        _require_one_gpu(assignment.gpu)
        shape = shape_of(model)
        half = "float16" if model.torch_dtype == "float16" else "bfloat16"
        argv = [self._interpreter(), "-m", PACKAGE, "--served-model-name", model.name]
        argv += ["--host", assignment.host, "--port", str(assignment.port)]
        argv += ["--shape", json.dumps(asdict(shape), separators=(",", ":"))]
        argv += ["--max-model-len", str(assignment.longest_request_tokens)]
        argv += ["--max-num-seqs", str(self.max_num_seqs)]
        argv += ["--max-prefill-tokens", str(self.max_prefill_tokens), "--device", self.device]
        argv += ["--memory-utilization", f"{self.memory_utilization:g}", "--seed", str(self.seed)]
        argv += ["--dtype", half, "--dtype-is-default"] if self.dtype == "auto" else ["--dtype", self.dtype]
        if self.threads is not None:
            argv += ["--threads", str(self.threads)]
        if assignment.max_batch_weight is not None:
            argv += ["--max-batch-weight", str(assignment.max_batch_weight)]
        # Growing segments keep batches of ever new sizes from breaking the memory into pieces.
        allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        environment = {"PYTHONPATH": path_of_this_package(), "PYTORCH_CUDA_ALLOC_CONF": allocator}
        return Command(tuple(argv), environment)

    def _interpreter(self) -> str:
        if self.python is not None:
            return named_program(
                "engine.python",
                self.python,
                cure="name the Python of an environment with PyTorch and LLM-Pilot in it",
            )
        if importlib.util.find_spec("torch") is None:
            raise PilotError(
                "engine=transformers needs PyTorch, which is not installed in this environment",
                cure="pip install torch (2.5 or newer), or name the Python of an environment that has it and "
                "LLM-Pilot: engine.python=.../bin/python",
            )
        return sys.executable


def _require_one_gpu(gpu: Gpu) -> None:
    if gpu.count > 1:
        raise ConfigError(
            "engine=transformers runs on one GPU: it does not shard a model",
            given=f"gpu.count={gpu.count}",
            cure="gpu.count=1, or engine=vllm for several",
        )
