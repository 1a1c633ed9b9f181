"""How close lanes come to the simulation request by request, how fast they are, and how much is chance.

    PYTHONPATH=. python experiments/19_recommendations/lanes.py

Prints tables and writes lanes.json beside itself. Takes about a minute and a half on one core.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmpilot import catalog
from llmpilot.config import Limit
from llmpilot.predict.service.curves import QUICK, THOROUGH, Speeds, Traffic, curves
from llmpilot.simulator.factors import shipped_factors
from llmpilot.simulator.lanes import TAIL, WARM_UP, ClosedLanes, LaneService, OpenLanes, run_lanes
from llmpilot.simulator.service_model import service_at
from llmpilot.simulator.service_settings import service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.simulator.virtual import simulate_open
from llmpilot.workload import Requests, from_lengths, load_workload

RESULT = Path(__file__).parent / "lanes.json"
CONVERSATIONS = load_workload({"name": "azure_conv", "model": "shipped:azure_conv"})
WORKLOADS = {
    "conversations": CONVERSATIONS.sample(600, 1),
    "short": from_lengths([128] * 600, [128] * 600),
    "long": from_lengths([8000] * 300, [400] * 300),
}
WHOLE = {"max_num_batched_tokens": 12_000}
SERVICES = [
    ("llama_3_1_8b", "h100", 1, "vllm", {}),
    ("llama_3_1_8b", "l4", 1, "vllm", {}),
    ("llama_3_1_70b", "h100", 2, "vllm", {}),
    ("mixtral_8x7b", "h100", 2, "vllm", {}),
    ("deepseek_v3", "h200", 8, "vllm", {"data_parallel": 8, "tensor_parallel": 1, "expert_parallel": 8}),
    ("llama_3_1_8b", "h100", 1, "sglang", {}),
    ("llama_3_1_8b", "l4", 1, "sglang", {}),
    ("gpt_oss_120b", "h100", 1, "sglang", {}),
    ("llama_3_1_8b", "h100", 1, "trtllm", WHOLE),
    ("llama_3_1_70b", "h100", 2, "trtllm", WHOLE),
]
SHARES = (0.3, 0.6, 0.9)
KEYS = (
    ("itl_ms", "mean"),
    ("tpot_ms", "mean"),
    ("ttft_ms", "p50"),
    ("ttft_ms", "p95"),
    ("e2e_ms", "p50"),
    ("e2e_ms", "p95"),
)
CATALOG = ("llama_3_1_8b", "qwen3_32b", "gpt_oss_120b", "llama_3_1_70b", "qwen3_30b_a3b")
GPUS = ("h100", "a100_80gb", "l40s", "h200", "b200")


def pod(model: str, gpu: str, count: int, engine: str, given: dict) -> LaneService:
    described = catalog.models([model])[model]
    profile = catalog.gpus([gpu])[gpu].model_copy(update={"count": count})
    settings = service_settings(engine, profile, **given)
    service = StepModel(described, profile, settings)
    capacity = settings.memory(described, profile).kv_capacity_tokens
    return LaneService(service, OperatorStepTimes(service, shipped_factors()), capacity)


class Source:
    """A table's requests."""

    def __init__(self, requests: Requests) -> None:
        self.requests, self.at = requests, 0

    def take(self, n: int) -> Requests:
        taken = self.requests.take((self.at + np.arange(n)) % len(self.requests))
        self.at += n
        return taken


def exactly(of: LaneService, requests: Requests, arrivals_ms: np.ndarray) -> dict[tuple[str, str], float]:
    service, n = service_at(of.step_model, of.times, of.kv_capacity_tokens), len(arrivals_ms)
    found = simulate_open(service, Source(requests), arrivals_ms)
    first, last = int(np.ceil(WARM_UP * n)), int(np.floor((1 - TAIL) * n))
    part = slice(first, last)
    sent, start, done = (times[part] / 1e3 for times in (found.sent_us, found.first_token_us, found.done_us))
    gaps = found.gap_us[found.gap_offsets[first] : found.gap_offsets[last]] / 1e3
    values = {
        "itl_ms": gaps,
        "tpot_ms": (done - start) / (found.requests.output_tokens[part] - 1),
        "ttft_ms": start - sent,
        "e2e_ms": done - sent,
    }
    return {
        (name, statistic): float(
            values[name].mean() if statistic == "mean" else np.percentile(values[name], int(statistic[1:]))
        )
        for name, statistic in KEYS
    }


def agreement() -> list[dict]:
    """Return how far off lanes are, service by service and load by load."""
    rows = []
    print(f"{'lanes / request by request, off by':54}" + "".join(f"{n[:-3]} {s:5}" for n, s in KEYS))
    for model, gpu, count, engine, given in SERVICES:
        of = pod(model, gpu, count, engine, given)
        for workload, requests in WORKLOADS.items():
            held = float(requests.input_tokens.mean() + 0.6 * requests.output_tokens.mean())
            most = int(np.clip(1.1 * of.kv_capacity_tokens / held, 2, 256))
            if of.kv_capacity_tokens < 3 * held:
                continue
            only = np.zeros(1, dtype=np.int64)
            full = run_lanes([of], only, ClosedLanes(np.array([most])), requests, 0).rate_per_s[0]
            waits = np.random.default_rng(3).exponential(1e3, len(requests))
            sent = np.cumsum(waits) / (np.array(SHARES) * full)[:, None]
            found = run_lanes([of], np.zeros(len(SHARES), dtype=np.int64), OpenLanes(sent), requests, 0)
            for lane, share in enumerate(SHARES):
                exact = exactly(of, requests, sent[lane])
                off = {key: float(found.latencies[key][lane] / exact[key] - 1) for key in KEYS}
                name = f"{engine} {model} {count}x{gpu}, {workload}, {share:.0%}"
                print(f"{name:54}" + "".join(f"{off[key]:+9.1%}" for key in KEYS), flush=True)
                rows.append({"service": name, **{f"{n} {s}": round(v, 4) for (n, s), v in off.items()}})
    return rows


