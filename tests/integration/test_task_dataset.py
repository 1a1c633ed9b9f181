"""The task `dataset`: published measurements and real runs of a real store, versioned there."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran, Run
from hf_configs import TINY_LLAMA

from llmpilot import cli
from llmpilot.config import Tracking
from llmpilot.dataset import from_runs, load, published, read_measurements, shipped_measurements
from llmpilot.dataset import runs as own_runs
from llmpilot.dataset.conversion import to_dataset
from llmpilot.errors import TrackingError

STORE = Tracking(uri="sqlite:///mlflow.db")
LADDER = ("load.users=[1,4]", "load.duration_s=60", "tuner=none")
DEAD = "tracking.uri=http://127.0.0.1:9"


@dataclass
class Store:
    """A tracking database with runs, and the results of some."""

    database: Path
    runs: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    """Real runs of every kind, all of them simulated, in a database that tests take copies of."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder / "mlflow.db")
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    commands = {
        "derived": ("+gpu=t4", "+model=hf", "model.config=config.json", "model.name=mine", *LADDER),
        "known": ("+gpu=a100", "gpu.count=2", "+model=starcoder", *LADDER),
        "quantized": ("+gpu=a100", "+model=starcoder", "model.weight_bytes_per_parameter=1", *LADDER),
        "short": (
            "+gpu=h100",
            "+model=flan_t5_xl",
            "engine=tgis",
            "load.users=[1,8]",
            "load.duration_s=4",
            "tuner=none",
        ),
        "open loop": (
            *(
                "+gpu=t4",
                "+model=flan_t5_xl",
                "engine=tgis",
                "load=poisson",
                "load.rates_per_s=[1]",
                "tuner=none",
            ),
            *("workload=fixed", "workload.input_tokens=64", "workload.output_tokens=16"),
        ),
        # It does not fit on one of the two; the sweep has a parent besides.
        "sweep": ("-m", "+gpu=t4,v100", "+model=gpt_neox_20b", "load.users=[1]", "tuner=none"),
    }
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["llmpilot"])
        for name, command in commands.items():
            assert cli.run([*command, "result_file=run.json"]) == 0
            results[name] = json.loads(Path("run.json").read_text())
    return Store(folder / "mlflow.db", results)


@pytest.fixture
def client(workdir: Path, store: Store) -> Any:
    """The store's runs in the working directory's own database."""
    from mlflow import MlflowClient

    shutil.copy(store.database, workdir / "mlflow.db")
    return MlflowClient(f"sqlite:///{workdir}/mlflow.db")


def result_of(run: Run, *arguments: str) -> tuple[dict[str, Any], Ran]:
    """Return the result of the task, and what it printed."""
    ran = run("task=dataset", *arguments, "result_file=r.json")
    assert ran.code == 0, ran.err
    result: dict[str, Any] = json.loads(Path("r.json").read_text())
    return result, ran


def test_simulated_runs_are_not_taken_unasked(client: Any, run: Run) -> None:
    result, _ = result_of(run)
    assert result["rows"] == 528
    assert result["left_out"] == {"runs that were infeasible": 2, "runs that were simulated": 5}
    assert load(Path("dataset.parquet")).content_hash == published().content_hash == result["content_hash"]
    assert len(from_runs(STORE)) == 0


def test_every_level_of_a_ladder_of_users_is_a_row(client: Any, run: Run, store: Store) -> None:
    result, ran = result_of(run, "simulated=true")
    assert result["by_measurement"] == {"published": 528, "simulated": 7}
    assert (result["rows"], result["models"], result["profiles"]) == (535, 12, 68)
    assert result["left_out"] == {
        "levels whose window was too short": 1,
        "runs that were infeasible": 2,
        "runs without closed-loop users": 1,
    }
    data = load(Path("dataset.parquet"))
    assert data.content_hash == result["content_hash"]
    own = from_runs(STORE, simulated=True)
    assert own.content_hash == data.select(data.table["measurement"] == "simulated").content_hash

    # The same name with other facts is another model.
    (apart,) = set(data.models) - set(published().models) - {"mine"}
    assert apart.startswith("starcoder@")
    assert f"kept apart: {apart}" in ran.err
    assert data.models[apart].weight_bytes_per_parameter == 1.0
    assert data.models["starcoder"] == published().models["starcoder"]
    assert data.models["mine"].n_kv_heads == TINY_LLAMA["num_key_value_heads"]

    for name, key in (("derived", "mine"), ("known", "starcoder"), ("quantized", apart)):
        made, rows = store.runs[name], own.only(key).table
        assert rows["run_id"].tolist() == [made["run_id"]] * 2
        assert rows["max_batch_weight"].tolist() == [made["max_batch_weight"]] * 2
        assert (rows["gpu"] == made["gpu"]).all()
        assert (rows["count"] == made["count"]).all()
        assert rows["nttft_ms"].tolist() == [level["nttft_ms"]["p50"] for level in made["levels"]]
        assert rows["itl_ms_p95"].tolist() == [level["itl_ms"]["p95"] for level in made["levels"]]
        assert rows["failure_rate"].tolist() == [level["failure_rate"] for level in made["levels"]]
        sent = [level["requests_ok"] + level["requests_failed"] for level in made["levels"]]
        assert rows["requests"].tolist() == sent


