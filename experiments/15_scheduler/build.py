"""The scheduler judged alone: replays runs of vLLM with step times out of tables of the same layers.

PYTHONPATH=. python experiments/15_scheduler/build.py --run RUN_FOLDER --layers LAYERS_FOLDER
PYTHONPATH=. python experiments/15_scheduler/build.py --data FOLDER [--result results.json]

A run is a folder with meta.json and requests.jsonl, layers a folder with tp1_dense.csv and its kin. With
--data all runs of a folder that is laid out so: GPU/MODEL and layers/GPU/ORGANISATION/MODEL.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from replicas import ReplicatedService

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.files import to_json, write_text
from llmpilot.operators import operators_for
from llmpilot.simulator import SteppedService, VirtualService, VllmRule, simulate_open
from llmpilot.simulator.layer_tables import LayerTables, read_layer_tables
from llmpilot.simulator.service_settings import service_settings
from llmpilot.workload import Requests, from_lengths

STATISTICS = ("mean", "p50", "p90", "p99")
AGREE_MS = 0.5
"""Replicas agree over the network, on the host, before each step on how many tokens it has: a round trip."""


class Rows:
    """The run's own requests."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests

    def take(self, n: int) -> Requests:
        head, self.requests = self.requests.take(slice(n)), self.requests.take(slice(n, None))
        return head


