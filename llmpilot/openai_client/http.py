"""HTTP/1.1 as the load test needs it: one request at a time on a kept connection, every arrival stamped.

The clock is read first, then as little as possible is looked at: where the answer ends. What it says is
read after the fact, in `reading`.
"""

import asyncio
import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from llmpilot import __version__
from llmpilot.openai_client.access import Access
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.framing import BLANK_LINE, LAST_CHUNK, chunks_end, is_interim, length_of
from llmpilot.openai_client.proxies import read_proxy

clock_ns = time.perf_counter_ns
"""Monotonic, and on Linux, macOS and Windows the same in every process of the machine."""

MAX_HEAD = 65_536
SHORT = len(LAST_CHUNK)
TWO_BLANK_LINES = b"\r\n\r\n\r\n"
"""As a chunk ends whose events end with such a line: no answer does."""

OWN_FIELDS = {
    "User-Agent": f"llm-pilot/{__version__}",  # some gateways refuse a request without one
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",  # what a compressor holds back would come late
}

WITHOUT_BODY = (b"204", b"304")
"""Statuses whose answers end with their heads, whatever these say."""

_HEAD, _CHUNKED, _LENGTH, _UNTIL_CLOSE = range(4)


def head_of(access: Access, path: str, headers: Mapping[str, str], method: str = "POST") -> bytes:
    """Return a request's head up to where its request id and length go (see `request`).

    `headers` replace our own, whatever the case of their names. A proxy without a tunnel is told where to
    pass the request on.
    """
    parts = urlsplit(access.url)
    host = parts.netloc.rpartition("@")[2]
    fields = dict(OWN_FIELDS)
    if method != "POST":
        del fields["Content-Type"], fields["Accept"]
    goal = f"{parts.path.rstrip('/')}{path}"
    if access.proxy is not None and not access.tunneled:
        goal = f"http://{host}{goal}"
        if authorization := read_proxy(access.proxy).authorization:
            fields["Proxy-Authorization"] = authorization
    given = {name.lower() for name in headers}
    fields = {name: value for name, value in fields.items() if name.lower() not in given} | dict(headers)
    lines = [f"{method} {goal} HTTP/1.1"] + ([] if "host" in given else [f"Host: {host}"])
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode() + b"\r\n"


def request(head: bytes, request_id: bytes, body: bytes) -> bytes:
    """Return a whole request: `head_of` it, an id to find it again in the server's log, and its body."""
    return b"%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, request_id, len(body), body)


def with_carriage_returns(answer: bytes, size: int) -> bytes:
    """Return an answer whose head, of this size, ends its lines in line feeds alone as it should be."""
    head = answer[:size].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return head + BLANK_LINE + answer[size + 2 :]


class Connection(asyncio.Protocol):
    """One connection; `flight` is the request whose answer it waits for.

    A flight ends with a failure's kind, or with "" when the answer's framing says that it is whole.
    `usable` tells whether another request may follow. `unasked` is what came before any request.
    """

    __slots__ = ("_framing", "_left", "_socket", "flight", "transport", "unasked", "usable", "used")

    def __init__(self, sock: socket.socket | None) -> None:
        self._socket = sock  # None where TLS stands between
        self.transport: asyncio.Transport | None = None
        self.flight: Flight | None = None
        self.usable = self.used = False
        self.unasked = b""
        self._framing, self._left = _HEAD, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, unless it is lost again: of one in a tunnel we hear late."""
        self.transport = transport  # type: ignore[assignment]
        self.usable = not transport.is_closing()

    def send(self, flight: Flight) -> None:
        """Send a request; the clock is read right before its first byte leaves."""
        assert self.transport is not None
        self.flight, flight.connection = flight, self
        if not self.usable:
            self._end_soon(flight)
            return
        self._framing = _HEAD
        data = flight.wire
        flight.sent_ns = clock_ns()
        if self._socket is not None:
            # Straight to the kernel: an event loop may queue a write until its round is over.
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.usable = False
                asyncio.get_running_loop().call_soon(self.connection_lost, None)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Stamp what has arrived, and see whether the answer is whole."""
        now_ns = clock_ns()
        flight = self.flight
        if flight is None:
            self.unasked = self.unasked if self.used else data
            self.close()
            return
        flight.times.append(now_ns)
        flight.pieces.append(data)
        size = len(data)
        if self._framing == _CHUNKED:
            # A cheap look first: few pieces can be the last one.
            if (
                size < SHORT or (data.endswith(BLANK_LINE) and not data.endswith(TWO_BLANK_LINES))
            ) and chunks_end(flight.pieces):
                self._end("")
        elif self._framing == _HEAD:
            self._read_head(flight)
        elif self._framing == _LENGTH:
            self._left -= size
            if self._left <= 0:
                self.usable &= self._left == 0
                self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed or reset the connection, or we have."""
        self.usable = False
        flight = self.flight
        if flight is None:
            return
        if not flight.pieces:
            self._end("stale_connection" if self.used else "reset_before_response")
        elif self._framing == _UNTIL_CLOSE and exc is None:
            self._end("")
        else:
            self._end("reset_mid_stream")

    def close(self) -> None:
        """Drop the connection at once, and forget its flight."""
        self.usable, self.flight = False, None
        if self.transport is not None:
            self.transport.abort()

    def _end_soon(self, flight: Flight) -> None:
        """Let a request fail for which the connection is gone already, in the moment since it was made."""
        flight.sent_ns = clock_ns()
        asyncio.get_running_loop().call_soon(self.connection_lost, None)

    def _end(self, kind: str) -> None:
        flight = self.flight
        assert flight is not None
        self.flight, self.used = None, True
        if kind and self.transport is not None:
            self.usable = False
            self.transport.abort()
        flight.on_end(flight, kind)

    def _read_head(self, flight: Flight) -> None:
        received = flight.pieces[0] if len(flight.pieces) == 1 else b"".join(flight.pieces)
        start = 0
        while True:
            end = received.find(BLANK_LINE, start)
            bare = received.find(b"\n\n", start, end if end >= 0 else len(received))
            if bare >= 0:
                received = received[:start] + with_carriage_returns(received[start:], bare - start)
                flight.pieces[:] = [b""] * (len(flight.pieces) - 1) + [received]
                continue
            if end < 0:
                if len(received) > MAX_HEAD or not b"HTTP/1.".startswith(received[start : start + 7]):
                    self._end("bad_http")
                return
            head = received[start:end].lower()
            if not head.startswith(b"http/1."):
                self._end("bad_http")
                return
            flight.status = head[9:12]
            if not is_interim(flight.status):
                break
            start = end + len(BLANK_LINE)
        body = len(received) - end - len(BLANK_LINE)
        flight.head_pieces = len(flight.pieces) - (body > 0)
        if b"\r\nconnection: close" in head or (
            head.startswith(b"http/1.0") and b"\r\nconnection: keep-alive" not in head
        ):
            self.usable = False
        if flight.status in WITHOUT_BODY:
            self._end("")
        elif b"\r\ntransfer-encoding:" in head:
            self._framing = _CHUNKED
            if body and chunks_end(flight.pieces):
                self._end("")
        elif (at := head.find(b"\r\ncontent-length:")) >= 0:
            self._framing = _LENGTH
            length = length_of(head[at + 17 :].split(b"\r\n", 1)[0].strip())
            if length is None:
                self._end("bad_http")
                return
            self._left = length - body
            if self._left <= 0:
                self.usable &= self._left == 0
                self._end("")
        else:
            self._framing, self.usable = _UNTIL_CLOSE, False
