"""However a stream is cut into pieces, it says the same; only times may differ, and never backwards."""

import json
from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.openai_client.framing import split_head
from llmpilot.openai_client.reading import Reading, read_answer

JSON_TEXT = st.text(max_size=8)


def event(ids: list[int], text: str) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None, "token_ids": ids}
    return b"data: " + json.dumps({"id": "r", "choices": [choice]}).encode() + b"\n\n"


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, list[int], list[int]]:
    """Return a whole answer, how many tokens each of its events carries, and where in it each event ends."""
    carried = draw(st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any))
    events = [event([5] * n, draw(JSON_TEXT) if n else "") for n in carried]
    body = b"".join(events) + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    ends, at = [], 0
    for one in events:
        at += len(one)
        ends.append(at - 2)  # the data is there once its line is; the empty line behind it says nothing
    framing = draw(st.sampled_from(["chunked", "length", "close"]))
    if framing == "length":
        head += b"Content-Length: %d\r\n\r\n" % len(body)
    elif framing == "close":
        head += b"\r\n"
    if framing != "chunked":
        return head + body, carried, [len(head) + end for end in ends]
    cuts = sorted(draw(st.lists(st.integers(1, len(body) - 1), max_size=6, unique=True)))
    raw, places = head + b"Transfer-Encoding: chunked\r\n\r\n", {}
    for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True):
        raw += b"%X;x=1\r\n" % (stop - start)
        places |= {i: len(raw) + i - start for i in range(start, stop)}
        raw += body[start:stop] + b"\r\n"
    return raw + b"0\r\n\r\n", carried, [places[end] for end in ends]


def read(raw: bytes, cuts: list[int], output_tokens: int, broken: str = "") -> Reading:
    """Read the stream cut at these offsets; piece i arrived at time i."""
    ends = [*sorted({c for c in cuts if 0 < c < len(raw)}), len(raw)]
    return read_answer(
        raw, ends, list(range(len(ends))), output_tokens=output_tokens, sequences=1, broken=broken
    )


@given(answers(), st.lists(st.integers(1, 3000), max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_split_gives_the_same_tokens_each_at_the_piece_that_completed_it(
    answer: tuple[bytes, list[int], list[int]], cuts: list[int]
) -> None:
    raw, carried, event_ends = answer
    total = sum(carried)
    got = read(raw, cuts, total)
    assert got.failure == ""
    ends = [*sorted({c for c in cuts if 0 < c < len(raw)}), len(raw)]
    expected = [bisect_right(ends, end) for n, end in zip(carried, event_ends, strict=True) for _ in range(n)]
    assert got.token_ns == expected
    assert got.token_ns == sorted(got.token_ns)
    assert got.chunks == sum(n > 0 for n in carried)
    assert got.merged == sum(n > 1 for n in carried)


@given(answers(), st.integers(0, 3000), st.lists(st.integers(1, 3000), max_size=10))
@settings(max_examples=80, deadline=None)
def test_a_stream_that_breaks_anywhere_keeps_what_had_come_and_never_raises(
    answer: tuple[bytes, list[int], list[int]], broken_at: int, cuts: list[int]
) -> None:
    raw, carried, event_ends = answer
    broken_at = 1 + broken_at % len(raw)
    got = read(raw[:broken_at], cuts, sum(carried), broken="reset_mid_stream")
    assert got.failure == "reset_mid_stream"
    came = [n for n, end in zip(carried, event_ends, strict=True) if end < broken_at]
    assert len(got.token_ns) == sum(came)


@given(st.binary(max_size=300))
@settings(max_examples=120, deadline=None)
def test_garbage_never_raises(garbage: bytes) -> None:
    for head in (b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        if raw := head + garbage:
            assert read(raw, [7], 1).failure


@given(
    st.lists(
        st.sampled_from([b"data: {", b'"choices": []}', b"data:", b"\n", b"\r\n", b"[1]", b"data: null"])
    )
)
@settings(max_examples=80, deadline=None)
def test_nearly_right_streams_never_raise(parts: list[bytes]) -> None:
    read(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"".join(parts), [], 1)


def test_data_over_several_lines_is_one_event() -> None:
    body = b'data: {"choices":\ndata: [{"index":0,"text":"a","token_ids":[1]}]}\n\n'
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body
    assert read(raw, [], 1).failure == ""


def test_head_is_read_whatever_its_case() -> None:
    status, headers, start = split_head(b"HTTP/1.0 503 No\r\nX-A:  B \r\n\r\nbody")
    assert (status, headers[b"x-a"], start) == (503, b"b", 29)
