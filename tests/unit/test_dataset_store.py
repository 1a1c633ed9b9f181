"""A data set as a file: what is loaded is what was saved, or is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpilot.dataset import Dataset, DatasetError, load, merge, published, save


def test_a_data_set_survives_its_file(tmp_path: Path) -> None:
    data = published()
    save(data, tmp_path / "data.parquet")
    again = load(tmp_path / "data.parquet")
    assert again.content_hash == data.content_hash
    assert again.table.equals(data.table)
    assert again.table.dtypes.equals(data.table.dtypes)
    assert (again.models, again.gpus) == (data.models, data.gpus)


def test_an_empty_one_does_too(tmp_path: Path) -> None:
    save(merge(), tmp_path / "data.parquet")
    assert load(tmp_path / "data.parquet").content_hash == merge().content_hash


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    with pytest.raises(DatasetError, match="no such data set"):
        load(path)
    path.write_text("model,gpu\n")
    with pytest.raises(DatasetError, match="no Parquet file"):
        load(path)
    pq.write_table(pa.table({"model": ["starcoder"]}), path)
    with pytest.raises(DatasetError, match="not a data set of LLM-Pilot"):
        load(path)


def test_changed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    save(published(), path)
    whole = pq.read_table(path)
    pq.write_table(whole.slice(1), path)
    with pytest.raises(DatasetError, match="changed since"):
        load(path)
    pq.write_table(whole.drop_columns(["itl_ms"]), path)
    with pytest.raises(DatasetError, match="damaged: columns are missing: itl_ms"):
        load(path)
    pq.write_table(whole.replace_schema_metadata({"llmpilot.dataset": '{"format": 0}'}), path)
    with pytest.raises(DatasetError, match="format is 0, this version reads 1"):
        load(path)
    for metadata in ("{", "[]", '{"format": 1, "models": [], "gpus": {}}', '{"format": 1}'):
        pq.write_table(whole.replace_schema_metadata({"llmpilot.dataset": metadata}), path)
        with pytest.raises(DatasetError, match="damaged"):
            load(path)


def test_a_latency_of_nothing_is_impossible() -> None:
    data = published()
    for name in ("nttft_ms", "itl_ms"):
        table = data.table.copy()
        table.loc[table.index[7], name] = 0.0
        with pytest.raises(DatasetError, match=f"1 rows have an impossible {name}"):
            Dataset(table, data.models, data.gpus)


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot write there"):
        save(published(), tmp_path / "file" / "data.parquet")
