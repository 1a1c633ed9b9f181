"""HTTP/2 as the load test needs it, for servers that speak nothing else: one request at a time, as in `http`.

Every arrival is stamped first, as there. What comes is handed on as if it were HTTP/1.1: a head, and a body
up to the end of the stream; so whoever reads answers need not know. The frames are read here, not by the
library h2: that refuses the rest of an answer once the server has announced (GOAWAY) that it takes no further
requests on the connection, as nginx does every so many requests, and costs several times as much for each
token. Frames and errors are those of RFC 9113; hpack compresses the fields (RFC 7541).
"""

import asyncio
import socket
import struct
from collections.abc import Iterable

from hpack import Decoder, Encoder, HPACKError

from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.framing import BLANK_LINE, is_interim
from llmpilot.openai_client.http import MAX_HEAD, Connection, clock_ns

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    *range(3, 10),
)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
CANCEL, REFUSED_STREAM = 8, 7

FIRST_WINDOW, LARGEST_WINDOW = 65_535, 2**31 - 1
LARGEST_FRAME = 16_384
FRAME_HEAD = 9
RENEW_AFTER = 1 << 26
"""Received bytes after which the connection's window is opened again: long before it could throttle."""

_OF_HTTP1 = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
_SEPARATORS = bytes.maketrans(b"\r\n\0", b"   ")


