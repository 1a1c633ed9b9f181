"""One pod under rising load: what it takes within limits, and that this follows from how fast it is."""

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.config import Limit
from llmpilot.predict.service.curves import QUICK, Curve, Speeds, Traffic, _mixed_quantiles, curves
from llmpilot.simulator.factors import shipped_factors
from llmpilot.simulator.lanes import GAP_SHARES, LaneService, OpenLanes, run_lanes
from llmpilot.simulator.service_settings import EngineName, service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.workload import from_lengths, load_workload

MODEL = catalog.models(("llama_3_1_8b",))["llama_3_1_8b"]
CONVERSATIONS = load_workload({"name": "azure_conv", "model": "shipped:azure_conv"})
ALIKE = from_lengths([400] * 50, [40] * 50)
EXPECTED = Speeds(np.ones(1), np.ones(1))
OVERHEAD_MS = 10.0


def pod(engine: EngineName = "vllm", gpu: str = "h100", **given: object) -> LaneService:
    profile = catalog.gpus((gpu,))[gpu]
    told = service_settings(engine, profile, **given)
    described = StepModel(MODEL, profile, told)
    capacity = told.memory(MODEL, profile).kv_capacity_tokens
    return LaneService(described, OperatorStepTimes(described, shipped_factors()), capacity)


def limit(latency: Any, statistic: Any, limit_ms: float) -> Limit:
    return Limit(latency=latency, statistic=statistic, limit_ms=limit_ms)


def slower(k: float) -> Speeds:
    return Speeds(np.array([k]), np.ones(1))


LIMITS = {
    "itl": limit("itl_ms", "p50", 20),
    "tpot": limit("tpot_ms", "p95", 30),
    "ttft": limit("ttft_ms", "p95", 200),
    "nttft": limit("nttft_ms", "p50", 0.2),
    "e2e": limit("e2e_ms", "mean", 4000),
}


@pytest.fixture(scope="module")
def curve() -> Curve:
    (found,) = curves([pod()], Traffic(CONVERSATIONS), 0, OVERHEAD_MS)
    return found


@pytest.fixture(scope="module")
def loop() -> Curve:
    (found,) = curves([pod()], Traffic(CONVERSATIONS, think_time_s=0.0), 0, OVERHEAD_MS)
    return found


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_within_a_limit_comes_just_to_it(curve: Curve, loop: Curve, name: str) -> None:
    speeds = Speeds(np.array([0.7, 1.0, 1.3]), np.array([1.2, 1.0, 0.8]))
    for of, think_time_s in ((curve, None), (curve, 5.0), (loop, 0.0)):
        loads = of.capacity([LIMITS[name]], 0.0, speeds, think_time_s)
        assert (loads > 0).all()
        for at, load in enumerate(loads.tolist()):
            found = of.figure(LIMITS[name], load, speeds, think_time_s)[at]
            # At the curve's end the pod takes no more, however far the limit.
            at_end = of.figure(LIMITS[name], 1.001 * load, speeds, think_time_s)[at] == inf
            assert found == pytest.approx(LIMITS[name].limit_ms, rel=1e-3) or at_end
            assert found <= LIMITS[name].limit_ms * (1 + 1e-6)


@given(
    strict=st.sampled_from(list(LIMITS.values())),
    factors=st.tuples(st.floats(1.0, 4.0), st.floats(0.3, 3.0), st.floats(1.0, 2.0)),
    think_time_s=st.sampled_from([None, 0.0, 20.0]),
)
def test_a_looser_limit_or_a_faster_pod_never_takes_less(
    curve: Curve, strict: Limit, factors: tuple[float, float, float], think_time_s: float | None
) -> None:
    looser, k, slowed = factors
    loose = strict.model_copy(update={"limit_ms": strict.limit_ms * looser})

    def capacity(asked: list[Limit], speed: float) -> float:
        return float(curve.capacity(asked, 0.0, slower(speed), think_time_s)[0])

    assert capacity([loose], k) >= capacity([strict], k) * (1 - 1e-9)
    assert capacity([strict], k) >= capacity([strict], k * slowed) * (1 - 1e-9)
    both = capacity([strict, LIMITS["itl"]], k)
    assert both == pytest.approx(min(capacity([strict], k), capacity([LIMITS["itl"]], k)))