def speed() -> dict[str, float]:
    """Return seconds of CPU: 100 lanes of 400 requests, and the curves of 70 services."""
    of = pod(*SERVICES[0])
    requests = CONVERSATIONS.sample(400, 1)
    sent = np.cumsum(np.random.default_rng(0).exponential(1e3, 400)) / np.geomspace(1, 20, 100)[:, None]
    lanes_s = timed(lambda: run_lanes([of], np.zeros(100, dtype=np.int64), OpenLanes(sent), requests, 0))
    begun = time.process_time()
    pods = many_pods()
    tables_s = (time.process_time() - begun) * 70 / len(pods)
    pods = pods[:70]
    traffic = Traffic(CONVERSATIONS)
    found = {
        "lanes, 100 x 400 requests": lanes_s,
        "step times of 70 services": tables_s,
        "curves of 70 services, requests at random": timed(lambda: curves(pods, traffic, 0)),
        "the same, quick": timed(lambda: curves(pods, traffic, 0, 0.0, QUICK)),
        "curves of 70 services, closed loops": timed(
            lambda: curves(pods, Traffic(CONVERSATIONS, think_time_s=0.0), 0)
        ),
    }
    for name, seconds in found.items():
        print(f"{name:45} {seconds:.2f} s")
    return {name: round(seconds, 3) for name, seconds in found.items()}


def efforts() -> dict[str, float]:
    """Return how far apart seeds are in the load that four SLAs allow, and quick from thorough curves."""
    limits = [
        [("ttft_ms", "p95", 1000)],
        [("itl_ms", "p50", 50)],
        [("tpot_ms", "p95", 30)],
        [("ttft_ms", "p95", 300), ("itl_ms", "mean", 25)],
    ]
    slas = [[Limit(latency=n, statistic=s, limit_ms=ms) for n, s, ms in each] for each in limits]
    pods, expected, loads = many_pods()[:60:3], Speeds(np.ones(1), np.ones(1)), {}
    for name, effort in (("thorough", THOROUGH), ("quick", QUICK)):
        found = [curves(pods, Traffic(CONVERSATIONS), seed, 10.0, effort) for seed in range(3)]
        loads[name] = np.array(
            [[curve.capacity(sla, 0.01, expected)[0] for curve in each for sla in slas] for each in found]
        )
    some = loads["thorough"].mean(axis=0) > 0
    spreads = {
        f"seeds apart, {name}": float(np.median(each.std(axis=0)[some] / each.mean(axis=0)[some]))
        for name, each in loads.items()
    }
    ratio = loads["quick"].mean(axis=0)[some] / loads["thorough"].mean(axis=0)[some]
    shares = dict(zip(("p10", "p50", "p90"), np.percentile(ratio, [10, 50, 90]).tolist(), strict=True))
    result = spreads | {f"quick / thorough, {name}": value for name, value in shares.items()}
    for name, value in result.items():
        print(f"load allowed: {name:28} {value:.3f}")
    return {name: round(value, 4) for name, value in result.items()}


def many_pods() -> list[LaneService]:
    """Return services of several LLMs on many GPU profiles, those that fit."""
    profiles = [(m, g, n, "vllm", {}) for m in CATALOG for g in GPUS for n in (1, 2, 4, 8)]
    pods: list[LaneService] = []
    for profile in profiles:
        try:
            one = pod(*profile)
        except ValueError:
            continue
        if one.kv_capacity_tokens > 10_000:
            pods.append(one)
    return pods


def timed(run: object) -> float:
    begun = time.process_time()
    run()  # type: ignore[operator]
    return time.process_time() - begun


def chance(seeds: Iterable[int] = range(6)) -> list[dict]:
    """Return how far apart seeds are, and how far their mean is from a long run."""
    of = pod(*SERVICES[0])
    found = [curves([of], Traffic(CONVERSATIONS), seed, 0.0)[0] for seed in seeds]
    full = float(np.mean([curve.rate_per_s[-1] for curve in found]))
    loads = np.array([0.3, 0.6, 0.8]) * full
    n = 30_000
    requests = CONVERSATIONS.spread(n, 7).take(np.random.default_rng(0).permutation(n))
    sent = np.cumsum(np.random.default_rng(1).exponential(1e3, n)) / loads[:, None]
    long = run_lanes([of], np.zeros(3, dtype=np.int64), OpenLanes(sent), requests, 0)
    rows, expected = [], Speeds(np.ones(1), np.ones(1))
    for name, statistic in (*KEYS, ("ttft_ms", "p99"), ("e2e_ms", "p99")):
        ask = Limit(latency=name, statistic=statistic, limit_ms=1)
        for lane, load in enumerate(loads.tolist()):
            values = np.array([curve.figure(ask, load, expected)[0] for curve in found])
            off = float(values.mean() / long.latencies[name, statistic][lane] - 1)
            spread = float(values.std() / values.mean())
            share = load / full
            print(
                f"{name:8} {statistic:5} at {share:.0%}: {off:+.1%} from a long run, seeds {spread:.1%} apart"
            )
            rows.append({"latency": f"{name} {statistic}", "share": share, "off": off, "seeds": spread})
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


if __name__ == "__main__":
    result = {"agreement": agreement(), "speed_s": speed(), "chance": chance(), "efforts": efforts()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