class Http2Connection(Connection):
    """One connection over HTTP/2; `flight` is the request whose answer it waits for, its only stream."""

    __slots__ = (
        "_answering",
        "_block",
        "_consumed",
        "_decoder",
        "_encoder",
        "_first_window",
        "_largest",
        "_received",
        "_scheme",
        "_settled",
        "_stream",
        "_stream_window",
        "_unsent",
        "_window",
    )

    def __init__(self, sock: socket.socket | None, scheme: bytes) -> None:
        super().__init__(sock)
        self._scheme = scheme
        self._received = b""  # the beginning of a frame
        self._settled = False  # whether the server has begun to speak HTTP/2
        self._block: tuple[int, int, bytes] | None = None  # stream, flags and beginning of a block of fields
        self._decoder, self._encoder = Decoder(MAX_HEAD), Encoder()
        self._stream = -1
        self._answering = False  # whether the head of its answer has come
        self._unsent = b""  # of the request's body: the server's windows were too small for it
        self._window = self._first_window = self._stream_window = FIRST_WINDOW
        self._largest = LARGEST_FRAME
        self._consumed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands; windows are opened as far as they go, for they must never hold back."""
        super().connection_made(transport)
        ours = {ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: LARGEST_WINDOW}
        self._write(
            PREFACE
            + frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in ours.items()))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW))
        )
        if self._received:
            early, self._received = self._received, b""
            self.data_received(early)

    def send(self, flight: Flight) -> None:
        """Send a request; the clock is read right before its first byte leaves."""
        self.flight, flight.connection = flight, self
        if not self.usable:
            self._end_soon(flight)
            return
        fields, body = as_fields(flight.wire, self._scheme)
        block = self._encoder.encode(fields)
        self._stream += 2
        self._stream_window, self._answering = self._first_window, False
        self._unsent = body
        begun = _header_frames(self._stream, block, self._largest, end=not body) + self._sendable()
        flight.sent_ns = clock_ns()
        self._write(begun)

    def data_received(self, data: bytes) -> None:
        """Stamp what has arrived, and take it apart."""
        now_ns = clock_ns()
        if self._received:
            data = self._received + data
        if self.transport is None:  # within a tunnel, a server may be quicker than we are
            self._received = data
            return
        at, end = 0, len(data)
        while end - at >= FRAME_HEAD:
            stop = at + FRAME_HEAD + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            kind = data[at + 3]
            if stop - at > LARGEST_FRAME + FRAME_HEAD or not (self._settled or kind == SETTINGS):
                self._no_http2(data[at:], now_ns)
                return
            if stop > end:
                break
            stream = int.from_bytes(data[at + 5 : at + 9]) & LARGEST_WINDOW
            payload = data[at + FRAME_HEAD : stop]
            try:
                if kind == DATA:
                    self._take_data(stream, data[at + 4], payload, now_ns)
                else:
                    self._take(kind, data[at + 4], stream, payload, now_ns)
            except (ValueError, IndexError, struct.error, HPACKError):
                self._no_http2(b"", now_ns)
                return
            at = stop
        self._received = data[at:]

    def _take_data(self, stream: int, flags: int, payload: bytes, now_ns: int) -> None:
        self._consumed += len(payload)
        if self._consumed > RENEW_AFTER:
            self._write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._consumed)))
            self._consumed = 0
        flight = self.flight
        if flight is None or stream != self._stream:
            return  # of a request that is over
        if not self._answering:
            raise ValueError("a body without a head")
        if flags & PADDED:
            payload = _without_padding(payload)
        if payload:
            flight.times.append(now_ns)
            flight.pieces.append(payload)
        if flags & END_STREAM:
            self._whole()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int) -> None:
        """Take any frame but DATA.

        Raises:
            ValueError, IndexError, struct.error, HPACKError: it is not as it must be.
        """
        if self._block is not None and kind != CONTINUATION:
            raise ValueError("a block of fields that does not go on")
        if kind == HEADERS:
            if flags & PADDED:
                payload = _without_padding(payload)
            if flags & WITH_PRIORITY:
                payload = payload[5:]
            self._take_block(stream, flags, payload, now_ns)
        elif kind == CONTINUATION:
            if self._block is None or self._block[0] != stream:
                raise ValueError("a block of fields goes on that has not begun")
            _, first_flags, begun = self._block
            self._block = None
            self._take_block(
                stream, (first_flags & END_STREAM) | flags & END_HEADERS, begun + payload, now_ns
            )
        elif kind == SETTINGS:
            self._settled = True
            if not flags & ACK:
                self._settle(payload)
        elif kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += more & LARGEST_WINDOW
            elif stream == self._stream:
                self._stream_window += more & LARGEST_WINDOW
            self._write(self._sendable())
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            (code,) = struct.unpack(">I", payload)
            if stream == self._stream and self.flight is not None:
                self._reset(begun=code != REFUSED_STREAM)
        elif kind == GOAWAY:
            self.usable = False
            (last,) = struct.unpack(">I", payload[:4])
            if self.flight is None:
                self.close()  # nobody will use it again: some servers wait for us to hang up
            elif last & LARGEST_WINDOW < self._stream:
                self._reset(begun=False)
        elif kind == PUSH_PROMISE:
            raise ValueError("an answer to nothing that was asked")

    def _take_block(self, stream: int, flags: int, block: bytes, now_ns: int) -> None:
        if not flags & END_HEADERS:
            if len(block) > MAX_HEAD:
                raise ValueError("a head without end")
            self._block = (stream, flags, block)
            return
        fields = self._decoder.decode(block, raw=True)  # of whichever stream: the next block builds on it
        flight = self.flight
        if flight is None or stream != self._stream:
            return
        if not self._answering:  # else these are trailers
            status, head = as_head((bytes(name), bytes(value)) for name, value, *_ in fields)
            if is_interim(status):
                return
            self._answering = True
            flight.times.append(now_ns)
            flight.pieces.append(head)
            flight.status, flight.head_pieces = status, len(flight.pieces)
        if flags & END_STREAM:
            self._whole()

    def _settle(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._first_window
                self._first_window = value
            elif name == MAX_FRAME_SIZE:
                self._largest = max(LARGEST_FRAME, value)
            elif name == HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, 4096)
        self._write(frame(SETTINGS, ACK, 0, b"") + self._sendable())

    def _sendable(self) -> bytes:
        """Return the frames of as much of the body as the server's windows let through."""
        frames = []
        while self._unsent and (size := min(self._window, self._stream_window, self._largest)) > 0:
            part, self._unsent = self._unsent[:size], self._unsent[size:]
            self._window -= len(part)
            self._stream_window -= len(part)
            frames.append(frame(DATA, 0 if self._unsent else END_STREAM, self._stream, part))
        return b"".join(frames)

    def _whole(self) -> None:
        if self._unsent:  # answered without having heard it all
            self._unsent = b""
            self._write(frame(RST_STREAM, 0, self._stream, struct.pack(">I", CANCEL)))
        self._end("")

    def _reset(self, begun: bool) -> None:
        """End the flight whose stream the server has given up; what it never began may be sent again."""
        assert self.flight is not None
        if self.flight.pieces:
            self._end("reset_mid_stream")
        else:
            self._end("stale_connection" if self.used and not begun else "reset_before_response")

    def _no_http2(self, data: bytes, now_ns: int) -> None:
        """End with what is no HTTP/2; kept, where it came instead of any, for it may be HTTP/1.1."""
        flight = self.flight
        self._received = b""
        if flight is None:
            self.unasked = self.unasked or data
            self.close()
            return
        if data and not flight.pieces:
            flight.times.append(now_ns)
            flight.pieces.append(data)
        self._end("bad_http")

    def _write(self, data: bytes) -> None:
        transport = self.transport
        if not data or transport is None or transport.is_closing():
            return
        if self._socket is not None and not transport.get_write_buffer_size():
            # Straight to the kernel, as in `Connection.send`.
            try:
                data = data[self._socket.send(data) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.usable = False
                asyncio.get_running_loop().call_soon(self.connection_lost, None)
                return
        if data:
            transport.write(data)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame as it is sent."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def as_fields(wire: bytes, scheme: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the fields of HTTP/2 for a whole request of HTTP/1.1, and its body."""
    head, _, body = wire.partition(BLANK_LINE)
    first, *lines = head.split(b"\r\n")
    method, path, _ = first.split(b" ")
    split = (line.partition(b":") for line in lines)
    given = [(name.strip().lower(), value.strip()) for name, _, value in split]
    authority = next((value for name, value in given if name == b"host"), b"")
    begun = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path)]
    return begun + [field for field in given if field[0] != b"host" and field[0] not in _OF_HTTP1], body