@pytest.mark.parametrize("k", [0.5, 2.0])
def test_a_pod_k_times_as_slow_takes_what_its_own_simulation_says(curve: Curve, k: float) -> None:
    asked = [each.model_copy(update={"limit_ms": k * each.limit_ms}) for each in LIMITS.values()]
    loads = np.array([curve.capacity([one], 0.0, slower(k))[0] for one in asked])
    # Other requests, more of them, and other times.
    waits = np.random.default_rng(1).exponential(1e3, 6000)
    sent = OpenLanes(np.cumsum(waits) / np.maximum(loads, 1e-3)[:, None])
    slow = replace(pod(), times=pod().times.scaled(k))
    others = CONVERSATIONS.spread(6000, 9).take(np.random.default_rng(9).permutation(6000))
    found = run_lanes([slow], np.zeros(len(asked), dtype=np.int64), sent, others, 0)
    overheads = {
        "ttft_ms": OVERHEAD_MS,
        "e2e_ms": OVERHEAD_MS,
        "nttft_ms": OVERHEAD_MS / curve.mean_input_tokens,
    }
    judged = 0
    for at, (one, load) in enumerate(zip(asked, loads.tolist(), strict=True)):
        if 0 < load < 0.85 * curve.rate_per_s[-1] / k:
            value = found.latencies[one.latency, one.statistic][at] + overheads.get(one.latency, 0.0)
            assert value == pytest.approx(one.limit_ms, rel=0.2), one.label
            judged += 1
    assert judged >= 2


def test_the_first_token_may_take_longer_than_the_rest(curve: Curve) -> None:
    late = Speeds(np.ones(1), np.full(1, 2.0))
    for statistic in ("p50", "p95"):
        one = curve.figure(limit("ttft_ms", statistic, 1), 5.0, EXPECTED)
        two = curve.figure(limit("ttft_ms", statistic, 1), 5.0, late)
        assert two - OVERHEAD_MS == pytest.approx(2 * (one - OVERHEAD_MS), rel=0.01)
    # The whole request gets as much longer as its first token does on average.
    ask = limit("e2e_ms", "p50", 1)
    longer = curve.figure(ask, 5.0, late) - curve.figure(ask, 5.0, EXPECTED)
    first = curve.figure(limit("ttft_ms", "mean", 1), 5.0, EXPECTED) - OVERHEAD_MS
    assert longer == pytest.approx(first, rel=0.05)
    assert curve.figure(LIMITS["itl"], 5.0, late) == curve.figure(LIMITS["itl"], 5.0, EXPECTED)


def test_in_a_closed_loop_users_are_rate_times_time(loop: Curve) -> None:
    users = loop.rate_per_s * (loop.latencies["e2e_ms", "mean"] + OVERHEAD_MS) / 1e3
    assert users[0] == pytest.approx(1.0, rel=0.05)
    for at, count in enumerate(users.tolist()):
        found = loop.figure(limit("itl_ms", "mean", 1), count, EXPECTED, 0.0)
        assert found == pytest.approx(loop.latencies["itl_ms", "mean"][at], rel=0.02)
    # Who thinks leaves room for others.
    asked = [LIMITS["tpot"]]
    assert loop.capacity(asked, 0.0, EXPECTED, 30.0) > 3 * loop.capacity(asked, 0.0, EXPECTED, 0.0)


