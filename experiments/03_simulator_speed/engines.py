"""How fast today's engines are simulated: levels of load on Llama-3.1-8B on 4 x H100, in seconds of one core.

PYTHONPATH=. python experiments/03_simulator_speed/engines.py [RESULT_FILE]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot import catalog
from llmpilot.files import to_json, write_text
from llmpilot.simulator import (
    RequestSource,
    SimulatedRequests,
    VirtualService,
    simulate_closed,
    simulate_finite,
)
from llmpilot.simulator.service_model import simulated_service
from llmpilot.simulator.service_settings import ENGINE_NAMES, EngineName, service_settings
from llmpilot.workload import Requests, from_lengths, load_workload

FULL_TOKENS = 4_000_000
"""A KV cache that 4,096 requests of 9,216 tokens fill: whoever can preempt, does."""


class Drawn:
    """An endless stream of requests with lengths from `least` of the nominal ones up to these."""

    def __init__(self, input_tokens: int, output_tokens: int, least: float) -> None:
        self._lengths, self._least = (input_tokens, output_tokens), least
        self._random = np.random.default_rng(1)

    def take(self, n: int) -> Requests:
        lengths = (self._random.integers(int(self._least * x), x + 1, n) for x in self._lengths)
        return from_lengths(*lengths)


def service_of(engine: EngineName, kv_capacity_tokens: int | None = None) -> VirtualService:
    model = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"]
    gpu = catalog.gpus(["h100"])["h100"].model_copy(update={"count": 4})
    settings = service_settings(engine, gpu, max_num_seqs=4096, max_num_batched_tokens=8192)
    capacity = kv_capacity_tokens or settings.memory(model, gpu).kv_capacity_tokens
    return simulated_service(model, gpu, engine, settings, capacity)


def timed(simulate: Callable[[], SimulatedRequests]) -> dict[str, Any]:
    started = time.process_time()
    result = simulate()
    seconds = time.process_time() - started
    return {
        "seconds": round(seconds, 2),
        "requests": len(result.outcome),
        "simulated_s": round(float(result.done_us.max()) / 1e6),
    }


def minutes(engine: EngineName, requests: RequestSource) -> dict[str, Any]:
    """Time 128 users over 130 s."""
    service = service_of(engine)
    return timed(lambda: simulate_closed(service, requests, 128, 130e3, 0.0))


def main() -> None:
    workload = load_workload({"name": "paper", "model": "shipped:paper"})
    results = {}
    for engine in ENGINE_NAMES:
        full = service_of(engine, FULL_TOKENS)
        results[engine] = {
            "128 users, 1024 in, 128 out": minutes(engine, Drawn(1024, 128, 1.0)),
            "the same, lengths from 80%": minutes(engine, Drawn(1024, 128, 0.8)),
            "128 users, the paper's requests": minutes(engine, workload.stream(42)),
            "4096 users, 40960 requests of 1024 in, 8192 out": timed(
                lambda full=full: simulate_finite(full, Drawn(1024, 8192, 0.8), 4096, 40_960, gaps=False)
            ),
        }
    text = to_json(results)
    print(text)
    if len(sys.argv) > 1:
        write_text(Path(sys.argv[1]), text)


if __name__ == "__main__":
    main()
