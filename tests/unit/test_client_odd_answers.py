"""No answer whatsoever costs more than its own request: all that is kept of it can be counted and stored."""

import json
from array import array
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmpilot.loadtest.worker_log import Log, Part
from llmpilot.openai_client.counting import MOST_TOKENS
from llmpilot.openai_client.flight import ROOM, ROOM_PER_TOKEN, Flight
from llmpilot.openai_client.framing import chunks_end
from llmpilot.openai_client.http import Connection
from llmpilot.openai_client.reading import Reading, read_answer

ASKED = 4
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

# Halves of characters too, which JSON can name and UTF-8 cannot.
texts = st.text(st.characters(), max_size=6) | st.sampled_from(["\ud800", "x" * 100_000, "1"])
numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, -(2**63), 10**400, 4.0, 3_000_000_000])
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def likely(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields, each perhaps as it should be."""
    return st.fixed_dictionaries({}, optional={name: value | anything for name, value in fields.items()})


counts = st.integers(0, 9) | numbers
choice = likely(
    index=st.just(0), text=texts, token_ids=st.lists(st.integers(0, 9), max_size=3), finish_reason=texts
)
payload = likely(
    id=texts,
    choices=st.lists(choice, max_size=2),
    usage=likely(prompt_tokens=counts, completion_tokens=counts),
    timings=likely(predicted_n=counts),
    error=likely(message=texts),
)


def read(raw: bytes, sequences: int = 1) -> Part:
    """Return what a worker's log keeps of an answer that came in two pieces."""
    flight = Flight(0, b"", ASKED, sequences)
    flight.pieces, flight.times = [raw[:60], raw[60:]], array("q", [1, 2])
    log = Log()
    log.add(flight, "", 2)
    return log.read(read_answer)


def is_sound(part: Part) -> None:
    assert part.failure != ["unreadable_answer"], part.notes
    assert len(part.token_ns) <= 1_000_000
    assert -1 <= part.input_tokens[0] <= MOST_TOKENS
    pa.array(part.response_id, pa.string())
    assert np.array(part.response_id).nbytes < 1000
    json.dumps(part.notes).encode()
    "".join(part.notes["messages"].values()).encode()


@given(st.lists(payload | anything, max_size=4), st.integers(1, 2))
@settings(max_examples=300, deadline=None)
def test_arbitrary_json(payloads: list[Any], sequences: int) -> None:
    events = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in payloads)
    is_sound(read(HEAD + events + b"data: [DONE]\n\n", sequences))


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
@example(b"HTTP/1.1 " + b"2" * 5000 + b" OK", b"")
@example(HEAD[:-4] + b"\r\nContent-Length: " + b"9" * 5000, b"hi")
@example(HEAD[:-4], b"data: " + b"[" * 200_000 + b"\n\n")
@example(HEAD[:-4], b'data: {"error": ' + b"[" * 960 + b"]" * 960 + b"}\n\n")
@example(HEAD[:-4] + b"\r\nTransfer-Encoding: chunked", b"f" * 5000 + b"\r\nx")
def test_arbitrary_bytes(head: bytes, body: bytes) -> None:
    for before in (b"", b"HTTP/1.1 200 ", HEAD[:-4] + b"\r\n"):
        is_sound(read(before + head + b"\r\n\r\n" + body + b"."))


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": " a"}], **fields}).encode() + b"\n\n"


def ending_with(**fields: Any) -> bytes:
    return event() * ASKED + b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n\n"


@pytest.mark.parametrize("count", [-1, 2**31, 2**70, 1.5, float("inf"), float("nan"), 1e300, "4", True, [4]])
def test_what_is_no_number_of_tokens_counts_for_nothing(count: Any) -> None:
    for events in (
        event(usage={"completion_tokens": count}) * ASKED,
        event(usage={"prompt_tokens": count}) * ASKED,
        event(timings={"predicted_n": count}) * ASKED,
        ending_with(usage={"completion_tokens": count}),
    ):
        part = read(HEAD + events)
        is_sound(part)
        assert (part.failure, part.token_counts.tolist()) == ([""], [ASKED])
        assert part.notes["counted_by"] == {"chunks": 1}
        assert part.input_tokens[0] == -1


def test_integers_may_come_as_floats() -> None:
    running = [event(usage={"completion_tokens": float(k + 1), "prompt_tokens": 64.0}) for k in range(ASKED)]
    for body in (b"".join(running), ending_with(usage={"completion_tokens": 4.0, "prompt_tokens": 64.0})):
        part = read(HEAD + body)
        assert part.failure == [""]
        assert (part.input_tokens[0], part.token_counts[0]) == (64, ASKED)


def test_more_than_an_answer_can_hold_is_no_total() -> None:
    for body in (
        event(usage={"completion_tokens": MOST_TOKENS}) * ASKED,
        ending_with(usage={"completion_tokens": 9**9}),
    ):
        part = read(HEAD + body)
        assert (part.failure, part.token_counts.tolist()) == ([""], [ASKED])
        assert part.notes["counted_by"] == {"chunks": 1}


def test_garbage_is_read_once_not_again_with_every_event_behind_it() -> None:
    body = b"data: {'no': json}\n\n" + event(token_ids=[1]) * ASKED
    assert read(HEAD + body).notes["messages"] == {"bad_sse": "{'no': json}\n"}


def test_what_cannot_be_read_at_all_is_counted_as_such() -> None:
    def fails(*_args: Any, **_more: Any) -> Reading:
        raise OverflowError("too much \ud800")

    log = Log()
    for row in range(2):
        flight = Flight(row, b"", ASKED, 1)
        flight.pieces, flight.times = [HEAD], array("q", [1])
        log.add(flight, "", 2)
    part = log.read(fails)
    assert part.failure == ["unreadable_answer"] * 2
    assert "OverflowError" in part.notes["messages"]["unreadable_answer"].encode().decode()


@pytest.mark.parametrize(
    "end", [b"0\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n", b"000 ;a=b\r\nX-T: 1\r\nServer-Timing: a;dur=3\r\n\r\n"]
)
@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_an_answer_ends_behind_its_trailer_however_it_is_cut(end: bytes, step: int) -> None:
    chunk = b"e\r\ndata: {}\r\n: 0\r\n\r\n"
    data = chunk * 2 + end
    pieces: list[bytes] = []
    for at in range(0, len(data), step):
        pieces.append(data[at : at + step])
        assert chunks_end(pieces) == (at + step >= len(data))


@given(st.lists(st.sampled_from([HEAD, b"a", event() * 500, b"\r\n\r\n"]), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_an_endless_answer_is_cut_where_its_room_ends(pieces: list[bytes]) -> None:
    flight = Flight(0, b"", 1, 1)
    room = ROOM + ROOM_PER_TOKEN
    connection = Connection(None)
    connection.flight = flight
    came, over = 0, False
    for piece in pieces * 30:
        connection.data_received(piece)
        if connection.flight is None:
            return  # its framing says that it has ended
        came += len(piece)
        over = flight.endless()
        assert over == (came > room)
        if over:
            break
    assert sum(map(len, flight.pieces)) <= room
    assert len(flight.times) == len(flight.pieces)