def test_open_and_closed_loops_agree_on_what_a_rate_costs(curve: Curve, loop: Curve) -> None:
    for rate in (1.0, 5.0, 15.0):
        for name in ("itl", "e2e"):
            ask = limit(LIMITS[name].latency, "mean", 1)
            one, other = (of.figure(ask, rate, EXPECTED)[0] for of in (curve, loop))
            assert one == pytest.approx(other, rel=0.1)


def test_below_and_beyond_the_points(curve: Curve) -> None:
    ask = LIMITS["ttft"]
    idle = curve.figure(ask, 1e-3, EXPECTED)
    assert idle == curve.figure(ask, float(curve.rate_per_s[0]), EXPECTED)
    assert curve.figure(ask, float(2 * curve.rate_per_s[-1]), EXPECTED) == inf
    assert curve.capacity([limit("ttft_ms", "p95", 1.0)], 0.0, EXPECTED) == 0.0
    assert curve.capacity([], 0.0, EXPECTED) == pytest.approx(curve.rate_per_s[-1])
    # Twice as slow, half as much.
    assert curve.capacity([], 0.0, slower(2.0)) == pytest.approx(curve.rate_per_s[-1] / 2)


def test_requests_that_never_fit_count_as_failures() -> None:
    long = from_lengths([400] * 9 + [60_000], [40] * 10)
    small = replace(pod(), kv_capacity_tokens=20_000)
    (found,) = curves([small], Traffic(long), 0)
    assert found.capacity([], 0.05, EXPECTED) == 0.0
    assert found.capacity([], 0.2, EXPECTED) > 0.0
    nothing = replace(pod(), kv_capacity_tokens=100)
    (never,) = curves([nothing], Traffic(ALIKE), 0)
    assert never.capacity([LIMITS["ttft"]], 1.0, EXPECTED) == 0.0


def test_a_pod_s_curve_does_not_depend_on_which_others_there_are() -> None:
    pods = [pod(), pod(gpu="l4"), pod("sglang"), pod("trtllm", max_num_batched_tokens=12_000)]
    together = curves(pods, Traffic(CONVERSATIONS), 3)
    for at in (0, 2):
        (alone,) = curves([pods[at]], Traffic(CONVERSATIONS), 3)
        assert together[at].rate_per_s == pytest.approx(alone.rate_per_s, rel=1e-9)
        for key, values in alone.latencies.items():
            assert together[at].latencies[key] == pytest.approx(values, rel=1e-9), key


def test_less_effort_gives_nearly_the_same(curve: Curve) -> None:
    (quick,) = curves([pod()], Traffic(CONVERSATIONS), 0, OVERHEAD_MS, QUICK)
    assert len(quick.rate_per_s) < len(curve.rate_per_s)
    for asked in LIMITS.values():
        one, other = (of.capacity([asked], 0.0, EXPECTED)[0] for of in (quick, curve))
        assert one == pytest.approx(other, rel=0.12), asked.label


def test_bursts_take_longer_than_even_arrivals() -> None:
    ask = limit("ttft_ms", "p95", 1)
    found = [
        curves([pod()], Traffic(CONVERSATIONS, burstiness=shape), 0)[0].figure(ask, 12.0, EXPECTED)
        for shape in (0.2, 1.0, 5.0)
    ]
    assert found[0] > 1.2 * found[1] > 1.2 * 1.02 * found[2]


def test_a_trace_at_even_times_is_like_no_bursts_and_its_peak_counts() -> None:
    ask = limit("ttft_ms", "p95", 1)
    random = np.sort(np.random.default_rng(0).random(8000)) * 1000.0
    plain = curves([pod()], Traffic(CONVERSATIONS), 0)[0]
    replayed = curves([pod()], Traffic(CONVERSATIONS, timestamps_s=random), 0)[0]
    for rate in (2.0, 8.0):
        one, other = plain.figure(ask, rate, EXPECTED)[0], replayed.figure(ask, rate, EXPECTED)[0]
        assert one == pytest.approx(other, rel=0.1)
    # In one tenth of the time comes half of it.
    peak = np.concatenate([random[:4000] / 1000 * 50, 50 + random[4000:] / 1000 * 950])
    peaked = curves([pod()], Traffic(CONVERSATIONS, timestamps_s=np.sort(peak)), 0)[0]
    asked = [LIMITS["ttft"]]
    assert peaked.capacity(asked, 0.0, EXPECTED) < 0.5 * plain.capacity(asked, 0.0, EXPECTED)


