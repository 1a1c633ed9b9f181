"""The paper's features, their encodings and weights, and how it chooses hyperparameters."""

import warnings

import numpy as np
import pandas as pd
import pytest
from paper_data import FOLDER, needs_data

from llmpilot import catalog
from llmpilot.dataset import Dataset, DatasetError, published
from llmpilot.predict.paper import encoding, search
from llmpilot.predict.paper.features import CATEGORICAL, MISSING, describe
from llmpilot.predict.paper.table import PAPER_NAMES, Cells, cells_of, sample_weights


@pytest.fixture(scope="module")
def data() -> Dataset:
    return published()


@pytest.fixture(scope="module")
def cells(data: Dataset) -> Cells:
    return cells_of(data)


@needs_data
def test_features_are_those_of_the_papers_tables(data: Dataset, cells: Cells) -> None:
    folder = FOLDER
    llms = pd.read_csv(folder / "llm_features.csv").set_index("model")
    gpus = pd.read_csv(folder / "gpu_features.csv", index_col=0).set_index("gpu")
    assert list(cells.features.columns) == ["num_users", *llms.columns, *gpus.columns]
    for row, features in zip(cells.keys.itertuples(), cells.features.to_dict("records"), strict=True):
        profile = f"{row[3]} x {str(row.gpu).removesuffix('-40GB')}"
        theirs = llms.loc[PAPER_NAMES[str(row.model)]].to_dict() | gpus.loc[profile].to_dict()
        for name, value in theirs.items():
            expected = value if name in CATEGORICAL else MISSING if pd.isna(value) else float(value)
            assert features[name] == expected, (profile, row.model, name)


def test_what_the_paper_does_not_know_is_derived_or_missing() -> None:
    model, gpu = catalog.models(["qwen3_8b"])["qwen3_8b"], catalog.gpus(["l40s"])["l40s"]
    row = describe([(model, gpu, 4)]).iloc[0]
    assert row["num_users"] == 4
    assert row["model_n_parameters"] == model.parameters_b
    assert row["model_n_positions"] == model.max_positions
    assert row["gpu_tflops_tc_fp16"] == gpu.tflops_fp16
    assert row["gpu_memory_capacity_gb"] == gpu.memory_gb
    assert row["gpu_n_sms"] == row["model_relative_attention_n_buckets"] == MISSING


def test_rows_are_in_the_papers_order(cells: Cells) -> None:
    names = [PAPER_NAMES[llm] for llm in cells.llms]
    assert names == sorted(names)
    profiles = (cells.keys["count"].astype(str) + " x " + cells.keys["gpu"])[
        cells.keys["model"] == "starcoder"
    ]
    assert profiles.tolist() == sorted(profiles)


def test_one_llm_is_too_few(data: Dataset) -> None:
    with pytest.raises(DatasetError, match="at least two LLMs"):
        cells_of(data.only("starcoder"))


def test_weights_of_each_profile_sum_to_one_and_favour_the_limits(cells: Cells) -> None:
    weights = pd.Series(sample_weights(cells, nttft_ms=100, itl_ms=50))
    keys = cells.keys.reset_index(drop=True)
    per_profile = weights.groupby([keys["model"], keys["gpu"], keys["count"]]).sum()
    np.testing.assert_allclose(per_profile, 1.0)
    one = ((keys["model"] == "codegen2_16b") & (keys["users"] == 64)).to_numpy()
    # Its nTTFT of 99.07 is the nearest to 100 of all rows, its ITL of 32 the second nearest to 50.
    assert weights[one].item() == weights[(keys["model"] == "codegen2_16b").to_numpy()].max()


def test_weights_where_all_rows_are_equally_far(cells: Cells) -> None:
    first = np.arange(len(cells.keys)) == 0
    np.testing.assert_allclose(sample_weights(cells.where(first), 100, 50), [1.0])


def test_target_encoding_is_that_of_scikit_learn(cells: Cells) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    ours = encoding.encode_training(cells)
    learned = encoding.learn(cells.features, cells.latencies).transform(cells.features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # version 1.9 deprecates `shuffle`
        for target in range(2):
            theirs = preprocessing.TargetEncoder(target_type="continuous", cv=5, shuffle=False)
            crossed = theirs.fit_transform(cells.features[list(CATEGORICAL)], cells.latencies[:, target])
            plain = theirs.transform(cells.features[list(CATEGORICAL)])
            columns = slice(3 * target, 3 * target + 3)
            np.testing.assert_allclose(ours[:, columns], crossed)
            np.testing.assert_allclose(learned[:, columns], plain)
    np.testing.assert_array_equal(ours[:, 6], cells.features["num_users"])


def test_an_unknown_category_is_encoded_as_the_mean(cells: Cells) -> None:
    learned = encoding.learn(cells.features, cells.latencies)
    strange = cells.features.head(1).assign(model_type="qwen3")
    np.testing.assert_allclose(learned.transform(strange)[0, [0, 3]], cells.latencies.mean(axis=0))


def test_networks_have_the_papers_46_inputs_whichever_llm_is_left_out(data: Dataset) -> None:
    for llm in ("starcoder", "mpt_7b"):
        train = cells_of(data.without(llm))
        one_hot = encoding.learn_one_hot(train.features)
        x = one_hot.transform(train.features)
        assert x.shape[1] == 46
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
        assert set(np.round(x.std(axis=0), 9)) == {0.0, 1.0}


def test_each_llm_is_left_out_once(cells: Cells) -> None:
    left_out = []
    for train, test in cells.leave_one_out():
        assert set(train.llms).isdisjoint(test.llms)
        assert len(train.keys) + len(test.keys) == len(cells.keys)
        left_out += test.llms
    assert left_out == cells.llms


def test_of_equal_settings_the_first_is_best() -> None:
    every = search.settings_of({"b": [1, 2], "a": ["x", "y"]})
    assert [(one["a"], one["b"]) for one in every] == [("x", 1), ("x", 2), ("y", 1), ("y", 2)]
    assert search.best(every, [[3, 1, 1, 9], [3, 2, 2, 9]]) == {"a": "x", "b": 2}


def test_mape_is_over_rows_and_metrics() -> None:
    assert search.mape(np.array([[2.0, 10.0], [1.0, 5.0]]), np.array([[1.0, 10.0], [1.0, 10.0]])) == 0.375
