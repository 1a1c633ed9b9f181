"""What one worker has seen: every request's times and raw answer, kept as they came and read at the end.

Raw answers go to an unnamed temporary file, so memory stays bounded however long the level is.
"""

import contextlib
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.pages import readable
from llmpilot.openai_client.reading import Reading
from llmpilot.secrets import redact

Int = NDArray[np.int64]
_BUFFER = 1 << 18
NEVER = -1
MESSAGE_LENGTH = 500


@dataclass
class Part:
    """A worker's share of a level, in the order in which requests ended; times [ns] are the clock's.

    -1 is a time that never came, or a count that the server did not give. `prompt_tokens` is how long prompts
    were as they were sent, -1 where the row says so.
    """

    row: Int
    begun_ns: Int
    sent_ns: Int
    first_ns: Int
    last_ns: Int
    ended_ns: Int
    failure: list[str]
    response_id: list[str]
    token_ns: Int
    token_counts: Int
    input_tokens: Int
    first_answer_ns: Int
    hidden_tokens: Int
    cached_tokens: Int
    prompt_tokens: Int
    notes: dict[str, Any] = field(default_factory=dict)


class Log:
    """Append-only while the load is on; `read` turns it into a Part."""

    def __init__(self) -> None:
        self._spool = _spool()
        self._columns: dict[str, array[int]] = {
            name: array("q")
            for name in ("row", "begun", "sent", "ended", "pieces", "size", "asked", "sequences", "prompt")
        }
        self._broken: list[str] = []
        self.stale_connections = 0
        self.messages: dict[str, str] = {}  # by kind of failure: what no answer says, but the system

    def __len__(self) -> int:
        return len(self._broken)

    def add(self, flight: Flight, broken: str, ended_ns: int) -> None:
        """Keep a request that has ended; `broken` is how the connection failed, if it did."""
        raw = b"".join(flight.pieces)
        columns = self._columns
        columns["row"].append(flight.row)
        columns["begun"].append(flight.begun_ns)
        columns["sent"].append(flight.sent_ns)
        columns["ended"].append(ended_ns)
        columns["pieces"].append(len(flight.pieces))
        columns["size"].append(len(raw))
        columns["asked"].append(flight.output_tokens)
        columns["sequences"].append(flight.sequences)
        columns["prompt"].append(flight.prompt_tokens)
        self._broken.append(broken)
        self._spool.write(flight.times.tobytes())
        self._spool.write(array("q", map(len, flight.pieces)).tobytes())
        self._spool.write(raw)

    def read(self, read_answer: Callable[..., Reading], hide: Callable[[str], str] = redact) -> Part:
        """Return the requests with what their answers said, and close the log.

        `hide` takes secrets out of the samples of failures' messages, which are cut only then.
        """
        self._spool.seek(0)
        n = len(self)
        first, last = array("q", [NEVER]) * n, array("q", [NEVER]) * n
        counts, inputs = array("q", [0]) * n, array("q", [NEVER]) * n
        answered, cached, hidden = array("q", [NEVER]) * n, array("q", [NEVER]) * n, array("q", [0]) * n
        token_ns = array("q")
        failures: list[str] = []
        response_ids: list[str] = []
        methods: Counter[str] = Counter()
        samples = {kind: hide(said) for kind, said in self.messages.items()}
        totals: Counter[str] = Counter()
        columns = self._columns
        for i in range(n):
            times, lengths = array("q"), array("q")
            times.frombytes(self._spool.read(8 * columns["pieces"][i]))
            lengths.frombytes(self._spool.read(8 * columns["pieces"][i]))
            raw = self._spool.read(columns["size"][i])
            broken = self._broken[i]
            if raw:
                try:
                    answer = read_answer(
                        raw,
                        list(accumulate(lengths)),
                        times,
                        output_tokens=columns["asked"][i],
                        sequences=columns["sequences"][i],
                        broken=broken,
                        sent_ns=columns["sent"][i],
                    )
                except Exception as error:
                    # One answer that nobody has thought of must not cost the level all others.
                    answer = Reading(failure="unreadable_answer", message=f"{error!a:.200}")
            else:
                answer = Reading(failure=broken or "bad_http")
            failures.append(answer.failure)
            response_ids.append(answer.response_id)
            if answer.message and answer.failure and answer.failure not in samples:
                samples[answer.failure] = hide(readable(answer.message))[:MESSAGE_LENGTH]
            if answer.token_ns:
                first[i], last[i] = answer.token_ns[0], answer.last_ns
                counts[i] = len(answer.token_ns)
                token_ns.extend(answer.token_ns)
                if not answer.failure:  # what was cut off has lost the count that comes at the end
                    methods[answer.method] += 1
            if answer.input_tokens is not None:
                inputs[i] = answer.input_tokens
            if answer.cached_tokens is not None:
                cached[i] = answer.cached_tokens
            answered[i], hidden[i] = answer.first_answer_ns, answer.hidden_tokens
            _add_to(totals, answer)
        self._spool.close()
        return Part(
            row=_ints(columns["row"]),
            begun_ns=_ints(columns["begun"]),
            sent_ns=_ints(columns["sent"]),
            first_ns=_ints(first),
            last_ns=_ints(last),
            ended_ns=_ints(columns["ended"]),
            failure=failures,
            response_id=response_ids,
            token_ns=_ints(token_ns),
            token_counts=_ints(counts),
            input_tokens=_ints(inputs),
            first_answer_ns=_ints(answered),
            hidden_tokens=_ints(hidden),
            cached_tokens=_ints(cached),
            prompt_tokens=_ints(columns["prompt"]),
            notes={
                "counted_by": dict(methods),
                "totals": dict(totals),
                "stale_connections": self.stale_connections,
                "messages": samples,
            },
        )


def _add_to(totals: "Counter[str]", answer: Reading) -> None:
    """Add what an answer was like to the sums over all of them; see `Records` for the names."""
    totals["chunks"] += answer.chunks
    totals["chunks_merged"] += answer.merged
    if answer.failure or not answer.token_ns:
        return
    totals["answers"] += 1
    totals["pieces"] += answer.chunks
    totals["output_tokens"] += len(answer.token_ns)
    totals["thinking_tokens"] += answer.thinking_tokens
    totals["hidden_tokens"] += answer.hidden_tokens
    totals["ended_early"] += answer.ended_early
    totals["longer_than_asked"] += answer.longer_than_asked
    if len(answer.token_ns) > 1:
        totals["answers_of_several"] += 1
        totals["in_one_piece"] += answer.token_ns[0] == answer.token_ns[-1]


def _ints(values: "array[int]") -> Int:
    return np.array(values, dtype=np.int64)


def _spool() -> IO[bytes]:
    """Return an unnamed file in the working directory, or if that cannot be written, elsewhere."""
    with contextlib.suppress(OSError):
        return tempfile.TemporaryFile(dir=Path.cwd(), buffering=_BUFFER)
    return tempfile.TemporaryFile(buffering=_BUFFER)