@settings(max_examples=20)
@given(st.integers(1, 3000), st.integers(0, 5))
def test_requests_of_a_table_are_as_many_as_asked_and_lengths_as_they_were(n: int, seed: int) -> None:
    table = Traffic(from_lengths(range(1, 101), range(101, 201))).table(n, seed)
    assert len(table) == n
    assert (table.output_tokens == table.input_tokens + 100).all()
    if n > 400:
        assert table.input_tokens.mean() == pytest.approx(50.5, rel=0.03)


@pytest.mark.parametrize(("room", "think_time_s"), [(12_000, 20.0), (None, 20.0), (None, 90.0)])
def test_users_who_think_are_as_many_as_their_requests_make(room: int | None, think_time_s: float) -> None:
    # However few requests the memory holds: who thinks takes no room.
    of = pod() if room is None else replace(pod(), kv_capacity_tokens=room)
    traffics = Traffic(CONVERSATIONS, think_time_s=think_time_s), Traffic(CONVERSATIONS)
    thinking, requests = (curves([of], one, 0, OVERHEAD_MS, QUICK)[0] for one in traffics)
    promise = [LIMITS["tpot"], LIMITS["e2e"]]
    users = float(thinking.capacity(promise, 0.0, EXPECTED, think_time_s)[0])
    rate = float(requests.capacity(promise, 0.0, EXPECTED)[0])
    e2e_ms = float(requests.figure(limit("e2e_ms", "mean", 1e9), rate, EXPECTED)[0])
    made = rate * (think_time_s + e2e_ms / 1e3)
    # A few users come less at random than very many: there is less of a queue.
    assert 0.88 * made < users < (1.12 if room is None else 1.4) * made


def test_a_percentile_of_gaps_jumps_where_the_long_ones_are_as_many() -> None:
    """4% of gaps are long at one load and 10% at the next: at a sixth of the way 5% are, and p95 is long."""

    def gaps(long_share: float) -> np.ndarray:
        return np.where(1 - long_share < GAP_SHARES, 50.0, 10.0)

    few, many = gaps(0.04), gaps(0.10)
    percentiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    before = _mixed_quantiles(few, many, 0.05, percentiles)
    behind = _mixed_quantiles(few, many, 0.5, percentiles)
    assert before == pytest.approx({"p50": 10.0, "p95": 10.0, "p99": 50.0}, rel=0.01)
    assert behind == pytest.approx({"p50": 10.0, "p95": 50.0, "p99": 50.0}, rel=0.01)


def test_between_points_gaps_are_as_a_simulation_there_has_them() -> None:
    """Where p95 jumps between two of the curve's points, and a straight line would be far off."""
    service, traffic = pod(), Traffic(CONVERSATIONS)
    (quick,) = curves([service], traffic, 42, effort=QUICK)
    p95 = limit("itl_ms", "p95", 1.0)
    rates = np.array([8.0, 10.0, 12.0])
    requests = traffic.table(1500, 3)
    arrivals = OpenLanes(traffic.arrivals_ms(rates, np.full(3, 1500), 3))
    simulated = run_lanes([service], np.zeros(3, dtype=np.int64), arrivals, requests, 3)
    for rate, itl_ms in zip(rates.tolist(), simulated.latencies["itl_ms", "p95"].tolist(), strict=True):
        assert quick.figure(p95, rate, EXPECTED)[0] == pytest.approx(itl_ms, rel=0.2)
