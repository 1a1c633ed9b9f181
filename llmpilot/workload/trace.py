"""Reading a trace of real requests: CSV, JSON lines or Parquet, in chunks, only the columns asked for.

A row that cannot be true is refused with its number, never dropped or mended in silence; what was found or
left out is said in remarks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmpilot.config import Facts, parse
from llmpilot.console import counted
from llmpilot.errors import ConfigError, TraceError, did_you_mean
from llmpilot.workload.cells import Cells, ids, or_dropped
from llmpilot.workload.chats import CHARACTERS_PER_TOKEN, Chats, Turns, requests_of
from llmpilot.workload.clock import NAMES, Clock
from llmpilot.workload.formats import BATCH_ROWS, batches, column_names, objects
from llmpilot.workload.layouts import Found, TraceColumns, find_columns
from llmpilot.workload.requests import Floats, Ints, Requests, concatenate, from_lengths


class TraceReading(Facts):
    """How a trace is read. `timestamp_unit`: auto is found (see `clock`); the others are as they are said.

    `sort`: rows are put in the order of their timestamps, which takes memory for the whole trace.
    `drop_empty`: rows with 0 or no input or output tokens are left out, and counted.
    """

    columns: TraceColumns = TraceColumns()
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = "auto"
    sort: bool = False
    drop_empty: bool = False


@dataclass(frozen=True, eq=False)
class TraceChunk:
    """Some rows of a trace, in its order.

    `timestamps_s` count from the trace's first request; `sessions` are the ids of conversations, empty for a
    row of none, and `turns` a row's place in its own, from 0; each is None where the trace does not say.
    """

    requests: Requests
    timestamps_s: Floats | None = None
    sessions: NDArray[np.object_] | None = None
    turns: Ints | None = None


def read_trace(path: str | Path, columns: TraceColumns) -> Iterator[tuple[Requests, Floats | None]]:
    """Yield the trace's requests in chunks, each with its timestamps in seconds from the trace's first,
    or None where `columns` names no timestamp. Memory is bounded by the chunk, not by the file.

    Raises:
        TraceError: as `Trace.chunks`.
    """
    for chunk in Trace(path, TraceReading(columns=columns)).chunks():
        yield chunk.requests, chunk.timestamps_s


def open_trace(given: Mapping[str, Any], *, timed: bool = False, key: str = "trace") -> "Trace":
    """Return the trace that the part of the configuration under `key` describes.

    Raises:
        ConfigError: it names no file, or has a key or value that is not possible.
    """
    path, columns = given.get("path"), given.get("columns") or {}
    if not path:
        raise ConfigError(f"{key}.path is missing: the trace to replay", cure=f"{key}.path=my.csv")
    further = {name: value for name, value in given.items() if name not in ("path", "columns")}
    if unknown := [name for name in further if name not in TraceReading.model_fields]:
        known = ("path", *TraceReading.model_fields)
        cure = f"{did_you_mean(unknown[0], known)}the keys are {', '.join(known)}"
        raise ConfigError(f"{key}.{unknown[0]} is not a key of {key}", given=further[unknown[0]], cure=cure)
    reading = parse(TraceReading, further, key)
    columns = parse(TraceColumns, columns, f"{key}.columns")
    return Trace(str(path), reading.model_copy(update={"columns": columns}), timed=timed, key=key)


class Trace:
    """One trace, to be read as often as needed.

    `timed`: the task needs timestamps: they are looked for if no column is named, and without any nothing is
    read. `key` is where the configuration has the trace.
    """

    def __init__(
        self, path: str | Path, reading: TraceReading, *, timed: bool = False, key: str = "trace"
    ) -> None:
        self.path = Path(path).expanduser()
        self._reading, self._timed, self._key = reading, timed, key
        self._found: Found | None = None
        self._chats = Chats()
        self._rows = self._dropped = 0
        self._last_s: float | None = None
        self._clock = Clock(None)
        self._disordered = False

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield the trace from its beginning.

        Raises:
            TraceError: the file or one of its rows cannot be used; says which, and what to do.
        """
        self._chats, self._rows, self._dropped, self._last_s = Chats(), 0, 0, None
        self._disordered = False
        found = self._find()
        said = self._reading.timestamp_unit
        self._clock = Clock(None if said == "auto" else said, found.unit)
        if self._timed and (found.texts or "timestamp" not in found.columns):
            raise self._no_times(found)
        parts = self._texts(found) if found.texts else self._table(found)
        if self._reading.sort and "timestamp" in found.columns:
            parts = self._sorted(parts)
        first: float | None = None
        seen: dict[str, int] = {}
        for requests, stamps, sessions in parts:
            times = None
            if stamps is not None:
                first = stamps[0].item() if first is None else first
                times = (stamps - first) / self._clock.per_second
                self._last_s = float(times[-1])
            self._rows += len(requests)
            yield TraceChunk(requests, times, sessions, _turns(sessions, seen))
        if self._rows == 0:
            raise self._no_rows()

    @property
    def has_sessions(self) -> bool:
        """Whether the trace says which requests are of one conversation."""
        found = self._find()
        return found.texts is not None or "session" in found.columns

    @property
    def has_times(self) -> bool:
        """Whether timestamps are read: where they are named, or needed and found."""
        found = self._find()
        return found.texts is None and "timestamp" in found.columns

    @property
    def unit(self) -> str | None:
        """What the timestamps that have been read are (`milliseconds`, `dates`), None if none were."""
        return None if self._last_s is None else NAMES[self._clock.unit or "s"]

    def remarks(self) -> list[str]:
        """Return what a person should know of the last reading: what was found, taken for, left out."""
        found = self._find()
        name = self.path.name
        remarks = []
        if found.texts:
            remarks.append(
                f"{name}: {counted(self._chats.conversations, 'conversation')}; each answer is a request, "
                "and all that was said before it is its input; tokens are estimated: "
                f"one for {CHARACTERS_PER_TOKEN:g} characters"
            )
            if self._chats.unanswered:
                count = counted(self._chats.unanswered, "conversation")
                remarks.append(f"{name}: {count} without an answer left out")
            if self._chats.other_parts:
                count = counted(self._chats.other_parts, "part")
                remarks.append(f"{name}: {count} of messages that are no text not counted")
        elif found.layout.name:
            remarks.append(
                f"{name} is laid out as {found.layout.name}: read are {', '.join(found.columns.values())}"
            )
        if self._dropped:
            remarks.append(f"{name}: {counted(self._dropped, 'row')} of 0 tokens left out")
        if self._disordered:
            remarks.append(f"{name}: sorted by {found.columns['timestamp']!r}, which goes backwards in it")
        if self._last_s is not None:
            guessed = self._reading.timestamp_unit == "auto" and self._clock.unit != "iso"
            cure = f" (if they are not: {self._key}.timestamp_unit=...)" if guessed else ""
            rate = f", {self._rows / self._last_s:.4g} a second on average" if self._last_s > 0 else ""
            remarks.append(
                f"{name}: timestamps are {self.unit}{cure}; "
                f"{counted(self._rows, 'request')} read in {self._last_s:,.1f} s{rate}"
            )
        return remarks

    def _find(self) -> Found:
        if self._found is None:
            there = column_names(self.path)
            if not there:
                raise self._no_rows()
            self._found = find_columns(
                self.path, there, self._reading.columns, timed=self._timed, key=self._key
            )
        return self._found

    def _no_times(self, found: Found) -> TraceError:
        named = "" if found.texts else f"name their column: {self._key}.columns.timestamp=<column>; or "
        return TraceError(
            "a replay needs timestamps, and the trace has none",
            given=self.path,
            cure=f"{named}fit its lengths, and say how many requests arrive: "
            f"python -m llmpilot task=workload trace.path={self.path}",
        )

    def _no_rows(self) -> TraceError:
        if self._dropped:
            wrong = f"all {self._dropped:,} rows of the trace have 0 tokens"
        elif self._chats.conversations:
            wrong = f"none of the trace's {self._chats.conversations:,} conversations has an answer"
        else:
            wrong = "the trace has no rows below its header"
        return TraceError(wrong, given=self.path, cure="give a trace with at least one request")

    def _texts(self, found: Found) -> Iterator["_Part"]:
        assert found.texts is not None
        if found.columns:
            field, name = next(iter(found.columns.items()))
            raise TraceError(
                f"a trace of texts has no column for {field}",
                given=f"{self._key}.columns.{field}={name} and {found.texts!r} in {self.path}",
                cure=f"leave it out; or name columns of lengths: {self._key}.columns.input_tokens=<column>",
            )
        rows = objects(self.path, found.texts)
        for turns in requests_of(rows, found.texts, self.path, self._chats, BATCH_ROWS):
            yield from self._checked_texts(turns)

    def _checked_texts(self, turns: Turns) -> Iterator["_Part"]:
        lengths = np.array([turns.input_tokens, turns.output_tokens])
        kept = (lengths > 0).all(axis=0)
        if not kept.all() and not self._reading.drop_empty:
            at = int(np.argmin(kept))
            raise TraceError(
                "an answer of the trace is empty",
                given=f"conversation {turns.sessions[at]} of {self.path}",
                cure=or_dropped("correct it", self._key),
            )
        self._dropped += int((~kept).sum())
        if kept.any():
            sessions = np.array(turns.sessions, dtype=object)[kept]
            yield from_lengths(lengths[0, kept], lengths[1, kept]), None, sessions

    def _table(self, found: Found) -> Iterator["_Part"]:
        cells = Cells(self.path, found, self._key)
        row, last = 0, None
        for batch in batches(self.path, sorted(set(found.columns.values()))):
            rows = np.arange(row, row + batch.num_rows)
            row += batch.num_rows
            arrays = {field: batch.column(name) for field, name in found.columns.items()}
            if self._reading.drop_empty:
                kept = ~cells.zeros(arrays)
                self._dropped += int((~kept).sum())
                rows = rows[kept]
                arrays = {field: array.filter(pa.array(kept)) for field, array in arrays.items()}
            if len(rows) == 0:
                continue
            stamps, sessions = arrays.pop("timestamp", None), arrays.pop("session", None)
            requests, times = cells.requests(arrays, rows), None
            if stamps is not None:
                times = cells.times(self._clock, stamps, rows)
                fallen = np.diff(times, prepend=times[0] if last is None else last) < 0
                if fallen.any() and not self._reading.sort:
                    raise cells.backwards(int(np.argmax(fallen)), stamps, rows, needed=self._timed)
                last = times[-1].item()
            yield requests, times, None if sessions is None else ids(sessions)

    def _sorted(self, parts: Iterator["_Part"]) -> Iterator["_Part"]:
        """Yield all rows in the order of their timestamps, those of one time as they were."""
        whole = list(parts)
        if not whole:
            return
        times = np.concatenate([stamps for _, stamps, _ in whole if stamps is not None])
        requests = concatenate(requests for requests, _, _ in whole)
        with_ids = whole[0][2] is not None
        ids = np.concatenate([found for _, _, found in whole if found is not None]) if with_ids else None
        order = np.argsort(times, kind="stable")
        self._disordered = bool((np.diff(order) < 0).any())
        for start in range(0, len(order), BATCH_ROWS):
            some = order[start : start + BATCH_ROWS]
            yield requests.take(some), times[some], None if ids is None else ids[some]


_Part = tuple[Requests, np.ndarray | None, NDArray[np.object_] | None]
"""Requests, numbers of the clock, and ids of sessions."""


def _turns(sessions: NDArray[np.object_] | None, seen: dict[str, int]) -> Ints | None:
    """Return each row's place in its session; a row of none is its own."""
    if sessions is None:
        return None
    turns = np.zeros(len(sessions), dtype=np.int64)
    for at, session in enumerate(sessions):
        if session:
            turns[at] = seen.get(session, 0)
            seen[session] = turns[at] + 1
    return turns
