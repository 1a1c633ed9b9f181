"""A server that misbehaves in every way a client must survive; the length of a prompt chooses the way."""

import asyncio
import gzip
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Way = Callable[[Writer, int], AsyncIterator[bytes]]

FIRST_LENGTH = 8
PAUSE_S = 0.002
THOUGHT_S = 0.01  # before every answer, or users would be through with their requests too soon
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = SSE + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(tokens: int = 1, **more: Any) -> bytes:
    choice = {"index": 0, "text": " a" * tokens, "finish_reason": None, "token_ids": [7] * tokens}
    return b"data: " + json.dumps({"id": "x", "choices": [choice], **more}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def stream(tokens: int, end: bytes = chunk(DONE) + chunk(b"")) -> AsyncIterator[bytes]:
    yield CHUNKED
    for _ in range(tokens):
        await asyncio.sleep(PAUSE_S)
        yield chunk(event())
    yield end


def good(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    return stream(n)


async def good_with_length(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    yield whole("200 OK", "text/event-stream", event() * n + DONE)


async def good_until_close(writer: Writer, n: int) -> AsyncIterator[bytes]:
    yield SSE + b"Connection: close\r\n\r\n" + event() * n + DONE
    writer.close()


async def good_byte_by_byte(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    data = b"".join([part async for part in stream(n)])
    for i in range(len(data)):
        await asyncio.sleep(0)
        yield data[i : i + 1]


async def good_merged(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    yield CHUNKED + chunk(event(n - 1)) + chunk(event(1)) + chunk(DONE) + chunk(b"")


async def good_then_closes(writer: Writer, n: int) -> AsyncIterator[bytes]:
    async for part in stream(n):
        yield part
    writer.close()


async def good_without_done(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    async for part in stream(n, end=chunk(b": bye\n\n") + chunk(b"")):
        yield part


async def reset_before_response(writer: Writer, _n: int) -> AsyncIterator[bytes]:
    writer.transport.abort()
    yield b""


async def reset_mid_stream(writer: Writer, n: int) -> AsyncIterator[bytes]:
    async for part in stream(n // 2, end=b""):
        yield part
    await asyncio.sleep(0.05)
    writer.transport.abort()


async def end_mid_stream(writer: Writer, n: int) -> AsyncIterator[bytes]:
    async for part in stream(n // 2, end=b""):
        yield part
    writer.close()


async def stall(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    async for part in stream(n // 2, end=b""):
        yield part
    await asyncio.sleep(60)


async def silence(_writer: Writer, _n: int) -> AsyncIterator[bytes]:
    await asyncio.sleep(60)
    yield b""


async def headers_only(_writer: Writer, _n: int) -> AsyncIterator[bytes]:
    yield CHUNKED
    await asyncio.sleep(60)


def answering(data: bytes) -> Way:
    async def way(_writer: Writer, _n: int) -> AsyncIterator[bytes]:
        yield data

    return way


def ending(end: bytes, missing: int = 0) -> Way:
    async def way(_writer: Writer, n: int) -> AsyncIterator[bytes]:
        async for part in stream(n - missing, end):
            yield part

    return way


def encoded(coding: bytes, encode: Callable[[bytes], bytes]) -> Way:
    async def way(_writer: Writer, n: int) -> AsyncIterator[bytes]:
        body = encode(event() * n + DONE)
        yield SSE + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b" % (coding, len(body), body)

    return way


def counting(usage: dict[str, Any]) -> Way:
    """Every chunk states this usage."""

    async def way(_writer: Writer, n: int) -> AsyncIterator[bytes]:
        yield CHUNKED
        for _ in range(n):
            yield chunk(event(usage=usage))
        yield chunk(DONE) + chunk(b"")

    return way


async def good_behind_hints(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n"
    await asyncio.sleep(PAUSE_S)
    yield b"\r\n"
    async for part in stream(n):
        yield part


async def good_with_trailer_in_pieces(_writer: Writer, n: int) -> AsyncIterator[bytes]:
    async for part in stream(n, chunk(DONE)):
        yield part
    for part in (b"0;last\r\nX-", b"Sum: 1\r", b"\nX-B: 2\r\n\r", b"\n"):
        await asyncio.sleep(PAUSE_S)
        yield part


async def endless(writer: Writer, _n: int) -> AsyncIterator[bytes]:
    yield CHUNKED
    tokens = chunk(event()) * 500
    while True:
        yield tokens
        await writer.drain()


def as_error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "code": 500}}).encode()


WAYS: dict[str, tuple[Way, str]] = {
    "good": (good, ""),
    "good, content-length": (good_with_length, ""),
    "good, until close": (good_until_close, ""),
    "good, byte by byte": (good_byte_by_byte, ""),
    "good, tokens merged": (good_merged, ""),
    "good, then closes": (good_then_closes, ""),
    "good, no [DONE]": (good_without_done, ""),
    "good, trailer": (ending(chunk(DONE) + b"0\r\nX-Sum: 1\r\n\r\n"), ""),
    "good, trailer in pieces": (good_with_trailer_in_pieces, ""),
    "good, early hints": (good_behind_hints, ""),
    "good, counts are floats": (counting({"prompt_tokens": 64.0, "completion_tokens": 6.0}), ""),
    "reset before a byte": (reset_before_response, "reset_before_response"),
    "reset mid-stream": (reset_mid_stream, "reset_mid_stream"),
    "end of connection mid-stream": (end_mid_stream, "reset_mid_stream"),
    "stall": (stall, "stall_timeout"),
    "no answer": (silence, "request_timeout"),
    "headers, then nothing": (headers_only, "request_timeout"),
    "429": (answering(whole("429 Too Many Requests", "application/json", as_error("slow down"))), "http_429"),
    "500": (answering(whole("500 Internal Server Error", "text/plain", b"oops")), "http_500"),
    "404": (answering(whole("404 Not Found", "application/json", b"{}")), "http_404"),
    "out of memory": (
        answering(whole("500 Oops", "application/json", as_error("CUDA out of memory."))),
        "out_of_memory",
    ),
    "html": (answering(whole("200 OK", "text/html", b"<html>")), "wrong_content_type"),
    "json": (answering(whole("200 OK", "application/json", b'{"choices": []}')), "no_tokens"),
    "other json": (answering(whole("200 OK", "application/json", b'{"hello": 1}')), "wrong_content_type"),
    "garbage for http": (answering(b"SSH-2.0-OpenSSH\r\n\r\n"), "bad_http"),
    "garbage for sse": (ending(chunk(b"data: {'no': json}\n\n") + chunk(b""), 1), "bad_sse"),
    "half a line": (ending(chunk(event()[:40]) + chunk(b""), 1), "bad_sse"),
    "half an answer at once": (
        answering(CHUNKED + chunk(event()) + chunk(event()[:40]) + chunk(b"")),
        "bad_sse",
    ),
    "not our json": (ending(chunk(b'data: {"hello": 1}\n\n') + chunk(b""), 1), "truncated_stream"),
    "bad chunk": (ending(b"xyz\r\nhello\r\n0\r\n\r\n", 1), "bad_http"),
    "error mid-stream": (
        ending(chunk(b"data: " + as_error("slot died") + b"\n\n") + chunk(b""), 2),
        "error_in_stream",
    ),
    "out of memory mid-stream": (
        ending(chunk(b"data: " + as_error("CUDA out of memory") + b"\n\n") + chunk(b""), 2),
        "out_of_memory",
    ),
    "too few": (ending(chunk(DONE) + chunk(b""), 1), ""),
    "too many": (ending(chunk(event(3)) + chunk(DONE) + chunk(b"")), ""),
    "whole, but too short and with no end": (ending(chunk(b""), 1), "truncated_stream"),
    "endless": (endless, "endless_answer"),
    "gzip": (encoded(b"gzip", gzip.compress), ""),
    "gzip that is none": (encoded(b"gzip", lambda data: data), "encoded_answer"),
    "gzip of nothing": (encoded(b"gzip", lambda _: gzip.compress(b"")), "no_tokens"),
    "encoded": (encoded(b"br", lambda data: data), "encoded_answer"),
    "counts infinitely many": (counting({"completion_tokens": float("inf")}), ""),
    "counts fewer than none": (counting({"completion_tokens": -1}), ""),
    "counts billions": (counting({"completion_tokens": 3_000_000_000}), ""),
    "counts in words": (counting({"prompt_tokens": "64"}), ""),
    "counts beyond 64 bits": (counting({"prompt_tokens": 2**70}), ""),
    "nested deeply": (ending(chunk(b"data: " + b"[" * 100_000 + b"\n\n") + chunk(b"")), "bad_sse"),
    "half a character": (
        ending(chunk(b'data: {"error": "\\ud800 boo"}\n\n') + chunk(b"")),
        "error_in_stream",
    ),
    "status of many digits": (
        answering(b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\nContent-Length: 0\r\n\r\n"),
        "bad_http",
    ),
    "length of many digits": (answering(SSE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"), "bad_http"),
    "none": (answering(CHUNKED + chunk(DONE) + chunk(b"")), "no_tokens"),
}
"""Every way, and the failure's kind that it must be counted under ("" for a success)."""


async def _serve(reader: Reader, writer: Writer) -> None:
    ways = list(WAYS.values())
    try:
        while not writer.is_closing():
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            way, _ = ways[len(body["prompt"]) - FIRST_LENGTH]
            await asyncio.sleep(THOUGHT_S)
            async for part in way(writer, body["max_tokens"]):
                if part:
                    writer.write(part)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the URL of a server that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_serve, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{'https' if tls else 'http'}://{host}:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
