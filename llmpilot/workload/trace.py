"""Reading a trace of real requests: CSV or Parquet, in chunks, only the columns asked for.

A row that cannot be true is refused with its number, never dropped or mended in silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmpilot.config import Facts
from llmpilot.errors import TraceError, did_you_mean
from llmpilot.workload.formats import batches, column_names
from llmpilot.workload.requests import DTYPES, NEUTRAL, Floats, Requests

MAX_TOKENS = 10_000_000
MAX_TEMPERATURE = 100.0
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "greedy"), ("false", "0", "0.0", "no", "sample", "sampling")


class TraceColumns(Facts):
    """Which column of the trace holds what; null means that the trace does not say.

    What a trace does not say takes its neutral value: one sequence, greedy unless there is a temperature
    above 0, temperature 1, top_k 0 and top_p 1 (no limit). So does an empty cell of an optional column.
    """

    input_tokens: str = "input_tokens"
    output_tokens: str = "output_tokens"
    batch_size: str | None = None
    greedy: str | None = None
    temperature: str | None = None
    top_k: str | None = None
    top_p: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class _Rule:
    """What a number of one column must be."""

    low: float
    high: float
    whole: bool
    says: str


_TOKENS = _Rule(1, MAX_TOKENS, True, f"a whole number of tokens from 1 to {MAX_TOKENS:,}")
RULES = {
    "input_tokens": _TOKENS,
    "output_tokens": _TOKENS,
    "batch_size": _Rule(1, MAX_TOKENS, True, "a whole number of sequences, at least 1"),
    "temperature": _Rule(0, MAX_TEMPERATURE, False, f"a number from 0 to {MAX_TEMPERATURE:g}"),
    "top_k": _Rule(-1, MAX_TOKENS, True, "a whole number; 0 or -1 mean no limit"),
    "top_p": _Rule(0, 1, False, "a number from 0 to 1"),
}


def read_trace(path: str | Path, columns: TraceColumns) -> Iterator[tuple[Requests, Floats | None]]:
    """Yield the trace's requests in chunks, each with its timestamps in seconds from the trace's first,
    or None where `columns` names no timestamp. Memory is bounded by the chunk, not by the file.

    Timestamps are numbers of seconds or ISO 8601 texts, and must not go backwards.

    Raises:
        TraceError: the file or one of its rows cannot be used; says which, and what to do.
    """
    source = Path(path).expanduser()
    wanted = {field: name for field, name in columns.model_dump().items() if name is not None}
    _refuse_missing(source, wanted)
    clock = _Clock(source, wanted.get("timestamp", ""))
    row = 0
    for batch in batches(source, sorted(set(wanted.values()))):
        if batch.num_rows == 0:
            continue
        arrays = {field: batch.column(name) for field, name in wanted.items()}
        stamps = arrays.pop("timestamp", None)
        requests = _requests(source, wanted, arrays, batch.num_rows, row)
        yield requests, None if stamps is None else clock.seconds(stamps, row)
        row += batch.num_rows
    if row == 0:
        cure = "give a trace with at least one request"
        raise TraceError("the trace has no rows below its header", given=source, cure=cure)


def _refuse_missing(path: Path, wanted: dict[str, str]) -> None:
    there = column_names(path)
    for field, name in wanted.items():
        if there.count(name) > 1:
            wrong = f"two columns of the trace are named {name!r}"
            raise TraceError(wrong, given=path, cure="rename one of them")
        if name not in there:
            raise TraceError(
                f"the trace has no column {name!r} for {field}",
                given=f"{path} with columns {', '.join(there[:30])}{' ...' if len(there) > 30 else ''}",
                cure=f"{did_you_mean(name, there)}name it: trace.columns.{field}=<column>",
            )


def _requests(
    path: Path, wanted: dict[str, str], arrays: dict[str, pa.Array], n: int, first_row: int
) -> Requests:
    values: dict[str, np.ndarray] = {}
    for field in RULES:
        if field in arrays:
            values[field] = _numbers(path, field, wanted[field], arrays[field], first_row)
        else:
            values[field] = np.full(n, NEUTRAL[field])
    values["top_k"] = np.maximum(values["top_k"], 0)
    # A sampling temperature of zero is greedy decoding; a trace that says neither leaves the neutral value.
    implied = values["temperature"] == 0 if "temperature" in arrays else np.full(n, bool(NEUTRAL["greedy"]))
    values["greedy"] = implied
    if "greedy" in arrays:
        values["greedy"] = _flags(path, wanted["greedy"], arrays["greedy"], first_row, implied)
    return Requests(**{field: column.astype(DTYPES[field]) for field, column in values.items()})


def _numbers(path: Path, field: str, name: str, array: pa.Array, first_row: int) -> Floats:
    """Return a column's numbers, each within its rule; an empty cell is neutral, or refused if required."""
    rule = RULES[field]
    texts = _plain(path, name, array)
    empty = _empty(texts)
    if empty.any() and field not in NEUTRAL:
        raise _bad(path, name, first_row + int(np.argmax(empty)), "nothing", rule.says)
    present = pc.if_else(pa.array(empty), pa.scalar(None, texts.type), texts) if empty.any() else texts
    try:
        numbers = _as_floats(present)
    except pa.ArrowException:
        at = _first_unreadable(present)
        raise _bad(path, name, first_row + at, _shown(texts, at), rule.says) from None
    if empty.any():
        numbers[empty] = NEUTRAL[field]
    wrong = ~((numbers >= rule.low) & (numbers <= rule.high))
    if rule.whole:
        wrong |= numbers != np.floor(numbers)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise _bad(path, name, first_row + at, _shown(texts, at), rule.says)
    return numbers


