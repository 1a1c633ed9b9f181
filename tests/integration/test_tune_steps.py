"""task=tune of an engine that can be told more than its weight: tokens of a step, requests that run."""

from pathlib import Path

import pytest
from conftest import Run
from tracked import client_here, read

from llmpilot.tasks import tune_steps

TUNE = (
    *(
        "task=tune",
        "+gpu=a100_80gb",
        "+model=llama_3_1_8b",
        "engine=vllm",
        "tuner.users=16",
        "tuner.trials=0",
    ),
    *("workload=fixed", "workload.input_tokens=2000", "workload.output_tokens=200", "tuner.corner_users=16"),
    *("load.duration_s=10", "load.warmup_s=1", "sla.itl_ms=20", "sla.percentile=95", "sla.ttft_ms=500"),
    *("sla.nttft_ms=null", "tuner.tolerance=0.3", "tuner.repeats=1"),
)


def test_chunks_of_prompts_are_made_as_small_as_the_sla_asks(run: Run, workdir: Path) -> None:
    ran = run(*TUNE, "tuner.step_trials=8", "result_file=r.json")
    assert ran.code == 0, ran.err
    result = read("r.json")
    steps = result["steps"]
    assert len(steps["trials"]) == 8
    first = steps["trials"][0]
    assert (first["max_num_batched_tokens"], first["max_num_seqs"]) == (2048, 256), "vLLM's own come first"
    assert first["value"] == steps["value_of_defaults"]
    # Of 2,000 tokens at once, whoever decodes besides waits 100 ms; of 256, not 20.
    assert steps["value"] > steps["value_of_defaults"]
    assert result["settings"]["engine.max_num_batched_tokens"] < 2048
    assert result["use"] == " ".join(f"{key}={value}" for key, value in result["settings"].items())
    assert f"to use what was found: {result['use']}" in ran.out
    runs = [
        client_here().get_run(trial.info.run_id)
        for trial in client_here().search_runs([client_here().get_run(result["run_id"]).info.experiment_id])
    ]
    assert sum(run.data.params.get("question") == "steps" for run in runs) == 8

    # The same command goes on: nothing is measured again, and what was found serves.
    again = run(*TUNE, "tuner.step_trials=8", "result_file=again.json")
    assert again.code == 0, again.err
    assert "steps:" not in again.out + again.err
    assert read("again.json")["settings"] == result["settings"]
    quick = ("load.users=[4]", "load.duration_s=5", "load.warmup_s=1")
    used = run(*TUNE[1:4], *result["use"].split(), *quick)
    assert used.code == 0, used.err


def test_longer_steps_take_their_memory_from_the_weight(run: Run, workdir: Path) -> None:
    result_of = run(
        *TUNE, "tuner.step_trials=6", "tuner.step_objective=throughput_tok_s", "result_file=r.json"
    )
    assert result_of.code == 0, result_of.err
    result = read("r.json")
    weights = {row["max_num_batched_tokens"]: row["max_batch_weight"] for row in result["steps"]["trials"]}
    found = result["best_max_batch_weight"]
    assert all(weight <= found for weight in weights.values())
    assert result["settings"]["max_batch_weight"] in weights.values()


def test_an_engine_without_such_settings_is_told_its_weight(run: Run, workdir: Path) -> None:
    ran = run(
        *(
            "task=tune",
            "+gpu=t4",
            "+model=flan_t5_xl",
            "engine=tgis",
            "tuner=bisection",
            "tuner.tolerance=0.5",
        ),
        *("load.duration_s=5", "tuner.users=4", "tuner.corner_users=4", "result_file=r.json"),
    )
    assert ran.code == 0, ran.err
    result = read("r.json")
    assert result["steps"] is None
    assert result["use"] == f"max_batch_weight={result['best_max_batch_weight']}"


def test_an_interrupted_search_goes_on(run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, done = tune_steps._measured, list[int]()

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        if len(done) == 2:
            done.append(0)
            raise KeyboardInterrupt
        done.append(0)
        return whole(*arguments)

    monkeypatch.setattr(tune_steps, "_measured", interrupted)
    assert run(*TUNE, "tuner.step_trials=4").code == 130
    assert run(*TUNE, "tuner.step_trials=4", "result_file=r.json").code == 0
    assert len(read("r.json")["steps"]["trials"]) == 4
    assert len(done) == 2 + 1 + 2, "two were kept, and one was measured again"