def test_every_level_is_a_measurement_with_all_its_figures(client: Any, run: Run, store: Store) -> None:
    result, ran = result_of(run, "simulated=true")
    found = read_measurements(Path("measurements.parquet"), extra="refuse")
    assert result["measurements"]["rows"] == len(found) == 528 + len(shipped_measurements()) + 8
    assert result["measurements"]["by_source"]["llmpilot characterize"] == 8
    assert "llmpilot characterize" in ran.out

    table = found.table
    of_run = {run_id: rows.reset_index() for run_id, rows in table.groupby("run_id")}
    for name, model in (("derived", "mine"), ("known", "bigcode/starcoder")):
        made = store.runs[name]
        rows = of_run[made["run_id"]]
        assert set(rows["model"]) == {model}
        assert rows["concurrency"].tolist() == [1, 4]
        assert rows["n_gpus"].tolist() == rows["tp"].tolist() == [made["count"]] * 2
        assert set(rows["max_batch_weight"]) == {made["max_batch_weight"]}
        for latency in ("ttft_ms", "nttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
            for statistic in ("mean", "p50", "p90", "p95", "p99"):
                levels = [level[latency][statistic] for level in made["levels"]]
                assert rows[f"{latency}_{statistic}"].tolist() == levels
        assert rows["throughput_out_tok_s"].tolist() == [one["throughput_tok_s"] for one in made["levels"]]
        assert set(rows["measurement"]) == {"simulated"}
    # Facts that are not those of its name make another LLM, and open loops are rows, too.
    assert set(of_run[store.runs["quantized"]["run_id"]]["model"].str.split("@").str[0]) == {"starcoder"}
    (at_a_rate,) = of_run[store.runs["open loop"]["run_id"]].to_dict("records")
    assert (at_a_rate["load_kind"], at_a_rate["request_rate"]) == ("request rate", 1)
    assert (at_a_rate["length_kind"], at_a_rate["input_tokens"], at_a_rate["output_tokens"]) == (
        "fixed",
        64,
        16,
    )

    # What the paper measured is among them to the last digit.
    theirs = found.select(table["source"].str.startswith("IBM/LLM-performance-prediction"))
    assert to_dataset(theirs).content_hash == published().content_hash


def test_levels_whose_streams_show_no_single_tokens_are_no_rows(
    client: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, held_back = own_runs._finished, store.runs["known"]["run_id"]

    def one_held_back(settings: Tracking, *, simulated: bool) -> Any:
        found = finished(settings, simulated=simulated)
        (level, _) = next(run for run in found if run.run_id == held_back).levels or ()
        level["stream_problem"] = "95% of the answers came in one piece"
        return found

    before = own_runs.collect(STORE, simulated=True)
    monkeypatch.setattr(own_runs, "_finished", one_held_back)
    after = own_runs.collect(STORE, simulated=True)
    assert len(after.dataset) == len(before.dataset) - 1
    assert len(after.measurements) == len(before.measurements) - 1
    assert after.left_out - before.left_out == {own_runs.HELD_BACK: 1}


def test_the_table_of_measurements_can_be_left_out(client: Any, run: Run) -> None:
    result, _ = result_of(run, "measurements=null")
    assert result["measurements"] is None
    assert not Path("measurements.parquet").exists()


def test_it_is_versioned_in_mlflow(client: Any, run: Run) -> None:
    result, _ = result_of(run, "simulated=true", "output=all.parquet")
    data = load(Path("all.parquet"))
    logged = client.get_run(result["run_id"])
    assert logged.info.status == "FINISHED"
    assert client.get_experiment(logged.info.experiment_id).name == "llm-pilot/dataset"
    assert logged.data.tags["llmpilot.measurement"] == "published+simulated"
    assert logged.data.tags["llmpilot.content_hash"] == data.content_hash
    assert logged.data.metrics["rows"] == len(data)
    (used,) = logged.inputs.dataset_inputs
    assert len(used.dataset.digest) == 36
    assert data.content_hash.startswith(used.dataset.digest)
    assert f"runs:/{result['run_id']}/all.parquet" in used.dataset.source
    kept = load(Path(client.download_artifacts(result["run_id"], "all.parquet", ".")))
    assert kept.content_hash == data.content_hash
    rows = read_measurements(Path(client.download_artifacts(result["run_id"], "measurements.parquet", ".")))
    assert len(rows) == result["measurements"]["rows"]
    again, _ = result_of(run, "simulated=true")
    assert (again["content_hash"], again["left_out"]) == (data.content_hash, result["left_out"])


def test_only_what_was_measured_on_its_gpu_enters(client: Any, run: Run, store: Store) -> None:
    """Real runs, whose tags are then set to what the run of a real server would carry."""
    started, elsewhere, external = (store.runs[name]["run_id"] for name in ("known", "quantized", "derived"))
    for run_id in (started, elsewhere, external):
        client.set_tag(run_id, "llmpilot.measurement", "measured")
    client.set_tag(started, "llmpilot.hardware", "2 x NVIDIA A100-SXM4-40GB")
    client.set_tag(elsewhere, "llmpilot.hardware", "cpu: 2 x AMD EPYC 7B13")
    client.set_tag(external, "llmpilot.client_bottleneck", "4")

    result, ran = result_of(run, "published=false")
    assert result["by_measurement"] == {"measured": 3}
    assert result["left_out"] == {
        "levels at which the client was the bottleneck": 1,
        "runs on other hardware than their GPU profile": 1,
        "runs that were infeasible": 2,
        "runs that were simulated": 2,
    }
    assert f"run {elsewhere} is labelled 1 x A100-40GB, but was measured on cpu: 2 x AMD EPYC 7B13" in ran.err
    table = load(Path("dataset.parquet")).table
    found = sorted(map(tuple, table[["run_id", "users"]].to_numpy().tolist()))
    assert found == sorted([(started, 1), (started, 4), (external, 1)])
    assert set(table["hardware"]) == {"2 x NVIDIA A100-SXM4-40GB", None}


def test_without_any_run_there_is_nothing_of_ones_own(run: Run) -> None:
    assert len(from_runs(STORE)) == 0
    ran = run("task=dataset", "published=false")
    assert ran.code == 2
    assert "there is nothing to put into the table" in ran.err
    assert not Path("dataset.parquet").exists()


def test_an_unreachable_store_costs_no_table(run: Run) -> None:
    ran = run("task=dataset", DEAD, "result_file=r.json")
    assert ran.code == 1
    assert "holds published measurements only" in ran.err
    result = json.loads(Path("r.json").read_text())
    assert result["run_id"] is None
    assert load(Path("dataset.parquet")).content_hash == result["content_hash"]

    ran = run("task=dataset", "runs=false", "output=mine.parquet", DEAD)
    assert ran.code == 1
    assert "written to mine.parquet, but not tracked" in ran.err
    assert load(Path("mine.parquet")).content_hash == result["content_hash"]

    assert run("task=dataset", "published=false", "output=none.parquet", DEAD).code == 1
    assert not Path("none.parquet").exists()
    with pytest.raises(TrackingError, match="your own runs cannot be read"):
        from_runs(Tracking(uri="http://127.0.0.1:9"))


def test_impossible_options_are_refused_before_any_work(run: Run) -> None:
    Path("folder.parquet").mkdir()
    Path("raw.parquet").write_text("no Parquet")
    for arguments, message in (
        (("output=dataset.csv",), "the table is a Parquet file"),
        (("output=folder.parquet",), "output cannot be written"),
        (("measurements=rows.csv",), "the table of measurements is a Parquet file"),
        (("measurements=folder.parquet",), "measurements cannot be written"),
        (("measurements=dataset.parquet",), "would overwrite output"),
        (("refresh=published.csv",), "refresh needs the raw requests"),
        (("raw=raw.parquet", "published=false"), "not wanted"),
        (("raw=raw.parquet", "output=raw.parquet"), "output would overwrite raw"),
        (("raw=raw.parquet",), "this is no Parquet file"),
        (("raw=absent.parquet",), "there is no such file"),
        (("runs=perhaps",), "dataset.runs is not possible"),
    ):
        ran = run("task=dataset", *arguments)
        assert ran.code == 2, ran.err
        assert message in ran.err
        assert "Traceback" not in ran.err
    assert Path("raw.parquet").read_text() == "no Parquet"
