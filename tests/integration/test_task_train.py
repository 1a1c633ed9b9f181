"""The task `train` as a user types it, and the model that it registers: loaded, served, asked."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from conftest import Ran, Run
from tracked import interrupted_when, runs, two_workers

from llmpilot.dataset import published, save

NAME = "llm-pilot-recommender"
TRAIN = (
    "task=train",
    "dataset=small.parquet",
    "evaluate.seeds=1",
    "evaluate.workers=1",
    "predictor.views=[[closed_form]]",
    "predictor.trees=10",
    "predictor.fold_trees=5",
    "predictor.draws=100",
    "result_file=r.json",
)
QUESTION = {"model": "llama_3_1_8b", "users": 500, "nttft_ms": 100, "itl_ms": 40}


@pytest.fixture
def small(workdir: Path) -> Path:
    """Three LLMs: as few as can be left out one at a time."""
    data = published()
    save(data.select(data.table["model"].isin(["starcoder", "llama_13b", "llama_7b"])), Path("small.parquet"))
    return workdir


@pytest.fixture
def client(workdir: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workdir}/mlflow.db")


def result(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(Path("r.json").read_text())
    return found


def test_the_first_becomes_champion_and_an_equal_one_does_not(small: Path, client: Any, run: Run) -> None:
    ran = run(*TRAIN)
    first = result(ran)
    assert "learning from 208 rows (208 published) of 3 LLMs" in ran.out
    assert first["version"] == "1"
    assert first["aliases"] == ["challenger", "champion"]
    assert first["champion_moved"]
    assert first["dataset"]["by_measurement"] == {"published": 208}
    assert not (small / ".llmpilot" / "trained").exists()

    found = client.get_run(first["run_id"])
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "llm-pilot/predictor"
    assert found.data.metrics["grid.so_score"] == first["scores"]["grid"]["so_score"]
    assert {"paper.success_rate", "with_failures.grid.overspend", "mape.itl", "grid.efficiency"} <= set(
        found.data.metrics
    )
    assert found.data.params["predictor.trees"] == "10"
    (used,) = found.inputs.dataset_inputs
    assert first["dataset"]["content_hash"].startswith(used.dataset.digest)
    files = {file.path for file in client.list_artifacts(first["run_id"], "evaluation")}
    assert {"evaluation/predictions.png", "evaluation/by_model.png", "evaluation/predictions.csv"} <= files

    again = result(run(*TRAIN))
    assert (again["version"], again["aliases"], again["champion_moved"]) == ("2", ["challenger"], False)
    assert "not better than the champion's" in again["why"]
    assert str(client.get_model_version_by_alias(NAME, "champion").version) == "1"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_champion_of_other_data_is_scored_again_on_these(small: Path, client: Any, run: Run) -> None:
    result(run(*TRAIN, "predictor.trees=1", "predictor.fold_trees=1"))
    data = published()
    four = ["starcoder", "llama_13b", "llama_7b", "flan_t5_xl"]
    save(data.select(data.table["model"].isin(four)), Path("small.parquet"))
    ran = run(*TRAIN)
    second = result(ran)
    assert "was scored on other data or settings" in ran.out
    assert "same data and settings" in second["why"]
    tags = client.get_model_version(NAME, "1").tags
    scores = {key: float(value) for key, value in tags.items() if key.startswith("llmpilot.grid_so_score.")}
    mine = {
        key: float(value)
        for key, value in client.get_model_version(NAME, "2").tags.items()
        if key.startswith("llmpilot.grid_so_score.")
    }
    assert len(scores) == 2
    (terms,) = mine
    assert second["champion_moved"] == (mine[terms] > scores[terms])
    champion = str(client.get_model_version_by_alias(NAME, "champion").version)
    assert champion == ("2" if second["champion_moved"] else "1")


def test_simulated_rows_train_nothing_unless_asked(workdir: Path, run: Run) -> None:
    data = published()
    few = data.select(data.table["model"].isin(["starcoder", "llama_13b", "llama_7b"]))
    table = few.table.copy()
    table.loc[table["model"] == "llama_7b", "measurement"] = "simulated"
    save(type(few)(table, few.models, few.gpus), Path("small.parquet"))
    ran = run(*TRAIN)
    assert ran.code == 2  # two LLMs are too few
    assert "simulated rows; simulated=true takes them" in ran.err
    found = result(run(*TRAIN, "simulated=true"))
    assert set(found["dataset"]["by_measurement"]) == {"published", "simulated"}


def test_nothing_is_lost_without_mlflow_and_the_same_command_goes_on(small: Path, run: Run) -> None:
    ran = run(*TRAIN, "runs=false", "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1")
    assert ran.code == 1
    assert "trained, but not registered" in ran.err
    assert "Traceback" not in ran.err
    kept = Path(json.loads(Path("r.json").read_text())["folder"])
    assert str(kept) in ran.err
    assert (kept / "bundle" / "bundle.json").is_file()
    ran = run(*TRAIN, "runs=false")
    assert "where an earlier try kept it" in ran.out
    assert result(ran)["champion_moved"]
    assert not kept.exists()


def test_ctrl_c_in_the_middle_leaves_a_killed_run_and_no_version(small: Path, client: Any) -> None:
    few = [argument for argument in TRAIN if not argument.startswith(("evaluate.", "result_file"))]
    _, err = interrupted_when(two_workers, *few, "evaluate.seeds=500", "evaluate.workers=2")
    assert err.splitlines()[-1] == "interrupted: nothing was registered"
    assert [one.info.status for one in runs("predictor")] == ["KILLED"]
    assert not client.search_model_versions()


def _then_ctrl_c(genuine: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same, but that somebody presses Ctrl-C after the first time it is done."""
    presses = iter([True])

    def method(*arguments: Any, **more: Any) -> Any:
        done = genuine(*arguments, **more)
        if next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)
        return done

    return method


