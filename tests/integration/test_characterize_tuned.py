"""A characterization whose max batch weight is tuned first, on the simulated service."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from tracked import client_here, interrupted_after, read, runs, stopping_at

from llmpilot import catalog
from llmpilot.engine.tgis import TgisEngine
from llmpilot.tasks import characterize

CELL = ("+gpu=t4", "+model=flan_t5_xl", "engine=tgis")
QUICK = ("load.users=[1,4]", "load.duration_s=10", "load.warmup_s=1", "tuner.users=8", "tuner.tolerance=0.3")
CAPACITY = TgisEngine().memory(catalog.models()["flan_t5_xl"], catalog.gpus()["t4"]).kv_capacity_tokens


def test_the_weight_is_found_first_used_and_logged(run: Run) -> None:
    ran = run(*CELL, *QUICK, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("SIMULATED")
    result = read("r.json")
    assert result["max_batch_weight_from"] == "tuned"
    assert CAPACITY / 1.3 <= result["max_batch_weight"] <= CAPACITY
    assert f"{result['max_batch_weight']:,} tokens, tuned" in ran.out

    (tracked,) = runs("characterize")
    assert tracked.data.params["max_batch_weight"] == str(result["max_batch_weight"])
    assert tracked.data.tags["llmpilot.max_batch_weight_from"] == "tuned"
    assert tracked.data.tags["llmpilot.study"] == result["study"]
    assert tracked.data.tags["llmpilot.tuning_run_id"] == result["tuning_run_id"]
    (study,) = (r for r in runs("tune") if "mlflow.parentRunId" not in r.data.tags)
    assert study.info.run_id == result["tuning_run_id"]
    assert study.info.status == "FINISHED"
    assert study.data.metrics["best_max_batch_weight"] == result["max_batch_weight"]

    trials = len(runs("tune")) - 1
    assert trials > 2
    again = run(*CELL, *QUICK, "load.users=[2]", "result_file=other.json")
    assert again.code == 0, again.err
    assert "found before" in again.out, "another ladder is no other study"
    assert read("other.json")["max_batch_weight"] == result["max_batch_weight"]
    assert read("other.json")["tuning_run_id"] == result["tuning_run_id"]
    assert len(runs("tune")) - 1 == trials
    assert run("task=tune", "tuner=bisection", *CELL, *QUICK, "result_file=t.json").code == 0
    assert read("t.json")["run_id"] == result["tuning_run_id"], "task=tune has the same study"
    assert len(runs("tune")) - 1 == trials


def test_given_default_and_tuners_of_ones_choice(run: Run) -> None:
    assert run(*CELL, *QUICK, "max_batch_weight=5000", "result_file=given.json").code == 0
    assert run(*CELL, *QUICK[:3], "tuner=none", "result_file=default.json").code == 0
    assert runs("tune") == []
    origins = [
        (read(name)["max_batch_weight_from"], read(name)["study"]) for name in ("given.json", "default.json")
    ]
    assert origins == [("given", None), ("engine default", None)]
    assert read("given.json")["max_batch_weight"] == 5000
    best = ("tuner=tpe", "tuner.trials=1", "tuner.repeats=1", "tuner.objective=throughput_tok_s")
    ran = run(*CELL, *QUICK, *best, "result_file=best.json")
    assert ran.code == 0, ran.err
    assert "throughput_tok_s" in read("best.json")["study"]
    bad = run(*CELL, *QUICK, "tuner.lower=10")
    assert bad.code == 2
    assert "tuner.lower=10" in bad.err


def test_open_loops_are_tuned_by_users_and_a_replay_is_not(run: Run) -> None:
    window = ("load.duration_s=10", "load.warmup_s=1", "tuner.users=8", "tuner.tolerance=1")
    ran = run(*CELL, "load=poisson", "load.rates_per_s=[0.5]", *window, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert read("r.json")["max_batch_weight_from"] == "tuned"
    rows = "".join(f"{i * 0.2:.1f},50,5\n" for i in range(200))
    Path("t.csv").write_text(f"timestamp,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    ran = run(*CELL, "load=replay", "load.trace.path=t.csv", *window, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "is not tuned: a replayed trace ends" in ran.err
    assert read("r.json")["max_batch_weight_from"] == "engine default"


def test_an_interrupted_run_goes_on_with_the_weight_it_had(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(characterize, "run_level", stopping_at(4, KeyboardInterrupt))
        assert run(*CELL, *QUICK, "result_file=r.json").code == 130
    (tracked,) = runs("characterize")
    assert tracked.info.status == "KILLED"
    Path("optuna.db").unlink()
    ran = run(*CELL, *QUICK, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "tuning" not in ran.err
    assert not Path("optuna.db").exists()
    (tracked,) = runs("characterize")
    assert tracked.info.status == "FINISHED"
    result = read("r.json")
    assert tracked.data.params["max_batch_weight"] == str(result["max_batch_weight"])
    assert (result["max_batch_weight_from"], len(result["levels"])) == ("tuned", 2)
    assert result["tuning_run_id"]


def test_a_sweep_tunes_no_finished_cell_again_and_shows_the_weights(run: Run) -> None:
    sweep = ("-m", "+gpu=t4", "+model=flan_t5_xl,llama_7b,llama_3_1_70b", "engine=tgis", *QUICK)
    first = run(*sweep, "result_file=s.json")
    assert first.code == 0, first.err
    cells = read("s.json")["cells"]
    assert [cell["status"] for cell in cells] == ["done", "done", "does not fit"]
    assert "max batch weight" in first.out
    for cell in cells[:2]:
        assert f"{cell['result']['max_batch_weight']:,}" in first.out.rpartition("sweep")[2]
    Path("optuna.db").unlink()
    again = run(*sweep)
    assert again.code == 0, again.err
    assert again.out.count("already measured") == 2
    assert not Path("optuna.db").exists(), "known before it is tuned"


def test_nothing_feasible_is_an_outcome(run: Run) -> None:
    hopeless = ("sla.max_failure_rate=0", "load.drain_s=0.001", "load.duration_s=10", "load.warmup_s=1")
    ran = run(*CELL, *hopeless, "tuner.users=64", "tuner.upper=2000")
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert "has no max batch weight that it survives" in ran.err
    assert "unfinished" in ran.err
    (tracked,) = runs("characterize")
    assert tracked.data.tags["llmpilot.outcome"] == "infeasible"
    ran = run("-m", *CELL, *hopeless, "tuner.users=64", "tuner.upper=2000", "result_file=s.json")
    assert ran.code == 0, ran.err
    assert read("s.json")["cells"][0]["status"] == "does not fit"


def test_an_unreachable_tracking_server_costs_no_measurement(run: Run) -> None:
    ran = run(*CELL, *QUICK, "tracking.uri=http://127.0.0.1:9", "result_file=r.json")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    result = read("r.json")
    assert (result["max_batch_weight_from"], result["tuning_run_id"]) == ("tuned", None)
    assert len(result["levels"]) == 2


def test_the_run_of_mlflow_run_is_the_characterizations(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_here()
    made = client.create_run(client.create_experiment("llm-pilot/characterize")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    assert run(*CELL, *QUICK, "result_file=r.json").code == 0
    assert read("r.json")["run_id"] == made
    assert read("r.json")["tuning_run_id"] != made


def test_ctrl_c_while_tuning_keeps_the_finished_trials(workdir: Path) -> None:
    slow = ("load.users=[1]", "load.duration_s=6000", "tuner.users=64", "tuner.tolerance=0.5")
    command = ("task=tune", "tuner=bisection", *CELL, *slow, "result_file=r.json")
    before, err = interrupted_after("trial 1", *command)
    assert "the same command goes on" in err
    (study,) = (r for r in runs("tune") if "mlflow.parentRunId" not in r.data.tags)
    assert study.info.status == "KILLED"

    again = subprocess.run(
        [sys.executable, "-m", "llmpilot", *command], capture_output=True, text=True, check=True, timeout=300
    )
    finished, later = _trials(before + err), _trials(again.stderr)
    assert finished
    assert later
    assert not finished & later
    trials = read("r.json")["trials"]
    assert {trial["number"] for trial in trials} == finished | later
    assert len({trial["max_batch_weight"] for trial in trials}) == len(trials)
    (study,) = (r for r in runs("tune") if "mlflow.parentRunId" not in r.data.tags)
    assert study.info.status == "FINISHED"
    assert study.info.run_id == read("r.json")["run_id"]


def _trials(text: str) -> set[int]:
    return {int(line.split()[1]) for line in text.splitlines() if line.startswith("trial ")}
