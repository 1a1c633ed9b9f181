"""The task `recommend` as a user types it: fitted on the published measurements, conditioned on own runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run
from hf_configs import TINY_LLAMA

from llmpilot import catalog
from llmpilot.dataset import published
from llmpilot.recommendation.api import SEED, WORKLOAD, _predictor
from llmpilot.recommendation.learn import FOLDER, learn
from llmpilot.serving.recommender import FIELDS

# The default predictor with few trees: what is tested here is not how good it is.
LIGHT = {"views": [["closed_form"]], "trees": 20, "fold_trees": 5}
OVERRIDES = tuple(
    f"predictor.{key}={value}".replace("'", "").replace(" ", "") for key, value in LIGHT.items()
)
HEADLINE = ("task=recommend", "+model=llama_3_1_8b", "users=500", "sla.itl_ms=40", *OVERRIDES)
ROW = (
    "gpu count pods cost_per_hour users_per_pod p_sla nttft_ms itl_ms nttft_ms_interval itl_ms_interval "
    "users_max feasible reason"
)
"""The fields of a ranked profile: others read them by these names, here and from the served model."""


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the predictor, fitted on the published measurements: it takes seconds."""
    folder = tmp_path_factory.mktemp("predictors")
    model = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"]
    light = _predictor("pilot").model_copy(update=LIGHT)
    learn(published(), model, light, workload=WORKLOAD, seed=SEED, folder=folder)
    return folder


@pytest.fixture
def recommend(run: Run, fitted: Path, workdir: Path) -> Callable[..., dict[str, Any]]:
    """Run the task where the predictor was fitted before, and return its result."""
    shutil.copytree(fitted, workdir / FOLDER)

    def ask(*arguments: str) -> dict[str, Any]:
        ran = run(*arguments, "result_file=r.json")
        assert ran.code == 0, ran.err
        result: dict[str, Any] = json.loads(Path("r.json").read_text())
        return result | {"printed": ran.out}

    return ask


def test_the_headline(recommend: Callable[..., dict[str, Any]]) -> None:
    result = recommend(*HEADLINE)
    ranking = result["ranking"]
    assert len(ranking) == len(catalog.gpu_profiles())
    assert all(set(row) == set(ROW.split()) for row in ranking)
    assert set(ROW.split()) == {"gpu", "count", *FIELDS}
    assert (result["model"], result["users"], result["sla"]["itl_ms"]) == ("llama_3_1_8b", 500, 40)
    best = result["recommended"]
    assert best == ranking[0]
    assert best["p_sla"] >= 0.9
    assert best["pods"] * best["users_per_pod"] >= 500
    low, high = best["itl_ms_interval"]
    assert low <= best["itl_ms"] <= high
    feasible = [row for row in ranking if row["feasible"]]
    assert ranking[: len(feasible)] == feasible
    assert best["cost_per_hour"] == min(row["cost_per_hour"] for row in feasible)
    reasons = {(row["gpu"], row["count"]): row["reason"] for row in ranking}
    assert reasons["T4", 1].startswith("does not fit: ")
    assert all(row["reason"] for row in ranking[1:])
    assert result["trust"]["level"] in ("high", "medium", "low")
    assert any("llama_7b" in reason for reason in result["trust"]["reasons"])
    assert not any("P(SLA) is of latencies alone" in reason for reason in result["trust"]["reasons"])
    without = recommend(*HEADLINE, "sla.max_failure_rate=1")["trust"]["reasons"]
    assert not any("latencies alone" in reason for reason in without)
    following = result["next_measurement"]
    assert set(following) == {"gpu", "count", "gain", "cost", "reason"}
    assert following["gpu"] is None or following["gain"] * 720 > following["cost"] > 0
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct" in result["printed"]
    assert f"--tensor-parallel-size {best['count']}" in result["serve"]
    for gpu in catalog.gpu_profiles():
        assert f" {gpu.label} " in result["printed"]

    bold = recommend(*HEADLINE, "risk=0.4")["recommended"]
    assert bold["cost_per_hour"] <= best["cost_per_hour"]


