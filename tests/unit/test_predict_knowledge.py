"""What is known of how fast services are: draws, the user's own levels, kin, and the file that ships."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpilot import catalog
from llmpilot.dataset.measurements import CLOSED, OPEN, Measurements
from llmpilot.dataset.runs import Collected
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.dataset.table import merge
from llmpilot.predict.service.curves import Curve
from llmpilot.predict.service.evidence import Evidence, Known
from llmpilot.predict.service.first_token import as_seen
from llmpilot.predict.service.kin import kind_of
from llmpilot.predict.service.knowledge import Knowledge, shipped_knowledge
from llmpilot.predict.service.learning import fit_knowledge
from llmpilot.predict.service.levels import Level
from llmpilot.predict.service.own_levels import OwnLevel, levels_of, residual_of
from llmpilot.predict.service.simulated import simulated
from llmpilot.simulator.factors import NAMES, SHIPPED, family_of
from llmpilot.simulator.first_token import FirstToken
from llmpilot.simulator.service_scales import (
    BOTH,
    CURVE,
    ENGINE,
    FAMILY,
    GPU,
    LEVEL,
    NARROWER,
    SERVICE,
    service_scale,
)
from llmpilot.simulator.service_settings import EngineName, service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

DRAWS = 400


def service_of(model: str, gpu: str, count: int = 1, engine: EngineName = "vllm") -> StepModel:
    profile = catalog.gpus([gpu])[gpu].model_copy(update={"count": count})
    return StepModel(catalog.models([model])[model], profile, service_settings(engine, profile))


LLAMA, KIN, ELSEWHERE, STRANGER = (
    service_of("llama_3_1_8b", "h100"),
    service_of("llama_3_1_8b", "h100", 2),
    service_of("llama_3_1_8b", "b200"),
    service_of("gemma_3_27b", "h100"),
)


def level_of(service: StepModel, users: float | None = 8.0, rate_per_s: float | None = None) -> Level:
    return Level(
        row=0,
        service=service,
        family=family_of(service.model),
        input_tokens=500.0,
        output_tokens=50.0,
        least_share=1.0,
        users=users,
        rate_per_s=rate_per_s,
        at_once=None,
        n_requests=200,
        client="llmpilot",
    )


def slower(knowledge: Knowledge, level: Level, times: float, first_token: float = 1.0) -> OwnLevel:
    """Return what a service so many times slower than expected would have shown."""
    service = level.service
    steps = OperatorStepTimes(service, knowledge.factors).scaled(times * knowledge.scale(service))
    run = simulated(level, steps, gaps=False)
    tpot_ms = run.figure("tpot", "mean")
    ttft_ms = float(knowledge.first_token(service).ttft_ms(run.figure("ttft", "p50"), tpot_ms))
    return OwnLevel(level, tpot_ms, first_token * ttft_ms)


# --- draws ------------------------------------------------------------------------------------------------


def test_a_services_draws_do_not_depend_on_which_others_are_asked() -> None:
    knowledge = shipped_knowledge()
    (alone,) = knowledge.speeds([KIN], DRAWS, 3)
    _, among, _ = knowledge.speeds([STRANGER, KIN, LLAMA], DRAWS, 3)
    assert np.array_equal(alone.steps, among.steps)
    assert np.array_equal(alone.first_token, among.first_token)


def test_draws_have_the_spread_that_is_stated_about_what_is_expected() -> None:
    knowledge = shipped_knowledge()
    for service, speeds in zip((LLAMA, STRANGER), knowledge.speeds([LLAMA, STRANGER], DRAWS, 0), strict=True):
        logs = np.log(speeds.steps)
        assert logs.mean() == pytest.approx(0.0, abs=1e-9)
        assert logs.std() == pytest.approx(knowledge.spread(service), rel=1e-6)
        assert np.log(speeds.first_token).std() == pytest.approx(
            knowledge.first_token_spreads[service.settings.engine], rel=1e-6
        )


def test_other_seeds_give_other_draws_and_the_same_seed_the_same() -> None:
    knowledge = shipped_knowledge()
    first, again, other = (knowledge.speeds([LLAMA], DRAWS, seed)[0].steps for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_kin_vary_together_and_strangers_hardly() -> None:
    unmeasured = [service_of("gemma_3_27b", "h100", count) for count in (1, 2)]
    speeds = shipped_knowledge().speeds([*unmeasured, service_of("phi_4", "l40s")], 4000, 0)
    alike = np.corrcoef([np.log(one.steps) for one in speeds])
    assert alike[0, 1] > 0.3
    assert abs(alike[0, 2]) < 0.25


def test_an_llm_that_nobody_measured_is_expected_as_factors_say_with_the_full_spread() -> None:
    knowledge = shipped_knowledge()
    assert knowledge.scale(STRANGER) == 1.0
    total = FAMILY + ENGINE + GPU + BOTH + SERVICE + CURVE + LEVEL
    factors = knowledge.slopes(STRANGER) @ knowledge.covariance @ knowledge.slopes(STRANGER)
    assert knowledge.spread(STRANGER) == pytest.approx(NARROWER * np.sqrt(total + factors))
    assert knowledge.spread(LLAMA) < knowledge.spread(STRANGER)


def test_simulation_and_recommendation_expect_the_same() -> None:
    knowledge = shipped_knowledge()
    for service in (LLAMA, KIN, ELSEWHERE, STRANGER):
        assert np.log(knowledge.scale(service)) == pytest.approx(service_scale(service)[0])


def test_a_gpu_type_known_by_its_datasheet_only_is_less_sure() -> None:
    knowledge = shipped_knowledge()
    assert knowledge.spread(service_of("gemma_3_27b", "mi300x")) > 1.2 * knowledge.spread(STRANGER)


def test_slopes_are_shares_of_the_step() -> None:
    slopes = dict(zip(NAMES, shipped_knowledge().slopes(LLAMA), strict=True))
    assert 0.3 < slopes["gemm"] < 1.0
    assert slopes["gemm.blackwell"] == slopes["experts.vllm"] == slopes["gemm.2024"] == 0.0


# --- evidence ---------------------------------------------------------------------------------------------


def test_evidence_conditions_as_normal_distributions_do() -> None:
    known = Known([Evidence("seen", {"a": 1.0, "b": 2.0}, 3.0, 0.5)])
    mean, variance = known.mean_and_variance({"b": 1.0, "c": 1.0})
    assert mean == pytest.approx(2.0 * 3.0 / 5.5)
    assert variance == pytest.approx(2.0 - 4.0 / 5.5)
    drawn = np.array([known.draws(one, 20_000, 0) for one in ({"b": 1.0, "c": 1.0}, {"b": 1.0}, {"a": 1.0})])
    expected = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    explained = np.outer([2.0, 2.0, 1.0], [2.0, 2.0, 1.0]) / 5.5
    assert np.cov(drawn) == pytest.approx(expected - explained, abs=0.03)


def test_without_evidence_the_prior_is_left() -> None:
    known = Known([])
    assert known.mean_and_variance({"a": 3.0, "b": 4.0}) == (0.0, 25.0)
    assert known.draws({"a": 3.0, "b": 4.0}, DRAWS, 0).std() == pytest.approx(5.0)


# --- the user's own levels --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditioned() -> Knowledge:
    knowledge = shipped_knowledge()
    return knowledge.conditioned_on([slower(knowledge, level_of(LLAMA), 1.3, 1.5)])


def test_an_own_level_moves_its_service_much_and_its_kin_a_little(conditioned: Knowledge) -> None:
    before = shipped_knowledge()
    rise = [np.log(conditioned.scale(one) / before.scale(one)) for one in (LLAMA, KIN, ELSEWHERE, STRANGER)]
    assert 0.6 * np.log(1.3) < rise[0] < np.log(1.3)
    assert rise[0] > rise[1] > rise[2] > 0.01
    # Of other LLMs it says only what it says of the factors.
    assert 0.0 <= rise[3] < 0.2 * rise[0]


def test_an_own_level_narrows_what_it_is_about(conditioned: Knowledge) -> None:
    before = shipped_knowledge()
    narrower = [conditioned.spread(one) / before.spread(one) for one in (LLAMA, KIN, STRANGER)]
    assert narrower[0] < 0.75 < narrower[1] < 1.0
    assert 0.97 < narrower[2] <= 1.0


def test_an_own_level_moves_first_tokens_likewise(conditioned: Knowledge) -> None:
    own, kin, other_engine = conditioned.speeds(
        [LLAMA, KIN, service_of("llama_3_1_8b", "h100", 1, "sglang")], DRAWS, 0
    )
    assert 1.2 < np.median(own.first_token) < 1.5
    assert 1.0 < np.median(kin.first_token) < np.median(own.first_token)
    assert np.median(other_engine.first_token) == pytest.approx(1.0, abs=0.01)


def test_several_levels_say_more_than_one(conditioned: Knowledge) -> None:
    before = shipped_knowledge()
    levels = [slower(before, level_of(LLAMA, users), 1.3) for users in (2.0, 8.0, 32.0)]
    three = before.conditioned_on(levels)
    assert conditioned.scale(LLAMA) < three.scale(LLAMA) < 1.3 * before.scale(LLAMA)
    assert three.spread(LLAMA) < conditioned.spread(LLAMA)
    assert "3 levels of your own" in three.kin(LLAMA).words


def test_a_level_as_expected_moves_nothing_and_narrows() -> None:
    before = shipped_knowledge()
    after = before.conditioned_on([slower(before, level_of(LLAMA), 1.0)])
    assert after.scale(LLAMA) == pytest.approx(before.scale(LLAMA), rel=1e-3)
    assert after.spread(LLAMA) < before.spread(LLAMA)


def test_an_open_loop_tells_the_steps_behind_the_pile() -> None:
    """Near its limit, latencies rise faster than steps: the residual is that of the steps."""
    knowledge = shipped_knowledge()
    level = level_of(LLAMA, users=None, rate_per_s=20.0)
    own = slower(knowledge, level, 1.2)
    expected = simulated(
        level, OperatorStepTimes(LLAMA, knowledge.factors).scaled(knowledge.scale(LLAMA)), gaps=False
    )
    assert own.tpot_ms > 1.25 * expected.figure("tpot", "mean")
    assert residual_of(knowledge, own).steps == pytest.approx(np.log(1.2 * knowledge.scale(LLAMA)), abs=0.02)


def test_own_levels_on_a_datasheets_gpu_say_something_of_other_llms_there() -> None:
    knowledge = shipped_knowledge()
    level = level_of(service_of("llama_3_1_8b", "mi300x"))
    after = knowledge.conditioned_on([slower(knowledge, level, 1.3)])
    assert after.scale(service_of("gemma_3_27b", "mi300x")) > 1.05
    assert after.scale(STRANGER) < 1.05


def collected(changes: Sequence[dict[str, Any]], facts: Sequence[tuple[str, StepModel]]) -> Collected:
    row = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "h100",
        "n_gpus": 1,
        "tp": 1,
        "engine": "vllm",
        "load_kind": CLOSED,
        "concurrency": 8,
        "length_kind": "workload",
        "throughput_req_s": 2.0,
        "throughput_out_tok_s": 400.0,
        "throughput_total_tok_s": 2400.0,
        "tpot_ms_mean": 12.0,
        "ttft_ms_p50": 90.0,
        "n_requests": 300,
        "measurement": "measured",
        "run_id": "a",
    }
    table = Measurements(pd.DataFrame([row | change for change in changes]).astype(object))
    return Collected(merge(), table, {run: (one.model, one.gpu) for run, one in facts})


def test_own_runs_become_levels_of_the_services_that_they_ran() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"max_num_seqs": 64, "input_tokens": 700, "output_tokens": 70, "length_kind": "fixed"},
        {"load_kind": OPEN, "concurrency": None, "request_rate": 3.0},
        {"engine": "tgi"},
        {"measurement": "simulated"},
        {"tpot_ms_mean": None},
        {"throughput_req_s": None},
        {"run_id": "unknown"},
    ]
    first, second, third = levels_of(collected(changes, [("a", LLAMA)]))
    assert first.level.service == LLAMA
    assert (first.tpot_ms, first.ttft_ms, first.level.users) == (12.0, 90.0, 8.0)
    assert (first.level.input_tokens, first.level.output_tokens, first.level.wide) == (1000.0, 200.0, True)
    assert second.level.service.settings.max_num_seqs == 64
    assert (second.level.input_tokens, second.level.output_tokens, second.level.wide) == (700.0, 70.0, False)
    assert (third.level.users, third.level.rate_per_s) == (None, 3.0)


def test_own_runs_condition() -> None:
    found = levels_of(collected([{"tpot_ms_mean": 20.0}], [("a", LLAMA)]))
    assert shipped_knowledge().conditioned_on(found).scale(LLAMA) > 1.2


def test_own_facts_are_of_one_llm(conditioned: Knowledge) -> None:
    assert conditioned.own_facts(KIN.model) == {"rows": 1, "profiles": ["1 x H100"]}
    assert conditioned.own_facts(STRANGER.model) == {"rows": 0, "profiles": []}


# --- first tokens as clients see them ---------------------------------------------------------------------


def test_first_tokens_as_seen_make_the_end_as_much_later() -> None:
    statistics = {("ttft_ms", "mean"): 20.0, ("ttft_ms", "p95"): 40.0, ("nttft_ms", "p50"): 0.2}
    statistics |= {("tpot_ms", "mean"): 5.0, ("itl_ms", "p95"): 6.0, ("e2e_ms", "p95"): 1000.0}
    latencies = {key: np.array([value, 2 * value]) for key, value in statistics.items()}
    curve = Curve(np.ones(2), np.ones(2), latencies, np.zeros(2), 10.0, 100.0)
    seen = as_seen(curve, FirstToken(offset_ms=7.0, scale=1.5, lag_tokens=4.0))
    assert seen.overhead_ms == 7.0
    later = {("ttft_ms", "mean"): 50.0, ("ttft_ms", "p95"): 80.0, ("nttft_ms", "p50"): 0.5}
    later |= {("tpot_ms", "mean"): 5.0, ("itl_ms", "p95"): 6.0, ("e2e_ms", "p95"): 1030.0}
    assert {key: values.tolist() for key, values in seen.latencies.items()} == {
        key: pytest.approx([value, 2 * value]) for key, value in later.items()
    }


# --- kin --------------------------------------------------------------------------------------------------


def test_kin_says_what_a_prediction_rests_on() -> None:
    knowledge = shipped_knowledge()
    measured = service_of("minimax_m2_5", "h200", 4)
    found = [
        knowledge.kin(one) for one in (measured, KIN, STRANGER, service_of("deepseek_v4_flash", "h200", 8))
    ]
    assert [one.case for one in found] == ["service", "configuration", "model", "kind"]
    assert [one.trust for one in found] == ["high", "medium", "medium", "low"]
    assert "other configurations of this LLM were measured" in found[1].words
    assert "LLMs of its kind (dense) were" in found[2].words
    assert "nor was any other of its kind (compressed attention)" in found[3].words
    errors = [one.tpot_error for one in found]
    assert errors == sorted(errors)
    assert errors[2] == knowledge.errors["model"].tpot
    assert not any(one.remarks for one in found)


def test_gpu_types_that_nobody_measured_on_and_longer_requests_are_remarked() -> None:
    knowledge = shipped_knowledge()
    tables, sheet = (knowledge.kin(service_of("gemma_3_27b", gpu)) for gpu in ("l40s", "mi300x"))
    assert tables.remarks == ("no service was measured on L40S, only kernels of its chip",)
    assert (tables.trust, sheet.trust) == ("medium", "low")
    assert "by its datasheet only" in sheet.remarks[0]
    assert tables.tpot_error == max(knowledge.errors[case].tpot for case in ("model", "gpu"))
    longest = knowledge.covered.input_tokens
    assert knowledge.kin(KIN, longest, 100.0).remarks == ()
    beyond = knowledge.kin(KIN, 2 * longest, 100.0)
    assert beyond.trust == "low"
    assert "prompts of" in beyond.remarks[0]


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("llama_3_1_8b", "dense"),
        ("gpt_oss_120b", "mixture of experts"),
        ("deepseek_v3", "latent attention"),
        ("qwen3_5_27b", "linear attention"),
        ("nemotron_h_8b", "state-space layers"),
        ("deepseek_v4_flash", "compressed attention"),
    ],
)
def test_kinds_of_llms(model: str, kind: str) -> None:
    assert kind_of(catalog.models([model])[model]) == kind


# --- files and fits ---------------------------------------------------------------------------------------


def test_knowledge_is_the_same_after_json(conditioned: Knowledge) -> None:
    again = Knowledge.from_dict(json.loads(json.dumps(conditioned.to_dict())))
    assert again.content_hash == conditioned.content_hash != shipped_knowledge().content_hash
    services = [LLAMA, STRANGER]
    for one, other in zip(again.speeds(services, 50, 0), conditioned.speeds(services, 50, 0), strict=True):
        assert one.steps == pytest.approx(other.steps)
        assert one.first_token == pytest.approx(other.first_token)


def test_what_ships_is_small_and_names_the_rows_it_was_fitted_to() -> None:
    assert SHIPPED.stat().st_size < 200_000
    shipped = shipped_measurements()
    today = shipped.closed_loop_today() & ~shipped.in_doubt()
    origin = shipped_knowledge().origin
    assert origin.rows <= today.sum()
    assert len(origin.rows_hash) == 64


def some_rows(*models: str) -> Measurements:
    shipped = shipped_measurements()
    return shipped.select(shipped.table["model"].isin(models) & shipped.closed_loop_today())


def test_a_fit_to_some_rows_knows_these_and_says_what_it_does() -> None:
    said: list[str] = []
    rows = some_rows("Qwen/Qwen3-8B", "Qwen/Qwen3.5-9B")
    knowledge = fit_knowledge(rows, {}, said.append)
    assert knowledge.origin.rows == len(rows)
    assert len(said) > 5
    assert set(knowledge.covered.kinds.values()) <= {"dense", "linear attention"}
    assert knowledge.content_hash != shipped_knowledge().content_hash
    assert {one.place.family for one in knowledge.scales.residuals} == set(knowledge.covered.kinds)


def test_the_hash_of_rows_is_of_their_content_not_their_order() -> None:
    rows = some_rows("Qwen/Qwen3-8B")
    turned = Measurements(rows.table.iloc[::-1])
    assert turned.content_hash == rows.content_hash
    changed = rows.table.copy()
    changed.loc[0, "tpot_ms_mean"] = 1.0
    assert Measurements(changed).content_hash != rows.content_hash
    assert rows.select([True] + [False] * (len(rows) - 1)).content_hash != rows.content_hash


@pytest.mark.slow
def test_what_ships_is_what_the_fit_gives() -> None:
    found = fit_knowledge(shipped_measurements(), {}, lambda text: None).to_dict()
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert found["rows_hash"] == shipped["rows_hash"]
    assert found["factors"] == pytest.approx(shipped["factors"], rel=1e-3)
    for key, residual in shipped["residuals"].items():
        assert found["residuals"][key] == pytest.approx(residual, abs=2e-3)
    for case, errors in shipped["errors"].items():
        assert found["errors"][case] == pytest.approx(errors, abs=2e-3)
