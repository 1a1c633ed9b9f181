"""What every inference server that we start has in common: what it is told, and what it tells of itself.

Knows nothing of processes, pods or a particular engine; a deployment starts what an engine describes here.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

from pydantic import BeforeValidator

from llmpilot.config import Gpu, Model
from llmpilot.engine.inference import InferenceEngine
from llmpilot.engine.openai import OpenAIEngine

Variables = dict[str, Annotated[str, BeforeValidator(str)]]
"""What is set in a server's environment besides what it inherits; logged with the run, so no secrets."""
PYTORCH_OUT_OF_MEMORY = r"(?:CUDA|HIP) out of memory|CUDA error: out of memory"
"""PyTorch's own words, whichever server runs on it."""


@dataclass(frozen=True)
class Assignment:
    """What a server is to serve, and where.

    `max_batch_weight` [tokens] caps the running batch; None leaves the server's own limit. A request of the
    workload weighs at most `heaviest_request_tokens` (input + output).
    """

    model: Model
    gpu: Gpu
    max_batch_weight: int | None
    heaviest_request_tokens: int
    host: str
    port: int

    @property
    def longest_request_tokens(self) -> int:
        """The heaviest request, as far as the model has positions for it."""
        return min(self.heaviest_request_tokens, self.model.max_positions or sys.maxsize)


@dataclass(frozen=True)
class Command:
    """How to start a server: its command line, and what is set (or, if None, unset) in its environment.

    Secrets (HF_TOKEN) reach it through the inherited environment only, never through `argv`.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    files: Mapping[str, str] = field(default_factory=dict)
    """Path -> text of files that it reads at start; they are gone when it has ended."""


@dataclass(frozen=True)
class ServerMetrics:
    """Where a server shows its metrics (Prometheus text), and what it calls them; None: it has none such.

    `kv_use` is a share of the KV cache from 0 to 1; `preemptions` and `tokens` count from the start.
    """

    path: str
    running: str
    waiting: str
    kv_use: str | None = None
    preemptions: str | None = None
    tokens: str | None = None


VLLM_METRICS = ServerMetrics(
    path="/metrics",
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_use="vllm:kv_cache_usage_perc",
    preemptions="vllm:num_preemptions_total",
    tokens="vllm:generation_tokens_total",
)
"""vLLM's names, which our emulator uses too."""


class ServerEngine(Protocol):
    """An engine that we can start. `wire` is how requests are put to it and answers are read."""

    name: ClassVar[str]
    health_path: ClassVar[str]
    metrics: ClassVar[ServerMetrics | None]
    out_of_memory: ClassVar[re.Pattern[str]]

    @property
    def wire(self) -> OpenAIEngine:
        """How requests are put to it and answers are read."""

    def served_model(self, model: Model) -> str:
        """Return the name that the server gives the model in its API."""

    def command(self, assignment: Assignment) -> Command:
        """Return how to start it.

        Raises:
            PilotError: it is not installed, or cannot serve this; says what to do.
        """


class StartedEngine(InferenceEngine):
    """What most engines that we start have in common; each says what is otherwise with it."""

    places: ClassVar[tuple[str, ...]] = ("process",)
    health_path: ClassVar[str] = "/health"

    def served_model(self, model: Model) -> str:
        """Return the name that the server gives the model in its API."""
        return model.name


def flag_if(name: str, value: float | None, unless: float | None = None) -> list[str]:
    """Return a flag with its value; nothing where that is None, or what it is anyway."""
    return [] if value is None or value == unless else [name, f"{value:.15g}"]


def memory_complaint(log: str, pattern: re.Pattern[str]) -> str | None:
    """Return the first line of a server's log that says that memory did not suffice, without its prefixes."""
    for line in log.splitlines():
        if found := pattern.search(line):
            head, complaint = line[: found.start()], line[found.start() :]
            return _LOG_PREFIX.sub("", head) + complaint.strip()[:500]
    return None


def last_words(log: str, lines: int = 10) -> list[str]:
    """Return what a log says of an error, first causes first, and else (and besides) how it ends."""
    said = [line.strip()[:300] for line in log.splitlines() if line.strip() and " WARNING " not in line]
    errors: list[str] = []
    for line in said:
        if (found := _ERROR.search(line)) and found[0] not in errors:
            errors.append(found[0])
    return [*errors[: lines // 2], *said[len(errors[: lines // 2]) - lines :]]


_ERROR = re.compile(r"(?:\b[\w.]*(?:Error|Exception): |\berror: |(?<= )E (?=[a-z])).*")
# vLLM: `(EngineCore pid=7) ERROR 10-08 20:33:48 [core.py:708] ValueError: `; llama.cpp: `0.06.650.537 E `;
# TGI: `2023-09-26T21:48:00.969072Z ERROR warmup: text_generation_client: router/client/src/lib.rs:33: `.
_LOG_PREFIX = re.compile(r"^(?:.*\]\s+|\S+Z +[A-Z]+ .*: |error: )?(?:[\d.]+ [A-Z] )?(?:[\w.]+Error: )?\s*")