def test_any_hugging_face_model_and_the_manifest(recommend: Callable[..., dict[str, Any]]) -> None:
    Path("config.json").write_text(json.dumps(TINY_LLAMA))
    asked = ("task=recommend", *OVERRIDES, "+model=hf", "model.config=config.json", "model.name=mine")
    asked = (*asked, "catalog=[a100,h100]", "users=50")
    unknown = recommend(*asked)
    assert unknown["serve"] is None
    assert "no vllm serve line: where vLLM would find this model is not known" in unknown["printed"]
    result = recommend(*asked, "model.hf_id=acme/mine", "manifest=deploy/m.yaml", "pod.cpu=2")
    assert "vllm serve acme/mine " in result["serve"]
    assert result["model"] == "mine"
    assert {row["gpu"] for row in result["ranking"]} == {"A100-40GB", "H100"}
    deployment, _, claim = yaml.safe_load_all(Path("deploy/m.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert deployment["spec"]["replicas"] == result["recommended"]["pods"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(result["recommended"]["count"])}
    assert container["resources"]["requests"]["cpu"] == "2"
    assert result["manifest"] == "deploy/m.yaml"


def test_own_prices_decide(recommend: Callable[..., dict[str, Any]]) -> None:
    Path("prices.csv").write_text("gpu,count,price_per_hour\nh100,4,0.01\nl4,1,9\n")
    result = recommend(*HEADLINE, "prices=prices.csv")
    best = result["recommended"]
    assert (best["gpu"], best["count"]) == ("H100", 4)
    assert best["cost_per_hour"] == pytest.approx(0.01 * best["pods"])
    assert {(row["gpu"], row["count"]) for row in result["ranking"]} == {("H100", 4), ("L4", 1)}
    assert "prices: prices.csv, as given" in result["printed"]
    rented = recommend(*HEADLINE, "prices=runpod")
    assert rented["prices"]["provider"] == "RunPod secure cloud"
    assert rented["prices"]["date"] == "2026"
    assert {row["gpu"] for row in rented["ranking"]} >= {"MI300X", "RTX-4090"}


def test_where_nothing_will_do_the_answer_says_so(recommend: Callable[..., dict[str, Any]]) -> None:
    result = recommend(*HEADLINE, "sla.itl_ms=0.01", "manifest=m.yaml")
    assert result["recommended"] is None
    assert "nearest comes" in result["reason"]
    assert result["serve"] is None
    assert not any(row["feasible"] for row in result["ranking"])
    assert not Path("m.yaml").exists()
    tiny = recommend("task=recommend", *OVERRIDES, "+model=deepseek_v3", "catalog=t4")
    assert tiny["recommended"] is None
    assert "fits on none of the 4 GPU profiles" in tiny["reason"]


def test_runs_of_this_model_condition_the_prediction(
    recommend: Callable[..., dict[str, Any]], run: Run, workdir: Path
) -> None:
    """A real run of the tracking store, with the tags that a started server's run would carry."""
    from mlflow import MlflowClient

    levels = ("load.users=[1,16]", "load.duration_s=30", "load.warmup_s=2")
    ran = run("+gpu=h100", "+model=llama_3_1_8b", *levels, "result_file=run.json")
    assert ran.code == 0, ran.err
    measured = json.loads(Path("run.json").read_text())
    before = recommend(*HEADLINE)
    assert before["measured"] == {"rows": 0, "profiles": []}

    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    client.set_tag(measured["run_id"], "llmpilot.measurement", "measured")
    client.set_tag(measured["run_id"], "llmpilot.hardware", "1 x NVIDIA H100 80GB HBM3")
    after = recommend(*HEADLINE)
    assert after["measured"] == {"rows": 2, "profiles": ["1 x H100"]}
    assert "conditioned on 2 rows measured of this model, on 1 x H100" in after["printed"]
    assert after["next_measurement"]["gpu"] != "H100" or after["next_measurement"]["count"] != 1
    assert recommend(*HEADLINE, "runs=false")["ranking"] == before["ranking"]

    def spread(result: dict[str, Any]) -> float:
        (row,) = [row for row in result["ranking"] if (row["gpu"], row["count"]) == ("H100", 1)]
        low, high = row["itl_ms_interval"]
        return float(high / low)

    assert spread(after) < spread(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("catalog=[a100,h1000]",), "did you mean 'h100'"),
        (("sla=interactive",), "sla.percentile=95"),
        (("sla.e2e_ms=5000",), "sla.e2e_ms=5000"),
        (("workload=azure_code",), "no other model was measured under this workload"),
        (("users=0",), "recommend.users is not possible"),
        (("risk=1",), "recommend.risk is not possible"),
        (("prices=absent.csv",), "the prices cannot be read"),
        (("dataset=absent.parquet",), "no such data set"),
        (("+model.n_encoder_layers=12", "manifest=m.yaml"), "vLLM does not serve encoder-decoder models"),
        (("manifest=.",), "manifest cannot be written"),
        (("pod.memory=lots",), "pod.memory"),
    ],
)
def test_impossible_questions_are_refused(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run(*HEADLINE, *arguments)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_an_unreachable_store_is_told(run: Run) -> None:
    ran = run(*HEADLINE, "tracking.uri=http://127.0.0.1:9")
    assert ran.code == 1
    assert "runs=false does without your runs" in ran.err


def test_a_model_is_needed(run: Run) -> None:
    ran = run("task=recommend")
    assert ran.code == 2
    assert "python -m llmpilot task=recommend +model=" in ran.err
