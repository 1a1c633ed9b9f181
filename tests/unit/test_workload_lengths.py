"""Lengths around a mean, cached prompts, and users who think."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.config import Load
from llmpilot.engine.sglang import SglangEngine
from llmpilot.engine.tgis import TgisEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import ConfigError
from llmpilot.loadtest import Traffic, open_traffic, run_level
from llmpilot.loadtest.worker_sender import Plan, User
from llmpilot.loadtest.worker_users import ClosedLoop
from llmpilot.workload import ThinkTimes, WorkloadModel, load_workload

GPU = catalog.gpus(["h100"])["h100"]
MODEL = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"]


def lengths(**changes: Any) -> WorkloadModel:
    facts = {"name": "w", "model": "lengths", "input_tokens": 2000, "output_tokens": 300}
    return load_workload(facts | changes)


@given(mean=st.integers(2, 20_000), share=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_lengths_have_the_mean_and_the_spread_that_are_asked_for(mean: int, share: float) -> None:
    model = lengths(input_tokens=mean, input_stdev_tokens=share * mean)
    drawn = model.sample(100_000, seed=3).input_tokens
    rounding = 0.5
    assert abs(model.mean("input_tokens") - mean) <= 0.01 * mean + rounding
    assert abs(drawn.std() - share * mean) <= 0.04 * share * mean + rounding
    assert drawn.min() >= 1


def test_a_deviation_that_is_not_given_is_the_mean_and_none_is_requests_alike() -> None:
    drawn = lengths().sample(100_000, seed=3)
    assert drawn.input_tokens.std() == pytest.approx(2000, rel=0.02)
    assert drawn.output_tokens.std() == pytest.approx(300, rel=0.02)
    assert abs(np.corrcoef(drawn.input_tokens, drawn.output_tokens)[0, 1]) < 0.02
    assert set(drawn.batch_size) == {1}
    assert lengths().content_hash == lengths(input_stdev_tokens=2000).content_hash
    alike = lengths(input_stdev_tokens=0, output_stdev_tokens=0).sample(1000, seed=3)
    assert set(alike.input_tokens) == {2000}
    assert set(alike.output_tokens) == {300}
    assert set(lengths(output_tokens=1).sample(1000, seed=3).output_tokens) == {1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_tokens": None}, ["workload.input_tokens is missing", "workload=lengths"]),
        ({"model": "fixed", "input_stdev_tokens": 5}, ["workload.input_stdev_tokens=5", "workload=lengths"]),
        ({"model": "shipped:paper"}, ["workload.input_tokens=2000", "workload=fixed", "workload=lengths"]),
        ({"input_stdev_tokens": -1}, ["workload.input_stdev_tokens", "-1"]),
        ({"input_stdev_tokens": 6001}, ["workload.input_stdev_tokens=6001", "at most 6000"]),
        ({"output_tokens": 1, "output_stdev_tokens": 1}, ["workload.output_tokens=1", "at most 0"]),
        ({"cached_share": 1.5}, ["workload.cached_share", "1.5"]),
    ],
)
def test_impossible_lengths_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        lengths(**changes)
    for word in words:
        assert word in str(error.value)


# --- what is cached -----------------------------------------------------------------------------------------


def test_any_workload_may_be_cached_and_draws_the_same_requests() -> None:
    facts = {"name": "paper", "model": "shipped:paper"}
    cached = load_workload(facts | {"cached_share": 0.5})
    assert cached.cached_share == 0.5
    assert load_workload(facts).cached_share is None
    assert cached.content_hash == load_workload(facts).content_hash


def test_engines_are_told_what_is_cached_once() -> None:
    told = VllmEngine().with_cached_share(0.5)
    assert (told.settings(GPU).prefix_hit_share, told.settings(GPU).prefix_caching) == (0.5, True)
    assert VllmEngine().with_cached_share(None) == VllmEngine() == VllmEngine().with_cached_share(0.0)
    assert SglangEngine().with_cached_share(0.5).settings(GPU).prefix_hit_share == 0.5
    same = SglangEngine(prefix_hit_share=0.5, enable_prefix_caching=True)
    assert same.with_cached_share(0.5) == same == same.with_cached_share(None)
    for share in (0.0, 0.4):
        with pytest.raises(ConfigError, match=rf"cached_share={share:g} engine.prefix_hit_share=0.5"):
            same.with_cached_share(share)
    assert TgisEngine().with_cached_share(0.0) == TgisEngine()
    with pytest.raises(ConfigError, match="engine=tgis is simulated without a prefix cache"):
        TgisEngine().with_cached_share(0.5)


# --- who thinks ---------------------------------------------------------------------------------------------


def thinking(think_time_s: float, users: int = 60, seed: int = 7) -> Traffic:
    load = {"arrival": "closed", "users": [users], "duration_s": 600, "warmup_s": 60}
    alike = load_workload({"name": "w", "model": "fixed", "input_tokens": 200, "output_tokens": 50})
    return open_traffic(Load.model_validate(load | {"think_time_s": think_time_s}), alike, seed)


def test_think_times_are_exponential_and_the_same_whoever_asks() -> None:
    times = ThinkTimes(20.0, 7)
    late = ThinkTimes(20.0, 7).pause_s(9_999)
    pauses = np.array([times.pause_s(number) for number in range(10_000)])
    assert pauses[-1] == late
    assert pauses.mean() == pytest.approx(20, rel=0.03)
    assert pauses.std() == pytest.approx(20, rel=0.05)
    assert ThinkTimes(20.0, 8).pause_s(0) != pauses[0]


def test_users_who_think_send_as_many_requests_as_the_response_time_law_says() -> None:
    service = VllmEngine().service(MODEL, GPU, 100_000)
    records = run_level(service, thinking(10.0), 60)
    e2e_s = float((records.done_us - records.sent_us)[records.failure == ""].mean()) / 1e6
    start, end = records.window_us
    sent = ((records.sent_us >= start) & (records.sent_us < end)).sum()
    # Users = rate x (think time + response time); of 3,500 requests the count is known to 2%.
    assert sent / 600 * (10.0 + e2e_s) == pytest.approx(60, rel=0.06)
    assert np.all(np.diff(records.sent_us) >= 0)
    again = run_level(service, thinking(10.0), 60)
    assert np.array_equal(again.sent_us, records.sent_us)


def test_a_moment_of_thought_is_as_good_as_none() -> None:
    service = VllmEngine().service(MODEL, GPU, 100_000)
    at_once, nearly = (run_level(service, thinking(seconds, users=1), 1) for seconds in (0.0, 1e-6))
    assert len(nearly.sent_us) == pytest.approx(len(at_once.sent_us), rel=0.02)


def test_users_who_think_longer_than_the_level_lasts_send_nothing() -> None:
    records = run_level(VllmEngine().service(MODEL, GPU, 100_000), thinking(1e6, users=2), 2)
    assert len(records.sent_us) == 0


def test_only_closed_loops_think() -> None:
    with pytest.raises(ValueError, match=r"load.think_time_s=5 .*load=closed_loop"):
        Load(arrival="poisson", rates_per_s=[1], think_time_s=5)


@pytest.mark.parametrize("think_time_s", [0.0, 20.0])
def test_users_of_real_services_begin_within_the_ramp_or_when_they_have_thought(think_time_s: float) -> None:
    times = ThinkTimes(think_time_s, 7) if think_time_s else None
    begun_ns: list[int] = []
    loop = object.__new__(ClosedLoop)
    loop.lanes, loop.users, loop._ramp_ns = 4, [User(lane) for lane in range(1, 4)], 100
    loop.plan, loop.thinking = Plan(1_000, 10_000, 20_000), times
    loop.at = lambda when_ns, _: begun_ns.append(when_ns)
    for user in loop.users:
        user.number += loop.lanes  # as its first request is written before the level begins
    loop.start()
    waited_ns = [25, 50, 75] if times is None else [round(times.pause_s(n) * 1e9) for n in (1, 2, 3)]
    assert begun_ns == [1_000 + wait_ns for wait_ns in waited_ns]
