"""The cells of a trace's columns as numbers, flags and times; what breaks a rule is refused with its row."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmpilot.errors import TraceError
from llmpilot.workload.clock import Clock, NotATime, UnclearUnit, as_floats, unclear
from llmpilot.workload.formats import place
from llmpilot.workload.layouts import Found
from llmpilot.workload.requests import DTYPES, NEUTRAL, Floats, Ints, Requests

MAX_TOKENS = 10_000_000
MAX_TEMPERATURE = 100.0
LENGTHS = ("input_tokens", "output_tokens")
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "greedy"), ("false", "0", "0.0", "no", "sample", "sampling")


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


@dataclass(frozen=True)
class Cells:
    """Reads the columns of one trace; `key` is where the configuration has it, for cures.

    `rows` are the numbers of the rows in the file, from 0. All methods raise a TraceError for a cell that
    cannot be true.
    """

    path: Path
    found: Found
    key: str

    def zeros(self, arrays: dict[str, pa.Array]) -> np.ndarray:
        """Return which rows have 0 or no tokens; what cannot be read is left for its rule to refuse."""
        none = np.zeros(len(arrays[LENGTHS[0]]), dtype=bool)
        for field in LENGTHS:
            texts = self._plain(self.found.columns[field], arrays[field])
            empty = _empty(texts)
            if pa.types.is_string(texts.type):
                zero = pc.match_substring_regex(pc.utf8_trim_whitespace(texts), r"^[+-]?0+(\.0*)?$")
            else:
                zero = pc.equal(pc.cast(texts, pa.float64(), safe=False), 0.0)
            none |= empty | np.asarray(pc.fill_null(zero, False))
        return none

    def requests(self, arrays: dict[str, pa.Array], rows: Ints) -> Requests:
        """Return what the columns say of each request; what they do not is neutral."""
        values: dict[str, np.ndarray] = {}
        for field in RULES:
            if field in arrays:
                values[field] = self._numbers(field, self.found.columns[field], arrays[field], rows)
            else:
                values[field] = np.full(len(rows), NEUTRAL[field])
        values["top_k"] = np.maximum(values["top_k"], 0)
        # A temperature of zero is greedy decoding; a trace that says neither leaves the neutral value.
        implied = np.full(len(rows), bool(NEUTRAL["greedy"]))
        if "temperature" in arrays:
            implied = values["temperature"] == 0
        values["greedy"] = implied
        if "greedy" in arrays:
            values["greedy"] = self._flags(self.found.columns["greedy"], arrays["greedy"], rows, implied)
        return Requests(**{field: column.astype(DTYPES[field]) for field, column in values.items()})

    def _numbers(self, field: str, name: str, array: pa.Array, rows: Ints) -> Floats:
        """Return a column's numbers, each within its rule; empty cells are neutral, or refused."""
        rule = RULES[field]
        texts = self._plain(name, array)
        empty = _empty(texts)
        if empty.any() and field not in NEUTRAL:
            raise self._bad(field, name, rows[int(np.argmax(empty))], "nothing", rule.says)
        present = pc.if_else(pa.array(empty), pa.scalar(None, texts.type), texts) if empty.any() else texts
        try:
            numbers = as_floats(present)
        except pa.ArrowException:
            at = _first_unreadable(present)
            raise self._bad(field, name, rows[at], _shown(texts, at), rule.says) from None
        if empty.any():
            numbers[empty] = NEUTRAL[field]
        wrong = ~((numbers >= rule.low) & (numbers <= rule.high))
        if rule.whole:
            wrong |= numbers != np.floor(numbers)
        if wrong.any():
            at = int(np.argmax(wrong))
            zero = numbers[at] == 0
            raise self._bad(field, name, rows[at], _shown(texts, at), rule.says, empty=bool(zero))
        return numbers

    def _flags(self, name: str, array: pa.Array, rows: Ints, implied: np.ndarray) -> np.ndarray:
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(self._plain(name, array), pa.string())))
        yes = np.asarray(pc.fill_null(pc.is_in(texts, pa.array(_TRUE)), False))
        no = np.asarray(pc.fill_null(pc.is_in(texts, pa.array(_FALSE)), False))
        empty = _empty(texts)
        wrong = ~(yes | no | empty)
        if wrong.any():
            at = int(np.argmax(wrong))
            says = "true or false (greedy or sample)"
            raise self._bad("greedy", name, rows[at], _shown(texts, at), says)
        return np.where(empty, implied, yes)

    def times(self, clock: Clock, array: pa.Array, rows: Ints) -> np.ndarray:
        """Return timestamps in the numbers of the clock, in the order of the rows."""
        name = self.found.columns["timestamp"]
        texts = self._plain(name, array, dates=True)
        try:
            empty = _empty(texts)
            if empty.any():
                raise NotATime(int(np.argmax(empty)), "a number, or a date and time")
            return clock.read(texts)
        except UnclearUnit as error:
            raise unclear(error, name, self.path, self.key) from None
        except NotATime as error:
            value = "nothing" if _empty(texts)[error.at] else _shown(texts, error.at)
            raise self._bad("timestamp", name, rows[error.at], value, error.says) from None

    def backwards(self, at: int, array: pa.Array, rows: Ints, *, needed: bool) -> TraceError:
        """Return the error for a timestamp before the one above it."""
        optional = "" if needed else f"; where nothing is to be replayed: {self.key}.columns.timestamp=null"
        return TraceError(
            f"the timestamps in column {self.found.columns['timestamp']!r} go backwards",
            given=f"{_shown(array, at)} {place(self.path, int(rows[at]))}",
            cure=f"sort the trace by it, or have it sorted: {self.key}.sort=true{optional}",
        )

    def _plain(self, name: str, array: pa.Array, *, dates: bool = False) -> pa.Array:
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
                given=self.path,
                cure="name another column, or rewrite this one as numbers",
            )
        return pc.cast(array, pa.string()) if text else array

    def _bad(
        self, field: str, name: str, row: int, value: object, says: str, *, empty: bool = False
    ) -> TraceError:
        """The error for one impossible value; `row` counts from 0."""
        cure = f"correct or remove this row; or map another column with {self.key}.columns"
        if field in LENGTHS and (empty or value == "nothing"):
            cure = or_dropped(cure, self.key)
        return TraceError(
            f"column {name!r} of the trace must hold {says}",
            given=f"{value} {place(self.path, int(row))}",
            cure=cure,
        )