def as_head(fields: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Return the status and the head of HTTP/1.1 for the fields of an answer.

    Raises:
        ValueError: there is no status.
    """
    status, lines = b"", [b""]
    for name, value in fields:
        if name == b":status":
            status = value
        elif name not in _OF_HTTP1 and not name.startswith(b":"):
            lines.append(b"%b: %b" % (name.translate(_SEPARATORS), value.translate(_SEPARATORS)))
    if len(status) != 3 or not status.isdigit():
        raise ValueError("an answer without a status")
    lines[0] = b"HTTP/1.1 " + status
    return status, b"\r\n".join(lines) + BLANK_LINE


def begins_with_settings(received: bytes) -> bool:
    """Whether a server has begun as every server of HTTP/2 does, whatever was sent to it."""
    return (
        len(received) >= FRAME_HEAD
        and received[3] == SETTINGS
        and int.from_bytes(received[:3]) % 6 == 0
        and int.from_bytes(received[5:9]) == 0
    )


def _header_frames(stream: int, block: bytes, largest: int, end: bool) -> bytes:
    """Return a block of fields in frames of at most this size."""
    parts = [block[at : at + largest] for at in range(0, len(block), largest)]
    frames = []
    for i, part in enumerate(parts):
        flags = (END_HEADERS if i == len(parts) - 1 else 0) | (END_STREAM if end and i == 0 else 0)
        frames.append(frame(CONTINUATION if i else HEADERS, flags, stream, part))
    return b"".join(frames)


def _without_padding(payload: bytes) -> bytes:
    if payload[0] >= len(payload):
        raise ValueError("more padding than there is")
    return payload[1 : len(payload) - payload[0]]
