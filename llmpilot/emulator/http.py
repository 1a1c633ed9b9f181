"""HTTP/1.1 requests out of a byte stream, strictly: what is ambiguous is refused, everything is bounded.

Pure parsing (RFC 9112); knows neither sockets nor what the requests mean.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

MAX_HEAD_BYTES = 32 * 1024
MAX_CHUNK_LINE_BYTES = 1024
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class HttpError(Exception):
    """A request that is no HTTP, or that goes beyond a limit: it is answered, and the connection closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(slots=True)
class Request:
    """One request; header names in lower case, repeated headers joined by commas."""

    method: str
    path: str
    headers: dict[str, str]
    keep_alive: bool
    http11: bool
    body: bytes = b""


class RequestParser:
    """Feed it bytes, ask it for the next whole request. After an HttpError it is of no more use."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.wants_continue = False
        """The client waits for a 100 before it sends the body; whoever sends it resets this."""
        self._buffer = bytearray()
        self._request: Request | None = None
        self._missing = 0  # bytes of the body, or of the current chunk
        self._chunks: bytearray | None = None  # the body so far, where it comes in chunks
        self._scanned = 0  # the buffer has no end of a head before this

    @property
    def buffered(self) -> int:
        """Bytes held, of a body or of requests that are not asked for yet."""
        return len(self._buffer) + len(self._chunks or b"")

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._request is None and bool(self._buffer)

    @property
    def in_body(self) -> bool:
        """Whether a head is complete and its body is not."""
        return self._request is not None

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._buffer += data

    def next(self) -> Request | None:
        """Return the next request once all of it is there, else None.

        Raises:
            HttpError: this is no acceptable request.
        """
        if self._request is None and not self._read_head():
            return None
        request = self._request
        assert request is not None
        if self._chunks is None:
            if len(self._buffer) < self._missing:
                return None
            request.body = bytes(self._buffer[: self._missing])
            del self._buffer[: self._missing]
        else:
            if not self._read_chunks(self._chunks):
                return None
            request.body = bytes(self._chunks)
        self._request, self._chunks, self._missing, self.wants_continue = None, None, 0, False
        return request

    def _read_head(self) -> bool:
        buffer = self._buffer
        while buffer and buffer[0] in b"\r\n":  # RFC 9112, 2.2: an empty line before a request is ignored
            del buffer[:1]
        found = _END_OF_HEAD.search(buffer, max(0, self._scanned - 3))
        if found is None:
            self._scanned = len(buffer)
            if len(buffer) > MAX_HEAD_BYTES:
                raise HttpError(431, "the request's header is too large")
            return False
        if found.start() > MAX_HEAD_BYTES:
            raise HttpError(431, "the request's header is too large")
        head = bytes(buffer[: found.start()])
        del buffer[: found.end()]
        self._scanned = 0
        self._request = self._understand(head)
        return True

    def _understand(self, head: bytes) -> Request:
        first, *lines = head.split(b"\n")
        words = first.removesuffix(b"\r").split(b" ")
        if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
            raise HttpError(400, "malformed request line")
        method, target, version = words
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            known = re.fullmatch(rb"HTTP/[0-9]\.[0-9]", version)
            raise HttpError(505 if known else 400, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        http11 = version == b"HTTP/1.1"
        headers = _headers(lines)
        if http11 and "host" not in headers:
            raise HttpError(400, "the Host header is missing")
        connection = {word.strip().lower() for word in headers.get("connection", "").split(",")}
        keep_alive = http11 and "close" not in connection  # 1.0 knows no end of a stream but the connection's
        self._frame(headers, http11)
        path = _path(target)
        return Request(method.decode("ascii"), path, headers, keep_alive, http11)

    def _frame(self, headers: dict[str, str], http11: bool) -> None:
        """Find where the body ends; a message that leaves doubt about it is refused (request smuggling)."""
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None:
            if length is not None or not http11:
                raise HttpError(400, "Transfer-Encoding together with Content-Length, or in HTTP/1.0")
            if coding.strip().lower() != "chunked":
                raise HttpError(501, "the only Transfer-Encoding is chunked")
            self._chunks, self._missing = bytearray(), -1
        elif length is not None:
            # The same value repeated is one value; different ones are an attack or a bug.
            values = {value.strip().encode("latin-1") for value in length.split(",")}
            value = values.pop()
            if values or not _DIGITS.fullmatch(value):
                raise HttpError(400, "malformed Content-Length")
            self._missing = int(value)
            if self._missing > self.max_body_bytes:
                raise HttpError(413, f"the body is larger than {self.max_body_bytes} bytes")
        expect = headers.get("expect")
        if expect is not None:
            if expect.strip().lower() != "100-continue":
                raise HttpError(417, "the only expectation is 100-continue")
            self.wants_continue = http11 and bool(self._missing)

    def _read_chunks(self, body: bytearray) -> bool:
        """Move chunks from the buffer into the body; `_missing` is -1 before a size line, -2 in trailers."""
        buffer = self._buffer
        while True:
            if self._missing >= 0:
                if len(buffer) < self._missing + 2:
                    return False
                if buffer[self._missing : self._missing + 2] != b"\r\n":
                    raise HttpError(400, "malformed chunk")
                body += buffer[: self._missing]
                del buffer[: self._missing + 2]
                self._missing = -1
            end = buffer.find(b"\r\n", 0, MAX_CHUNK_LINE_BYTES)
            if end < 0:
                if len(buffer) >= MAX_CHUNK_LINE_BYTES:
                    raise HttpError(400, "a chunk's size line or trailer is too long")
                return False
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            if self._missing == -2:
                if not line:
                    return True
                continue
            size = line.partition(b";")[0].strip()
            if not _HEX.fullmatch(size):
                raise HttpError(400, "malformed chunk size")
            self._missing = int(size, 16) or -2
            if len(body) + self._missing > self.max_body_bytes:
                raise HttpError(413, f"the body is larger than {self.max_body_bytes} bytes")


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.removesuffix(b"\r").partition(b":")
        value = value.strip(b" \t")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HttpError(400, "malformed header")
        key, text = name.decode("ascii").lower(), value.decode("latin-1")
        if key in headers:
            if key == "host":
                raise HttpError(400, "more than one Host header")
            text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers


def _path(target: bytes) -> str:
    """Return the decoded path of a request target: origin form, absolute form, or `*`."""
    if target == b"*":
        return "*"
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise HttpError(400, "malformed request target")
        target = b"/" + rest.partition(b"/")[2]
    path = target.partition(b"?")[0].partition(b"#")[0]
    return unquote_to_bytes(path).decode("utf-8", "replace")