def read_run(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return a run's settings, and its requests with times [s] from the first arrival.

    Arrivals are on another clock than the engine's times: what is smallest between an arrival and the
    engine's queue is taken as no time at all.
    """
    meta = json.loads((folder / "meta.json").read_text())
    requests = pd.DataFrame(map(json.loads, (folder / "requests.jsonl").read_text().splitlines()))
    requests["arrival_time"] += (requests.queued_ts - requests.arrival_time).min()
    requests = requests.sort_values("arrival_time", ignore_index=True)
    times = ["arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"]
    requests[times] -= requests.arrival_time.min()
    return meta, requests


def model_of(hf_id: str) -> Model:
    """Return the catalogue's LLM of this Hugging Face id, or one that differs in its tuning only."""
    known = catalog.models().values()
    alike = [m for m in known if m.hf_id and (hf_id.startswith(m.hf_id) or m.hf_id.startswith(hf_id))]
    if not alike:
        raise ConfigError("no LLM of the catalogue is this one", given=hf_id, cure="name its option: --model")
    return max(alike, key=lambda model: len(model.hf_id))


def gpu_of(name: str) -> Gpu:
    """Return the catalogue's GPU type of a folder's name."""
    plain = {key.replace("_", ""): gpu for key, gpu in catalog.gpus().items()}
    if name.lower() not in plain:
        raise ConfigError(
            "no GPU type of the catalogue is this one", given=name, cure="name its option: --gpu"
        )
    return plain[name.lower()]


def service_of(
    meta: dict[str, Any], model: Model, gpu: Gpu, layers: Path
) -> tuple[VirtualService, LayerTables, dict[str, Any]]:
    """Return the run's service, its step times, and what was assumed."""
    told = meta["engine_kwargs"]
    tensor, replicas = told["tensor_parallel_size"], told["data_parallel_size"]
    gpus = tensor * replicas
    operators = operators_for(gpu)

    def sum_ms(tokens: int) -> float:
        return float(operators.all_reduce_ms(2.0 * tokens * model.d_model, tensor))

    def share_ms(tokens: int) -> float:
        message_bytes = 2.0 * tokens * model.d_model
        gathered_ms = operators.all_gather_ms(message_bytes, gpus)
        return float(gathered_ms + operators.reduce_scatter_ms(message_bytes, gpus))

    def router_ms(tokens: int) -> float:
        return float(operators.gemm_ms("bf16", tokens, model.n_experts, model.d_model))

    times = read_layer_tables(
        layers,
        model,
        tensor,
        expert_parallel=gpus if told["enable_expert_parallel"] else 1,
        sum_ms=sum_ms if tensor > 1 else None,
        share_ms=share_ms if replicas > 1 else None,
        router_ms=router_ms if model.n_experts > 1 else None,
        host_ms=AGREE_MS if replicas > 1 else 0.0,
    )
    cache = meta.get("kv_cache") or {}
    block_size = cache.get("block_size", 16)
    if "num_gpu_blocks" in cache:
        capacity = (cache["num_gpu_blocks"] - 1) * block_size  # vLLM keeps one for itself
    else:
        settings = service_settings(
            "vllm",
            gpu.model_copy(update={"count": gpus}),
            version=meta["vllm_version"],
            max_num_seqs=told["max_num_seqs"],
            max_num_batched_tokens=told["max_num_batched_tokens"],
            tensor_parallel=tensor,
            data_parallel=replicas,
            expert_parallel=gpus if told["enable_expert_parallel"] else 1,
        )
        capacity = settings.memory(model, gpu).kv_capacity_tokens // replicas
    resolved = meta.get("resolved_config", {}).get("scheduler_config", {})
    rule = VllmRule(
        max_num_seqs=told["max_num_seqs"],
        max_num_batched_tokens=told["max_num_batched_tokens"],
        block_size=block_size,
        prefix_caching=cache.get("enable_prefix_caching", True),
        overlapped=resolved.get("async_scheduling", True),
    )
    service: VirtualService = SteppedService(times, rule, capacity)
    if replicas > 1:
        service = ReplicatedService(times.replicas_ms, rule, replicas, capacity)
    assumed = {"kv_capacity_tokens": capacity, "overlapped": rule.overlapped, "skew": times.skew}
    return service, times, assumed


def statistics(ms: np.ndarray) -> dict[str, float]:
    values = [float(ms.mean()), *np.percentile(ms, [50, 90, 99]).tolist()]
    return {name: round(value, 2) for name, value in zip(STATISTICS, values, strict=True)}


def judge(run: Path, layers: Path, model: Model | None = None, gpu: Gpu | None = None) -> dict[str, Any]:
    """Replay one run; return measured and simulated statistics [ms] and how far off these are [%]."""
    meta, requests = read_run(run)
    model = model or model_of(meta["model"])
    service, _, assumed = service_of(meta, model, gpu or gpu_of(run.parent.name), layers)
    lengths = requests.input_toks.to_numpy(), requests.output_toks.to_numpy()
    started = time.process_time()
    result = simulate_open(service, Rows(from_lengths(*lengths)), requests.arrival_time.to_numpy() * 1e3)
    seconds = time.process_time() - started
    more = np.maximum(1, lengths[1] - 1)
    simulated = {
        "ttft": (result.first_token_us - result.sent_us) / 1e3,
        "tpot": (result.done_us - result.first_token_us) / 1e3 / more,
        "e2e": (result.done_us - result.sent_us) / 1e3,
    }
    arrival, first, last = (
        requests[name].to_numpy() * 1e3 for name in ("arrival_time", "first_token_ts", "last_token_ts")
    )
    measured = {"ttft": first - arrival, "tpot": (last - first) / more, "e2e": last - arrival}
    figures = {
        name: {
            statistic: {
                "measured_ms": of_run,
                "simulated_ms": (ours := statistics(simulated[name])[statistic]),
                "off_percent": round(100 * (ours / of_run - 1), 1),
            }
            for statistic, of_run in statistics(measured[name]).items()
        }
        for name in measured
    }
    return {
        "run": "/".join(run.parts[-2:]),
        "requests": len(requests),
        "assumed": assumed,
        "seconds": round(seconds, 2),
        "figures": figures,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the errors as a table in Markdown."""
    head = [f"{name.upper()} {statistic}" for name in ("ttft", "tpot", "e2e") for statistic in STATISTICS]
    lines = ["| run | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for result in results:
        cells = [
            f"{figure['simulated_ms']:.0f} / {figure['measured_ms']:.0f} ({figure['off_percent']:+.1f}%)"
            for of_metric in result["figures"].values()
            for figure in of_metric.values()
        ]
        lines.append(f"| {result['run']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay runs of vLLM on the simulated scheduler.")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--layers", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", help="option of the catalogue, where the run's model is not found")
    parser.add_argument("--gpu", help="option of the catalogue, where the run's folder does not say it")
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    if (given.run is None) != (given.layers is None) or (given.run is None) == (given.data is None):
        parser.error("give --run and --layers, or --data")
    model = catalog.models([given.model])[given.model] if given.model else None
    gpu = catalog.gpus([given.gpu])[given.gpu] if given.gpu else None
    if given.run is not None:
        pairs = [(given.run.resolve(), given.layers)]
    else:
        runs = sorted(path.parent.resolve() for path in given.data.glob("*/*/requests.jsonl"))
        pairs = [(run, next((given.data / "layers" / run.parent.name).glob(f"*/{run.name}"))) for run in runs]
    results = [judge(run, layers, model, gpu) for run, layers in pairs]
    print("Simulated / measured [ms] (how far off):")
    print(table(results))
    for result in results:
        print(f"{result['run']}: {result['requests']} requests in {result['seconds']} s; {result['assumed']}")
    if given.result:
        write_text(given.result, to_json(results))


if __name__ == "__main__":
    main()
