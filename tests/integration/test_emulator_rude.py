"""The emulator against rude clients: whatever is sent, it answers or hangs up, and goes on serving."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.emulator import Emulator, FixedTiming, Limits, Options, in_thread

SIZE = Limits(body_bytes=100_000)
HASTE = Limits(head_s=0.3, body_s=0.3, idle_s=0.6)
CONTENT = json.dumps({"model": "starcoder", "prompt": "x", "max_tokens": 2, "ignore_eos": True}).encode()
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with in_thread(options=Options(fixed=FixedTiming(ttft_ms=1, itl_ms=1)), limits=SIZE) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[Emulator]:
    """For the tests of its patience alone: on a busy machine any other client may be slower than this."""
    with in_thread(options=Options(fixed=FixedTiming(ttft_ms=1, itl_ms=1)), limits=HASTE) as running:
        yield running


def connect(emulator: Emulator) -> socket.socket:
    host, port = emulator.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def to_the_end(sock: socket.socket) -> bytes:
    received = b""
    while part := sock.recv(65536):
        received += part
    return received


def ask(emulator: Emulator, data: bytes) -> bytes:
    with connect(emulator) as sock:
        sock.sendall(data)
        return to_the_end(sock)


def require_refusal(answer: bytes, status: int) -> None:
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer
    assert "message" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_pipelined_requests_are_answered_in_order(emulator: Emulator) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    version = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = ask(emulator, REQUEST + health + REQUEST + b"\r\n" + version)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    kinds = [answer.find(mark) for mark in (b"text_completion", b"content-length: 0", b'"version"')]
    assert kinds == sorted(kinds)
    assert answer.rfind(b"text_completion") > kinds[1]


def test_a_body_in_chunks_after_a_100(emulator: Emulator) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    with connect(emulator) as sock:
        sock.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for at in range(0, len(CONTENT), 10):
            part = CONTENT[at : at + 10]
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        sock.sendall(b"0\r\n\r\n")
        assert to_the_end(sock).startswith(b"HTTP/1.1 200 OK")


def test_http_1_0_gets_a_stream_without_chunks(emulator: Emulator) -> None:
    content = CONTENT.replace(b"{", b'{"stream": true, ', 1)
    answer = ask(
        emulator, b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n" + b"x" * 100_001, 413),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_answered_and_closed(emulator: Emulator, data: bytes, status: int) -> None:
    require_refusal(ask(emulator, data), status)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nHost: ",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
    ],
)
def test_a_request_that_stops_half_way_is_answered_and_closed(hasty: Emulator, data: bytes) -> None:
    require_refusal(ask(hasty, data), 408)


def test_a_client_that_drips_its_head_is_turned_away(hasty: Emulator) -> None:
    with connect(hasty) as sock:
        sock.settimeout(0.05)
        for byte in b"GET /health HTTP/1.1\r\n" * 1000:
            try:
                sock.sendall(bytes([byte]))
                answer = sock.recv(100)
            except TimeoutError:
                continue
            except OSError:
                return
            assert answer.startswith(b"HTTP/1.1 408")
            return
    pytest.fail("it was never turned away")


def test_an_idle_connection_is_closed(hasty: Emulator) -> None:
    assert ask(hasty, b"") == b""


def test_clients_that_vanish_at_any_point(emulator: Emulator) -> None:
    for cut in range(0, len(REQUEST) + 1, 5):
        with connect(emulator) as sock:
            sock.sendall(REQUEST[:cut])
    assert httpx.get(f"{emulator.url}/health").status_code == 200


PIECES = [
    b"GET ",
    b"POST ",
    b"/health",
    b"/v1/completions",
    b" HTTP/1.1\r\n",
    b"Host: x\r\n",
    b"\r\n",
    CONTENT,
]
PIECES += [
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"\0\xff",
]
PIECES += [b"Expect: 100-continue\r\n", b"Connection: close\r\n", REQUEST]


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)))
def test_any_bytes_leave_it_serving(emulator: Emulator, data: bytes) -> None:
    with connect(emulator) as sock:
        sock.sendall(data)
        sock.settimeout(0.02)
        try:
            answer = sock.recv(65536)
        except (TimeoutError, ConnectionError):
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in answer
    with connect(emulator) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_many_connections_at_once(emulator: Emulator) -> None:
    sockets = [connect(emulator) for _ in range(300)]
    for sock in sockets:
        sock.sendall(REQUEST)
    assert all(sock.recv(65536).startswith(b"HTTP/1.1 200") for sock in sockets)
    for sock in sockets:
        sock.close()
