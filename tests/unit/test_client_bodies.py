"""Bodies as servers and proxies write them: event streams of all kinds, compressed and whole answers."""

import gzip
import json
import zlib
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmpilot.openai_client import arrivals
from llmpilot.openai_client.reading import Reading, read_answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(text: str = " a", **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}], **more}).encode() + b"\n\n"


def read(raw: bytes, cuts: list[int] | None = None, output_tokens: int = 2) -> Reading:
    """Read the stream cut at these offsets; piece i arrived at time i."""
    ends = [*sorted({c for c in cuts or [] if 0 < c < len(raw)}), len(raw)]
    return read_answer(raw, ends, list(range(len(ends))), output_tokens=output_tokens, sequences=1)


@pytest.mark.parametrize(
    "body",
    [
        event() + event() + DONE,
        b"\xef\xbb\xbf" + event() + event() + DONE,
        (event() + event() + DONE).replace(b"\n", b"\r"),
        (event() + event() + DONE).replace(b"\n", b"\r\n"),
        (event() + event() + DONE).replace(b"data: ", b"data:"),
        b": hi\n\ndata\n\ndata:\n\n" + event() + b"data: \n\n: ping\n\n" + event() + DONE,
        b"id: 1\nretry: 10\nwhatever: x\nno field\n" + event() + event() + DONE,
        b"event: message\n" + event() + b"event: completion\n" + event() + DONE,
        b"event: ping\ndata: now\n\n" + event() + b'event: ping\ndata: {"at": 1}\n\n' + event() + DONE,
        b'data: {"type": "ping"}\n\n' + event() + b"data: 1\n\ndata: []\n\ndata: null\n\n" + event() + DONE,
        b'data: {"choices": [], "prompt_filter_results": [{}]}\n\n' + event() + event(usage=None) + DONE,
        event() + event() + b'data: {"usage": {"prompt_tokens": 4.0, "completion_tokens": 2.0}}\n\n',
        event() + event(finish_reason="nobody knows"),
        event().replace(b"data: ", b"") + event().replace(b"data: ", b"") + DONE,  # lines of JSON
    ],
)
def test_streams_of_two_tokens(body: bytes) -> None:
    got = read(HEAD + body)
    assert (got.failure, len(got.token_ns), got.ended_early) == ("", 2, False)


@pytest.mark.parametrize(
    ("body", "failure", "words"),
    [
        (event() + b"event: error\ndata: it broke\n\n", "error_in_stream", "it broke"),
        (event() + b'event: error\ndata: {"message": "it broke"}\n\n', "error_in_stream", "it broke"),
        (
            event() + b'event: error\ndata: {"error": {"message": "it broke"}}\n\n',
            "error_in_stream",
            "it broke",
        ),
        (b'{"error": {"message": "it broke"}}', "error_in_answer", "it broke"),
        (b'{\n "error": {\n  "message": "CUDA out of memory"\n }\n}\n', "out_of_memory", "CUDA"),
        (event() + b"data: <html>\n\n" + DONE, "bad_sse", "<html>"),
        (b"<html>it broke</html>", "no_tokens", "it broke"),
        (DONE, "no_tokens", "DONE"),
        (b"", "no_tokens", "nothing"),
        (event(), "truncated_stream", "1 of 2 tokens"),
    ],
)
def test_streams_that_failed(body: bytes, failure: str, words: str) -> None:
    got = read(HEAD + body)
    assert got.failure == failure
    assert words in got.message


def test_what_ends_as_streams_end_is_an_answer_of_its_own_length() -> None:
    for end in (
        DONE,
        event("", usage={"completion_tokens": 1}),
        b'data: {"usage": {"completion_tokens": 1}}\n\n',
    ):
        got = read(HEAD + event() + end)
        assert (got.failure, len(got.token_ns), got.ended_early) == ("", 1, True)
    reason = b'data: {"choices": [{"index": 0, "text": " a", "finish_reason": "enough"}]}\n\n'
    got = read(HEAD + reason)
    assert (got.failure, len(got.token_ns), got.ended_early) == ("", 1, True)
    got = read(HEAD + event() * 3 + b'data: {"usage": {"completion_tokens": 3}}\n\n')
    assert (got.failure, len(got.token_ns), got.longer_than_asked) == ("", 3, True)


@pytest.mark.parametrize(
    ("texts", "answer_at", "thoughts"),
    [
        (["<think>", " hm", "</think>", " a"], 3, 3),
        ([" hm", " so</think>", " a", " b"], 2, 2),
        (["\\u003cthink\\u003e", "\\u003c/think\\u003e", " a"], 2, 2),
        (["<think>", " hm", " so"], -1, 0),  # who knows
        ([" a", " b"], -1, 0),
    ],
)
def test_thoughts_in_the_answer_s_own_text_end_with_a_tag(
    texts: list[str], answer_at: int, thoughts: int
) -> None:
    events = [event(text).replace(b"\\\\u", b"\\u") for text in texts]
    cuts = [len(HEAD) + sum(map(len, events[:i])) for i in range(1, len(events))]
    got = read(HEAD + b"".join(events) + DONE, cuts, len(texts))
    assert (got.failure, got.thinking_tokens) == ("", thoughts)
    assert got.first_answer_ns == (-1 if answer_at < 0 else got.token_ns[answer_at])


