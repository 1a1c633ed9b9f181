"""How fast the simulator is: the paper's whole campaign, many users, long contexts, and what a token costs.

PYTHONPATH=. python experiments/03_simulator_speed/bench.py [RESULT_FILE]
"""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot import catalog
from llmpilot.engine.tgis import TgisEngine
from llmpilot.files import to_json, write_text
from llmpilot.processes import workers
from llmpilot.simulator import VirtualService, simulate_closed
from llmpilot.simulator.calibration import shipped_calibrations
from llmpilot.workload import Requests, from_lengths, load_workload

USERS = (1, 2, 4, 8, 16, 32, 64, 128)
WORKERS = 2


class Same:
    """An endless stream of one request."""

    def __init__(self, input_tokens: int, output_tokens: int) -> None:
        self._lengths = input_tokens, output_tokens

    def take(self, n: int) -> Requests:
        return from_lengths(*(np.full(n, length) for length in self._lengths))


def service_of(model: str, gpu: str, count: int) -> VirtualService:
    facts = catalog.models([model])[model]
    profile = next(g for g in catalog.gpus().values() if g.name == gpu).model_copy(update={"count": count})
    engine = TgisEngine()
    return engine.service(facts, profile, max(2_000, engine.default_max_batch_weight(facts, profile)))


def pair_campaign(pair: tuple[str, str, int]) -> tuple[int, int]:
    """Simulate a pair's eight levels of two minutes; return requests and output tokens."""
    workload = load_workload({"name": "paper", "model": "shipped:paper"})
    requests = tokens = 0
    for users in USERS:
        result = simulate_closed(service_of(*pair), workload.stream(42), users, 120e3, 30e3, keep_load=False)
        requests += len(result.outcome)
        tokens += int(result.requests.output_tokens.sum())
    return requests, tokens


def timed(input_tokens: int, output_tokens: int, users: int, seconds: float) -> dict[str, Any]:
    service = service_of("llama_3_1_8b", "H100", 4)
    started = time.perf_counter()
    result = simulate_closed(service, Same(input_tokens, output_tokens), users, seconds * 1e3, 0.0)
    spent = time.perf_counter() - started
    return {
        "users": users,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "simulated_s": seconds,
        "seconds": round(spent, 3),
        "requests": len(result.outcome),
        "tokens": len(result.gap_us),
    }


def main() -> None:
    with workers(WORKERS) as run:
        list(run(service_of, ["starcoder"] * 2, ["H100"] * 2, [1] * 2))  # start the processes
        started = time.perf_counter()
        counts = list(run(pair_campaign, list(shipped_calibrations())))
        seconds = time.perf_counter() - started
    own, child = (
        resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    result = {
        "campaign": {
            "levels": len(counts) * len(USERS),
            "requests": sum(requests for requests, _ in counts),
            "output_tokens": sum(tokens for _, tokens in counts),
            "workers": WORKERS,
            "seconds": round(seconds, 1),
            "peak_memory_mb": round(own + WORKERS * child),
        },
        "many_users": timed(200, 100, 1024, 120),
        "long_contexts": timed(32_000, 500, 64, 1200),
        "ten_times_the_tokens": [timed(200, 100, 32, 600), timed(200, 1000, 32, 6000)],
    }
    text = to_json(result)
    print(text)
    if len(sys.argv) > 1:
        write_text(Path(sys.argv[1]), text)


if __name__ == "__main__":
    main()
