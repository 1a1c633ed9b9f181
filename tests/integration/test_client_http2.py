"""Servers that insist on HTTP/2: found out, and measured with the same times and names of failures."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import needs_openssl, of_internal_ca
from forward_proxy import forward_proxy
from http2_service import Asked, Way, http2_service, tokens
from misbehaving import DONE, FIRST_LENGTH, event
from odd_service import SOUND, service, whole

from llmpilot.config import Load
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.openai_client.access import Access, resolve
from llmpilot.openai_client.connecting import connect
from llmpilot.openai_client.exchange import Exchange, NoAnswerError, ask_now, insists_on_http2, wire_of
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.http2 import GOAWAY, SETTINGS
from llmpilot.openai_client.reading import read_answer
from llmpilot.workload import fit, from_lengths

TOKENS = 5
PAUSE_S = 0.01
ANSWER = [*[event()] * TOKENS, DONE]


def post(url: str, content: bytes = b"{}", *, timeout_s: float = 5, **access: Any) -> Exchange:
    reached = Access(url, **({"http2": True} | access))
    fields = {"Content-Type": "application/json", "X-Own": "1"}
    wire = wire_of(reached, "POST", "/v1/completions?a=b", fields, content)
    return ask_now(resolve(reached), wire, timeout_s=timeout_s, most_bytes=2_000_000)


def level(url: str, **access: Any) -> Records:
    load = Load(arrival="closed", users=[2], warmup_s=0, duration_s=0.3, drain_s=5)
    traffic = Traffic(load, fit(lambda: [from_lengths([FIRST_LENGTH], [TOKENS])]), 1)
    settings = ClientSettings(backoff_s=0.05)
    place = HttpEndpoint(url, "m", OpenAIEngine(), "vllm", client=settings, http2=True, **access)
    return run_level(place, traffic, 2)


def test_tokens_have_the_times_at_which_they_came() -> None:
    sent_ns: list[int] = []
    with http2_service(tokens(ANSWER, PAUSE_S, sent_ns)) as url:
        answer = post(url)
    read = read_answer(answer.raw, answer.ends, answer.flight.times, output_tokens=TOKENS, sequences=1)
    assert read.failure == ""
    assert len(read.token_ns) == TOKENS
    assert all(came > sent for came, sent in zip(read.token_ns, sent_ns, strict=False))
    assert read.token_ns[0] < sent_ns[-1]  # and not when the answer was whole
    assert answer.flight.streaming


def test_a_request_arrives_as_it_was_written() -> None:
    seen: list[Asked] = []

    def way(asked: Asked) -> None:
        seen.append(asked)
        asked.head(("x-answer", "Yes"), end=True)

    content = b"x" * 300_000  # more than the server's windows hold at once
    with http2_service(way) as url:
        answer = post(url, content)
    [asked] = seen
    assert asked.body == content
    assert asked.fields[":method"] == "POST"
    assert asked.fields[":path"] == "/v1/completions?a=b"
    assert asked.fields[":scheme"] == "http"
    assert asked.fields[":authority"] == url.partition("//")[2]
    assert asked.fields["content-type"] == "application/json"
    assert asked.fields["x-own"] == "1"
    assert "host" not in asked.fields
    assert (answer.status, answer.headers["x-answer"], answer.text) == (200, "Yes", "")


@needs_openssl
@pytest.mark.parametrize("alpn", [True, False])
def test_a_server_that_insists_is_recognized_and_answers(tmp_path: Path, alpn: bool) -> None:
    context, ca = of_internal_ca(tmp_path)
    with http2_service(tokens(ANSWER, 0), context, alpn) as url:
        with pytest.raises(NoAnswerError) as refused:
            post(url, http2=False, ca_file=str(ca))
        assert insists_on_http2(refused.value)
        answer = post(url, ca_file=str(ca))
        with forward_proxy() as passed:
            assert post(url, ca_file=str(ca), proxy=passed.url).text == answer.text
    assert answer.text.encode() == b"".join(ANSWER)
    assert passed.asked[0][0].startswith("CONNECT ")


def test_a_server_without_tls_that_insists_is_recognized() -> None:
    with http2_service(tokens(ANSWER, 0)) as url:
        with pytest.raises(NoAnswerError) as refused:
            post(url, http2=False)
        assert refused.value.kind == "bad_http"
        assert insists_on_http2(refused.value)
        with forward_proxy() as passed:
            assert post(url, proxy=passed.url).status == 200
        assert passed.asked[0][0].startswith("CONNECT ")
    for status in ("505 HTTP Version Not Supported", "464", "426 Upgrade Required"):
        with service(whole(b"", status, "Upgrade: h2c")) as url:
            assert insists_on_http2(post(url, http2=False))


def test_others_do_not_insist() -> None:
    for way in (whole(SOUND), whole(b"", "426 Upgrade Required", "Upgrade: websocket"), whole(b"", "400 No")):
        with service(way) as url:
            assert not insists_on_http2(post(url, http2=False))
    with service(lambda send: send(b"\0\0\0\1nothing known\r\n\r\n")) as url:
        with pytest.raises(NoAnswerError) as failed:
            post(url, http2=False)
        assert not insists_on_http2(failed.value)
    with pytest.raises(NoAnswerError) as failed:
        post("http://127.0.0.1:9", http2=False)
    assert not insists_on_http2(failed.value)


@needs_openssl
def test_the_load_test_measures_over_http2(tmp_path: Path) -> None:
    context, ca = of_internal_ca(tmp_path)
    with http2_service(tokens(ANSWER, PAUSE_S), context) as url:
        records = level(url, ca_file=str(ca))
    ok = records.failure == ""
    assert set(records.failure) <= {"", "unfinished"}
    assert ok.sum() >= 2
    assert records.notes["reconnects"] == 0
    assert (np.diff(records.gap_offsets)[ok] == TOKENS - 1).all()
    assert records.gap_us.mean() >= PAUSE_S * 1e6 * 0.9


def reset(code: int, after: int) -> Way:
    def way(asked: Asked) -> None:
        for i in range(after):
            asked.data(event()) if i else asked.head()
        asked.connection.reset_stream(asked.stream, code)
        asked.flush()

    return way


def going_away(processed: bool) -> Way:
    """Say that no more requests are taken, then answer this one, or not."""

    def way(asked: Asked) -> None:
        last = asked.stream if processed else 0
        asked.sock.sendall(frame(7, 0, 0, struct.pack(">II", last, 0)))
        if processed:
            tokens(ANSWER, 0)(asked)

    return way


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def raw(*frames: tuple[int, int, bytes]) -> Way:
    return lambda asked: asked.sock.sendall(b"".join(frame(k, f, asked.stream, p) for k, f, p in frames))


def split_head(asked: Asked) -> None:
    """A head in three frames, padded and with a priority, then a padded body, a comment, and trailers."""
    block = asked.connection.encoder.encode([(":status", "200"), ("content-type", "text/event-stream")])
    first = b"\4" + b"\0\0\0\0\0" + block[:1] + b"\0" * 4
    for kind, flags, payload in (
        (1, 0x8 | 0x20, first),
        (9, 0, block[1:3]),
        (9, 0x4, block[3:]),
        (0xBE, 0, b"an extension that nobody knows"),
        (0, 0x8, b"\3" + b"".join(ANSWER) + b"\0\0\0"),
        (0, 0, b""),
        (1, 0x4 | 0x1, asked.connection.encoder.encode([("x-trailer", "1")])),
    ):
        asked.sock.sendall(frame(kind, flags, asked.stream, payload))


def hints_first(asked: Asked) -> None:
    asked.head(fields=[(":status", "103"), ("link", "</a>")])
    tokens(ANSWER, 0)(asked)


def ping_and_settings(asked: Asked) -> None:
    asked.head()
    asked.connection.ping(b"12345678")
    asked.connection.update_settings({1: 0, 4: 100, 5: 20_000})
    asked.data(b"".join(ANSWER), end=True, padding=7)


def until_closed(asked: Asked) -> None:
    asked.head()
    asked.data(event())
    asked.sock.close()


def close(asked: Asked) -> None:
    asked.sock.shutdown(socket.SHUT_RDWR)


def silent_after(begin: Callable[[Asked], Any]) -> Way:
    def way(asked: Asked) -> None:
        begin(asked)
        threading.Event().wait(3)

    return way


def endless(asked: Asked) -> None:
    asked.head()
    while True:
        asked.data(event() * 100)


WAYS: dict[str, tuple[Way, str]] = {
    "hints": (hints_first, ""),
    "ping and settings": (ping_and_settings, ""),
    "head in frames": (split_head, ""),
    "goes away, answers": (going_away(processed=True), ""),
    "goes away": (going_away(processed=False), "reset_before_response"),
    "refuses the stream": (reset(7, 0), "reset_before_response"),
    "resets before": (reset(2, 0), "reset_before_response"),
    "resets within": (reset(2, 3), "reset_mid_stream"),
    "closes": (close, "reset_before_response"),
    "closes within": (until_closed, "reset_mid_stream"),
    "body without head": (raw((0, 1, b"hello")), "bad_http"),
    "fields that are none": (raw((1, 4, b"\xff\xff\xff\xff\xff\xff")), "bad_http"),
    "fields that do not go on": (raw((1, 0, b"\x88"), (0, 1, b"x")), "bad_http"),
    "goes on with nothing": (raw((9, 4, b"\x88")), "bad_http"),
    "head without end": (raw((1, 0, b"a"), *[(9, 0, b"a" * 16_000)] * 6), "bad_http"),
    "more padding than payload": (raw((1, 4, b"\x88"), (0, 8, b"\x09abc")), "bad_http"),
    "no status": (raw((1, 4, b"\x87")), "bad_http"),
    "pushes": (raw((5, 4, b"\0\0\0\2\x88")), "bad_http"),
    "frame too large": (lambda asked: asked.sock.sendall(b"\xff\xff\xff" + b"\0" * 20), "bad_http"),
    "short settings": (lambda asked: asked.sock.sendall(frame(4, 0, 0, b"abc")), "bad_http"),
    "endless": (endless, "endless_answer"),
    "silence": (silent_after(lambda _: None), "request_timeout"),
    "head, then silence": (silent_after(lambda asked: asked.head()), "request_timeout"),
}


@pytest.mark.parametrize("way", WAYS)
def test_faults_have_the_names_that_they_have_over_http1(way: str) -> None:
    answer_in, kind = WAYS[way]
    timeout_s = 0.2 if kind == "request_timeout" else 10
    with http2_service(answer_in) as url:
        if kind:
            with pytest.raises(NoAnswerError) as failed:
                post(url, timeout_s=timeout_s)
            assert failed.value.kind == kind
            assert failed.value.so_far is not None
            assert len(failed.value.so_far.raw) <= 2_000_000
            return
        answer = post(url)
    assert answer.status == 200
    assert answer.text.encode() == b"".join(ANSWER)
    read = read_answer(answer.raw, answer.ends, answer.flight.times, output_tokens=TOKENS, sequences=1)
    assert read.failure == ""


def test_a_server_of_http1_is_named_by_its_answer() -> None:
    with service(whole(b"", "400 Bad Request"), "PRI") as url, pytest.raises(NoAnswerError) as failed:
        post(url)
    assert failed.value.kind == "bad_http"
    assert failed.value.so_far is not None
    assert failed.value.so_far.status == 400


def test_what_a_kept_connection_refuses_is_sent_again() -> None:
    def way(asked: Asked) -> None:
        if asked.number > 1:
            reset(7, 0)(asked)
        else:
            tokens(ANSWER, 0)(asked)
            time.sleep(0.02)

    with http2_service(way) as url:
        records = level(url)
    assert set(records.failure) <= {"", "unfinished"}
    assert records.notes["reconnects"] > 0
    assert (records.failure == "").sum() > 2


def test_a_connection_that_takes_no_more_requests_is_closed() -> None:
    hung_up = threading.Event()

    def serve(listening: socket.socket) -> None:
        with listening.accept()[0] as peer:
            peer.settimeout(5)
            peer.sendall(frame(SETTINGS, 0, 0, b"") + frame(GOAWAY, 0, 0, bytes(8)))
            with suppress(ConnectionError):
                while peer.recv(65536):
                    pass
            hung_up.set()

    async def stay(url: str) -> str:
        connection = await connect(resolve(Access(url, http2=True)), 5)
        there = await asyncio.get_running_loop().run_in_executor(None, hung_up.wait, 5)
        assert there
        assert not connection.usable
        # Whoever does not know yet is told at once, and does not wait for an answer that will not come.
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        flight = Flight(0, b"GET / HTTP/1.1\r\n\r\n", 1, 1)
        flight.on_end = lambda _, kind: ended.set_result(kind)
        connection.send(flight)
        return await asyncio.wait_for(ended, 5)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        ended = asyncio.run(stay(f"http://127.0.0.1:{listening.getsockname()[1]}"))
    assert ended == "reset_before_response"
