"""What time it is in a trace: seconds, milliseconds, microseconds, nanoseconds or dates, said or found.

The rule by which a unit is found, from the first chunk's numbers (of up to 65,536 requests):
1. Numbers that are a date between 2000 and 2100 in one unit are counted in it since 1970: there is no other.
2. A known layout's unit is what its publishers say.
3. Others count from the trace's beginning. Their mean gap is one of seconds up to SURE_GAP (a request every
   5 s), or up to UNSURE_GAP if they have fractions; and one of milliseconds, and so on, where that makes a
   request at least every 5 s and at most 10 a second. In between, two units are likely: which is asked for.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmpilot.errors import TraceError
from llmpilot.workload.layouts import Unit
from llmpilot.workload.requests import Floats

PER_SECOND: dict[str, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "iso": "dates"}
YEAR_2000_S, YEAR_2100_S = 946_684_800.0, 4_102_444_800.0
SURE_GAP = 5.0
UNSURE_GAP = 100.0
"""Mean gaps between these two, times a power of 1,000, may be either of two units."""
SAYS = "a number, or a date and time such as 2023-11-16 18:17:03.97"


class NotATime(Exception):  # noqa: N818 - never seen by a user: the reader knows row and column
    """A cell cannot be read; `at` is its position in the chunk, `says` what it must be."""

    def __init__(self, at: int, says: str) -> None:
        self.at, self.says = at, says
        super().__init__(says)


@dataclass(frozen=True)
class UnclearUnit(Exception):  # noqa: N818 - as above
    """Two units are possible: timestamps this far apart on average."""

    gap: float
    smaller: Unit
    larger: Unit


def unit_of(numbers: Floats, stated: Unit | None = None) -> Unit:
    """Return the unit of a chunk's timestamps by the rule of this module; `stated` is the layout's.

    Raises:
        UnclearUnit: two units are likely.
    """
    first, last = float(numbers.min()), float(numbers.max())
    for unit, per_second in PER_SECOND.items():
        if YEAR_2000_S * per_second <= first < YEAR_2100_S * per_second:
            return unit  # type: ignore[return-value]
    if stated is not None:
        return stated
    gap = (last - first) / max(1, len(numbers) - 1)
    fractions = bool((numbers != np.floor(numbers)).any())
    if gap <= SURE_GAP or (fractions and gap <= UNSURE_GAP):
        return "s"
    units: tuple[Unit, ...] = ("s", "ms", "us", "ns")
    for larger, smaller in pairwise(units):
        gap_in_larger = gap / PER_SECOND[larger]
        if gap_in_larger < UNSURE_GAP:
            raise UnclearUnit(gap, smaller, larger)
        if gap_in_larger <= SURE_GAP * 1e3:
            return smaller
    return "ns"


class Clock:
    """Turns timestamps, chunk by chunk, into numbers of one unit, and those into seconds."""

    def __init__(self, unit: Unit | None, stated: Unit | None = None) -> None:
        self.unit: Unit | None = unit
        self._stated = stated
        self._zoned: bool | None = None

    @property
    def per_second(self) -> float:
        """How many of the numbers that `read` returns make a second."""
        return 1e9 if self.unit == "iso" else PER_SECOND[self.unit or "s"]

    def read(self, texts: pa.Array) -> np.ndarray:
        """Return numbers in the trace's unit, of dates nanoseconds since 1970; finds the unit if it is open.

        Raises:
            NotATime: a cell is neither, or not what those before it are.
            UnclearUnit: it is not said, and two are likely.
        """
        dated = self.unit == "iso"
        if self.unit is None:
            dated = not _readable(texts.slice(0, 1), as_floats)
        convert = self._nanoseconds if dated else as_floats
        says = "a date and time such as 2023-11-16 18:17:03.97" if self.unit == "iso" else SAYS
        if self.unit in PER_SECOND:
            says = f"a number of {NAMES[self.unit]}" if self.unit is not None else says
        try:
            values = convert(texts)
        except pa.ArrowException:
            at = next((i for i in range(len(texts)) if not _readable(texts.slice(i, 1), convert)), 0)
            raise NotATime(at, self._of_zone(texts.slice(at, 1)) or says) from None
        if not dated and not np.isfinite(values).all():
            raise NotATime(int(np.argmin(np.isfinite(values))), says)
        if self.unit is None:
            self.unit = "iso" if dated else unit_of(values, self._stated)
        return values

    def _of_zone(self, text: pa.Array) -> str:
        """Return what a date lacks or has too much, where it is its time zone; else an empty text."""
        if self._zoned is None or not pa.types.is_string(text.type):
            return ""
        zoned = not self._zoned
        if not _readable(text, lambda one: _dates(_in_utc(one), zoned=zoned)):
            return ""
        return f"dates and times {'with' if self._zoned else 'without'} a time zone, as its first row does"

    def _nanoseconds(self, array: pa.Array) -> np.ndarray:
        if pa.types.is_string(array.type):
            texts = _in_utc(array)
            if self._zoned is None:  # all dates of a trace have a time zone, or none
                self._zoned = not _readable(texts.slice(0, 1), lambda one: _dates(one, zoned=False))
            array = _dates(texts, zoned=self._zoned)
        if not pa.types.is_timestamp(array.type):
            raise pa.ArrowInvalid("no dates")
        return np.asarray(pc.cast(pc.cast(array, pa.timestamp("ns", array.type.tz)), pa.int64()))


def _in_utc(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"\s?(UTC|GMT)$", "Z")


def _dates(texts: pa.Array, *, zoned: bool) -> pa.Array:
    return pc.cast(texts, pa.timestamp("ns", "UTC" if zoned else None))


def as_floats(array: pa.Array) -> Floats:
    """Return numbers; a null becomes 0, for the caller to overwrite."""
    if pa.types.is_timestamp(array.type):
        raise pa.ArrowInvalid("dates")
    if pa.types.is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
    numbers = pc.fill_null(pc.cast(array, pa.float64(), safe=False), 0.0)
    return np.array(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)


def _readable(array: pa.Array, convert: object) -> bool:
    try:
        convert(array)  # type: ignore[operator]
    except (pa.ArrowException, ValueError):
        return False
    return True


def unclear(error: UnclearUnit, name: str, path: object, key: str) -> TraceError:
    """Return the error that asks for the unit of a column."""
    larger, smaller = error.larger, error.smaller
    rates = [f"{PER_SECOND[unit] / error.gap:.3g} a second" for unit in (larger, smaller)]
    return TraceError(
        f"the timestamps in column {name!r} may be {NAMES[larger]} or {NAMES[smaller]}",
        given=f"one request every {error.gap:.4g} of them in {path}: {rates[0]}, or {rates[1]}",
        cure=f"say which: {key}.timestamp_unit={larger} or {key}.timestamp_unit={smaller}",
    )
