"""One client's connection: bytes in, requests one after the other, bytes out, and every wait bounded."""

import asyncio
import os
import socket
import struct
import sys
import traceback
from contextlib import suppress
from time import monotonic, monotonic_ns
from typing import Any, Protocol, cast

from llmpilot.emulator import wire
from llmpilot.emulator.answer import UNREAD, Answer
from llmpilot.emulator.http import HttpError, Request, RequestParser
from llmpilot.emulator.options import Limits

PIPELINED_BYTES = 256 * 1024
"""Bytes of further requests that are read ahead while one is answered."""
LINGER_S = 2.0
_POSIX = os.name == "posix"


class Site(Protocol):
    """What a connection must know of its server; `product` is what the server calls itself."""

    product: str
    limits: Limits
    connections: "set[Connection]"

    def handle(self, request: Request, connection: "Connection", arrived_ns: int) -> Answer | None:
        """Answer at once through the connection and return None, or return the answer that will follow."""
        ...


class Connection(asyncio.Protocol):
    """Reads requests, hands them to the site one at a time, and sends what it answers."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.keep_alive = self.http11 = True
        self._parser = RequestParser(site.limits.body_bytes)
        self._transport: asyncio.Transport
        self._fd = -1
        self._answer: Answer | None = None
        self._since = monotonic()  # when the present wait began
        self._waiting = "idle"
        self._reading = True
        self._head_only = False
        self._buffering = True  # the transport may hold bytes that must go first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this and the next four."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        self._fd = sock.fileno() if _POSIX else -1
        if len(self.site.connections) >= self.site.limits.connections:
            self._refuse(503, "too many connections")
            return
        self.site.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Read on, unless too much has been read ahead."""
        if self._waiting == "closing":
            return
        arrived_ns = monotonic_ns()
        self._parser.feed(data)
        if self._answer is None:
            self._advance(arrived_ns)
        elif self._parser.buffered > PIPELINED_BYTES:
            self._reading = False
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what was being answered: nobody reads it."""
        self.site.connections.discard(self)
        if self._answer is not None:
            self._answer.abandon("disconnected")
            self._answer = None

    def pause_writing(self) -> None:
        """Hold the answer back: the client does not read."""
        if self._waiting == "closing":
            return
        self._wait("unread")
        if self._answer is not None:
            self._answer.hold(UNREAD)

    def resume_writing(self) -> None:
        """Send what was held back."""
        if self._waiting == "closing":
            return
        self._wait("answering" if self._answer is not None else "idle")
        if self._answer is not None:
            self._answer.release(UNREAD)

    def send(self, payload: bytes) -> None:
        """Send bytes: straight to the socket where nothing is before them, else in their turn.

        An event loop may put a write off to its next turn, and the time of sending would then be untrue.
        """
        transport = self._transport
        if transport.is_closing():
            return
        if self._buffering:
            self._buffering = self._fd < 0 or transport.get_write_buffer_size() > 0
        if not self._buffering:
            try:
                written = os.write(self._fd, payload)
            except BlockingIOError:
                written = 0
            except OSError:
                transport.abort()
                return
            if written == len(payload):
                return
            payload, self._buffering = payload[written:], True
        transport.write(payload)

    def head(self, status: int, content_type: str, *, length: int | None, extra: dict[str, str]) -> bytes:
        """Return an answer's head (see `wire.head`)."""
        close, product = not self.keep_alive, self.site.product
        return wire.head(status, content_type, product=product, length=length, close=close, extra=extra)

    def write_body(
        self, status: int, content_type: str, body: bytes, extra: dict[str, str] | None = None
    ) -> None:
        """Send a whole answer; its body is left out where the request was a HEAD."""
        head = self.head(status, content_type, length=len(body), extra=extra or {})
        self.send(head if self._head_only else head + body)

    def write_json(self, status: int, value: Any, extra: dict[str, str] | None = None) -> None:
        """Send a whole JSON answer."""
        self.write_body(status, wire.JSON, wire.to_json(value), extra)

    def answered(self) -> None:
        """The answer that was awaited has ended: go on with the next request, or close."""
        self._answer = None
        if not self.keep_alive:
            self._transport.close()
            return
        self._wait("idle")
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if self._parser.buffered:
            asyncio.get_running_loop().call_soon(self._resume)

    def reset(self) -> None:
        """Cut the connection the rude way: the client reads a reset, not an end."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def close(self) -> None:
        """Close now, whatever is under way."""
        self._transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if its present wait has lasted too long; called every second or so."""
        limits, waited = self.site.limits, now - self._since
        if self._waiting == "head" and waited > limits.head_s:
            self._refuse(408, "the request's header did not come in time")
        elif self._waiting == "body" and waited > limits.body_s:
            self._refuse(408, "the request's body did not come in time")
        elif (
            (self._waiting == "idle" and waited > limits.idle_s)
            or (self._waiting == "unread" and waited > limits.unread_s)
            or (self._waiting == "closing" and waited > LINGER_S)
        ):
            self._transport.abort()

    def _resume(self) -> None:
        if self._answer is None and self._waiting != "closing" and not self._transport.is_closing():
            self._advance(monotonic_ns())

    def _advance(self, arrived_ns: int) -> None:
        """Answer the requests that are there, until one takes time or none is whole."""
        while self._answer is None and not self._transport.is_closing():
            try:
                request = self._parser.next()
            except HttpError as error:
                self._refuse(error.status, error.message)
                return
            if request is None:
                self._wait_for_more()
                return
            self._waiting = ""  # what is waited for next is waited for anew
            self.keep_alive, self.http11 = request.keep_alive, request.http11
            self._head_only = request.method == "HEAD"
            try:
                self._answer = self.site.handle(request, self, arrived_ns)
            except Exception:  # a bug of ours must not cost the other clients their server
                traceback.print_exc(file=sys.stderr)
                self.keep_alive = False
                said = f"internal error of {self.site.product}"
                self.write_json(500, wire.error_body(said, "server_error"))
            if self._answer is not None:
                self._wait("answering")
            elif not self.keep_alive:
                self._transport.close()

    def _wait_for_more(self) -> None:
        parser = self._parser
        if parser.wants_continue:
            parser.wants_continue = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        state = "body" if parser.in_body else "head" if parser.in_head else "idle"
        if state != self._waiting:
            self._wait(state)

    def _wait(self, state: str) -> None:
        self._waiting, self._since = state, monotonic()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request of HTTP, then close; what still comes is read and thrown away, so that
        the answer is not lost to a reset."""
        self.keep_alive, self._head_only = False, False
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.write_json(status, wire.error_body(message, kind))
        self._wait("closing")
        self._parser = RequestParser(0)
        if self._transport.is_closing():
            return
        self.site.connections.add(self)
        with suppress(OSError):  # the client may have gone a moment ago
            self._transport.write_eof()
