"""task=tune of an engine that can be told more than its weight: tokens of a step, requests that run."""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from tracked import client_here, read

from llmpilot import catalog
from llmpilot.config import Load
from llmpilot.engine.vllm import VllmEngine
from llmpilot.loadtest import Traffic, run_level
from llmpilot.tasks import tune_steps
from llmpilot.workload import fit, from_lengths

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
    *("load.duration_s=10", "load.warmup_s=1", "sla.percentile=95", "sla.nttft_ms=null"),
    *("tuner.tolerance=0.3", "tuner.repeats=1"),
)


def itl_p95(tokens: int) -> float:
    """Return what steps of so many tokens make of the gaps under that load [ms]."""
    model, gpu = catalog.models()["llama_3_1_8b"], catalog.gpus()["a100_80gb"]
    service = VllmEngine(max_num_batched_tokens=tokens).service(model, gpu, 100_000)
    load = Load(arrival="closed", users=[16], duration_s=10, warmup_s=1)
    rows = from_lengths(np.full(20_000, 2000), np.full(20_000, 200))
    records = run_level(service, Traffic(load, fit(lambda: [rows]), 1, rows), 16)
    return float(np.percentile(records.gap_us, 95)) / 1e3


def test_steps_are_made_as_long_as_the_sla_asks(run: Run, workdir: Path) -> None:
    # Whoever decodes beside a whole prompt of 2,000 tokens waits for it; beside 256 of them, not so long.
    short, long = itl_p95(256), itl_p95(2048)
    assert long > 1.5 * short
    tune = (*TUNE, f"sla.itl_ms={sqrt(short * long):.3f}", "tuner.step_trials=8")
    ran = run(*tune, "result_file=r.json")
    assert ran.code == 0, ran.err
    result = read("r.json")
    steps = result["steps"]
    assert len(steps["trials"]) == 8
    first = steps["trials"][0]
    assert (first["max_num_batched_tokens"], first["max_num_seqs"]) == (2048, 256), "vLLM's own come first"
    assert first["value"] == steps["value_of_defaults"]
    assert steps["value"] > steps["value_of_defaults"]
    assert result["settings"]["engine.max_num_batched_tokens"] != 2048
    assert result["use"] == " ".join(f"{key}={value}" for key, value in result["settings"].items())
    assert f"to use what was found: {result['use']}" in ran.out
    runs = [
        client_here().get_run(trial.info.run_id)
        for trial in client_here().search_runs([client_here().get_run(result["run_id"]).info.experiment_id])
    ]
    assert sum(run.data.params.get("question") == "steps" for run in runs) == 8

    # The same command goes on: nothing is measured again, and what was found serves.
    again = run(*tune, "result_file=again.json")
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
    quick = (
        "tuner.tolerance=0.5",
        "tuner.trials=0",
        "tuner.repeats=1",
        "tuner.users=4",
        "tuner.corner_users=4",
    )
    cell = ("task=tune", "+gpu=t4", "+model=flan_t5_xl", "engine=tgis", "load.duration_s=5")
    assert run(*cell, *quick, "result_file=r.json").code == 0
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
