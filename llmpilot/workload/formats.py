"""CSV, JSON and Parquet as streams of record batches, with errors a person can use.

Knows nothing of requests.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from llmpilot.errors import TraceError
from llmpilot.workload.json_rows import as_text, json_objects, keys_of, value_at

BLOCK_BYTES = 4 << 20
BATCH_ROWS = 65_536
HEAD_BYTES = 4096
DELIMITERS = (",", ";", "\t", "|")
"""What may part the columns of a CSV file; spreadsheets write semicolons where numbers have commas."""
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
Format = Literal["csv", "json", "parquet"]


def column_names(path: Path) -> list[str]:
    """Return the names of the file's columns, in order; those of nested values are dotted."""
    with _clear_errors(path):
        kind = format_of(path)
        if kind == "json":
            return keys_of(json_objects(_open(path), path))
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                return [name for field in file.schema_arrow for name in _names(field, "")]
        with _open_csv(path, pcsv.ConvertOptions()) as reader:
            return list(reader.schema.names)


def batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the named columns of the file, batch after batch; those of CSV and JSON as text."""
    with _clear_errors(path):
        kind = format_of(path)
        if kind == "json":
            yield from _json_batches(path, columns)
        elif kind == "parquet":
            with pq.ParquetFile(path) as file:
                there = file.schema_arrow.names
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                    arrays = [_column(batch, name, there) for name in columns]
                    yield pa.RecordBatch.from_arrays(arrays, names=columns)
        else:
            as_texts = {name: pa.string() for name in columns}
            options = pcsv.ConvertOptions(column_types=as_texts, include_columns=columns)
            with _open_csv(path, options) as reader:
                yield from reader


def objects(path: Path, column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON or Parquet file as objects; of Parquet, `column` and the ids beside it."""
    with _clear_errors(path):
        kind = format_of(path)
        if kind == "json":
            yield from json_objects(_open(path), path)
            return
        if kind == "csv":
            raise TraceError(
                "conversations as texts are read of JSON and Parquet, and this is a CSV file",
                given=f"column {column!r} of {path}",
                cure="export it as JSON lines; or name its lengths: trace.columns.input_tokens=<column>",
            )
        with pq.ParquetFile(path) as file:
            ids = [name for name in file.schema_arrow.names if name.endswith("id")]
            for batch in file.iter_batches(batch_size=1000, columns=[column, *ids]):
                yield from batch.to_pylist()


def place(path: Path, row: int) -> str:
    """Return how a person finds a row, counted from 0."""
    with _clear_errors(path):
        if format_of(path) == "json":
            return f"in object {row + 1} of {path}"
    return f"in row {row + 1} below the header of {path}"


def format_of(path: Path) -> Format:
    """Return the file's format, by its content; refuse what is none of them."""
    if path.is_dir():
        raise TraceError(
            "the trace is a folder", given=path, cure="give one file: trace.path=<CSV, JSON lines or Parquet>"
        )
    if not path.exists():
        raise TraceError("the trace does not exist", given=path, cure="check trace.path=<file>")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise TraceError("the trace is empty", given=path, cure="give a file with a header and rows")
    if head[:4] == b"PAR1":
        return "parquet"
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic):
            if path.suffix != suffix:
                raise TraceError("the trace is compressed", given=path, cure=f"name it {path.name}{suffix}")
            with _open(path) as stream:
                head = stream.read(HEAD_BYTES)
    if path.suffix == ".parquet" or b"\0" in head:
        raise TraceError(
            "the trace is neither CSV nor JSON nor Parquet", given=path, cure="export it as one of these"
        )
    return "json" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"


def _open(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression="detect")


def _open_csv(path: Path, convert: pcsv.ConvertOptions) -> pcsv.CSVStreamingReader:
    read = pcsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)  # without threads errors name the row
    parse = pcsv.ParseOptions(newlines_in_values=True, delimiter=_delimiter(path))
    return pcsv.open_csv(_open(path), read_options=read, parse_options=parse, convert_options=convert)


def _delimiter(path: Path) -> str:
    """Return what parts the names in a CSV file's header: a comma, unless there is none but another mark."""
    with _open(path) as stream:
        head = stream.read(HEAD_BYTES).split(b"\n", 1)[0].decode("utf-8", "replace")
    marks = [mark for mark in DELIMITERS if mark in head]
    return marks[0] if marks else ","


def _json_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    rows = json_objects(_open(path), path)
    while part := list(islice(rows, BATCH_ROWS)):
        texts = [pa.array([as_text(value_at(row, name)) for row in part], pa.string()) for name in columns]
        yield pa.RecordBatch.from_arrays(texts, names=columns)


def _names(field: pa.Field, prefix: str) -> Iterator[str]:
    if pa.types.is_struct(field.type):
        for inner in field.type:
            yield from _names(inner, f"{prefix}{field.name}.")
    else:
        yield f"{prefix}{field.name}"


def _column(batch: pa.RecordBatch, name: str, there: list[str]) -> pa.Array:
    """Return a column, or the values of a struct's field by its dotted name."""
    if name in there:
        return batch.column(name)
    head, _, rest = name.partition(".")
    while head not in there and rest:
        more, _, rest = rest.partition(".")
        head = f"{head}.{more}"
    array = batch.column(head)
    for part in rest.split("."):
        array = pc.struct_field(array, part)
    return array


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn the reader's errors into a TraceError; those of whoever takes the batches pass."""
    try:
        yield
    except PermissionError:
        raise TraceError("the trace cannot be read", given=path, cure="check its permissions") from None
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TraceError(
            f"the trace cannot be read: {detail}",
            given=path,
            cure="give an undamaged CSV, JSON or Parquet file",
        ) from None
