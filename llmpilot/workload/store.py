"""Files: a workload model as Parquet, and writing so that nothing is ever half there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot.errors import TraceError
from llmpilot.files import replacing
from llmpilot.workload.requests import DTYPES, PARAMETERS, STEPS_PER_UNIT

if TYPE_CHECKING:
    from llmpilot.workload.joint import WorkloadModel

KEY = b"llm-pilot.workload"
FORMAT = 1
REFIT = "fit it again: python -m llmpilot task=workload trace.path=<your trace>"
MAX_STEP = 10_000_000
MAX_CELLS = 50_000_000
_DAMAGE = (pa.ArrowException, OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def refuse_unwritable(path: Path) -> None:
    """Raise a TraceError if `path` plainly cannot be written: worth knowing before hours of reading."""
    if path.is_dir():
        raise TraceError("a folder is in the way of the file to write", given=path, cure="give a file's path")
    there = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise TraceError(f"{there} is no folder that can be written to", given=path, cure="give another path")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block ends well, and is removed
    when it does not (an error, Ctrl-C).

    Raises:
        TraceError: it cannot be written there.
    """
    refuse_unwritable(path)
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        cure = "make room, or give another path"
        raise TraceError(f"cannot write there: {error}", given=path, cure=cure) from None


def save(model: "WorkloadModel", path: Path) -> None:
    """Write `model` to `path` as Parquet: a row a cell, bins and origin as JSON in the schema's metadata."""
    described = {
        "format": FORMAT,
        "content_hash": model.content_hash,
        "about": dict(model.about),
        "steps_per_unit": STEPS_PER_UNIT,
        "bins": {name: bins.tolist() for name, bins in zip(PARAMETERS, model.bins, strict=True)},
    }
    fields = [*(pa.field(name, pa.uint8()) for name in PARAMETERS), pa.field("weight", pa.int64())]
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    columns = [*(model.cells[p].astype(np.uint8) for p in range(len(PARAMETERS))), model.weights]
    table = pa.table([pa.array(column) for column in columns], schema=pa.schema(fields))
    options = {
        "compression": "zstd",
        "compression_level": 19,
        "write_statistics": False,
        "store_schema": False,
    }
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, table.schema, write_page_checksum=True, **options) as writer,
    ):
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: text.encode()})


def load(path: Path) -> "WorkloadModel":
    """Return the model saved at `path`.

    Raises:
        TraceError: there is no such file, it is no workload model, or it is damaged.
    """
    from llmpilot.workload.joint import WorkloadModel

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TraceError(f"the workload model {what}", given=path, cure=f"check workload.model, or {REFIT}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.metadata.metadata or {}
            if KEY not in metadata:
                raise TraceError(
                    "a Parquet file, but not a workload model",
                    given=path,
                    cure=f"if it is a trace, {REFIT.replace('<your trace>', str(path))}",
                )
            if file.metadata.num_rows > MAX_CELLS:
                raise ValueError("more cells than there can be")
            described = json.loads(metadata[KEY])
            if described["format"] != FORMAT:
                raise TraceError(
                    f"a workload model of format {described['format']}, this version reads {FORMAT}",
                    given=path,
                    cure=REFIT,
                )
            table = file.read()
        model = _checked(described, table, WorkloadModel)
    except _DAMAGE as error:
        wrong = f"not a workload model, or a damaged one ({_brief(error)})"
        raise TraceError(wrong, given=path, cure=REFIT) from None
    return model


def _checked(described: dict[str, Any], table: pa.Table, kind: type["WorkloadModel"]) -> "WorkloadModel":
    """Return the model, or raise ValueError saying what is wrong with it."""
    if described["steps_per_unit"] != STEPS_PER_UNIT or table.column_names != [*PARAMETERS, "weight"]:
        raise ValueError("its parameters are others")
    bins = tuple(np.array(described["bins"][name], dtype=np.int64) for name in PARAMETERS)
    columns = [table[name].to_numpy() for name in table.column_names]
    weights = columns.pop()
    if len(weights) == 0 or any(column.dtype.kind not in "ui" for column in [*columns, weights]):
        raise ValueError("its cells are not whole numbers")
    for edges, column in zip(bins, columns, strict=True):
        if edges.ndim != 2 or edges.shape[1] != 2 or not 1 <= len(edges) <= 256:
            raise ValueError("its bins are no intervals")
        if (np.diff(edges.ravel())[1::2] <= 0).any() or (edges[:, 0] > edges[:, 1]).any():
            raise ValueError("its bins overlap")
        if edges.min() < 0 or edges.max() > MAX_STEP or column.max() >= len(edges):
            raise ValueError("its cells lie outside its bins")
    if weights.min() < 1 or float(weights.sum(dtype=np.float64)) >= 2**62:
        raise ValueError("its weights are impossible")
    about = {str(key): str(value) for key, value in described["about"].items()}
    model = kind(bins, np.stack(columns).astype(np.int32), weights.astype(np.int64), about)
    if model.content_hash != described["content_hash"]:
        raise ValueError("its content does not match its checksum")
    return model


def refuse_suffix(path: Path) -> None:
    """Raise a TraceError if samples cannot be written in the format that `path` asks for."""
    if path.suffix not in (".csv", ".parquet"):
        cure = "samples_file=samples.csv"
        raise TraceError("samples_file must end in .csv or .parquet", given=path, cure=cure)


def write_samples(model: "WorkloadModel", n: int, seed: int, path: Path, chunk: int = 262_144) -> None:
    """Write the first `n` requests of `model.stream(seed)` to `path` (.csv or .parquet), in bounded memory.

    Raises:
        TraceError: the suffix is neither, or the path cannot be written.
    """
    import pyarrow.csv as pc

    schema = pa.schema([(name, pa.from_numpy_dtype(DTYPES[name])) for name in PARAMETERS])
    refuse_suffix(path)
    writers = {".csv": pc.CSVWriter, ".parquet": pq.ParquetWriter}
    stream = model.stream(seed)
    with atomic(path) as temporary, writers[path.suffix](temporary, schema) as writer:
        for done in range(0, n, chunk):
            part = stream.take(min(chunk, n - done))
            columns = [pa.array(getattr(part, name)) for name in PARAMETERS]
            writer.write_table(pa.table(columns, schema=schema))


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
