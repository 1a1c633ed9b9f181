"""First tokens of simulated services come when clients of real ones see them, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest

from llmpilot import catalog
from llmpilot.config import Limit, Load, Sla
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.engine.sglang import SglangEngine
from llmpilot.engine.tgis import TgisEngine
from llmpilot.engine.trtllm import TrtllmEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.loadtest import Records, open_traffic, run_level
from llmpilot.metrics import summarize
from llmpilot.predict.service.curves import Speeds, Traffic, curves
from llmpilot.predict.service.first_token import as_seen
from llmpilot.predict.service.knowledge import shipped_knowledge
from llmpilot.simulator import SteppedService
from llmpilot.simulator.first_token import FirstToken, shipped_first_token
from llmpilot.simulator.lanes import LaneService
from llmpilot.simulator.service_settings import ENGINE_NAMES, service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.workload import WorkloadModel, load_workload

MODEL = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"]
GPU = catalog.gpus(["h100"])["h100"]
CONVERSATIONS = load_workload({"name": "azure_conv", "model": "shipped:azure_conv"})
ENGINES = (VllmEngine, SglangEngine, TrtllmEngine)
POISSON = {"arrival": "poisson", "rates_per_s": [4.0]}


def alike(input_tokens: int, output_tokens: int) -> WorkloadModel:
    facts = {"name": "w", "model": "fixed", "input_tokens": input_tokens, "output_tokens": output_tokens}
    return load_workload(facts)


def service_of(engine: type[ScheduledEngine] = VllmEngine) -> SteppedService:
    service = engine().service(MODEL, GPU, 300_000)
    assert isinstance(service, SteppedService)
    return service


def measured(
    service: SteppedService, level: float, workload: WorkloadModel = CONVERSATIONS, **load: object
) -> Records:
    given = {"duration_s": 40.0, "warmup_s": 10.0} | load
    return run_level(service, open_traffic(Load.model_validate(given), workload, seed=3), level)


def ttft_ms(records: Records) -> np.ndarray:
    start_us, end_us = records.window_us
    good = (records.failure == "") & (records.sent_us >= start_us) & (records.sent_us < end_us)
    return (records.first_token_us - records.sent_us)[good] / 1e3


@pytest.mark.parametrize("gpu", ["h100", "a100", "b200", "mi300x"])
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_simulation_and_recommendation_take_the_same_numbers(engine: str, gpu: str) -> None:
    profile = catalog.gpus([gpu])[gpu]
    service = StepModel(MODEL, profile, service_settings(engine, profile))
    assert shipped_first_token(service) == shipped_knowledge().first_token(service)
    assert shipped_first_token(service) != FirstToken()


def test_a_simulated_service_has_the_numbers_of_its_engine_and_gpu() -> None:
    service = service_of(SglangEngine)
    expected = shipped_first_token(StepModel(MODEL, GPU, SglangEngine().settings(GPU)))
    assert (service.first_token, service.request_overhead_ms) == (expected, expected.offset_ms)


@pytest.mark.parametrize("engine", ENGINES)
def test_first_tokens_come_as_clients_state_them_and_gaps_stay(engine: type[ScheduledEngine]) -> None:
    service = service_of(engine)
    bare, seen = (measured(one, 4.0, **POISSON) for one in (replace(service, first_token=None), service))
    overhead = service.first_token
    assert overhead is not None
    tpot_ms = summarize(bare, Sla())["tpot_ms"]["mean"]
    expected_ms = overhead.ttft_ms(ttft_ms(bare) - overhead.offset_ms, tpot_ms)
    assert tpot_ms == pytest.approx(summarize(seen, Sla())["tpot_ms"]["mean"])
    for percentile in (50, 95):
        assert np.percentile(ttft_ms(seen), percentile) == pytest.approx(
            np.percentile(expected_ms, percentile), rel=0.03
        )
    assert ttft_ms(seen).mean() > 1.2 * ttft_ms(bare).mean()
    assert np.array_equal(seen.sent_us, bare.sent_us)
    assert np.array_equal(seen.gap_us, bare.gap_us)
    ok = bare.failure == ""
    later_us = (seen.first_token_us - bare.first_token_us)[ok]
    assert np.array_equal((seen.done_us - bare.done_us)[ok], later_us)


@pytest.mark.parametrize("engine", [VllmEngine, SglangEngine])
def test_characterize_and_recommend_say_the_same_ttft(engine: type[ScheduledEngine]) -> None:
    service, described = service_of(engine), StepModel(MODEL, GPU, engine().settings(GPU))
    times = service.step_times
    assert isinstance(times, OperatorStepTimes)
    lane = LaneService(described, times, service.kv_capacity_tokens)
    (curve,) = curves([lane], Traffic(CONVERSATIONS), seed=0)
    curve = as_seen(curve, shipped_knowledge().first_token(described))
    expected = Speeds(np.ones(1), np.ones(1))
    level = summarize(measured(service, 4.0, **POISSON, duration_s=300.0), Sla())
    for statistic in ("p50", "p95"):
        limit = Limit(latency="ttft_ms", statistic=statistic, limit_ms=1.0)
        recommended_ms = curve.figure(limit, 4.0, expected).item()
        assert level["ttft_ms"][statistic] == pytest.approx(recommended_ms, rel=0.08)


def test_alike_requests_one_after_the_other_are_as_late_as_the_formula_says() -> None:
    service = replace(service_of(), request_overhead_ms=7.0, first_token=FirstToken(7.0, 1.5, 4.0))
    bare = replace(service, first_token=None)
    before, seen = (measured(one, 1, alike(500, 50), arrival="closed", users=[1]) for one in (bare, service))
    tpot_ms = summarize(before, Sla())["tpot_ms"]["p50"]
    expected_ms = 7.0 + 1.5 * (np.median(ttft_ms(before)) - 7.0) + 4.0 * tpot_ms
    assert np.median(ttft_ms(seen)) == pytest.approx(expected_ms, abs=0.002)


@pytest.mark.parametrize("overhead", [None, FirstToken(10.0, 0.4, 1.0), FirstToken(10.0, 3.0, 30.0)])
def test_users_of_a_closed_loop_wait_until_they_saw_their_answer(overhead: FirstToken | None) -> None:
    service = service_of() if overhead is None else replace(service_of(), first_token=overhead)
    records = measured(service, 24, arrival="closed", users=[24])
    ok = records.failure == ""
    done_us = np.where(records.done_us >= 0, records.done_us, np.iinfo(np.int64).max)
    # Whoever ends makes room; a rounded end may be a microsecond behind the next start.
    events = np.concatenate([done_us - 1, records.sent_us])
    opens = np.concatenate([-np.ones(len(done_us)), np.ones(len(done_us))])
    assert np.cumsum(opens[np.argsort(events, kind="stable")]).max() <= 24
    assert np.all(np.diff(records.sent_us) >= 0)
    assert np.all(records.sent_us[ok] < records.first_token_us[ok])
    sums = np.add.reduceat(np.append(records.gap_us, 0), records.gap_offsets[:-1])
    sums = np.where(np.diff(records.gap_offsets) > 0, sums, 0)
    assert np.array_equal((records.first_token_us + sums)[ok], records.done_us[ok])


def test_the_time_until_an_answer_is_seen_costs_a_closed_loop_throughput() -> None:
    service = service_of(SglangEngine)
    figures = [
        summarize(measured(one, 8, alike(300, 40), arrival="closed", users=[8]), Sla())
        for one in (service, replace(service, first_token=None))
    ]
    assert figures[0]["requests_per_s"] < 0.9 * figures[1]["requests_per_s"]
    for level in figures:
        assert level["concurrency_mean"] == pytest.approx(8, rel=0.01)


def test_answers_of_one_token_lag_no_further_token() -> None:
    service = service_of(TrtllmEngine)
    overhead = service.first_token
    assert overhead is not None
    bare, seen = (
        ttft_ms(measured(one, 4.0, alike(400, 1), **POISSON))
        for one in (replace(service, first_token=None), service)
    )
    assert seen == pytest.approx(overhead.ttft_ms(bare - overhead.offset_ms, 0.0), abs=0.002)


def test_a_level_without_any_answer_runs() -> None:
    records = measured(service_of(), 2, alike(400_000, 5), arrival="closed", users=[2])
    assert set(records.failure) == {"too_long", "unfinished"} or set(records.failure) == {"too_long"}
    assert (records.first_token_us == -1).all()


def test_requests_that_do_not_end_have_a_first_token_and_no_end() -> None:
    load = {"duration_s": 4.0, "warmup_s": 1.0, "drain_s": 1.0, "arrival": "closed", "users": [4]}
    records = measured(service_of(), 4, alike(400, 20_000), **load)
    assert set(records.failure) == {"unfinished"}
    assert (records.first_token_us > records.sent_us).all()
    assert (records.done_us == -1).all()


def test_services_of_2023_have_nothing_of_it() -> None:
    assert TgisEngine().service(MODEL, GPU, 20_000).first_token is None


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = (measured(service_of(), 16, arrival="closed", users=[16]) for _ in range(2))
    for name in ("sent_us", "first_token_us", "done_us", "gap_us"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
