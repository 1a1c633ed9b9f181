"""The paper's other methods: Selecta, networks, static policies; and its published predictions, scored."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from paper_data import FOLDER, four_llms, needs_data, predictor

from llmpilot.dataset import Dataset, DatasetError, published
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Choice, Need, choose
from llmpilot.predict.paper import networks
from llmpilot.predict.paper.factorize import Problems, Settings, factorize
from llmpilot.predict.paper.morphling import two_layers
from llmpilot.predict.paper.networks import (
    Network,
    percentage_error,
    relative_log_error,
    squared_log_error,
)
from llmpilot.predict.paper.perfnet import convolutional, dense
from llmpilot.predict.paper.published import FILES, published_predictions
from llmpilot.predict.paper.static import policies
from llmpilot.predict.scores import judge, score, truth_of

NEED = Need(users=200, nttft_ms=100, itl_ms=50)
NETWORKS = ("perfnet", "perfnet_v2", "morphling")
DESCENT = {"epochs": 20, "batch_size": 64, "rate": 0.005, "adaptation_rate": 0.005}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return published()


@pytest.fixture(scope="module")
def few() -> Dataset:
    return four_llms()


def descended(
    problems: Problems, rate: float, penalty: float, spread: float, epochs: int
) -> list[list[float]]:
    """The estimates of the first problem, written as plainly as can be."""
    rows, columns = max(problems.rows) + 1, max(problems.columns) + 1
    random = np.random.RandomState(3)
    p, q = random.normal(0, spread, (rows, 2)), random.normal(0, spread, (columns, 2))
    b, c = [0.0] * rows, [0.0] * columns
    ratings = [
        (i, j, value)
        for i, j, value in zip(problems.rows, problems.columns, problems.values[:, 0], strict=True)
        if np.isfinite(value)
    ]
    mean = float(np.mean([value for _, _, value in ratings]))
    for _ in range(epochs):
        for i, j, value in ratings:
            error = value - (mean + b[i] + c[j] + p[i] @ q[j])
            b[i] += rate * (error - penalty * b[i])
            c[j] += rate * (error - penalty * c[j])
            p[i], q[j] = (
                p[i] + rate * (error * q[j] - penalty * p[i]),
                q[j] + rate * (error * p[i] - penalty * q[j]),
            )
    return [[float(mean + b[i] + c[j] + p[i] @ q[j]) for j in range(columns)] for i in range(rows)]


def test_factorization_descends_every_problem_on_its_own() -> None:
    values = np.array([[5.0, 1.0], [3.0, 2.0], [4.0, np.nan], [np.nan, 4.0], [1.0, 5.0]])
    problems = Problems([0, 0, 1, 1, 2], [0, 1, 0, 1, 1], values)
    settings = Settings(2, 30, np.array([0.02, 0.01]), np.array([0.1, 0.2]), np.array([0.3, 0.1]), seed=3)
    found = factorize(problems, settings)
    plain = descended(problems, 0.02, 0.1, 0.3, epochs=30)
    for row in range(3):
        for column in range(2):
            expected = np.clip(plain[row][column], 0, 5.0)
            assert found.estimate(row, column)[0] == pytest.approx(expected, rel=1e-12)


def test_factorization_of_what_it_does_not_know() -> None:
    problems = Problems([0, 0, 1], [0, 1, 0], np.array([[2.0], [4.0], [np.nan]]))
    found = factorize(problems, Settings(2, 50, *(np.array([x]) for x in (0.05, 0.01, 0.1)), seed=0))
    assert found.estimate(None, None)[0] == 3.0
    assert found.estimate(1, None)[0] == 3.0  # its only cell is unknown
    assert found.estimate(None, 1)[0] == found.estimate(1, 1)[0] > 3.0
    wild = factorize(problems, Settings(2, 500, *(np.array([x]) for x in (50.0, 0.01, 0.1)), seed=0))
    assert wild.estimate(0, 0)[0] == 4.0


def test_selecta_completes_from_what_was_measured(few: Dataset) -> None:
    small = predictor("selecta", n_factors=[2], n_epochs=100, learning_rate=[0.001, 0.005], penalty=[0.1])
    truth = truth_of(few, "llama_7b")
    fitted = small.fit(few.without("llama_7b"), seed=0)
    rows = few.only("llama_7b").table
    shown = rows[(rows["gpu"] == "H100") & (rows["count"] == 4)]
    blind = fitted.predict(truth.model, truth.profiles, truth.users)
    said = fitted.predict(truth.model, truth.profiles, truth.users, shown)
    measured = [profile.label for profile in truth.profiles].index("4 x H100")
    np.testing.assert_array_equal(said.nttft_ms[measured], truth.nttft_ms[measured])
    assert np.isfinite(blind.nttft_ms).all()
    assert (said.nttft_ms != blind.nttft_ms).any(axis=1).all()
    with pytest.raises(ConfigError, match="between the user counts"):
        fitted.predict(truth.model, truth.profiles, (1, 3))


@needs_data
def test_selecta_predicts_what_the_paper_published(data: Dataset) -> None:
    """With the hyperparameters that were published for this LLM."""
    chosen = {"n_factors": [20], "init_std_dev": [0.01], "learning_rate": [0.001], "penalty": [0.1]}
    fitted = predictor("selecta", **chosen).fit(data.without("flan_t5_xxl"), seed=42)
    truth = truth_of(data, "flan_t5_xxl")
    rows = data.only("flan_t5_xxl").table
    shown = rows[(rows["gpu"] == "H100") & (rows["count"] == 4)]
    said = fitted.predict(truth.model, truth.profiles, truth.users, shown)
    theirs = published_predictions(FOLDER / "published", "selecta", data)["flan_t5_xxl"]
    np.testing.assert_allclose(said.nttft_ms, theirs.nttft_ms, rtol=1e-9)
    np.testing.assert_allclose(said.itl_ms, theirs.itl_ms, rtol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_follow_their_seed_and_nothing_else(name: str, few: Dataset) -> None:
    torch = pytest.importorskip("torch", reason="the networks need PyTorch: pip install 'llm-pilot[neural]'")
    changes = {"nttft": DESCENT, "itl": DESCENT} if name == "morphling" else {"epochs": 3}
    truth = truth_of(few, "llama_7b")
    state = torch.get_rng_state()
    fitted = [predictor(name, **changes).fit(few.without("llama_7b"), seed) for seed in (1, 1, 2)]
    said = [one.predict(truth.model, truth.profiles, truth.users) for one in fitted]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(said[0].itl_ms, said[1].itl_ms)
    weights = [next(one.layers[1].parameters()) for one in fitted]
    assert not torch.equal(weights[0], weights[2])
    assert said[0].itl_ms.shape == truth.itl_ms.shape
    assert (said[0].itl_ms >= 0).all()


@pytest.mark.parametrize("layers", [dense, convolutional, two_layers])
@pytest.mark.parametrize("loss", [relative_log_error, squared_log_error, percentage_error])
def test_networks_learn(layers: Callable[[int], Any], loss: Callable[[Any, Any], Any]) -> None:
    """At a rate at which they do not die, as the paper's own often do."""
    pytest.importorskip("torch", reason="the networks need PyTorch: pip install 'llm-pilot[neural]'")
    x = np.random.default_rng(0).normal(size=(256, 6))
    y = np.exp(1 + x[:, 0])
    short = Network(layers, loss, "Adam", rates=((0, 1e-3), (200, 3e-4)), batch_size=32, epochs=40)
    error = np.abs(networks.answer(networks.train(short, x, y, seed=0), x) / y - 1)
    always = np.abs(np.median(y) / y - 1)
    assert error.mean() < 0.5 * always.mean()