def test_an_interrupted_registration_is_taken_back(small: Path, client: Any, run: Run) -> None:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    result(run(*TRAIN))
    for moment in ("create_model_version", "set_model_version_tag", "set_registered_model_alias"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SqlAlchemyStore, moment, _then_ctrl_c(getattr(SqlAlchemyStore, moment)))
            ran = run(*TRAIN, "predictor.trees=11")
        assert ran.code == 130, moment
        assert "Traceback" not in ran.err
        assert "the same command registers it" in ran.err.splitlines()[-1]
        assert [str(one.version) for one in client.search_model_versions()] == ["1"]
        aliases = client.get_registered_model(NAME).aliases
        assert {one: str(aliases[one]) for one in aliases} == {"challenger": "1", "champion": "1"}
        killed = runs("predictor")[0]
        assert killed.info.status == "KILLED"
        assert len(client.search_logged_models([killed.info.experiment_id])) == 1

    ran = run(*TRAIN, "predictor.trees=11")
    assert "where an earlier try kept it" in ran.out
    assert "challenger" in result(ran)["aliases"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("predictor=paris", "only the pilot predictor can be registered"),
        ("evaluate.seeds=0", "evaluate.seeds"),
        ("model_name=a/b", "model_name"),
        ("dataset=nowhere.parquet", "there is no such data set"),
        ("catalog=[a1000]", "there is no gpu 'a1000'"),
        ("sla.percentile=95", "medians"),
    ],
)
def test_wrong_usage_is_told_before_the_work(small: Path, run: Run, argument: str, said: str) -> None:
    arguments = [one for one in TRAIN if argument != "predictor=paris" or not one.startswith("predictor.")]
    ran = run(*arguments, argument)
    assert ran.code == 2
    assert said in ran.err


# --- the registered model --------------------------------------------------------------------------------


