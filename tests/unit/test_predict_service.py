"""The service model fitted to measurements: levels of load, factors, what is near, first tokens, runs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpilot import catalog
from llmpilot.architecture import Experts
from llmpilot.dataset.measurements import AT_ONCE, BATCH, CLOSED, OPEN, Measurements
from llmpilot.predict.service import levels as levels_module
from llmpilot.predict.service.first_token import fit_all, fit_first_token
from llmpilot.predict.service.fitting import Posterior, Table, fit, tabulated
from llmpilot.predict.service.levels import INFERENCE_X, MOST_CHUNKS, ROUNDS, Level, described
from llmpilot.predict.service.nearby import BOTH, ENGINE, FAMILY, GPU, NOISE, SERVICE, nearby, places
from llmpilot.predict.service.simulated import Run, simulated
from llmpilot.simulator.factors import FACTORS, NAMES, priors
from llmpilot.simulator.first_token import MEDIANS, FirstToken, overhead_of
from llmpilot.simulator.steady import ClosedLoads, steady_parts
from llmpilot.simulator.step_model import BatchArrays
from llmpilot.simulator.step_times import OperatorStepTimes

LLAMA, QWEN_EXPERTS, GPT_OSS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-235B-A22B",
    "openai/gpt-oss-120b",
)
ROW = {
    "model": LLAMA,
    "gpu": "h100",
    "n_gpus": 1,
    "engine": "vllm",
    "input_tokens": 1000,
    "output_tokens": 200,
    "load_kind": CLOSED,
    "concurrency": 8,
}


def rows_of(*changes: dict[str, Any]) -> Measurements:
    return Measurements(pd.DataFrame([ROW | change for change in changes]).astype(object))


def level_of(**changes: Any) -> Level:
    found = described(rows_of(changes), {})
    assert found.skipped == [None]
    return found.levels[0]


def reason_of(**changes: Any) -> str:
    found = described(rows_of(changes), {})
    assert not found.levels
    assert found.skipped[0] is not None
    return found.skipped[0]


# --- rows as levels of load -------------------------------------------------------------------------------


def test_rows_keep_their_places_and_services_are_shared() -> None:
    found = described(rows_of({}, {"engine": None}, {"concurrency": 16}, {"engine": "sglang"}), {})
    assert [level.row for level in found.levels] == [0, 2, 3]
    assert found.skipped == [None, "engine not given", None, None]
    first, second, other = found.levels
    assert first.service is second.service is not other.service
    assert (first.users, second.users) == (8.0, 16.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "acme/Nothing-7B"}, "unknown model acme/Nothing-7B"),
        ({"gpu": "abacus"}, "unknown GPU type abacus"),
        ({"engine": "tgis"}, "engine tgis is not simulated from operators"),
        ({"engine": None}, "engine not given"),
        ({"precision_as_stated": "w3a5"}, "unknown precision w3a5"),
        ({"input_tokens": None}, "lengths not given"),
        ({"output_tokens": None}, "lengths not given"),
        ({"concurrency": None}, "load not given"),
        ({"load_kind": None, "concurrency": None}, "load not given"),
        ({"load_kind": OPEN, "concurrency": None}, "load not given"),
        ({"load_kind": BATCH, "concurrency": None}, "load not given"),
        ({"load_kind": "a ramp"}, None),
        ({"load_kind": "a ramp", "concurrency": None}, "load not given"),
        ({"disaggregated": True}, "disaggregated prefill and decode"),
        ({"spec_decode": "yes"}, "speculative decoding"),
        ({"n_gpus": 8, "tp": 4}, "the parallel sizes do not make up the GPUs"),
        ({"n_gpus": 3, "tp": 1, "dp": 2}, "the parallel sizes do not make up the GPUs"),
        ({"n_gpus": 2, "dp": 4}, "the parallel sizes do not make up the GPUs"),
        ({"input_tokens": 200_000}, "requests longer than the LLM's positions"),
        ({"concurrency": 50_000}, f"more than {MOST_CHUNKS:,} prompts or parts of prompts to simulate"),
        (
            {"load_kind": OPEN, "request_rate": 1.0, "n_requests": 10_000_000},
            f"more than {MOST_CHUNKS:,} prompts or parts of prompts to simulate",
        ),
        (
            {"concurrency": 64, "input_tokens": 100_000, "max_num_batched_tokens": 16},
            f"more than {MOST_CHUNKS:,} prompts or parts of prompts to simulate",
        ),
    ],
)
def test_a_row_that_cannot_be_simulated_says_why(changes: dict[str, Any], reason: str | None) -> None:
    found = described(rows_of(changes), {})
    assert found.skipped == [reason]
    assert len(found.levels) == (reason is None)


def test_a_request_of_millions_of_tokens_is_skipped_where_the_llm_has_no_bound() -> None:
    model = catalog.model_of_hf_id(LLAMA)
    assert model is not None
    boundless = {"acme/Endless": model.model_copy(update={"hf_id": "acme/Endless", "max_positions": None})}
    found = described(rows_of({"model": "acme/Endless", "input_tokens": 3_000_000}), boundless)
    assert found.skipped == ["requests longer than 1,000,000 tokens"]


def test_models_that_the_catalogue_lacks_are_given() -> None:
    model = catalog.model_of_hf_id(LLAMA)
    assert model is not None
    found = described(rows_of({"model": "acme/Mine"}), {"acme/Mine": model})
    assert found.skipped == [None]
    assert found.levels[0].service.model.n_layers == model.n_layers


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"n_gpus": 4}, (4, 1, 1, 1)),
        ({"n_gpus": None, "tp": 2, "pp": 2}, (2, 2, 1, 1)),
        ({"n_gpus": 8, "dp": 2}, (4, 1, 2, 1)),
        ({"n_gpus": 8, "tp": 4, "pp": 2}, (4, 2, 1, 1)),
        ({"n_gpus": 8, "ep": 8}, (8, 1, 1, 1)),  # without experts nothing is spread over GPUs
        ({"model": QWEN_EXPERTS, "n_gpus": 8, "ep": 8}, (8, 1, 1, 8)),
        ({"model": QWEN_EXPERTS, "n_gpus": 8, "tp": 1, "dp": 8, "ep": 8}, (1, 1, 8, 8)),
        ({"model": QWEN_EXPERTS, "n_gpus": 8, "tp": 8, "dp": 8, "ep": 8}, (1, 1, 8, 8)),
        ({"model": QWEN_EXPERTS, "n_gpus": 4, "ep": 16}, (4, 1, 1, 4)),
    ],
)
def test_parallel_sizes_make_up_the_gpus(changes: dict[str, Any], sizes: tuple[int, ...]) -> None:
    service = level_of(**changes).service
    found = service.settings
    assert sizes == (
        *(found.tensor_parallel, found.pipeline_parallel, found.data_parallel),
        found.expert_parallel,
    )
    assert service.gpu.count == found.gpus == sizes[0] * sizes[1] * sizes[2]


def test_experts_that_do_not_spread_evenly_are_impossible_settings() -> None:
    reason = reason_of(model=QWEN_EXPERTS, n_gpus=8, ep=3)
    assert reason == "impossible settings: expert_parallel=3 does not divide the service's 8 GPUs"


def test_settings_that_a_row_states_are_the_services() -> None:
    given = {
        "max_num_seqs": 33,
        "max_num_batched_tokens": 1024,
        "prefix_hit_share": 0.5,
        "engine_version": "0.9.1",
    }
    found = level_of(**given).service.settings
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (33, 1024)
    assert (found.prefix_hit_share, found.version) == (0.5, "0.9.1")


@pytest.mark.parametrize(
    ("changes", "mlp", "experts", "kv"),
    [
        ({}, "bf16", None, "bf16"),
        ({"precision": "fp8"}, "fp8", None, "bf16"),
        ({"precision": "fp8", "engine": "trtllm"}, "fp8", None, "fp8"),
        ({"precision": "bf16", "engine": "trtllm"}, "bf16", None, "bf16"),
        ({"precision": "fp8", "engine": "trtllm", "kv_precision": "bf16"}, "fp8", None, "bf16"),
        ({"precision": "fp8", "client": INFERENCE_X, "gpu": "b200"}, "fp8", None, "fp8"),
        ({"precision": "fp8", "client": INFERENCE_X, "gpu": "h100"}, "fp8", None, "bf16"),
        ({"precision": "fp8", "client": INFERENCE_X, "gpu": "b200", "engine": "sglang"}, "fp8", None, "bf16"),
        ({"kv_precision": "fp8"}, "bf16", None, "fp8"),
        ({"model": QWEN_EXPERTS, "precision": "fp8", "n_gpus": 8}, None, "fp8_block", "bf16"),
        ({"model": QWEN_EXPERTS, "precision": "bf16", "n_gpus": 8}, None, "bf16", "bf16"),
        ({"model": GPT_OSS, "precision": "bf16"}, None, "mxfp4", "bf16"),
        ({"model": GPT_OSS, "precision": "fp8"}, None, "mxfp4", "bf16"),
        ({"model": GPT_OSS, "engine": "trtllm"}, None, "mxfp4", "fp8"),
    ],
)
def test_number_formats_follow_the_row_and_the_engine(
    changes: dict[str, Any], mlp: str | None, experts: str | None, kv: str
) -> None:
    model = level_of(**changes).service.model
    assert model.kv_format == kv
    if mlp is not None:
        assert model.formats.mlp == mlp
    if experts is not None:
        assert any(isinstance(kind.feed_forward, Experts) for kind in model.layer_kinds)
        assert model.formats.experts == experts


def test_weights_of_fewer_bits_leave_more_room() -> None:
    whole, half = level_of(), level_of(precision="fp8")
    assert half.service.model.weight_bytes < 0.7 * whole.service.model.weight_bytes
    assert half.kv_capacity_tokens > whole.kv_capacity_tokens


def test_uniform_lengths_have_the_mean_of_their_ends() -> None:
    uniform = level_of(length_kind="uniform", length_min_share=0.8)
    assert uniform.input_tokens == pytest.approx(900.0)
    assert uniform.output_tokens == pytest.approx(180.0)
    assert uniform.longest == pytest.approx(1 / 0.9)
    assert level_of(length_kind="dataset").longest >= 2.0


@pytest.mark.parametrize(
    ("changes", "users", "rate", "at_once", "requests"),
    [
        ({}, 8.0, None, None, (ROUNDS + 2) * 8),
        ({"n_requests": 5}, 8.0, None, None, (ROUNDS + 2) * 8),
        ({"client": INFERENCE_X}, 8.0, None, None, ROUNDS * 8),
        ({"client": INFERENCE_X, "n_requests": 99}, 8.0, None, None, 99),
        ({"client": "nvidia", "input_tokens": 1024, "output_tokens": 8192}, 8.0, None, None, ROUNDS * 8),
        ({"engine": "sglang", "input_tokens": 1024}, 8.0, None, None, ROUNDS * 8),
        ({"engine": "sglang"}, 8.0, None, None, (ROUNDS + 2) * 8),
        (
            {"engine": "sglang", "input_tokens": 1024, "length_min_share": 0.5},
            8.0,
            None,
            None,
            (ROUNDS + 2) * 8,
        ),
        ({"load_kind": OPEN, "request_rate": 3.0, "n_requests": 40}, None, 3.0, None, 40),
        ({"load_kind": None, "concurrency": None, "request_rate": 3.0}, None, 3.0, None, 1000),
        ({"load_kind": BATCH, "concurrency": None, "n_requests": 50}, None, None, 50, 50),
        ({"load_kind": AT_ONCE, "concurrency": 20}, None, None, 20, 20),
    ],
)
def test_each_kind_of_load_has_its_requests(
    changes: dict[str, Any], users: float | None, rate: float | None, at_once: int | None, requests: int
) -> None:
    level = level_of(**changes)
    assert (level.users, level.rate_per_s, level.at_once) == (users, rate, at_once)
    assert level.requests == requests


def test_trtllm_without_chunks_is_set_up_for_its_longest_prompt() -> None:
    level = level_of(engine="trtllm", input_tokens=20_000, concurrency=64)
    assert level.settings.max_num_batched_tokens >= 20_000 + 64
    assert level.service.settings.max_num_batched_tokens < 20_000


def test_a_model_that_does_not_fit_still_holds_its_longest_request() -> None:
    level = level_of(model="meta-llama/Llama-3.1-70B", gpu="h100", n_gpus=1)
    assert level.kv_capacity_tokens >= level.longest_tokens
    assert level.capacity >= 1.0


# --- factors fitted to rows -------------------------------------------------------------------------------

SHAPES = [(128, 128), (1000, 200), (1000, 1000), (8000, 500)]
SERVICES: list[dict[str, Any]] = [
    {},
    {"engine": "sglang"},
    {"engine": "trtllm", "gpu": "b200", "precision": "fp8"},
    {"model": "meta-llama/Llama-3.1-70B", "n_gpus": 4},
    {"model": "meta-llama/Llama-3.1-70B", "n_gpus": 8, "gpu": "b200"},
    {"model": QWEN_EXPERTS, "n_gpus": 8, "gpu": "h200"},
    {"model": QWEN_EXPERTS, "n_gpus": 8, "precision": "fp8", "engine": "trtllm"},
    {"model": GPT_OSS, "n_gpus": 2, "engine": "sglang", "gpu": "b200"},
]


@pytest.fixture(scope="module")
def table() -> Table:
    """Closed-loop levels of eight services: four shapes of requests, one user to many."""
    changes = [
        service | {"input_tokens": given, "output_tokens": out, "concurrency": users}
        for service in SERVICES
        for given, out in SHAPES
        for users in (1, 4, 16, 64, 256)
    ]
    found = described(rows_of(*changes), {})
    assert set(found.skipped) == {None}
    return tabulated(found.levels)


def all_of(table: Table) -> Any:
    return np.arange(len(table.levels))


def middle_and_spreads() -> tuple[Any, Any]:
    return np.log(list(priors().values())), np.array([factor.spread for factor in FACTORS])


@pytest.mark.parametrize("changes", [{}, {"model": QWEN_EXPERTS, "n_gpus": 8, "tp": 4, "dp": 2}])
def test_the_steps_of_one_load_are_those_that_it_has_among_many(changes: dict[str, Any]) -> None:
    service = level_of(**changes).service
    several = [np.array(values) for values in ([128.0, 3000.0], [50.0, 900.0], [4.0, 70.0], [2048.0, 8192.0])]
    among = steady_parts(service, ClosedLoads(*several))
    for at in (0, 1):
        alone = steady_parts(service, ClosedLoads(*(values[at : at + 1] for values in several)))
        for name in ("decode", "mixed", "single"):
            assert getattr(alone, name)[0] == pytest.approx(getattr(among, name)[at])


def test_of_no_rows_the_prior_is_left(table: Table) -> None:
    posterior = fit(table, np.ones(len(table.levels)), all_of(table)[:0])
    assert posterior.factors() == pytest.approx(priors())
    assert posterior.covariance == pytest.approx(np.diag([factor.spread**2 for factor in FACTORS]))


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_finds_the_factors_that_made_the_rows(table: Table, seed: int) -> None:
    """Predictions are those of the truth, and each factor within what its posterior leaves open."""
    middle, spreads = middle_and_spreads()
    truth = middle + spreads * np.random.default_rng(seed).uniform(-1.0, 1.0, len(FACTORS))
    measured = table.tpot_ms(truth)
    posterior = fit(table, measured, all_of(table))
    off = np.abs(np.log(table.tpot_ms(posterior.logs) / measured))
    before = np.abs(np.log(table.tpot_ms(middle) / measured))
    assert np.median(off) < 0.02
    assert np.median(off) <= 0.5 * np.median(before) + 0.003
    open_still = np.sqrt(np.diag(posterior.covariance))
    assert np.all(np.abs(posterior.logs - truth) < 2 * open_still)


def test_what_rows_tell_narrows_the_factors_they_are_made_of(table: Table) -> None:
    middle, spreads = middle_and_spreads()
    posterior = fit(table, table.tpot_ms(middle), all_of(table))
    left = np.sqrt(np.diag(posterior.covariance)) / spreads
    assert np.all(left <= 1.0 + 1e-9)
    assert left[NAMES.index("experts.vllm")] < 0.9
    # No row has states: of these nothing was learned.
    assert left[NAMES.index("recurrent")] == pytest.approx(1.0)
    assert np.all(np.linalg.eigvalsh(posterior.covariance) > 0)
    assert posterior.covariance == pytest.approx(posterior.covariance.T)


def test_a_few_rows_of_a_family_weigh_less_than_many(table: Table) -> None:
    """Llama-8B twice as slow moves the factors further the more of its rows there are."""
    middle, _ = middle_and_spreads()
    measured = table.tpot_ms(middle)
    llama = table.families == level_of().family
    measured[llama] *= 1.3

    def predicted(rows: Any) -> float:
        logs = fit(table, measured, rows).logs
        return float(np.median(table.tpot_ms(logs)[llama] / measured[llama]))

    some = np.concatenate([np.flatnonzero(~llama), np.flatnonzero(llama)[:3]])
    none = np.flatnonzero(~llama)
    assert predicted(none) < predicted(some) < predicted(all_of(table)) < 1.0


def test_one_absurd_row_does_not_carry_the_others_away(table: Table) -> None:
    middle, _ = middle_and_spreads()
    measured = table.tpot_ms(middle)
    measured[7] *= 50.0
    posterior = fit(table, measured, all_of(table))
    off = np.abs(np.log(table.tpot_ms(posterior.logs) / table.tpot_ms(middle)))
    assert np.max(off) < 0.1


# --- what is near ------------------------------------------------------------------------------------------

ALL_VARIANCE = FAMILY + ENGINE + GPU + BOTH + SERVICE + NOISE


def test_an_unknown_family_gets_no_correction_and_all_the_variance() -> None:
    measured = places([level_of(model=QWEN_EXPERTS, n_gpus=8, concurrency=users) for users in (1, 8, 64)])
    mean, variance = nearby(measured, np.array([0.2, 0.3, 0.1])).mean_and_variance(places([level_of()]))
    assert mean == pytest.approx([0.0])
    assert variance == pytest.approx([ALL_VARIANCE])


def test_without_any_measurement_there_is_no_correction() -> None:
    mean, variance = nearby(places([]), np.zeros(0)).mean_and_variance(places([level_of(), level_of()]))
    assert mean == pytest.approx([0.0, 0.0])
    assert variance == pytest.approx([ALL_VARIANCE] * 2)


def test_a_measured_place_is_nearly_reproduced_and_one_far_off_less_so() -> None:
    about = nearby(places([level_of(concurrency=16)]), np.array([0.2]))
    asked = [
        level_of(concurrency=16),
        level_of(concurrency=32),
        level_of(concurrency=256),
        level_of(concurrency=16, gpu="b200"),
        level_of(concurrency=16, gpu="b200", engine="sglang"),
    ]
    mean, variance = about.mean_and_variance(places(asked))
    assert mean[0] == pytest.approx(0.2, rel=0.15)
    assert np.all(np.diff(mean) < 0)
    assert mean[-1] > 0
    assert np.all(np.diff(variance) > 0)
    assert np.all((variance >= NOISE) & (variance < ALL_VARIANCE))


def test_families_say_nothing_of_each_other_whoever_is_measured_together() -> None:
    """The rows of other families may be left out before: what is said of one family stays the same."""
    own = [level_of(concurrency=users) for users in (1, 16)]
    others = [level_of(model=QWEN_EXPERTS, n_gpus=8, concurrency=users) for users in (2, 16)]
    asked = places([level_of(concurrency=4)])
    alone = nearby(places(own), np.array([0.1, 0.2])).mean_and_variance(asked)
    together = nearby(places([*own, *others]), np.array([0.1, 0.2, -0.4, 0.4])).mean_and_variance(asked)
    assert together[0] == pytest.approx(alone[0])
    assert together[1] == pytest.approx(alone[1])


def test_a_wild_error_corrects_no_further_than_a_large_one() -> None:
    measured = places([level_of()])
    wild = nearby(measured, np.array([5.0])).mean_and_variance(measured)[0]
    large = nearby(measured, np.array([0.5])).mean_and_variance(measured)[0]
    assert wild == pytest.approx(large)


# --- first tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [FirstToken(30.0, 1.2, 1.0), FirstToken(8.0, 0.8, 12.0)])
def test_the_three_numbers_of_first_tokens_are_found(truth: FirstToken) -> None:
    rng = np.random.default_rng(1)
    ttft, tpot = np.exp(rng.uniform(1.5, 9.0, 200)), np.exp(rng.uniform(1.0, 4.5, 200))
    found = fit_first_token(ttft, tpot, truth.ttft_ms(ttft, tpot))
    assert found.offset_ms == pytest.approx(truth.offset_ms, rel=0.25)
    assert found.scale == pytest.approx(truth.scale, rel=0.05)
    assert found.lag_tokens == pytest.approx(truth.lag_tokens, rel=0.25)
    assert np.median(np.abs(found.ttft_ms(ttft, tpot) / truth.ttft_ms(ttft, tpot) - 1)) < 0.03


def test_overheads_are_those_of_the_client_or_of_its_engine_or_the_priors() -> None:
    rng = np.random.default_rng(2)
    ttft, tpot = np.exp(rng.uniform(2.0, 8.0, 60)), np.exp(rng.uniform(1.0, 4.0, 60))
    slow, quick = FirstToken(100.0, 1.0, 1.0), FirstToken(5.0, 1.0, 1.0)
    stated = np.where(np.arange(60) < 30, slow.ttft_ms(ttft, tpot), quick.ttft_ms(ttft, tpot))
    stated[0] = np.nan
    keys = [("a", "vllm", "hopper")] * 30 + [("b", "vllm", "hopper")] * 30
    found = fit_all(keys, ttft, tpot, stated)
    assert overhead_of(("a", "vllm", "hopper"), found).offset_ms > 50
    assert overhead_of(("b", "vllm", "hopper"), found).offset_ms < 20
    assert overhead_of(("a", "vllm", "blackwell"), found) == found["a", "vllm", ""]
    assert overhead_of(("c", "vllm", "hopper"), found) == FirstToken(*MEDIANS)


def test_rows_that_state_no_first_token_teach_nothing() -> None:
    numbers = np.array([10.0, 20.0])
    assert fit_all([("a", "vllm", "hopper")] * 2, numbers, numbers, np.array([np.nan, 0.0])) == {}


# --- simulated ---------------------------------------------------------------------------------------------


def run_of(level: Level, *, gaps: bool = True) -> Run:
    return simulated(level, OperatorStepTimes(level.service, priors()), gaps=gaps)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(
    "load",
    [
        {},
        {"client": INFERENCE_X, "length_min_share": 0.8},
        {"load_kind": OPEN, "request_rate": 4.0, "n_requests": 60},
        {"load_kind": AT_ONCE, "n_requests": 50},
        {"length_kind": "dataset", "input_tokens": 220, "output_tokens": 180},
    ],
)
def test_every_request_ends_and_no_time_is_impossible(engine: str, load: dict[str, Any]) -> None:
    level = level_of(engine=engine, **load)
    found = run_of(level)
    judged = level.requests if level.begins_at_once or level.users is None else level.requests - 16
    assert len(found.ttft_ms) == len(found.e2e_ms) == judged
    assert found.failures == 0.0
    assert np.all(found.ttft_ms > 0)
    assert np.all(found.e2e_ms >= found.ttft_ms)
    assert np.all(found.tpot_ms > 0)
    statistics = [found.figure("ttft", name) for name in ("p50", "p90", "p95", "p99")]
    assert statistics == sorted(statistics)
    assert found.figure("ttft", "unspec") == found.figure("ttft", "mean")
    assert found.throughput_total_tok_s > found.throughput_out_tok_s > found.throughput_req_s > 0


def test_without_gaps_everything_else_is_the_same() -> None:
    level = level_of(length_kind="uniform", length_min_share=0.5)
    whole, quick = run_of(level), run_of(level, gaps=False)
    assert len(whole.gap_ms)
    assert not len(quick.gap_ms)
    for latency in ("ttft", "tpot", "e2e"):
        assert np.array_equal(whole.latencies[latency], quick.latencies[latency])
    assert np.isnan(quick.figure("itl", "p99"))


def test_the_first_token_of_a_single_user_is_the_time_of_its_prompts_step() -> None:
    level = level_of(concurrency=1)
    times = OperatorStepTimes(level.service, priors())
    one, prompt = np.ones(1), np.full(1, 1000.0)
    none = np.zeros(1)
    step = level.service.parts(BatchArrays(none, none, prompt, prompt * prompt / 2, one)).sum()
    found = simulated(level, times)
    assert found.ttft_ms == pytest.approx(np.full(len(found.ttft_ms), step), rel=0.1)
    assert np.ptp(found.ttft_ms) < 0.01 * step
    # And throughput is what one request after the other gives.
    assert found.throughput_out_tok_s == pytest.approx(200 / (found.e2e_ms.mean() / 1e3), rel=0.01)


def test_a_start_of_all_users_together_makes_the_mean_first_token_later() -> None:
    steady = level_of(concurrency=64, output_tokens=100)
    start = replace(steady, client=INFERENCE_X)
    assert run_of(start).figure("ttft", "mean") > 1.3 * run_of(steady).figure("ttft", "mean")


def test_an_open_loop_follows_its_rate_until_the_service_is_full() -> None:
    def at(rate: float) -> Run:
        return run_of(level_of(load_kind=OPEN, request_rate=rate, n_requests=300))

    idle, busy, over = at(0.2), at(4.0), at(500.0)
    assert idle.throughput_req_s == pytest.approx(0.2, rel=0.15)
    assert busy.throughput_req_s == pytest.approx(4.0, rel=0.15)
    assert over.throughput_req_s < 250.0
    assert idle.figure("e2e", "mean") < busy.figure("e2e", "mean") < over.figure("e2e", "mean")


def test_scaled_step_times_scale_every_latency() -> None:
    level = level_of(concurrency=4)
    times = OperatorStepTimes(level.service, priors())
    once, twice = simulated(level, times), simulated(level, times.scaled(2.0))
    for latency in ("ttft", "tpot", "e2e"):
        assert twice.figure(latency, "mean") == pytest.approx(2 * once.figure(latency, "mean"), rel=0.01)


def test_a_model_that_hardly_fits_serves_its_many_users_in_turns() -> None:
    """Room for a few requests and a hundred users: much is computed twice, and it comes to an end."""
    level = level_of(
        model="meta-llama/Llama-3.1-70B", concurrency=100, input_tokens=500, output_tokens=1500, n_gpus=1
    )
    assert level.capacity < 0.3 * 100
    found = run_of(level, gaps=False)
    assert found.failures == 0.0
    assert found.figure("ttft", "mean") > 5 * run_of(replace(level, users=1.0)).figure("ttft", "mean")


def test_single_tokens_have_no_time_between_tokens() -> None:
    found = run_of(level_of(output_tokens=1))
    assert np.isnan(found.figure("tpot", "mean"))
    assert found.ttft_ms == pytest.approx(found.e2e_ms)


def test_a_posterior_names_its_factors() -> None:
    posterior = Posterior(np.log(2.0) * np.ones(len(FACTORS)), np.eye(len(FACTORS)))
    assert posterior.factors() == pytest.approx(dict.fromkeys(NAMES, 2.0))


def test_shipped_rows_are_all_within_the_bounds_of_a_run() -> None:
    """The largest published levels are simulated, not skipped."""
    largest = level_of(model=GPT_OSS, n_gpus=8, concurrency=8192, client=INFERENCE_X)
    assert largest.requests == ROUNDS * 8192 < levels_module.MOST_CHUNKS
