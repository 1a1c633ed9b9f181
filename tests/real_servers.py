"""What tests against real servers share: llama.cpp where it is installed, and levels of equal requests."""

import importlib.util
import shutil
from typing import Any

import numpy as np
import pytest

from llmpilot import metrics
from llmpilot.config import Load, Sla
from llmpilot.deploy.process import ProcessEndpoint
from llmpilot.engine.llamacpp import LlamaCppEngine
from llmpilot.engine.server import Assignment, Command
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.workload import Requests, fit, from_lengths

_SERVER = shutil.which("llama-server") or importlib.util.find_spec("xllamacpp")
needs_llamacpp = [
    pytest.mark.skipif(not _SERVER, reason="needs llama.cpp's server: pip install xllamacpp"),
    pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="makes its model: pip install gguf"),
]


class InLittleMemory(LlamaCppEngine):
    """The same engine, where a process may have no more than 12 GB of address space."""

    def command(self, assignment: Assignment) -> Command:
        command = super().command(assignment)
        limited = ("/bin/sh", "-c", 'ulimit -v 12000000; exec "$@"', "sh", *command.argv)
        return Command(limited, command.environment)


def alike(tokens: tuple[int, int], n: int = 20_000) -> Requests:
    """Return n requests of the same (input, output) tokens."""
    return from_lengths(np.full(n, tokens[0]), np.full(n, tokens[1]))


def measure_level(endpoint: ProcessEndpoint, users: int, rows: Requests, **window: float) -> Records:
    """Measure so many users of these requests; `window` has what `Load` says of its seconds."""
    load = Load.model_validate({"arrival": "closed", "users": [users], **window})
    return run_level(endpoint, Traffic(load, fit(lambda: [rows]), 1, rows), users)


def require_every_token(records: Records, users: int, output_tokens: int, counted_by: str) -> dict[str, Any]:
    """Require that a server answered all users, each token counted exactly; return the level's statistics."""
    ok = records.failure == ""
    assert set(records.failure) <= {"", "unfinished"}
    assert ok.sum() > users
    assert records.notes["tokens_counted_by"].keys() == {counted_by}
    assert (np.diff(records.gap_offsets)[ok] == output_tokens - 1).all()
    level = metrics.summarize(records, Sla())
    assert level["failure_rate"] == 0
    return level


def waits_per_service(level: dict[str, Any]) -> float:
    """Return a median request's time to its first token, in times of what it takes from there to its end.

    Both are of the same moments: what else the machine does lengthens them alike.
    """
    ttft_ms = level["ttft_ms"]["p50"]
    return float(ttft_ms / (level["e2e_ms"]["p50"] - ttft_ms))