def test_losses_are_those_of_their_papers() -> None:
    torch = pytest.importorskip("torch", reason="the networks need PyTorch: pip install 'llm-pilot[neural]'")
    predicted, measured = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0])
    assert relative_log_error(predicted, measured).item() == pytest.approx(1.0)
    assert squared_log_error(predicted, measured).item() == pytest.approx(np.log(2) ** 2)
    assert percentage_error(predicted, measured).item() == pytest.approx(150.0)


def test_morphling_adapts_without_forgetting_what_it_was(few: Dataset) -> None:
    pytest.importorskip("torch", reason="the networks need PyTorch: pip install 'llm-pilot[neural]'")
    fitted = predictor("morphling", nttft=DESCENT, itl=DESCENT).fit(few.without("llama_7b"), seed=1)
    truth = truth_of(few, "llama_7b")
    rows = few.only("llama_7b").table
    shown = rows[(rows["gpu"] == "H100") & (rows["count"] == 4)]
    before = fitted.predict(truth.model, truth.profiles, truth.users)
    adapted = fitted.predict(truth.model, truth.profiles, truth.users, shown)
    again = fitted.predict(truth.model, truth.profiles, truth.users)
    measured = [profile.label for profile in truth.profiles].index("4 x H100")
    np.testing.assert_array_equal(adapted.itl_ms[measured], truth.itl_ms[measured])
    assert (adapted.itl_ms[0] != before.itl_ms[0]).any()
    np.testing.assert_array_equal(again.itl_ms, before.itl_ms)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_say_what_they_need(name: str, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if not installed
    with pytest.raises(ConfigError, match=r"pip install 'llm-pilot\[neural\]'"):
        predictor(name).fit(few, seed=0)


def test_the_best_policy_in_hindsight_is_the_papers(data: Dataset) -> None:
    best = policies([truth_of(data, llm) for llm in data.models], NEED)[0]
    assert (best.gpu, best.count, best.pods) == ("A100-40GB", 1, 4)
    assert best.score.so_score == pytest.approx(0.6509041127146198, abs=1e-9)


def test_a_static_policy_is_chosen_on_the_other_llms(data: Dataset) -> None:
    fitted = predictor("static").fit(data.without("llama_7b"), seed=0)
    truth = truth_of(data, "llama_7b")
    said = fitted.predict(truth.model, truth.profiles, truth.users)
    assert np.isnan(said.nttft_ms).all()
    best = policies([truth_of(data, llm) for llm in data.models if llm != "llama_7b"], NEED)[0]
    chosen = fitted.choose(said, NEED)
    assert isinstance(chosen, Choice)
    assert (chosen.profile.name, chosen.profile.count, chosen.pods) == (best.gpu, best.count, best.pods)
    h100_only = fitted.predict(truth.model, [g for g in truth.profiles if g.name == "H100"], truth.users)
    assert fitted.choose(h100_only, NEED) is None


def test_of_equal_policies_the_cheapest_comes_first(data: Dataset) -> None:
    # Nothing serves a user within a microsecond, so every policy scores nothing.
    nothing = policies([truth_of(data, "llama_7b")], Need(users=1, itl_ms=1e-3))
    assert {policy.score.so_score for policy in nothing} == {0.0}
    assert nothing[0].cost_per_hour == min(policy.cost_per_hour for policy in nothing)


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_the_published_predictions_score_as_published(name: str, data: Dataset) -> None:
    folder = FOLDER / "published"
    expected = pd.read_csv(folder / "expected_recommendation_scores.csv", index_col=0).loc[FILES[name]]
    predictions = published_predictions(folder, name, data)
    assert len(predictions) == 10
    outcomes = [
        judge(choose(prediction, NEED), truth_of(data, llm), NEED) for llm, prediction in predictions.items()
    ]
    ours = score(outcomes)
    assert 100 * ours.success_rate == pytest.approx(expected["success_rate"], abs=1e-9)
    assert 100 * ours.overspend == pytest.approx(expected["overspend"], abs=1e-9)
    assert ours.so_score == pytest.approx(expected["so_score"], abs=1e-9)


@needs_data
def test_the_published_policies_score_as_published(data: Dataset) -> None:
    folder = FOLDER / "published"
    table = pd.read_csv(folder / "expected_recommendation_scores_static_policies.csv")
    expected = {
        (f"{policy['gpu']}".replace("A100", "A100-40GB"), policy["n"]): row
        for policy, row in zip(map(ast.literal_eval, table["policy"]), table.to_dict("records"), strict=True)
    }
    ours = policies([truth_of(data, llm) for llm in data.models], NEED)
    assert len(ours) == len(expected) == 210
    for policy in ours:
        row = expected[f"{policy.count} x {policy.gpu}", policy.pods]
        assert 100 * policy.score.success_rate == pytest.approx(row["success_rate"], abs=1e-9)
        assert 100 * policy.score.overspend == pytest.approx(row["overspend"], abs=1e-9, nan_ok=True)
        assert policy.score.so_score == pytest.approx(row["so_score"], abs=1e-9)
    static = pd.read_csv(folder / "expected_recommendation_scores.csv", index_col=0).loc["Static policy"]
    assert ours[0].score.so_score == pytest.approx(static["so_score"], abs=1e-9)
    assert 100 * ours[0].score.overspend == pytest.approx(static["overspend"], abs=1e-9)


def test_published_predictions_that_are_not_there(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        published_predictions(tmp_path, "rf", data)
    (tmp_path / "expected_predictions_RF.csv").write_text("model,gpu\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="columns are missing: num_users"):
        published_predictions(tmp_path, "rf", data)