@pytest.fixture
def served(small: Path, run: Run) -> Iterator[str]:
    """The champion behind `mlflow models serve`; yields the URL to ask."""
    result(run(*TRAIN))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mlflow = shutil.which("mlflow", path=path)
    assert mlflow is not None
    environment = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{small}/mlflow.db"}
    command = [mlflow, "models", "serve", "-m", f"models:/{NAME}@champion", "--env-manager", "local"]
    log = (small / "serve.log").open("w")
    server = subprocess.Popen(
        [*command, "-p", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (small / "serve.log").read_text()
            try:
                if httpx.get(f"{url}/ping").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"{url}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
        log.close()


def test_mlflow_serves_the_champion(served: str) -> None:
    def ask(*rows: dict[str, Any], **more: Any) -> httpx.Response:
        return httpx.post(served, json={"dataframe_records": list(rows), **more}, timeout=60)

    cell = {"model": "starcoder", "gpu": "H100", "count": 1, "users": 8}
    answer = ask(QUESTION, cell)
    assert answer.status_code == 200, answer.text
    recommended, predicted = answer.json()["predictions"]
    assert recommended["pods"] * recommended["users_per_pod"] >= 500
    ranking = json.loads(recommended["ranking"])
    assert (ranking[0]["gpu"], ranking[0]["pods"]) == (recommended["gpu"], recommended["pods"])
    table = published().only("starcoder").table
    measured = table[(table["gpu"] == "H100") & (table["count"] == 1) & (table["users"] == 8)]
    assert predicted["itl_ms"] == pytest.approx(measured["itl_ms"].iloc[0])
    assert predicted["pods"] is None

    for row, more, column in (
        ({**QUESTION, "users": -1}, {}, "column users"),
        ({**QUESTION, "users": "many"}, {}, "column users"),
        ({"model": "starcoder", "users": 5, "nttft_ms": 100}, {}, "column itl_ms is missing"),
        ({**QUESTION, "model": "no_such"}, {}, "column model"),
        ({**QUESTION, "model": [1]}, {}, "column model"),
        (QUESTION, {"params": {"task": "predict"}}, "column gpu is missing"),
        ({"unknown": 1}, {}, "columns"),
    ):
        refused = ask(row, **more)
        assert refused.status_code == 400, (row, refused.text)
        assert column in refused.json()["message"]
        assert "Traceback" not in refused.text


def test_the_model_has_no_pickle_and_answers_in_a_fresh_process(small: Path, run: Run) -> None:
    found = result(run(*TRAIN))
    (folder,) = (file.parent for file in small.rglob("MLmodel"))
    kinds = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert not kinds & {".pkl", ".pickle", ".joblib", ".cloudpickle"}
    script = (
        "import pickle, json, pandas as pd, mlflow\n"
        "def refuse(*_a, **_k): raise AssertionError('a pickle is loaded')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@champion')\n"
        "import llmpilot\n"
        f"answer = model.predict(pd.DataFrame([{QUESTION!r}]))\n"
        "print(json.dumps([llmpilot.__file__, answer['gpu'][0], float(answer['pods'][0])]))\n"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{small}/mlflow.db"}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    home, gpu, pods = json.loads(ran.stdout.splitlines()[-1])
    assert Path(home).is_relative_to(folder)  # its own code, as it was when it was trained
    assert isinstance(gpu, str)
    assert pods >= 1
    assert found["version"] == "1"


def test_the_signature_takes_what_a_frame_holds(small: Path, run: Run) -> None:
    import mlflow

    result(run(*TRAIN))
    info = mlflow.models.get_model_info(f"models:/{NAME}@champion")
    assert {"model", "users", "itl_ms", "gpus", "n_kv_heads"} <= set(info.signature.inputs.input_names())
    example = pd.DataFrame([QUESTION]).astype({"users": "float64"})
    assert len(info.signature.inputs.input_names()) > len(example.columns)
    assert info.saved_input_example_info is not None
