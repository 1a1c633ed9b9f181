"""Server-sent events as the WHATWG standard has them, read liberally: servers and proxies write all kinds."""

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_LINES = 1000
"""Over which the data of one event may go on: far more than any server writes."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONE_RETURN = re.compile(rb"\r(?!\n)")

DATA, ERROR, OTHER = b"", b"error", b"other"

_raw_decode = json.JSONDecoder(strict=False).raw_decode


def with_plain_lines(body: bytes) -> bytes:
    """Return the stream with all lines ending in LF or CRLF, of the same length: CR alone ends lines too."""
    if b"\r" in body and _LONE_RETURN.search(body):
        return _LONE_RETURN.sub(b"\n", body)
    return body


def events(body: bytes, cut: bool = False) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (data, offset of its last byte, sort) for every line of data.

    `sort` is ERROR for what the stream states as an error, OTHER for the data of an event that has another
    name than `message`, else DATA. A line that is an object by itself is data too, though the standard wants
    a field; other lines without one are ignored, as it says. With `cut`, a last line without an end is
    dropped: its rest never came.
    """
    at, end = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0, len(body)
    find, sort = body.find, DATA
    while at < end:
        newline = find(b"\n", at)
        if newline < 0:
            if cut:
                return
            newline = end
        line = body[at:newline]
        last = newline if newline < end else end - 1
        at = newline + 1
        if line.startswith(b"data:"):
            if data := line[5:].strip():
                yield data, last, sort
        elif not line or line == b"\r":
            sort = DATA
        elif line.startswith(b"event:"):
            name = line[6:].strip()
            sort = ERROR if name == b"error" else DATA if name in (b"", b"message") else OTHER
        elif line.startswith(b"error:"):  # as llama.cpp stated errors until 2025
            yield line[6:].strip(), last, ERROR
        elif line.startswith(b"{"):
            yield line.strip(), last, sort


def ends_at(body: bytes, last: int) -> bool:
    """Whether an event ends behind the line that ends at `last`."""
    return body.startswith((b"\n", b"\r\n"), last + 1)


def json_of(data: bytes) -> Any:
    """Return what the JSON says.

    Raises:
        ValueError: it is none, or not all of it.
        RecursionError: it is nested too deeply.
    """
    text = data.decode("utf-8", "replace")
    payload, end = _raw_decode(text)
    if end != len(text):
        raise ValueError("more than one JSON")
    return payload
