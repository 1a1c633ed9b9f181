"""The published table as it ships, and its computation from raw requests."""

from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paper_data import FOLDER, needs_data
from recorded import write_campaign

from llmpilot import catalog
from llmpilot.dataset import Dataset, DatasetError, published
from llmpilot.dataset.published import (
    GPU_NAMES,
    SHIPPED,
    SOURCE,
    STATED,
    difference,
    from_requests,
    write_shipped,
)
from llmpilot.simulator.calibration import shipped_calibrations
from llmpilot.simulator.recordings import CATALOGUE


@pytest.fixture(scope="module")
def data() -> Dataset:
    return published()


def test_the_shipped_table_holds_every_published_cell(data: Dataset) -> None:
    pairs = data.table.groupby(["model", "gpu", "count"])["users"].agg(list)
    assert len(data) == 528
    assert set(pairs.index) == set(shipped_calibrations())
    assert all(users == [1, 2, 4, 8, 16, 32, 64, 128] for users in pairs)
    assert data.models == catalog.models(sorted(CATALOGUE.values()))
    assert list(data.gpus) == ["A10", "A100-40GB", "H100", "T4", "V100"]
    assert all(gpu.count == 1 for gpu in data.gpus.values())


def test_its_figures_are_possible(data: Dataset) -> None:
    table = data.table
    assert set(table["measurement"]) == {"published"}
    assert table[["run_id", "hardware", "max_batch_weight"]].isna().all(axis=None)
    full = table[table["source"] == SOURCE]
    assert full.drop(columns=["run_id", "hardware", "max_batch_weight"]).notna().all(axis=None)
    assert (full["e2e_ms"] > full["ttft_ms"]).all()
    assert (full["itl_ms_p95"] >= full["itl_ms"]).all()
    assert (full["nttft_ms_p95"] >= full["nttft_ms"]).all()
    # Requests have 6 to 874 input tokens.
    assert full["nttft_ms"].between(full["ttft_ms"] / 874, full["ttft_ms"] / 6).all()
    assert full["requests"].sum() == 829_495
    failed = (full["requests"].astype(float) * full["failure_rate"]).sum()
    assert 0.04 < failed / 829_495 < 0.045
    assert (full["failure_rate"] > 0.05).sum() == 39


def test_cells_without_raw_requests_are_marked(data: Dataset) -> None:
    stated = data.table[data.table["source"] == STATED]
    keys = stated[["model", "gpu", "count", "users"]].to_numpy().tolist()
    assert keys == [["llama_7b", "H100", 4, 128], ["starcoder", "H100", 4, 128]]
    assert stated["itl_ms"].tolist() == [53.0, 50.0]
    assert stated["nttft_ms"].round(6).tolist() == [5.277443, 6.102273]
    assert stated[["ttft_ms", "throughput_tok_s", "failure_rate", "requests"]].isna().all(axis=None)


def test_it_is_written_as_it_ships(data: Dataset, tmp_path: Path) -> None:
    write_shipped(data, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == SHIPPED.read_bytes()


def test_figures_follow_their_definitions(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    write_campaign(path, (1, 16))
    raw = pq.read_table(path).to_pylist()
    computed = from_requests(path)
    table = computed.table[computed.table["source"] == SOURCE]
    assert table[["model", "gpu", "count", "users"]].to_numpy().tolist() == [
        ["starcoder", "A100-40GB", 1, 1],
        ["starcoder", "A100-40GB", 1, 16],
    ]
    for found in table.to_dict("records"):
        cell = [request for request in raw if request["users"] == found["users"]]
        good = [request for request in cell if request["status"] == 200]
        assert found["requests"] == len(cell)
        assert found["failure_rate"] == pytest.approx(1 - len(good) / len(cell))
        assert found["ttft_ms"] == median(r["token_gaps_ms"][1] for r in good)
        assert found["nttft_ms"] == median(r["token_gaps_ms"][1] / r["input_tokens"] for r in good)
        assert found["itl_ms"] == median(gap for r in good for gap in r["token_gaps_ms"][2:])
        assert found["e2e_ms"] == median(sum(r["token_gaps_ms"]) for r in good)
        assert found["throughput_tok_s"] == pytest.approx(sum(r["output_tokens"] for r in good) / 120)
    stated = computed.table[computed.table["source"] == STATED]
    assert len(stated) == 2


def test_failures_count_as_failures_only(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    write_campaign(path, (4,))
    before = from_requests(path).table.set_index("source").loc[SOURCE]
    rows = pq.read_table(path)
    lost = rows.slice(0, 1).to_pylist()[0] | {"status": 408, "input_tokens": None, "token_gaps_ms": []}
    with_failures = pa.concat_tables([rows, pa.Table.from_pylist([lost] * len(rows), rows.schema)])
    pq.write_table(with_failures, path)
    after = from_requests(path).table.set_index("source").loc[SOURCE]
    assert after["failure_rate"] == pytest.approx((1 + before["failure_rate"]) / 2)
    figures = ["nttft_ms", "itl_ms", "ttft_ms", "e2e_ms", "nttft_ms_p95", "itl_ms_p95", "throughput_tok_s"]
    assert after[figures].tolist() == before[figures].tolist()


def test_what_is_no_table_of_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        from_requests(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("model,gpu\n")
    with pytest.raises(DatasetError, match="no Parquet file"):
        from_requests(tmp_path / "text.parquet")
    pq.write_table(pa.table({"model": ["a"], "users": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match="columns are missing: gpu, input_tokens"):
        from_requests(tmp_path / "other.parquet")
    path = tmp_path / "requests.parquet"
    write_campaign(path, (1,))
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=len(table) // 2)
    with pytest.raises(DatasetError, match="spread over several row groups"):
        from_requests(path)
    lost = table.set_column(table.column_names.index("status"), "status", pa.array([408] * len(table)))
    pq.write_table(lost, path)
    with pytest.raises(DatasetError, match="no request of a cell succeeded"):
        from_requests(path)


def test_a_difference_is_found(data: Dataset) -> None:
    assert difference(data, data) == 0.0
    off = data.table.copy()
    off.loc[3, "itl_ms"] *= 1 + 1e-6
    assert difference(data, Dataset(off, data.models, data.gpus)) == pytest.approx(1e-6, rel=1e-3)
    off.loc[3, "e2e_ms"] = np.nan
    assert difference(data, Dataset(off, data.models, data.gpus)) == np.inf
    assert difference(data, data.without("starcoder")) is None


@needs_data
def test_the_shipped_table_is_what_the_raw_requests_give(data: Dataset) -> None:
    computed = from_requests(FOLDER / "requests.parquet")
    assert computed.content_hash == data.content_hash


@needs_data
def test_the_published_medians_are_reproduced(data: Dataset) -> None:
    stated = pd.read_csv(FOLDER / "published" / "expected_predictions_LLM-Pilot.csv")
    profile = stated["gpu"].str.extract(r"(\d+) x (\S+)")
    stated = stated.assign(
        model=stated["model"].map(CATALOGUE),
        gpu=profile[1].replace(GPU_NAMES),
        count=profile[0].astype(int),
        users=stated["num_users"],
    )
    both = data.table.merge(stated, on=["model", "gpu", "count", "users"], validate="one_to_one")
    assert len(both) == 528
    assert np.abs(both["nttft_ms"] - both["median_nttft"]).max() < 1e-9
    assert np.abs(both["itl_ms"] - both["median_itl"]).max() < 1e-9
