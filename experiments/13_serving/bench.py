"""Times a served recommender: `mlflow models serve`, asked over HTTP.

    python bench.py models:/llm-pilot-recommender@champion results.json

What was simulated for a model and workload is kept: other loads, limits, risks and prices need no simulation.
A workload that is new for a model has its curves simulated, a new model its step times too.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from llmpilot.files import to_json, write_text

REQUESTS, WARM_UP = 100, 10
NEW, NEW_WARM_UP = 12, 2
"""Questions that need a simulation."""
CLIENTS, REQUESTS_A_CLIENT = 50, 20
LIMITS = {"requests_per_s": 20, "ttft_ms": 1000, "itl_ms": 50}
NAMES = ("llama_3_1_8b", "qwen2_5_7b", "mistral_7b", "qwen3_8b")
Rows = list[dict[str, Any]]


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a model's folder as a user would; yield the URL and the process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mlflow = shutil.which("mlflow", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("OMP_NUM_THREADS", None)  # users do not set it
    command = [str(mlflow), "models", "serve", "-m", str(folder), "--env-manager", "local", "-p", str(port)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/ping").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield f"{url}/invocations", server.pid
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def cpu_s(group: int) -> float:
    """Return the CPU time of a process group so far."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def ask(client: httpx.Client, url: str, rows: Rows) -> float:
    """Return how long an answer takes [ms]."""
    started = time.perf_counter()
    answer = client.post(url, json={"dataframe_records": rows})
    took = 1e3 * (time.perf_counter() - started)
    answer.raise_for_status()
    assert len(answer.json()["predictions"]) == len(rows)
    return took


def timed(
    url: str, group: int, question: Callable[[int], Rows], requests: int = REQUESTS, warm_up: int = WARM_UP
) -> dict[str, float]:
    """Return wall times of requests one after another, and the server's CPU time of one."""
    with httpx.Client(timeout=120) as client:
        for number in range(warm_up):
            ask(client, url, question(number))
        before = cpu_s(group)
        took = [ask(client, url, question(warm_up + number)) for number in range(requests)]
        cpu_ms = 1e3 * (cpu_s(group) - before) / requests
    p50, p95 = np.percentile(took, [50, 95])
    return {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "cpu_ms": round(cpu_ms, 1)}


def crowd(url: str, question: Callable[[int], Rows]) -> dict[str, float]:
    """Return what 50 clients at once see."""
    numbers = count()

    def one(_: int) -> tuple[list[float], int]:
        took, errors = [], 0
        with httpx.Client(timeout=120) as client:
            for _ in range(REQUESTS_A_CLIENT):
                try:
                    took.append(ask(client, url, question(next(numbers))))
                except httpx.HTTPError:
                    errors += 1
        return took, errors

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, range(CLIENTS)))
    seconds = time.perf_counter() - started
    took = [each for mine, _ in found for each in mine]
    p50, p95 = np.percentile(took, [50, 95])
    return {
        "requests": CLIENTS * REQUESTS_A_CLIENT,
        "errors": sum(errors for _, errors in found),
        "requests_per_s": round(len(took) / seconds, 1),
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
    }


def known(number: int) -> Rows:
    """A model and workload asked before; load, limit and risk are new."""
    risk = {} if number % 2 else {"risk": 0.1}
    return [{"model": "llama_3_1_8b", **LIMITS, "requests_per_s": 5 + number, "itl_ms": 30 + number, **risk}]


def new_workload(number: int) -> Rows:
    """Lengths that were never asked for before."""
    return [{"model": "llama_3_1_8b", **LIMITS, "input_tokens": 500 + 100 * number, "output_tokens": 200}]


def new_model(number: int) -> Rows:
    """A model that was never asked for before."""
    facts = {"n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8}
    return [{"parameters_b": 7 + number / 1e4, **facts, **LIMITS}]


def several(number: int) -> Rows:
    return [{"model": NAMES[number % len(NAMES)], **LIMITS, "requests_per_s": 5 + number}]


def pods(profiles: int) -> Callable[[int], Rows]:
    """What one pod does, so many rows at once."""
    return lambda number: [
        {"model": "llama_3_1_8b", "gpu": "h100", "requests_per_s": 0.5 + 0.1 * (number + at)}
        for at in range(profiles)
    ]


def main(uri: str, result: str) -> None:
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    import mlflow

    before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=scratch))
        with served(folder) as (url, group):
            with httpx.Client(timeout=120) as client:
                first_ms = ask(client, url, known(0))
                answer = client.post(url, json={"dataframe_records": known(0)}).json()["predictions"][0]
                for number in range(len(NAMES)):
                    ask(client, url, several(number))
            found = {
                "profiles": len(answer["ranking"]),
                "the server's first answer": {"ms": round(first_ms, 1)},
                "model and workload asked before": timed(url, group, known),
                "four models in turn, asked before": timed(url, group, several),
                "a workload that is new": timed(url, group, new_workload, NEW, NEW_WARM_UP),
                "a model that is new": timed(url, group, new_model, NEW, NEW_WARM_UP),
                "20 rows of one pod": timed(url, group, pods(20)),
                "50 clients, four models": crowd(url, several),
            }
    found["load_average"] = [before, round(os.getloadavg()[0], 2)]
    write_text(Path(result), to_json(found))
    print(to_json(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
