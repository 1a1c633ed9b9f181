"""A server of which nothing is known but its URL, under requests that are all alike."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Run
from tracked import client_here, read

from llmpilot import tracking
from llmpilot.config import Tracking
from llmpilot.dataset.runs import NO_FACTS, collect
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


@pytest.mark.parametrize("task", ["tune", "emulate"])
def test_other_tasks_cannot_do_without_facts(run: Run, task: str) -> None:
    ran = run(f"task={task}", "engine=openai", "deployment=external", "deployment.url=http://127.0.0.1:9")
    assert ran.code == 2
    assert f"task {task} needs a gpu and a model" in ran.err
