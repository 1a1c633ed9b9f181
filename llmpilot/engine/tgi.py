"""Text Generation Inference (TGI): its command line, what becomes of the batch weight, its lack of memory.

Written from TGI's launcher reference (docs/source/reference/launcher.md), its router's sources (v2 and v3)
and its issues; it needs a GPU, and we have never run it. Wants nothing of TGI in our own Python environment.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from llmpilot.config import Model, NonNegative
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.programs import named_program
from llmpilot.engine.server import (
    PYTORCH_OUT_OF_MEMORY,
    Assignment,
    Command,
    ServerMetrics,
    StartedEngine,
    Variables,
)
from llmpilot.errors import PilotError
from llmpilot.precision import to_be_made

CONCURRENT_REQUESTS = 16_384
"""TGI turns away (429) who comes beyond its own limit of 128, where we want to see them wait."""
PREFILL_SPARE_TOKENS = 50
"""By how much TGI's own default for one prefill exceeds the longest input."""


class TgiEngine(StartedEngine):
    """TGI's server, the model sharded over the GPUs of the profile (`--num-shard`).

    TGI reserves a request's input and output tokens when it admits it, and prefill interrupts decoding: its
    `--max-batch-total-tokens` is the max batch weight by design. But the routers of v2 and v3 ignore that
    flag for models with flash attention (they only warn) and take what the memory holds. So under a max
    batch weight W it also gets `--max-batch-size`, W // heaviest request: then the cap holds whatever the
    router does, but short requests do not make room for more of them. `cap=tokens` leaves that flag out, for
    routers that keep the other one.

    Lengths are not exact. TGI takes text, not token ids, so a prompt has about as many tokens as wanted:
    TGI's own count (the usage in its last event) replaces ours, and requests may exceed the workload's
    heaviest by `length_margin`. Its HTTP API has no way to ignore an end of text (issues 1304, 1544, 1944 of
    its repository): an answer may end early, which counts as such and not as a failure. One token is one
    event, and the usage in the last event says how many there were.

    `environment` is set for the server besides what it inherits; it is logged with the run, so secrets do
    not belong there.
    """

    name: ClassVar[str] = "tgi"
    # Read by its router at start; no request of its API alters them.
    live_weight: ClassVar[bool] = False
    # docs/source/reference/metrics.md; it has no gauge of its KV cache, and counts tokens per request only.
    metrics: ClassVar[ServerMetrics] = ServerMetrics(
        path="/metrics", running="tgi_batch_current_size", waiting="tgi_queue_size"
    )
    # Besides PyTorch's: TGI's warm-up (issues 710, 755 and 1067) and its router after it (backends/v3/src).
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        PYTORCH_OUT_OF_MEMORY + r"|Not enough memory to handle"
        r"|`max_total_tokens` must be <= `max_batch_total_tokens`"
    )

    binary: str | None = None
    model_path: str | None = None
    dtype: Literal["auto", "float16", "bfloat16"] = "auto"
    tensor_parallel: PositiveInt | None = None
    cap: Literal["requests", "tokens"] = "requests"
    max_batch_prefill_tokens: PositiveInt | None = None
    cuda_memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    length_margin: NonNegative = 0.1
    extra_args: tuple[str, ...] = ()
    environment: Variables = Field(default_factory=dict)

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read: text prompts in OpenAI's own fields only."""
        return OpenAIEngine(api="completions", prompt="text", dialect="standard")

    def served_model(self, model: Model) -> str:
        """Return the name that the server gives the model in its API: what it was loaded from."""
        source = self.model_path or model.hf_id
        folder = Path(source).expanduser()
        return str(folder.absolute()) if folder.is_dir() else source

    def lengths(self, assignment: Assignment) -> tuple[int, int]:
        """Return the longest input and the longest input with output that TGI is to take [tokens]."""
        weight = assignment.max_batch_weight or sys.maxsize
        wanted = round(assignment.heaviest_request_tokens * (1 + self.length_margin)) + 1
        total = max(2, min(wanted, weight, assignment.model.max_positions or sys.maxsize))
        return total - 1, total

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            PilotError: TGI is not installed.
        """
        precision = to_be_made(assignment.model, self.model_path)
        longest_input, longest = self.lengths(assignment)
        weight, prefill = assignment.max_batch_weight, self.max_batch_prefill_tokens
        argv = [self._binary(), "--model-id", self.served_model(assignment.model)]
        argv += ["--hostname", assignment.host, "--port", str(assignment.port)]
        argv += ["--num-shard", str(self.tensor_parallel or assignment.gpu.count)]
        argv += ["--max-input-tokens", str(longest_input), "--max-total-tokens", str(longest)]
        argv += ["--max-concurrent-requests", str(CONCURRENT_REQUESTS), "--max-client-batch-size", "128"]
        # Where the shards meet; the default is one place for all servers of a machine.
        argv += ["--shard-uds-path", str(Path(tempfile.gettempdir()) / f"llm-pilot-tgi-{assignment.port}")]
        if weight is not None:
            argv += ["--max-batch-total-tokens", str(weight)]
            if self.cap == "requests":
                argv += ["--max-batch-size", str(max(1, weight // assignment.heaviest_request_tokens))]
            # Its router refuses a prefill that is larger than the batch.
            prefill = min(weight, max(prefill or longest_input + PREFILL_SPARE_TOKENS, longest_input))
        if prefill is not None:
            argv += ["--max-batch-prefill-tokens", str(max(prefill, longest_input))]
        argv += ["--quantize", precision] if precision else []
        if assignment.model.kv_format == "fp8":
            argv += ["--kv-cache-dtype", "fp8_e4m3fn"]
        if self.dtype != "auto":
            argv += ["--dtype", self.dtype]
        if self.cuda_memory_fraction is not None:
            argv += ["--cuda-memory-fraction", f"{self.cuda_memory_fraction:g}"]
        # Every prompt is new to it; these are the names of the switch in v3 and before.
        environment: dict[str, str | None] = {"PREFIX_CACHING": "0", "USE_PREFIX_CACHING": "0"}
        # Its flags can be set by the environment too: none but ours may count.
        foreign: dict[str, str | None] = {name: None for name in FLAG_VARIABLES if name in os.environ}
        quiet = {"API_KEY": None, "USAGE_STATS": "off"}
        return Command((*argv, *self.extra_args), foreign | environment | quiet | self.environment)

    def _binary(self) -> str:
        if self.binary is not None:
            return named_program("engine.binary", self.binary, cure="name TGI's text-generation-launcher")
        found = shutil.which("text-generation-launcher")
        if found is None:
            raise PilotError(
                "TGI is not installed: there is no text-generation-launcher on PATH",
                cure="run LLM-Pilot in its image, ghcr.io/huggingface/text-generation-inference, or name "
                "the program: engine.binary=.../text-generation-launcher. A TGI that runs elsewhere: "
                "engine=openai engine.prompt=text deployment=external deployment.url=http://...",
            )
        return found


FLAG_VARIABLES = (
    "MAX_BATCH_SIZE",
    "MAX_BATCH_PREFILL_TOKENS",
    "MAX_BATCH_TOTAL_TOKENS",
    "MAX_INPUT_LENGTH",
    "MAX_WAITING_TOKENS",
    "WAITING_SERVED_RATIO",
    "QUANTIZE",
    "SPECULATE",
    "DTYPE",
    "SHARDED",
)
"""What TGI's launcher would read from the environment where no flag of ours says it."""
