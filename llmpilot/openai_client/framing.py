"""Where an HTTP/1.1 answer's head, body and end lie; pure functions of its bytes, of any server's making."""

import re
from collections.abc import Sequence

BLANK_LINE = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0" + BLANK_LINE
MAX_TRAILER = 4096
MAX_LENGTH_DIGITS = 18
"""Of a body's length: an exabyte. Python refuses to read thousands of digits."""

_LAST_CHUNK_AND_TRAILER = re.compile(rb"0+[ \t]*(?:;[^\r\n]*)?\r\n(?:[^\r\n:]+:[^\r\n]*\r\n)*\r\n\Z")

Segments = list[tuple[int, int]]
"""Where parts of the body lie: (offset in the body, offset in the stream), rising."""


def is_interim(status: bytes) -> bool:
    """Whether the answer itself comes behind this one: 100 Continue, 103 Early Hints."""
    return status.startswith(b"1") and status != b"101"


def split_head(raw: bytes) -> tuple[int, dict[bytes, bytes], int]:
    """Return status, header fields (names in lower case) and where the body starts; status 0 for no HTTP."""
    start = 0
    while True:
        end = raw.find(BLANK_LINE, start)
        lines = raw[start : max(end, start)].split(b"\r\n")
        words = lines[0].split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            return 0, {}, 0
        status = words[1]
        if len(status) != 3 or not status.isdigit():
            return 0, {}, 0
        start = end + len(BLANK_LINE)
        if not is_interim(status):
            break
    fields = (line.partition(b":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip().lower() for name, _, value in fields}
    return int(status), headers, start


def length_of(digits: bytes) -> int | None:
    """Return what a Content-Length says; None for nonsense."""
    return int(digits) if digits.isdigit() and len(digits) <= MAX_LENGTH_DIGITS else None


def encoding_of(headers: dict[bytes, bytes]) -> bytes:
    """Return how the body is encoded beyond chunks, which was not asked for: b"gzip"; b"" where it is not."""
    fields = b",".join(headers.get(name, b"") for name in (b"content-encoding", b"transfer-encoding"))
    codings = (coding.strip() for coding in fields.split(b","))
    return b", ".join(coding for coding in codings if coding not in (b"", b"identity", b"chunked"))


def body_of(raw: bytes, headers: dict[bytes, bytes], start: int) -> tuple[bytes, Segments, bool, bool]:
    """Return the body without its framing, where its parts lie in `raw`, whether it is whole, and sound.

    A body that the connection's end delimits counts as whole.
    """
    if b"transfer-encoding" in headers:
        return _dechunk(raw, start)
    stated = headers.get(b"content-length")
    if stated is None:
        return raw[start:], [(0, start)], True, True
    length = length_of(stated)
    if length is None:
        return b"", [(0, start)], False, False
    body = raw[start : start + length]
    return body, [(0, start)], len(body) == length, True


def _dechunk(raw: bytes, at: int) -> tuple[bytes, Segments, bool, bool]:
    parts: list[bytes] = []
    segments: Segments = []
    size_of_body = 0
    find = raw.find
    while True:
        line_end = find(b"\r\n", at)
        if line_end < 0:
            whole, sound = False, True
            break
        try:
            size = int(raw[at:line_end].partition(b";")[0], 16)
        except ValueError:
            whole = sound = False
            break
        if size <= 0:
            whole = sound = size == 0
            break
        at = line_end + 2
        segments.append((size_of_body, at))
        parts.append(raw[at : at + size])
        size_of_body += size
        at += size + 2
        if at > len(raw):
            whole, sound = False, True
            break
        if raw[at - 2 : at] != b"\r\n":
            whole = sound = False
            break
    return b"".join(parts), segments, whole, sound


def tail_of(pieces: Sequence[bytes], size: int) -> bytes:
    """Return the last pieces of a stream: at least this many bytes of it, or all."""
    tail: list[bytes] = []
    for piece in reversed(pieces):
        tail.append(piece)
        size -= len(piece)
        if size <= 0:
            break
    return b"".join(reversed(tail))


def chunks_end(pieces: Sequence[bytes]) -> bool:
    """Whether a chunked answer ends with the last of these pieces; fields may follow the last chunk."""
    end = pieces[-1]
    if len(end) < len(LAST_CHUNK):
        end = b"".join(pieces[-len(LAST_CHUNK) :])
    if end.endswith(LAST_CHUNK):
        return True
    if not end.endswith(BLANK_LINE):
        return False
    tail = tail_of(pieces, MAX_TRAILER)
    at = tail.rfind(b"\r\n0")
    return at >= 0 and _LAST_CHUNK_AND_TRAILER.match(tail, at + 2) is not None
