"""The characterization table: types, checks, hash, selection, and merging by facts rather than names."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.dataset import COLUMNS, Dataset, DatasetError, merge, published
from llmpilot.dataset.hardware import runs_on

STARCODER = catalog.models(["starcoder"])["starcoder"]
A100 = catalog.gpus(["a100"])["a100"]


def row(**given: Any) -> dict[str, Any]:
    return {
        "model": "starcoder",
        "gpu": "A100-40GB",
        "count": 1,
        "users": 1,
        "nttft_ms": 0.5,
        "itl_ms": 20.0,
        "measurement": "measured",
    } | given


def dataset(*rows: dict[str, Any], model: Model = STARCODER, gpu: Gpu = A100) -> Dataset:
    return Dataset(pd.DataFrame(rows or [row()]), {"starcoder": model}, {"A100-40GB": gpu})


def test_a_table_is_typed_and_sorted_and_absent_columns_are_null() -> None:
    table = dataset(row(users=8, run_id="b"), row(users=8, run_id="a"), row(users=2.0, requests=7)).table
    assert list(table.columns) == list(COLUMNS)
    assert table[["users", "run_id"]].to_numpy().tolist() == [[2, None], [8, "a"], [8, "b"]]
    assert table["users"].dtype == "int64"
    assert table["requests"].dtype == "Int64"
    assert table["requests"].isna().tolist() == [False, True, True]
    assert table["e2e_ms"].dtype == "float64"
    assert np.isnan(table["e2e_ms"]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"itl_ms": None}, "impossible itl_ms"),
        ({"nttft_ms": -1.0}, "impossible nttft_ms"),
        ({"e2e_ms": float("inf")}, "impossible e2e_ms"),
        ({"users": 0}, "impossible users"),
        ({"count": 1.5}, "column count"),
        ({"users": None}, "column users"),
        ({"requests": "many"}, "column requests"),
        ({"failure_rate": 1.1}, "impossible failure_rate"),
        ({"measurement": "guessed"}, "impossible measurement"),
        ({"model": "gpt_9"}, "names a model without its facts: gpt_9"),
        ({"gpu": "T4"}, "names a gpu without its facts: T4"),
        ({"speed": 3}, "no columns of a table of characterizations: speed"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        dataset(row(), row(users=2) | given)


def test_missing_columns_are_named() -> None:
    with pytest.raises(DatasetError, match="columns are missing: itl_ms, measurement"):
        Dataset(
            pd.DataFrame([row()]).drop(columns=["itl_ms", "measurement"]),
            {"starcoder": STARCODER},
            {"A100-40GB": A100},
        )


def test_the_hash_is_of_the_content_whatever_its_form() -> None:
    rows = [row(), row(users=2, max_batch_weight=4000), row(users=4, itl_ms=21)]
    wanted = dataset(*rows).content_hash
    assert dataset(*reversed(rows)).content_hash == wanted
    as_text = pd.DataFrame(rows[::-1])[::-1].map(lambda value: None if pd.isna(value) else repr(value))
    for name in ("model", "gpu", "measurement"):
        as_text[name] = as_text[name].str.strip("'")
    again = Dataset(as_text[sorted(as_text.columns)], {"starcoder": STARCODER}, {"A100-40GB": A100})
    assert again.content_hash == wanted
    dearer = A100.model_copy(update={"price_per_hour": {1: 9.0, 2: 18.0}, "count": 2})
    assert dataset(*rows, gpu=dearer).content_hash == wanted


@pytest.mark.parametrize(
    "change", [{"itl_ms": 20.000000000000004}, {"run_id": "a"}, {"failure_rate": 0.0}, {"users": 2}]
)
def test_the_hash_sees_every_change_of_a_row(change: dict[str, Any]) -> None:
    assert dataset(row(**change)).content_hash != dataset(row()).content_hash


def test_the_hash_sees_facts() -> None:
    quantized = STARCODER.model_copy(update={"weight_bytes_per_parameter": 1.0})
    faster = A100.model_copy(update={"link": "nvlink", "link_gb_s": 600.0})
    hashes = {dataset(model=m, gpu=g).content_hash for m in (STARCODER, quantized) for g in (A100, faster)}
    assert len(hashes) == 4


def test_selecting_takes_the_facts_along() -> None:
    data = published()
    only, without = data.only("starcoder"), data.without("starcoder")
    assert set(only.models) == {"starcoder"}
    assert "starcoder" not in without.models
    assert len(only) + len(without) == len(data) == 528
    assert merge(only, without).content_hash == data.content_hash
    t4 = data.select(data.table["gpu"] == "T4")
    assert set(t4.gpus) == {"T4"}
    nothing = data.only("no such model")
    assert (len(nothing), nothing.models, nothing.gpus) == (0, {}, {})
    assert nothing.table.dtypes.equals(data.table.dtypes)


def test_cells_measured_twice_stay_two_rows() -> None:
    own = dataset(row(run_id="a"), row(run_id="b"))
    merged = merge(published(), own)
    assert len(merged) == 530
    cell = merged.table[(merged.table["model"] == "starcoder") & (merged.table["users"] == 1)]
    cell = cell[(cell["gpu"] == "A100-40GB") & (cell["count"] == 1)]
    assert cell["run_id"].tolist() == [None, "a", "b"]
    assert merge(own, published()).content_hash == merged.content_hash
    assert merge(merged).content_hash == merged.content_hash


def test_one_name_with_other_facts_is_kept_apart() -> None:
    quantized = STARCODER.model_copy(update={"weight_bytes_per_parameter": 1.0})
    nvlink = A100.model_copy(update={"link": "nvlink", "link_gb_s": 600.0})
    other = dataset(model=quantized, gpu=nvlink)
    for merged in (merge(published(), other), merge(other, published()), merge(merge(other), published())):
        (key,) = set(merged.models) - set(published().models)
        (gpu,) = set(merged.gpus) - set(published().gpus)
        assert key.startswith("starcoder@")
        assert gpu.startswith("A100-40GB@")
        assert merged.models[key] == quantized
        assert merged.models["starcoder"] == STARCODER
        assert merged.only(key).table["gpu"].tolist() == [gpu]
        assert len(merged.only("starcoder")) == len(published().only("starcoder"))
    # A name of the catalogue means the catalogue's facts, even where nothing else bears it.
    assert set(merge(other).models) == {key}


def test_a_name_of_ones_own_is_bare_until_it_means_two_things() -> None:
    mine = STARCODER.model_copy(update={"name": "mine"})
    larger = mine.model_copy(update={"n_layers": 44})
    assert set(merge(dataset(model=mine)).models) == {"mine"}
    both = set(merge(dataset(model=mine), dataset(model=larger)).models)
    assert len(both) == 2
    assert all(key.startswith("mine@") for key in both)


def test_other_prices_do_not_make_another_gpu() -> None:
    dearer = A100.model_copy(update={"price_per_hour": {1: 9.0}, "price_source": "my contract"})
    merged = merge(dataset(gpu=dearer), published())
    assert len(merged.gpus) == 5
    assert merged.gpus["A100-40GB"] == published().gpus["A100-40GB"]


@pytest.mark.parametrize(
    ("option", "count", "hardware", "same"),
    [
        ("a100", 1, "1 x NVIDIA A100-SXM4-40GB", True),
        ("a100", 1, "1 x NVIDIA A100-SXM4-80GB", False),
        ("a100_80gb", 2, "8 x NVIDIA A100 80GB PCIe", True),
        ("a100", 4, "2 x NVIDIA A100-PCIE-40GB", False),
        ("a100", 1, "cpu: 2 x AMD EPYC 7B13", False),
        ("a10", 1, "1 x NVIDIA A10", True),
        ("a10", 1, "1 x NVIDIA A10G", False),
        ("a10", 1, "1 x NVIDIA A100-PCIE-40GB", False),
        ("l4", 1, "1 x NVIDIA L40S", False),
        ("l40s", 1, "1 x NVIDIA L40S", True),
        ("t4", 2, "4 x Tesla T4", True),
        ("v100", 1, "1 x Tesla V100-SXM2-16GB", True),
        ("h100", 1, "1 x NVIDIA H100 80GB HBM3", True),
        ("h100", 1, "1 x NVIDIA H100 80GB HBM3, 1 x NVIDIA L4", False),
        ("h200", 1, "1 x NVIDIA H200", True),
    ],
)
def test_a_label_must_agree_with_the_hardware(option: str, count: int, hardware: str, same: bool) -> None:
    gpu = catalog.gpus([option])[option].model_copy(update={"count": count})
    assert runs_on(gpu, hardware) is same
