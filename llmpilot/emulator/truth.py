"""The truth that a client's measurement is judged against: when every token was due, and when it was sent.

One row a prompt. What is kept in memory is bounded; a file takes everything, written by a thread of its
own so that no token waits for the disk.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmpilot.errors import ConfigError, PilotError
from llmpilot.files import replacing

MEMORY_TOKENS = 2_000_000
"""Tokens kept in memory (about 32 MB); older prompts are forgotten."""
SPILL_TOKENS = 100_000
SPILL_ROWS = 10_000


class Sent(NamedTuple):
    """One prompt's answer. Times are of the monotonic clock [ns], comparable between processes of a machine.

    `sent_ns` is read right before the write; all `copies` (n) of a token leave in one write. Without
    streaming every token is sent with the whole answer. `cached_tokens` of the prompt were in a prefix cache:
    0 where a simulated engine keeps none, -1 with fixed timing and no `prefix_cache_tokens`.
    """

    request_id: str
    prompt: int
    copies: int
    stream: bool
    arrived_ns: int
    input_tokens: int
    output_tokens: int
    outcome: str
    due_ns: "array[int]"
    sent_ns: "array[int]"
    cached_tokens: int


SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("prompt", pa.int32()),
        ("copies", pa.int32()),
        ("stream", pa.bool_()),
        ("arrived_ns", pa.int64()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("outcome", pa.string()),
        ("due_ns", pa.list_(pa.int64())),
        ("sent_ns", pa.list_(pa.int64())),
        ("cached_tokens", pa.int32()),
    ]
)


class SendLog:
    """Collects `Sent` rows; `table` returns those in memory. Must be closed where it writes a file."""

    def __init__(self, path: str | None = None) -> None:
        self._rows: deque[Sent] = deque()
        self._tokens = 0
        self._fresh: list[Sent] = []  # not yet handed to the writer
        self._fresh_tokens = 0
        self._stack = ExitStack()
        self._pending: Future[None] | None = None
        self._path = Path(path).expanduser() if path else None
        self._writer: pq.ParquetWriter | None = None
        if self._path:
            try:
                temporary = self._stack.enter_context(replacing(self._path))
            except OSError as error:
                raise ConfigError(
                    f"send_log cannot be written: {error.strerror}", given=path, cure="name a writable path"
                ) from None
            pq.write_table(_table([]), temporary)  # the first write takes long: not while tokens are due
            self._writer = pq.ParquetWriter(temporary, SCHEMA)
            self._thread = self._stack.enter_context(ThreadPoolExecutor(1, "send-log"))

    def add(self, row: Sent) -> None:
        """Keep a row."""
        tokens = len(row.due_ns)
        self._rows.append(row)
        self._tokens += tokens
        while self._tokens > MEMORY_TOKENS and len(self._rows) > 1:
            self._tokens -= len(self._rows.popleft().due_ns)
        if self._writer is not None:
            self._fresh.append(row)
            self._fresh_tokens += tokens
            if self._fresh_tokens >= SPILL_TOKENS or len(self._fresh) >= SPILL_ROWS:
                self._spill()

    def table(self) -> pa.Table:
        """Return the rows in memory, oldest first."""
        return _table(list(self._rows))

    def lateness_ms(self) -> NDArray[np.float64]:
        """Return sent - due of every streamed token in memory [ms]; negative is early."""
        rows = [row for row in self._rows if row.stream and row.sent_ns]
        if not rows:
            return np.empty(0)
        parts = [
            np.frombuffer(row.sent_ns, np.int64) - np.frombuffer(row.due_ns, np.int64)[: len(row.sent_ns)]
            for row in rows
        ]
        return np.concatenate(parts) / 1e6

    def close(self) -> None:
        """Write what is not written yet and move the file to its place.

        Raises:
            PilotError: the file could not be written.
        """
        if self._writer is None:
            return
        try:
            with self._stack:
                self._spill()
                if self._pending is not None:
                    self._pending.result()
                self._writer.close()
        except (OSError, pa.ArrowException) as error:
            raise PilotError(f"send_log could not be written: {error}", given=self._path) from None
        finally:
            self._writer = None

    def _spill(self) -> None:
        rows, self._fresh, self._fresh_tokens = self._fresh, [], 0
        if not rows:
            return
        if self._pending is not None and self._pending.done():
            self._pending.result()
        self._pending = self._thread.submit(self._write, rows)

    def _write(self, rows: list[Sent]) -> None:
        assert self._writer is not None
        self._writer.write_table(_table(rows))


def _table(rows: list[Sent]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(SCHEMA)
    arrays = [
        _lists(column) if pa.types.is_list(field.type) else pa.array(column, field.type)
        for field, column in zip(SCHEMA, columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _lists(column: Sequence["array[int]"]) -> pa.ListArray:
    """Return arrays as one list column. (Arrow would import pandas to look at each of them.)"""
    ends = np.cumsum([0, *map(len, column)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.frombuffer(b"".join(column), np.int64)))