def _flags(path: Path, name: str, array: pa.Array, first_row: int, implied: np.ndarray) -> np.ndarray:
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(_plain(path, name, array), pa.string())))
    yes = np.asarray(pc.fill_null(pc.is_in(texts, pa.array(_TRUE)), False))
    no = np.asarray(pc.fill_null(pc.is_in(texts, pa.array(_FALSE)), False))
    empty = _empty(texts)
    wrong = ~(yes | no | empty)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise _bad(path, name, first_row + at, _shown(texts, at), "true or false (greedy or sample)")
    return np.where(empty, implied, yes)


class _Clock:
    """Turns timestamps into seconds from the trace's first, chunk by chunk; sees them go backwards."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._first: int | float | None = None
        self._last = 0.0
        self._dated = False

    def seconds(self, array: pa.Array, first_row: int) -> Floats:
        """Return the chunk's timestamps in seconds from the first of the trace."""
        raw = self._read(array, first_row)
        if self._first is None:
            self._first = raw[0].item()
        seconds: Floats = (raw - self._first) / (1e9 if self._dated else 1.0)
        backwards = np.diff(seconds, prepend=self._last) < 0
        if backwards.any():
            at = int(np.argmax(backwards))
            raise TraceError(
                f"the timestamps in column {self._name!r} go backwards",
                given=f"{_shown(array, at)} in row {first_row + at + 1} below the header of {self._path}",
                cure="sort the trace by it; where nothing is to be replayed: trace.columns.timestamp=null",
            )
        self._last = float(seconds[-1])
        return seconds

    def _read(self, array: pa.Array, first_row: int) -> np.ndarray:
        """Return seconds as they are, or dates as nanoseconds; a trace may not change between the two."""
        says = "a number of seconds, or a date and time such as 2023-11-16 18:17:03.97"
        texts = _plain(self._path, self._name, array, dates=True)
        empty = _empty(texts)
        if empty.any():
            raise _bad(self._path, self._name, first_row + int(np.argmax(empty)), "nothing", says)
        if self._first is None:
            self._dated = not _readable(texts.slice(0, 1), _as_floats)
        convert = _as_nanoseconds if self._dated else _as_floats
        try:
            values = convert(texts)
        except pa.ArrowException:
            at = next((i for i in range(len(texts)) if not _readable(texts.slice(i, 1), convert)), 0)
            raise _bad(self._path, self._name, first_row + at, _shown(texts, at), says) from None
        if not self._dated and not np.isfinite(values).all():
            at = int(np.argmin(np.isfinite(values)))
            raise _bad(self._path, self._name, first_row + at, _shown(texts, at), says)
        return values


def _plain(path: Path, name: str, array: pa.Array, *, dates: bool = False) -> pa.Array:
    """Return the column as text, numbers or dates, without dictionaries; refuse lists and structs."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    other = pa.types.is_boolean(kind) or pa.types.is_null(kind)
    date = dates and pa.types.is_timestamp(kind)
    if not (text or number or other or date):
        raise TraceError(
            f"column {name!r} of the trace holds {kind}, not single numbers",
            given=path,
            cure="name another column, or rewrite this one as numbers",
        )
    return pc.cast(array, pa.string()) if text else array


def _empty(array: pa.Array) -> np.ndarray:
    missing = np.asarray(pc.is_null(array))
    if pa.types.is_string(array.type):
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(array), ""), False)
        missing = missing | np.asarray(blank)
    return missing


def _as_floats(array: pa.Array) -> Floats:
    """Return numbers; a null becomes 0, for the caller to overwrite."""
    if pa.types.is_timestamp(array.type):
        raise pa.ArrowInvalid("dates")
    if pa.types.is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
    numbers = pc.fill_null(pc.cast(array, pa.float64(), safe=False), 0.0)
    return np.array(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)


def _as_nanoseconds(array: pa.Array) -> np.ndarray:
    if pa.types.is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        try:
            array = pc.cast(array, pa.timestamp("ns"))
        except pa.ArrowException:
            array = pc.cast(array, pa.timestamp("ns", "UTC"))
    if not pa.types.is_timestamp(array.type):
        raise pa.ArrowInvalid("no dates")
    return np.asarray(pc.cast(pc.cast(array, pa.timestamp("ns", array.type.tz)), pa.int64()))


def _readable(array: pa.Array, convert: object) -> bool:
    try:
        convert(array)  # type: ignore[operator]
    except (pa.ArrowException, ValueError):
        return False
    return True


def _first_unreadable(array: pa.Array) -> int:
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _readable(array.slice(low, middle - low), _as_floats) else (low, middle)
    return low


def _shown(array: pa.Array, at: int) -> str:
    """Return a cell as a person may read it; dates beyond Python's own have no such form."""
    try:
        value = array[at].as_py()
    except (ValueError, OverflowError):
        return f"a value of type {array.type}"
    return repr(value) if isinstance(value, str) else str(value)


def _bad(path: Path, name: str, row: int, value: object, says: str) -> TraceError:
    """The error for one impossible value; `row` counts from 0."""
    return TraceError(
        f"column {name!r} of the trace must hold {says}",
        given=f"{value} in row {row + 1} below the header of {path}",
        cure="correct or remove this row; or map another column with trace.columns",
    )
