"""Times a served recommender over 100 GPU profiles: `mlflow models serve`, asked over HTTP.

    python bench.py models:/llm-pilot-recommender@champion results.json

The model's own catalogue is replaced by 100 made profiles that hold every model asked for (25 GPU types, each
as 1, 2, 4 and 8 GPUs): the real one has fewer.
"""

import json
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

from llmpilot import catalog
from llmpilot.files import to_json, write_text

REQUESTS, WARM_UP = 100, 10
CLIENTS, REQUESTS_A_CLIENT = 50, 20
BASES = ("a100_80gb", "h100", "h200", "b200", "mi300x")
LIMITS = {"users": 500, "nttft_ms": 100, "itl_ms": 40}
NAMES = ("llama_3_1_8b", "qwen2_5_7b", "mistral_7b", "llama_2_7b", "qwen3_8b")
Rows = list[dict[str, Any]]


def made_profiles() -> list[dict[str, Any]]:
    """Return 25 GPU types, a little apart from each other, in four counts."""
    profiles = []
    for number in range(25):
        base = catalog.gpus([BASES[number % len(BASES)]])[BASES[number % len(BASES)]].model_dump()
        apart = 1 + 0.01 * number
        for gpus in (1, 2, 4, 8):
            profiles.append(
                base
                | {
                    "name": f"{base['name']}-{number}",
                    "bandwidth_gb_s": base["bandwidth_gb_s"] * apart,
                    "memory_gb": base["memory_gb"] * apart,
                    "price_per_hour": {n: 3.0 * n * apart for n in (1, 2, 4, 8)},
                    "count": gpus,
                }
            )
    return profiles


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


def timed(url: str, group: int, question: Callable[[int], Rows]) -> dict[str, float]:
    """Return wall times of requests one after another, and the server's CPU time of one."""
    with httpx.Client(timeout=60) as client:
        for number in range(WARM_UP):
            ask(client, url, question(number))
        before = cpu_s(group)
        took = [ask(client, url, question(WARM_UP + number)) for number in range(REQUESTS)]
        cpu_ms = 1e3 * (cpu_s(group) - before) / REQUESTS
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


def known(_: int) -> Rows:
    return [{"model": "llama_3_1_8b", **LIMITS}]


def new(number: int) -> Rows:
    """A model that was never asked for before."""
    facts = {"n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8}
    return [{"parameters_b": 7 + number / 1e4, **facts, **LIMITS}]


def five(number: int) -> Rows:
    return [{"model": NAMES[number % len(NAMES)], **LIMITS, "users": 100 + number}]


def hundred(profiles: list[dict[str, Any]]) -> Callable[[int], Rows]:
    rows = [
        {"model": "llama_3_1_8b", "gpu": one["name"], "count": one["count"], "users": 1 + number}
        for number, one in enumerate(profiles)
    ]
    return lambda _: rows


def main(uri: str, result: str) -> None:
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    import mlflow

    before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=scratch))
        file = folder / "artifacts" / "bundle" / "bundle.json"
        facts = json.loads(file.read_text())
        with served(folder) as (url, group):
            found = {
                "catalogue": {"profiles": len(facts["profiles"]), "known model": timed(url, group, known)}
            }
            found["catalogue"]["a new model each time"] = timed(url, group, new)
        profiles = made_profiles()
        write_text(file, to_json(facts | {"profiles": profiles}))
        with served(folder) as (url, group):
            found["100 profiles"] = {
                "known model": timed(url, group, known),
                "five models in turn": timed(url, group, five),
                "a new model each time": timed(url, group, new),
                "latencies of 100 rows": timed(url, group, hundred(profiles)),
                "50 clients, five models": crowd(url, five),
            }
    found["load_average"] = [before, round(os.getloadavg()[0], 2)]
    write_text(Path(result), to_json(found))
    print(to_json(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
