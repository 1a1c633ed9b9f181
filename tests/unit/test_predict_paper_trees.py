"""The paper's tree methods: its own XGBoost, RF, and PARIS with its fingerprints."""

import numpy as np
import pandas as pd
import pytest
from paper_data import FOLDER, four_llms, needs_data, predictor
from sklearn.ensemble import RandomForestRegressor

from llmpilot.dataset import Dataset, published
from llmpilot.predict.paper.fingerprint import Fingerprints, users_within
from llmpilot.predict.paper.forest import cut_predictions
from llmpilot.predict.scores import truth_of

PAPERS = ("llm_pilot", "rf", "paris", "selecta", "perfnet", "perfnet_v2", "morphling", "static")
SMALL_FOREST = {"n_estimators": [3, 5], "max_depth": [4, 8], "criterion": ["squared_error"]}


@pytest.fixture(scope="module")
def few() -> Dataset:
    return four_llms()


@pytest.mark.parametrize("name", PAPERS)
def test_every_method_is_an_option(name: str) -> None:
    assert predictor(name).name == name


def test_xgboost_is_monotone_in_users_and_follows_its_seed(few: Dataset) -> None:
    small = predictor(
        "llm_pilot", n_estimators=[5, 10], max_depth=[4], subsample=[0.5], colsample_bytree=[0.8]
    )
    truth = truth_of(few, "starcoder")
    said = [
        small.fit(few.without("starcoder"), seed).predict(truth.model, truth.profiles, truth.users)
        for seed in (1, 1, 2)
    ]
    for values in (said[0].nttft_ms, said[0].itl_ms):
        assert values.shape == (len(truth.profiles), len(truth.users))
        assert (np.diff(values, axis=1) >= 0).all()
        assert (np.diff(values, axis=1) > 0).any()
    np.testing.assert_array_equal(said[0].nttft_ms, said[1].nttft_ms)
    assert (said[0].nttft_ms != said[2].nttft_ms).any()


@needs_data
def test_xgboost_predicts_what_the_paper_published() -> None:
    """With the hyperparameters that were published for this LLM, whatever the version of XGBoost."""
    data = published()
    table = pd.read_csv(FOLDER / "published" / "expected_predictions_LLM-Pilot.csv")
    rows = table[table["model"] == "google/flan-ul2"]
    chosen = {"n_estimators": [50], "max_depth": [8], "learning_rate": [0.1], "subsample": [0.5]}
    fitted = predictor("llm_pilot", **chosen, colsample_bytree=[1.0]).fit(data.without("flan_ul2"), seed=42)
    truth = truth_of(data, "flan_ul2")
    said = fitted.predict(truth.model, truth.profiles, truth.users)
    np.testing.assert_allclose(said.nttft_ms.ravel(), rows["prediction_median_nttft"], rtol=1e-5)
    np.testing.assert_allclose(said.itl_ms.ravel(), rows["prediction_median_itl"], rtol=1e-5)


def test_a_cut_tree_is_the_shallower_tree() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 3)), random.gamma(2.0, size=(200, 2))
    deep = RandomForestRegressor(1, max_depth=30, bootstrap=False, random_state=0).fit(x, y).estimators_[0]
    unseen = random.normal(size=(50, 3))
    cut = cut_predictions(deep.tree_, unseen, [2, 5, 30])
    np.testing.assert_array_equal(cut[2], deep.predict(unseen))
    for at, depth in enumerate((2, 5)):
        # No two splits of these rows are equally good, so growing less deep grows the same.
        shallow = RandomForestRegressor(1, max_depth=depth, bootstrap=False, random_state=0).fit(x, y)
        np.testing.assert_allclose(cut[at], shallow.predict(unseen))


def test_a_forest_needs_no_measurement_of_the_llm(few: Dataset) -> None:
    truth = truth_of(few, "starcoder")
    fitted = predictor("rf", **SMALL_FOREST).fit(few.without("starcoder"), seed=0)
    said = fitted.predict(truth.model, truth.profiles, truth.users)
    shown = fitted.predict(truth.model, truth.profiles, truth.users, few.only("starcoder").table)
    assert np.isfinite(said.nttft_ms).all()
    np.testing.assert_array_equal(said.nttft_ms, shown.nttft_ms)


def test_paris_believes_what_was_measured_and_learns_from_it(few: Dataset) -> None:
    truth = truth_of(few, "llama_7b")
    fitted = predictor("paris", **SMALL_FOREST).fit(few.without("llama_7b"), seed=0)
    rows = few.only("llama_7b").table
    shown = rows[(rows["gpu"] == "H100") & (rows["count"] == 4)]
    blind = fitted.predict(truth.model, truth.profiles, truth.users)
    said = fitted.predict(truth.model, truth.profiles, truth.users, shown)
    measured = [profile.label for profile in truth.profiles].index("4 x H100")
    np.testing.assert_array_equal(said.itl_ms[measured], truth.itl_ms[measured])
    others = np.arange(len(truth.profiles)) != measured
    assert (said.itl_ms[others] != blind.itl_ms[others]).any()
    assert (said.itl_ms[others] != truth.itl_ms[others]).any()


def test_users_within_a_limit_are_interpolated() -> None:
    latencies = pd.Series([10.0, 20.0, 20.0, 60.0], index=[1, 2, 4, 8])
    assert users_within(latencies, 5) == 0
    assert users_within(latencies, 60) == 8
    assert users_within(latencies, 100) == 8
    assert users_within(latencies, 40) == 6
    assert users_within(latencies, 49) == 6
    # At a limit that several levels meet, the paper takes the first that reaches it.
    assert users_within(latencies, 20) == 2


def test_a_fingerprint_has_the_same_features_with_and_without_measurements(few: Dataset) -> None:
    prints = Fingerprints(("1xT4", "4xH100"), (1, 128), nttft_ms=100, itl_ms=50)
    rows = few.only("starcoder").table
    known, unknown = prints.of(rows), prints.of(None)
    assert list(known) == list(unknown)
    assert len(known) == 2 * (3 + 3 * 2)
    assert set(unknown.values()) == {-1.0}
    assert known["4xH100_itl_ms_128"] == 50.0
    # The published data lack this throughput; starcoder does not fit on a T4.
    assert known["4xH100_throughput_tok_s_128"] == known["1xT4_itl_ms_1"] == -1.0
    assert known["4xH100_users_within_both"] == 128