def answer(**fields: Any) -> bytes:
    body = json.dumps(fields, indent=2).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def test_an_answer_that_is_not_streamed_comes_in_one_piece() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    for choice in ({"text": " a b"}, {"message": {"role": "assistant", "content": " a b"}}):
        raw = answer(id="x", choices=[{"index": 0, "finish_reason": "stop", **choice}], usage=usage)
        got = read(raw, [len(raw) - 1])
        assert (got.failure, got.method, got.token_ns, got.input_tokens) == ("", "not_streamed", [1, 1], 4)
    message = {"content": " a", "reasoning_content": " hm"}
    got = read(answer(choices=[{"index": 0, "message": message}], usage=usage))
    assert (got.failure, got.token_ns, got.first_answer_ns) == ("", [0, 0], 0)
    got = read(answer(choices=[{"index": 0, "text": " a b"}]))
    assert (got.failure, got.method, got.token_ns) == ("", "chunks", [0])  # nobody knows how many
    got = read(answer(choices=[{"index": 0, "text": " a b", "finish_reason": "length"}]))
    assert (got.failure, got.method, got.token_ns) == ("", "not_streamed", [0, 0])
    two = [{"index": i, "text": " a b"} for i in range(2)]
    raw = answer(choices=two, usage={"completion_tokens": 4})
    both = read_answer(raw, [len(raw)], [5], output_tokens=2, sequences=2)
    assert (both.failure, both.token_ns, both.ended_early) == ("", [5, 5], False)


def test_an_answer_that_is_not_streamed_may_be_an_error_or_nothing() -> None:
    assert read(answer(error={"message": "it broke"})).failure == "error_in_answer"
    assert read(answer(hello=1)).failure == "wrong_content_type"
    assert read(answer(choices=[])).failure == "no_tokens"
    assert read(answer(choices=[{"index": 0, "text": ""}])).failure == "no_tokens"


def test_prompts_and_their_cache_in_every_dialect() -> None:
    for usage, expected in (
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 6}}, (9, 6)),
        ({"input_tokens": 9, "input_tokens_details": {"cached_tokens": 6}}, (9, 6)),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 6}, (9, 6)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, (9, None)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}, (9, 0)),
        ({}, (None, None)),
    ):
        got = read(HEAD + event(usage=usage) + DONE)
        assert (got.input_tokens, got.cached_tokens) == expected
    assert read(HEAD + event(timings={"predicted_n": 1, "cache_n": 5}) + DONE).cached_tokens == 5


def compressed(events: list[bytes], wbits: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the events compressed one by one, and from where to where each one's bytes go."""
    coder = zlib.compressobj(wbits=wbits)
    data, places = b"", []
    for one in events:
        start = len(data)
        data += coder.compress(one) + coder.flush(zlib.Z_SYNC_FLUSH)
        places.append((start, len(data)))
    return data + coder.flush(), places


WBITS = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS, b"Deflate": -zlib.MAX_WBITS}


@given(
    st.integers(1, 6),
    st.sampled_from(sorted(WBITS)),
    st.booleans(),
    st.lists(st.integers(1, 600), max_size=30),
)
@example(4, b"Deflate", False, [289])  # behind the first byte
@example(4, b"Deflate", False, [*range(600)])
@settings(max_examples=80, deadline=None)
def test_a_compressed_token_has_the_time_of_the_piece_that_completed_it(
    tokens: int, coding: bytes, chunked: bool, cuts: list[int]
) -> None:
    events = [event(f" word {i}") for i in range(tokens)]
    data, places = compressed([*events, DONE], WBITS[coding])
    head = HEAD[:-2] + b"Content-Encoding: %b\r\n" % coding
    if chunked:
        raw, at = head + b"Transfer-Encoding: chunked\r\n\r\n", {}
        bounds = [*(start for start, _ in places), len(data)]
        for start, stop in pairwise(bounds):
            raw += b"%x\r\n" % (stop - start)
            at[start] = len(raw)
            raw += data[start:stop] + b"\r\n"
        raw += b"0\r\n\r\n"
        spans = [(at[start], at[start] + stop - start) for start, stop in places]
    else:
        raw = head + b"Content-Length: %d\r\n\r\n" % len(data)
        spans = [(len(raw) + start, len(raw) + stop) for start, stop in places]
        raw += data
    cuts = [len(raw) * cut // 600 for cut in cuts]
    got = read(raw, cuts, tokens)
    ends = [*sorted({c for c in cuts if 0 < c < len(raw)}), len(raw)]
    assert (got.failure, len(got.token_ns)) == ("", tokens)
    for arrived, (start, stop) in zip(got.token_ns, spans, strict=False):
        assert bisect_right(ends, start) <= arrived <= bisect_right(ends, stop - 1)


def test_a_compressed_answer_may_be_of_several_members_and_lack_its_end() -> None:
    members = gzip.compress(event()) + gzip.compress(event()) + gzip.compress(DONE)
    head = HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    assert len(read(head + members).token_ns) == 2
    assert len(read(head + members + bytes(64)).token_ns) == 2
    assert read(head + gzip.compress(event() * 2 + DONE)[:-8]).failure == ""


@pytest.mark.parametrize(
    ("coding", "data"),
    [(b"gzip", b"no gzip"), (b"deflate", b"\xff" * 9), (b"br", b"x"), (b"gzip, gzip", b"x")],
)
def test_what_cannot_be_decoded_is_said_to_be_so(coding: bytes, data: bytes) -> None:
    got = read(HEAD[:-2] + b"Content-Encoding: %b\r\n\r\n" % coding + data)
    assert got.failure == "encoded_answer"
    assert coding.decode() in got.message


def test_an_answer_that_grows_beyond_all_bounds_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_DECODED", 1000)
    head = HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    assert read(head + gzip.compress(event() * 5 + DONE)).failure == ""
    assert read(head + gzip.compress(event() * 5000)).failure == "encoded_answer"


def test_the_words_of_a_refusal_are_decoded_too() -> None:
    body = gzip.compress(b'{"error": {"message": "CUDA out of memory"}}')
    got = read(b"HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert got.failure == "out_of_memory"
