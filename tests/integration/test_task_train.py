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

from llmpilot import catalog
from llmpilot.dataset import Measurements, save_measurements, shipped_measurements
from llmpilot.serving.bundle import Rows
from llmpilot.tasks.train_exam import Exam

NAME = "llm-pilot-recommender"
TRAIN = ("task=train", "dataset=small.parquet", "workers=1", "result_file=r.json")
QUESTION = {"model": "llama_3_1_8b", "requests_per_s": 20, "ttft_ms": 1000, "itl_ms": 50}
LLMS = ("Qwen/Qwen3-32B", "Qwen/Qwen3-235B-A22B-FP8", "meta-llama/Llama-3.1-8B-Instruct")
FEW = "catalog=[h100,l4]"
"""GPU types of which a recommender is asked here: so few are simulated soon."""


def rows_of(*models: str) -> Measurements:
    """Return the levels of a few LLMs under one pair of lengths."""
    shipped = shipped_measurements()
    table = shipped.table
    alike = table["input_tokens"].isin([512, 1024]) & (table["output_tokens"] == 128)
    return shipped.select(alike & table["model"].isin(models) & shipped.closed_loop_today())


@pytest.fixture
def small(workdir: Path) -> Path:
    """Three LLMs, each under few loads."""
    save_measurements(rows_of(*LLMS), Path("small.parquet"))
    return workdir


@pytest.fixture
def client(workdir: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workdir}/mlflow.db")


