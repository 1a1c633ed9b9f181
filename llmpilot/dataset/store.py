"""A data set as one Parquet file: the table, and in the schema's metadata the facts of all it names."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot.config import Gpu, Model, parse
from llmpilot.dataset.table import COLUMNS, NUMBERS, WHOLE, WHOLE_OR_NULL, Dataset, DatasetError
from llmpilot.errors import ConfigError
from llmpilot.files import replacing

KEY = b"llmpilot.dataset"
FORMAT = 1
CURE = "write it again: python -m llmpilot task=dataset output=PATH"


def save(dataset: Dataset, path: Path) -> None:
    """Write the data set to `path`, whole or not at all.

    Raises:
        DatasetError: it cannot be written there.
    """
    described = {
        "format": FORMAT,
        "content_hash": dataset.content_hash,
        "models": {key: model.model_dump() for key, model in dataset.models.items()},
        "gpus": {key: gpu.model_dump() for key, gpu in dataset.gpus.items()},
    }
    table = pa.Table.from_pandas(dataset.table, schema=_schema(), preserve_index=False)
    table = table.replace_schema_metadata({KEY: json.dumps(described, sort_keys=True).encode()})
    try:
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError as error:
        raise DatasetError(
            f"cannot write there: {error.strerror or error}", given=path, cure="output=PATH that is writable"
        ) from None


def load(path: Path) -> Dataset:
    """Return the data set that `save` wrote: the same rows, facts and content hash.

    Raises:
        DatasetError: no such file, another kind of file, or one that was changed since.
    """
    if not path.is_file():
        raise DatasetError("there is no such data set", given=path, cure=CURE)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError("this is no Parquet file", given=f"{path}: {error}", cure=CURE) from None
    metadata = table.schema.metadata or {}
    if KEY not in metadata:
        raise DatasetError("a Parquet file, but not a data set of LLM-Pilot", given=path, cure=CURE)
    try:
        described = dict(json.loads(metadata[KEY]))
        if described["format"] != FORMAT:
            raise ValueError(f"its format is {described['format']}, this version reads {FORMAT}")
        dataset = Dataset(_frame(table), _facts(Model, described["models"]), _facts(Gpu, described["gpus"]))
        content_hash = str(described["content_hash"])
    except (ConfigError, DatasetError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"the data set is damaged: {error}", given=path, cure=CURE) from None
    if dataset.content_hash != content_hash:
        raise DatasetError("the data set was changed since it was written", given=path, cure=CURE)
    return dataset


def _schema() -> pa.Schema:
    whole = {*WHOLE, *WHOLE_OR_NULL}
    kinds = {name: pa.int64() if name in whole else pa.float64() for name in (*whole, *NUMBERS)}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return the table as a frame of plain values; the data set types them."""
    return pd.DataFrame(
        {name: pd.Series(table[name].to_pylist(), dtype=object) for name in table.column_names}
    )


def _facts(kind: Any, stored: dict[str, Any]) -> dict[str, Any]:
    return {key: parse(kind, facts, f"facts of {key}") for key, facts in stored.items()}
