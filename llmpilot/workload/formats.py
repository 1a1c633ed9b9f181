"""CSV and Parquet as streams of record batches, with errors a person can use. Knows nothing of requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from llmpilot.errors import TraceError

BLOCK_BYTES = 4 << 20
BATCH_ROWS = 65_536
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def column_names(path: Path) -> list[str]:
    """Return the names of the file's columns, in order."""
    with _clear_errors(path):
        if _is_parquet(path):
            with pq.ParquetFile(path) as file:
                return list(file.schema_arrow.names)
        with _open_csv(path, pcsv.ConvertOptions()) as reader:
            names = list(reader.schema.names)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise TraceError(
            "the trace's columns are not separated by commas",
            given=f"{path}: {names[0]!r}",
            cure="write it with commas",
        )
    return names


def batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the named columns of the file, batch after batch; those of a CSV file as text."""
    with _clear_errors(path):
        if _is_parquet(path):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
            return
        as_text = {name: pa.string() for name in columns}
        options = pcsv.ConvertOptions(column_types=as_text, include_columns=columns)
        with _open_csv(path, options) as reader:
            yield from reader


def _open_csv(path: Path, convert: pcsv.ConvertOptions) -> pcsv.CSVStreamingReader:
    stream = pa.input_stream(str(path), compression="detect")
    read = pcsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)  # without threads errors name the row
    parse = pcsv.ParseOptions(newlines_in_values=True)
    return pcsv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def _is_parquet(path: Path) -> bool:
    """Return whether the file is Parquet, by its content; refuse what is neither Parquet nor text."""
    if path.is_dir():
        raise TraceError(
            "the trace is a folder", given=path, cure="give one file: trace.path=<CSV or Parquet>"
        )
    if not path.exists():
        raise TraceError("the trace does not exist", given=path, cure="check trace.path=<file>")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise TraceError("the trace is empty", given=path, cure="give a file with a header and rows")
    if head[:4] == b"PAR1":
        return True
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic):
            if path.suffix == suffix:
                return False
            raise TraceError("the trace is compressed", given=path, cure=f"name it {path.name}{suffix}")
    if path.suffix == ".parquet" or b"\0" in head:
        raise TraceError("the trace is neither CSV nor Parquet", given=path, cure="export it as one of these")
    if head.lstrip()[:1] in (b"{", b"["):
        raise TraceError("the trace looks like JSON", given=path, cure="export it as CSV or Parquet")
    return False


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn the reader's errors into a TraceError; those of whoever takes the batches pass."""
    try:
        yield
    except PermissionError:
        raise TraceError("the trace cannot be read", given=path, cure="check its permissions") from None
    except (pa.ArrowException, OSError, UnicodeError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TraceError(
            f"the trace cannot be read: {detail}", given=path, cure="give an undamaged CSV or Parquet file"
        ) from None
