"""Many services at once, in arrays: they show what the simulation of each, request by request, shows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.simulator.factors import shipped_factors
from llmpilot.simulator.lanes import (
    ROUNDS,
    TAIL,
    WARM_UP,
    ClosedLanes,
    LaneFigures,
    LaneService,
    OpenLanes,
    run_lanes,
)
from llmpilot.simulator.service_model import service_at
from llmpilot.simulator.service_settings import EngineName, service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.simulator.virtual import SimulatedRequests, simulate_finite, simulate_open
from llmpilot.workload import Requests, concatenate, from_lengths, load_workload

MODELS = catalog.models(("llama_3_1_8b", "gpt_oss_120b", "mixtral_8x7b", "nemotron_h_8b"))
CONVERSATIONS = load_workload({"name": "azure_conv", "model": "shipped:azure_conv"}).sample(300, 5)
ALIKE = from_lengths([700] * 120, [60] * 120)
BOOKS = from_lengths([9000] * 60, [200] * 60)


def pod(
    model: str = "llama_3_1_8b",
    engine: EngineName = "vllm",
    count: int = 1,
    gpu: str = "h100",
    **given: object,
) -> LaneService:
    profile = catalog.gpus((gpu,))[gpu].model_copy(update={"count": count})
    told = service_settings(engine, profile, **given)
    described = StepModel(MODELS[model], profile, told)
    capacity = told.memory(MODELS[model], profile).kv_capacity_tokens
    return LaneService(described, OperatorStepTimes(described, shipped_factors()), capacity)


class Again:
    """Requests from the first to the last, and from the first again."""

    def __init__(self, requests: Requests) -> None:
        self.requests, self.at = requests, 0

    def take(self, n: int) -> Requests:
        taken = self.requests.take((self.at + np.arange(n)) % len(self.requests))
        self.at += n
        return taken


def exactly(of: LaneService, requests: Requests, arrivals_ms: np.ndarray) -> dict[tuple[str, str], float]:
    """Return what request by request the same part of an open loop shows."""
    service = service_at(of.step_model, of.times, of.kv_capacity_tokens)
    found, n = simulate_open(service, Again(requests), arrivals_ms), len(arrivals_ms)
    return figures_of(found, int(np.ceil(WARM_UP * n)), int(np.floor((1 - TAIL) * n)))


def figures_of(found: SimulatedRequests, first: int, last: int) -> dict[tuple[str, str], float]:
    part = slice(first, last)
    sent, start, done = (times[part] / 1e3 for times in (found.sent_us, found.first_token_us, found.done_us))
    inputs, outputs = found.requests.input_tokens[part], found.requests.output_tokens[part]
    several = outputs > 1
    values = {
        "ttft_ms": start - sent,
        "nttft_ms": (start - sent) / inputs,
        "tpot_ms": (done - start)[several] / (outputs[several] - 1),
        "e2e_ms": done - sent,
        "itl_ms": found.gap_us[found.gap_offsets[first] : found.gap_offsets[last]] / 1e3,
    }
    exact = {(name, "mean"): float(each.mean()) for name, each in values.items()}
    for name, each in values.items():
        for q in (50, 90, 95, 99):
            exact[name, f"p{q}"] = float(np.percentile(each, q))
    return exact


def arrivals(rates_per_s: list[float], n: int = 300, seed: int = 3) -> np.ndarray:
    waits = np.random.default_rng(seed).exponential(1e3, n)
    return np.cumsum(waits) / np.array(rates_per_s)[:, None]


PODS = {
    "vllm": (pod(), CONVERSATIONS, 14.0),
    "vllm, waits for each step": (pod(overlapped=False), CONVERSATIONS, 14.0),
    "vllm, four GPUs, experts": (pod("gpt_oss_120b", count=4), CONVERSATIONS, 20.0),
    "vllm, replicas": (
        pod("mixtral_8x7b", count=4, data_parallel=2, tensor_parallel=2, expert_parallel=4),
        CONVERSATIONS,
        15.0,
    ),
    "vllm, states": (pod("nemotron_h_8b"), CONVERSATIONS, 12.0),
    "vllm, cached prefixes": (pod(prefix_hit_share=0.6), CONVERSATIONS, 18.0),
    "vllm, eight places": (pod(max_num_seqs=8), CONVERSATIONS, 4.0),
    "vllm, long prompts": (pod(max_num_batched_tokens=2048), BOOKS, 1.5),
    "vllm of 2024": (pod(version="0.6", gpu="a100_80gb"), CONVERSATIONS, 5.0),
    "sglang": (pod(engine="sglang"), CONVERSATIONS, 14.0),
    "sglang, experts": (pod("gpt_oss_120b", "sglang"), CONVERSATIONS, 6.5),
    "trtllm": (pod(engine="trtllm", max_num_batched_tokens=12_000), CONVERSATIONS, 14.0),
    "trtllm, chunks": (pod(engine="trtllm", chunked_prefill=True), BOOKS, 1.5),
    "trtllm, alike": (pod(engine="trtllm"), ALIKE, 35.0),
}


@pytest.mark.parametrize("name", PODS)
def test_a_lane_shows_what_a_simulation_request_by_request_shows(name: str) -> None:
    of, requests, rate = PODS[name]
    sent = arrivals([0.25 * rate, rate])
    found = run_lanes([of], np.zeros(2, dtype=np.int64), OpenLanes(sent), requests, 0)
    for lane in (0, 1):
        exact = exactly(of, requests, sent[lane])
        for (latency, statistic), value in exact.items():
            lanes = found.latencies[latency, statistic][lane]
            # Of gaps with several steps of prompts in between, not all are told apart.
            close = 0.005 if latency != "itl_ms" or statistic == "mean" else 0.02
            close = 0.08 if (latency, statistic) == ("itl_ms", "p99") else close
            assert lanes == pytest.approx(value, rel=close), (lane, latency, statistic)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_with_little_memory_it_is_close(engine: EngineName) -> None:
    # vLLM preempts then, and SGLang retracts: lanes let in fewer instead.
    limit = {"max_num_batched_tokens": 12_000} if engine == "trtllm" else {}
    of = replace(pod(engine=engine, **limit), kv_capacity_tokens=30_000)
    sent = arrivals([6.0, 9.0])
    found = run_lanes([of], np.zeros(2, dtype=np.int64), OpenLanes(sent), CONVERSATIONS, 0)
    for lane in (0, 1):
        exact = exactly(of, CONVERSATIONS, sent[lane])
        for key, close in {
            ("itl_ms", "mean"): 0.02,
            ("tpot_ms", "mean"): 0.02,
            ("e2e_ms", "p50"): 0.05,
            ("e2e_ms", "p95"): 0.05,
            ("ttft_ms", "p50"): 0.08,
            ("ttft_ms", "p95"): 0.08,
        }.items():
            assert found.latencies[key][lane] == pytest.approx(exact[key], rel=close), (lane, key)


@pytest.mark.parametrize("users", [1, 12, 40])
def test_a_closed_loop_is_the_same_too(users: int) -> None:
    of = pod()
    found = run_lanes([of], np.zeros(1, dtype=np.int64), ClosedLanes(np.array([users])), ALIKE, 4)
    # Of the first ones, outputs end anywhere: here they are all alike, so that each is as likely to be met.
    n = users + max(len(ALIKE), ROUNDS * users)
    stream = concatenate([ALIKE] * (1 + (n + 2 * users) // len(ALIKE))).take(slice(n + 2 * users))
    outputs = stream.output_tokens.copy()
    outputs[:users] = np.ceil(outputs[:users] * np.random.default_rng(0).random(users))
    service = service_at(of.step_model, of.times, of.kv_capacity_tokens)
    requests = Again(replace(stream, output_tokens=outputs))
    exact = figures_of(simulate_finite(service, requests, users, n + 2 * users), users, n)
    for key in (("ttft_ms", "p50"), ("e2e_ms", "mean"), ("tpot_ms", "p95"), ("itl_ms", "mean")):
        assert found.latencies[key][0] == pytest.approx(exact[key], rel=0.03), key
    # Little's law.
    assert found.rate_per_s[0] * found.latencies["e2e_ms", "mean"][0] == pytest.approx(1e3 * users)


def closed(of: LaneService, users: list[int], think_time_ms: float = 0.0, seed: int = 0) -> LaneFigures:
    load = ClosedLanes(np.array(users), think_time_ms)
    return run_lanes([of], np.zeros(len(users), dtype=np.int64), load, CONVERSATIONS, seed)


def test_a_lane_does_not_depend_on_the_others_and_a_seed_gives_the_same_again() -> None:
    pods = [pod(), pod(engine="sglang"), pod("gpt_oss_120b", engine="vllm")]
    sent = arrivals([3.0, 8.0, 2.0])
    together = run_lanes(pods, np.arange(3), OpenLanes(sent), CONVERSATIONS, 0)
    again = run_lanes(pods, np.arange(3), OpenLanes(sent), CONVERSATIONS, 0)
    for lane in range(3):
        alone = run_lanes(
            [pods[lane]], np.zeros(1, dtype=np.int64), OpenLanes(sent[lane : lane + 1]), CONVERSATIONS, 0
        )
        for key, values in together.latencies.items():
            assert values[lane] == again.latencies[key][lane]
            assert values[lane] == pytest.approx(alone.latencies[key][0], rel=1e-9)


def test_more_users_wait_longer_and_get_more_done() -> None:
    found = closed(pod(), [1, 4, 16, 64, 256])
    for statistic in ("mean", "p50", "p95"):
        assert (np.diff(found.latencies["tpot_ms", statistic]) > 0).all()
        assert (np.diff(found.latencies["e2e_ms", statistic]) > 0).all()
    assert (np.diff(found.rate_per_s) > 0).all()
    assert (np.diff(found.running) > 0).all()


@given(scale=st.floats(0.3, 3.0), rate=st.floats(1.0, 12.0))
@settings(max_examples=5, deadline=None)
def test_steps_k_times_as_long_at_a_kth_of_the_rate_are_the_same_run_slower(
    scale: float, rate: float
) -> None:
    of = pod()
    slower = replace(of, times=of.times.scaled(scale))
    one = run_lanes([of], np.zeros(1, dtype=np.int64), OpenLanes(arrivals([rate])), ALIKE, 0)
    other = run_lanes([slower], np.zeros(1, dtype=np.int64), OpenLanes(arrivals([rate / scale])), ALIKE, 0)
    for key, values in one.latencies.items():
        assert other.latencies[key] == pytest.approx(scale * values, rel=0.03), key


def test_users_who_think_ask_less() -> None:
    found = closed(pod(), [40], think_time_ms=8_000)
    busy = closed(pod(), [40])
    mean_ms = found.latencies["e2e_ms", "mean"][0]
    assert mean_ms < busy.latencies["e2e_ms", "mean"][0]
    # Against requests that come at random at the same rate.
    rate = 40 / (8.0 + mean_ms / 1e3)
    random = run_lanes([pod()], np.zeros(1, dtype=np.int64), OpenLanes(arrivals([rate])), CONVERSATIONS, 0)
    assert mean_ms == pytest.approx(random.latencies["e2e_ms", "mean"][0], rel=0.1)


def test_more_users_who_think_than_a_pod_serves_wait_for_it() -> None:
    small = replace(pod(), kv_capacity_tokens=30_000)
    (busy,) = closed(small, [60]).rate_per_s
    found = closed(small, [60, 800, 1600], think_time_ms=20_000)
    assert found.rate_per_s[0] < 0.7 * busy
    assert found.rate_per_s[1:] == pytest.approx(busy, rel=0.08)
    assert found.latencies["ttft_ms", "mean"][1] < found.latencies["ttft_ms", "mean"][2]


def test_an_overloaded_lane_ends_and_says_so() -> None:
    found = run_lanes(
        [pod()], np.zeros(2, dtype=np.int64), OpenLanes(arrivals([5.0, 100.0], 900)), CONVERSATIONS, 0
    )
    assert np.isfinite([values[0] for values in found.latencies.values()]).all()
    assert np.isinf([values[1] for values in found.latencies.values()]).all()
    assert found.rate_per_s[0] == pytest.approx(5.0, rel=0.2)
    assert found.rate_per_s[1] < 50.0


def test_requests_that_never_fit_fail_and_the_others_do_not_wait_for_them() -> None:
    long = from_lengths([40_000] * 30, [100] * 30)
    order = np.random.default_rng(0).permutation(150)
    mixed = concatenate([ALIKE, long]).take(order)
    small = replace(pod(), kv_capacity_tokens=20_000)
    sent = arrivals([2.0, 2.0], 150)
    found = run_lanes([small, pod()], np.arange(2), OpenLanes(sent), mixed, 0)
    assert found.failures == pytest.approx([0.2, 0.0])
    assert found.latencies["ttft_ms", "p95"][0] < found.latencies["ttft_ms", "p95"][1]
    nobody = run_lanes([small], np.zeros(1, dtype=np.int64), OpenLanes(sent[:1]), long, 0)
    assert nobody.failures[0] == 1.0
    assert nobody.rate_per_s[0] == 0.0
    assert np.isinf(nobody.latencies["ttft_ms", "p50"][0])


def test_several_sequences_a_request_count_each() -> None:
    two = replace(ALIKE, batch_size=np.full(len(ALIKE), 2))
    sent = arrivals([8.0], 120)
    for engine in ("vllm", "sglang", "trtllm"):
        of = pod(engine=engine)
        found = run_lanes([of], np.zeros(1, dtype=np.int64), OpenLanes(sent), two, 0)
        exact = exactly(of, two, sent[0])
        for key in (("ttft_ms", "p50"), ("tpot_ms", "mean"), ("e2e_ms", "p95")):
            assert found.latencies[key][0] == pytest.approx(exact[key], rel=0.01), (engine, key)
        single = run_lanes([of], np.zeros(1, dtype=np.int64), OpenLanes(sent), ALIKE, 0)
        assert found.output_tokens_per_s == pytest.approx(2 * single.output_tokens_per_s, rel=0.05)