def or_dropped(cure: str, key: str) -> str:
    """Return the cure for a row of 0 tokens: `cure`, or to leave such rows out."""
    return f"{cure}; or leave out all rows of 0 tokens: {key}.drop_empty=true"


def ids(array: pa.Array) -> NDArray[np.object_]:
    """Return the ids of sessions as texts, empty where there is none."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):  # ids beside empty cells, as pandas writes them
        array = pc.cast(array, pa.int64(), safe=False)
    try:
        texts = pc.cast(array, pa.string())
    except pa.ArrowException:  # UUIDs as bytes, or whatever else tells one from another
        values = (None if value is None else str(value) for value in array.to_pylist())
        texts = pa.array(values, pa.string())
    texts = pc.fill_null(pc.utf8_trim_whitespace(texts), "")
    return np.array(texts.to_pylist(), dtype=object)


def _empty(array: pa.Array) -> np.ndarray:
    missing = np.asarray(pc.is_null(array))
    if pa.types.is_string(array.type):
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(array), ""), False)
        missing = missing | np.asarray(blank)
    return missing


def _first_unreadable(array: pa.Array) -> int:
    def readable(some: pa.Array) -> bool:
        try:
            as_floats(some)
        except (pa.ArrowException, ValueError):
            return False
        return True

    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if readable(array.slice(low, middle - low)) else (low, middle)
    return low


def _shown(array: pa.Array, at: int) -> str:
    """Return a cell as a person may read it; dates beyond Python's own have no such form."""
    try:
        value = array[at].as_py()
    except (ValueError, OverflowError):
        return f"a value of type {array.type}"
    return repr(value) if isinstance(value, str) else str(value)