def result(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(Path("r.json").read_text())
    return found


def score_tags(client: Any, version: str) -> dict[str, float]:
    tags = client.get_model_version(NAME, version).tags
    return {key: float(tags[key]) for key in tags if key.startswith("llmpilot.today_so_score.")}


def test_the_first_becomes_champion_and_an_equal_one_does_not(small: Path, client: Any, run: Run) -> None:
    number = len(rows_of(*LLMS))
    ran = run(*TRAIN)
    first = result(ran)
    assert f"learning from {number} rows ({number} published) of 3 LLMs" in ran.out
    assert "fitting the factors" in ran.err
    assert "judging" in ran.err
    assert first["version"] == "1"
    assert first["aliases"] == ["challenger", "champion"]
    assert first["champion_moved"]
    assert first["dataset"]["by_measurement"] == {"published": number}
    assert not (small / ".llmpilot" / "trained").exists()

    found = client.get_run(first["run_id"])
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "llm-pilot/predictor"
    assert found.data.metrics["tpot_ttft.so_score"] == first["scores"]["tpot_ttft"]["so_score"]
    assert {"tpot.kept", "tpot_ttft.overspend", "errors.tpot"} <= set(found.data.metrics)
    assert found.data.params["rule.name"] == first["rule"]["name"]
    (used,) = found.inputs.dataset_inputs
    assert first["dataset"]["content_hash"].startswith(used.dataset.digest)
    files = {file.path for file in client.list_artifacts(first["run_id"], "evaluation")}
    names = ("predictions.png", "by_model.png", "predictions.csv", "recommendations.csv", "scores.json")
    assert files == {f"evaluation/{name}" for name in names}

    again = result(run(*TRAIN))
    assert (again["version"], again["aliases"], again["champion_moved"]) == ("2", ["challenger"], False)
    assert "not better than the champion's" in again["why"]
    assert str(client.get_model_version_by_alias(NAME, "champion").version) == "1"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_scores_are_those_of_evaluate_on_today(small: Path, run: Run) -> None:
    evaluated = result(
        run(
            *("task=evaluate", "on=today", "today.measurements=small.parquet", "evaluate.workers=1"),
            *("today.settings.risks=[]", "today.settings.margins=[]", "result_file=r.json"),
        )
    )
    exam = Exam(Rows(rows_of(*LLMS), {}), catalog.price_list(), workers=1)
    scores = exam.judged(Rows(shipped_measurements(), {}), lambda text: None).scores
    for kind in ("tpot", "tpot_ttft"):
        assert scores[kind] == evaluated[kind]
    assert scores["rule"] == evaluated["rule"]


def test_a_champion_of_other_rows_is_scored_again_on_these(small: Path, client: Any, run: Run) -> None:
    save_measurements(rows_of(*LLMS[:2]), Path("small.parquet"))
    result(run(*TRAIN))
    save_measurements(rows_of(*LLMS), Path("small.parquet"))
    ran = run(*TRAIN)
    second = result(ran)
    assert "was scored on other data or settings" in ran.out
    assert "same data and settings" in second["why"]
    theirs, mine = score_tags(client, "1"), score_tags(client, "2")
    assert len(theirs) == 2
    (terms,) = mine
    assert mine[terms] == second["scores"]["tpot_ttft"]["so_score"]
    assert second["champion_moved"] == (mine[terms] > theirs[terms])
    champion = str(client.get_model_version_by_alias(NAME, "champion").version)
    assert champion == ("2" if second["champion_moved"] else "1")


def test_a_champion_whose_rows_are_gone_stays_and_it_is_said(small: Path, client: Any, run: Run) -> None:
    first = result(run(*TRAIN))
    (folder,) = (file.parent for file in small.rglob("models.json") if file.parent.name == "rows")
    assert first["run_id"] in str(folder)
    shutil.rmtree(folder)
    save_measurements(rows_of(*LLMS[:2]), Path("small.parquet"))
    second = result(run(*TRAIN))
    assert not second["champion_moved"]
    assert "champion version 1 cannot be compared: its run" in second["why"]
    assert str(client.get_model_version_by_alias(NAME, "champion").version) == "1"


def test_rows_of_a_file_are_learned_from_beside(small: Path, run: Run) -> None:
    save_measurements(rows_of(*LLMS[:2]), Path("small.parquet"))
    save_measurements(rows_of(LLMS[2]), Path("more.parquet"))
    found = result(run(*TRAIN, "measurements=more.parquet"))
    assert found["dataset"]["rows"] == len(rows_of(*LLMS))
    assert found["dataset"]["models"] == 3


def test_simulated_rows_train_nothing_unless_asked(workdir: Path, run: Run) -> None:
    rows = rows_of(*LLMS)
    table = rows.table.copy()
    table.loc[table["model"] == LLMS[2], "measurement"] = "simulated"
    save_measurements(Measurements(table, rows.extra), Path("small.parquet"))
    ran = run(*TRAIN)
    assert result(ran)["dataset"]["by_measurement"] == {"published": len(rows_of(*LLMS[:2]))}
    assert "simulated rows; simulated=true takes them" in ran.err
    found = result(run(*TRAIN, "simulated=true"))
    assert set(found["dataset"]["by_measurement"]) == {"published", "simulated"}


def test_rows_that_judge_nothing_are_refused(workdir: Path, run: Run) -> None:
    rows = rows_of(LLMS[0])
    table = rows.table.copy()
    for name in [name for name in table.columns if name.startswith("ttft")]:
        table[name] = None
    save_measurements(Measurements(table, rows.extra), Path("small.parquet"))
    ran = run(*TRAIN)
    assert ran.code == 2
    assert "recommendations cannot be judged" in ran.err


def test_nothing_is_lost_without_mlflow_and_the_same_command_goes_on(small: Path, run: Run) -> None:
    ran = run(*TRAIN, "runs=false", "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1")
    assert ran.code == 1
    assert "trained, but not registered" in ran.err
    assert "Traceback" not in ran.err
    kept = Path(json.loads(Path("r.json").read_text())["folder"])
    assert str(kept) in ran.err
    assert (kept / "bundle" / "bundle.json").is_file()
    assert (kept / "rows" / "measurements.parquet").is_file()
    ran = run(*TRAIN, "runs=false")
    assert "where an earlier try kept it" in ran.out
    assert result(ran)["champion_moved"]
    assert not kept.exists()


def test_ctrl_c_in_the_middle_leaves_a_killed_run_and_no_version(small: Path, client: Any) -> None:
    _, err = interrupted_when(two_workers, "task=train", "workers=2")
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
            ran = run(*TRAIN, FEW)
        assert ran.code == 130, moment
        assert "Traceback" not in ran.err
        assert "the same command registers it" in ran.err.splitlines()[-1]
        assert [str(one.version) for one in client.search_model_versions()] == ["1"]
        aliases = client.get_registered_model(NAME).aliases
        assert {one: str(aliases[one]) for one in aliases} == {"challenger": "1", "champion": "1"}
        killed = runs("predictor")[0]
        assert killed.info.status == "KILLED"
        assert len(client.search_logged_models([killed.info.experiment_id])) == 1

    ran = run(*TRAIN, FEW)
    assert "where an earlier try kept it" in ran.out
    assert "challenger" in result(ran)["aliases"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("workers=0", "workers"),
        ("model_name=a/b", "model_name"),
        ("dataset=nowhere.parquet", "there is no such file"),
        ("measurements=nowhere.csv", "there is no such file"),
        ("catalog=[a1000]", "there is no gpu 'a1000'"),
        ("prices=amazon", "there is no price list 'amazon'"),
        ("predictor=pilot", "predictor"),
    ],
)
def test_wrong_usage_is_told_before_the_work(small: Path, run: Run, argument: str, said: str) -> None:
    ran = run(*TRAIN, argument)
    assert ran.code == 2
    assert said in ran.err


