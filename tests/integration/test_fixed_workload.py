"""A server of which nothing is known but its URL, under requests that are all alike."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Run
from tracked import client_here, read, runs

from llmpilot import tracking
from llmpilot.config import Tracking
from llmpilot.dataset.runs import NO_FACTS, THINKING, collect
from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.workload import load_workload

ALIKE = ("workload=fixed", "workload.input_tokens=64", "workload.output_tokens=16")
SIMULATED = ("+gpu=a100", "+model=starcoder")


def test_every_request_is_alike() -> None:
    workload = load_workload({"name": "w", "model": "fixed", "input_tokens": 64, "output_tokens": 16})
    drawn = workload.stream(7).take(1000)
    assert set(drawn.input_tokens) == {64}
    assert set(drawn.output_tokens) == {16}
    assert set(drawn.batch_size) == {1}
    assert set(drawn.greedy) == {1}
    assert workload.heaviest_weight == 80


def test_a_server_is_measured_without_facts_of_gpu_or_llm(run: Run) -> None:
    with in_process(example_service(), Options(fixed=FixedTiming(ttft_ms=20, itl_ms=5))) as emulator:
        ran = run(
            "engine=openai", "deployment=external", f"deployment.url={emulator.url}", *ALIKE,
            "load.users=[1,4]", "load.duration_s=3", "load.warmup_s=0.5", "result_file=r.json",
        )  # fmt: skip
    assert ran.code == 0, ran.err
    result = read("r.json")
    nothing = ("gpu", "count", "cost_per_hour", "cost_per_million_output_tokens")
    assert [result[key] for key in nothing] == [None] * 4
    assert result["workload"] == "fixed_64_16"
    assert "$" not in ran.out
    assert all(level["requests_ok"] > 0 and not level["failures"] for level in result["levels"])

    client = client_here()
    logged = client.get_run(result["run_id"])
    assert logged.data.params["model.name"] == result["model"]
    assert not [key for key in logged.data.params if key.startswith("gpu.")]
    assert "cost_per_hour" not in logged.data.metrics
    folder = Path(client.download_artifacts(result["run_id"], ""))
    assert (folder / "report.html").stat().st_size > 0
    assert (folder / "plots" / "latency_over_throughput.png").stat().st_size > 0
    requests = pq.read_table(folder / "requests.parquet")
    assert set(requests["input_tokens"].to_pylist()) == {64}
    assert set(requests["output_tokens"].to_pylist()) == {16}

    # Had it been no emulator, there would still be nothing for predictors to learn from.
    client.set_tag(result["run_id"], tracking.TAG_MEASUREMENT, "measured")
    found = collect(Tracking(uri="sqlite:///mlflow.db"))
    assert len(found.dataset) == 0
    assert found.left_out[NO_FACTS] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("workload=fixed", "workload.output_tokens=8"), "workload.input_tokens is missing"),
        (("workload=fixed", "workload.input_tokens=8"), "workload.output_tokens is missing"),
        (("workload=fixed", "workload.input_tokens=0", "workload.output_tokens=8"), "greater than 0"),
        (("+workload.input_tokens=64",), "for requests that are all alike: workload=fixed"),
    ],
)
def test_lengths_that_are_missing_or_too_many(run: Run, wrong: tuple[str, ...], said: str) -> None:
    ran = run(*SIMULATED, *wrong)
    assert ran.code == 2
    assert said in ran.err


LENGTHS = ("workload=lengths", "workload.input_tokens=800", "workload.output_tokens=40")
SHORT = ("tuner=none", "load.users=[8]", "load.duration_s=20", "load.warmup_s=2", "result_file=r.json")


def test_means_cached_shares_and_thinking_change_what_is_simulated(run: Run) -> None:
    facts = ("+gpu=a100", "+model=llama_3_1_8b", *LENGTHS, *SHORT)
    levels = []
    for more in ((), ("workload.cached_share=0.8",), ("load.think_time_s=5",)):
        ran = run(*facts, *more)
        assert ran.code == 0, ran.err
        (level,) = read("r.json")["levels"]
        levels.append(level)
    plain, cached, thinking = levels
    assert plain["input_tok_s"] / plain["requests_per_s"] == pytest.approx(800, rel=0.25)
    assert cached["ttft_ms"]["mean"] < 0.8 * plain["ttft_ms"]["mean"]
    assert thinking["concurrency_mean"] < 0.5 * plain["concurrency_mean"]
    assert read("r.json")["workload"] == "lengths_800_40"
    params = [run.data.params for run in runs()]
    assert {p.get("workload.cached_share") for p in params} == {None, "0.8"}
    assert {p["engine.prefix_hit_share"] for p in params} == {"0.0", "0.8"}
    assert {p["load.think_time_s"] for p in params} == {"0.0", "5.0"}

    # Users who think are no concurrency: neither table has them.
    found = collect(Tracking(uri="sqlite:///mlflow.db"), simulated=True)
    assert (len(found.dataset), found.left_out[THINKING]) == (2, 1)
    rows = found.measurements.table
    assert set(rows["length_kind"]) == {"mean"}
    assert set(rows["input_tokens"]) == {800}
    assert sorted(rows["prefix_hit_share"]) == [0.0, 0.8]


def test_what_real_servers_cache_cannot_be_told_them(run: Run) -> None:
    there = ("engine=openai", "deployment=external", "deployment.url=http://127.0.0.1:9")
    for place in (there, (*SIMULATED, "deployment=process")):
        ran = run(*place, *ALIKE, "workload.cached_share=0.5")
        assert ran.code == 2
        assert "workload.cached_share is for simulated services" in ran.err
    told = ("engine.enable_prefix_caching=true", "engine.prefix_hit_share=0.4")
    ran = run(*SIMULATED, *ALIKE, "engine=sglang", "workload.cached_share=0.5", *told)
    assert ran.code == 2
    assert "different shares" in ran.err


@pytest.mark.parametrize("task", ["tune", "emulate"])
def test_other_tasks_cannot_do_without_facts(run: Run, task: str) -> None:
    ran = run(f"task={task}", "engine=openai", "deployment=external", "deployment.url=http://127.0.0.1:9")
    assert ran.code == 2
    assert f"task {task} needs a gpu and a model" in ran.err
