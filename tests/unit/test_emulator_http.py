"""The HTTP parser: however the bytes arrive, the same requests; and nothing but an HttpError for the rest."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.emulator.http import HttpError, Request, RequestParser

LIMIT = 1000
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def parse(data: bytes) -> list[Request]:
    parser = RequestParser(LIMIT)
    parser.feed(data)
    return list(iter(parser.next, None))


def status_of(data: bytes) -> int:
    with pytest.raises(HttpError) as caught:
        parse(data)
    return caught.value.status


def with_length(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(parts: list[bytes]) -> bytes:
    framed = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return HEAD + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\nTrailer: t\r\n\r\n"


@settings(deadline=None, max_examples=100)
@given(
    bodies=st.lists(st.binary(max_size=60), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 500), max_size=8),
    in_chunks=st.booleans(),
)
def test_the_same_requests_however_the_bytes_are_cut(
    bodies: list[bytes], cuts: list[int], in_chunks: bool
) -> None:
    stream = b"".join(chunked([body[:7], body[7:]]) if in_chunks else with_length(body) for body in bodies)
    parser, found = RequestParser(LIMIT), []
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, stop in pairwise(edges):
        parser.feed(stream[start:stop])
        found += list(iter(parser.next, None))
    assert [request.body for request in found] == bodies
    assert not parser.in_head
    assert not parser.in_body


PIECES = [
    b"GET ",
    b"/ ",
    b"HTTP/1.1",
    b"\r\n",
    b"\n",
    b"Host: x",
    b":",
    b"Content-Length: ",
    b"5",
    b"\r\n\r\n",
]
PIECES += [b"Transfer-Encoding: chunked", b"0", b"ffffffffffffff", b"\0", b"\xff", b"-1"]


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join))
def test_any_bytes_are_requests_or_an_http_error(data: bytes) -> None:
    with suppress(HttpError):
        parse(data)


def test_a_request_in_full() -> None:
    (request,) = parse(b"\r\nGET /v1/models/a%2Fb?x=1 HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a:  2 \r\n\r\n")
    assert (request.method, request.path, request.keep_alive) == ("GET", "/v1/models/a/b", True)
    assert request.headers["x-a"] == "1, 2"
    (request,) = parse(b"GET http://x/health HTTP/1.0\r\n\r\n")
    assert (request.path, request.keep_alive, request.http11) == ("/health", False, False)
    (request,) = parse(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n")
    assert not request.keep_alive


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTPS\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5, 6\r\n\r\n", 400),
        (HEAD + b"Content-Length: -5\r\n\r\n", 400),
        (HEAD + b"Content-Length: +5\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1001\r\n\r\n", 413),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 2000, 400),
        (HEAD + b"Expect: the-unexpected\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000, 431),
    ],
)
def test_what_is_refused(data: bytes, status: int) -> None:
    assert status_of(data) == status


def test_a_client_that_waits_for_the_100_is_told_so() -> None:
    parser = RequestParser(LIMIT)
    parser.feed(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert parser.next() is None
    assert parser.wants_continue
    parser.feed(b"ok")
    request = parser.next()
    assert request is not None
    assert request.body == b"ok"
    assert not parser.wants_continue