# --- the registered model --------------------------------------------------------------------------------


@pytest.fixture
def served(small: Path, run: Run) -> Iterator[str]:
    """The champion behind `mlflow models serve`; yields the URL to ask."""
    result(run(*TRAIN, FEW))
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

    cell = {"model": "llama_3_1_8b", "gpu": "H100", "count": 1, "users": 8}
    answer = ask(QUESTION, cell)
    assert answer.status_code == 200, answer.text
    recommended, predicted = answer.json()["predictions"]
    assert recommended["pods"] * recommended["requests_per_s_per_pod"] == pytest.approx(20)
    first = recommended["ranking"][0]
    assert (first["gpu"], first["pods"]) == (recommended["gpu"], recommended["pods"])
    assert predicted["itl_ms_low"] < predicted["itl_ms"] < predicted["itl_ms_high"]
    assert predicted["cost_per_hour"] is None

    csv = pd.DataFrame([QUESTION, cell]).to_csv(index=False)
    in_csv = httpx.post(served, content=csv, headers={"content-type": "text/csv"}, timeout=60)
    assert in_csv.status_code == 200, in_csv.text
    assert in_csv.json() == answer.json()

    for row, more, column in (
        ({**QUESTION, "requests_per_s": -1}, {}, "column requests_per_s"),
        ({"model": "llama_3_1_8b", "users": "many"}, {}, "column users"),
        ({"model": "llama_3_1_8b", "ttft_ms": 100}, {}, "the load is not given"),
        ({**QUESTION, "model": "no_such"}, {}, "column model"),
        ({**QUESTION, "model": [1]}, {}, "column model"),
        (QUESTION, {"params": {"task": "predict"}}, "column gpu is missing"),
        ({**QUESTION, "riks": 0.1}, {}, "did you mean 'risk'"),
    ):
        refused = ask(row, **more)
        assert refused.status_code == 400, (row, refused.text)
        assert column in refused.json()["message"]
        assert "Traceback" not in refused.text


def test_the_model_has_no_pickle_and_answers_in_a_fresh_process(small: Path, run: Run) -> None:
    found = result(run(*TRAIN, FEW))
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


def test_the_model_says_its_columns(small: Path, run: Run) -> None:
    import mlflow

    result(run(*TRAIN, FEW))
    info = mlflow.models.get_model_info(f"models:/{NAME}@champion")
    assert {"model", "users", "itl_ms_p95", "gpus", "n_kv_heads"} <= set(info.metadata["columns"])
    assert {"pods", "trust_sentence", "ranking"} <= set(info.signature.outputs.input_names())
    assert info.saved_input_example_info is not None
