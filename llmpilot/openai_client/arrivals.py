"""When each byte of an answer's body arrived, though it came in chunks, in pieces, and perhaps compressed."""

import zlib
from collections.abc import Sequence
from itertools import pairwise

from llmpilot.openai_client.framing import Segments

CODINGS = (b"gzip", b"x-gzip", b"deflate")
MOST_DECODED = 1 << 28
"""Bytes that a compressed answer may grow to."""


class Arrivals:
    """When bytes of the body arrived; must be asked with rising offsets."""

    __slots__ = ("_ends", "_piece", "_segment", "_segments", "_times_ns")

    def __init__(self, segments: Segments, ends: Sequence[int], times_ns: Sequence[int]) -> None:
        self._segments, self._ends, self._times_ns = segments, ends, times_ns
        self._segment = self._piece = 0

    def at(self, offset: int) -> int:
        """Return when the byte at `offset` of the body arrived [ns]."""
        segments, segment = self._segments, self._segment
        while segment + 1 < len(segments) and segments[segment + 1][0] <= offset:
            segment += 1
        self._segment = segment
        in_body, in_stream = segments[segment]
        position = offset - in_body + in_stream
        ends, piece = self._ends, self._piece
        while ends[piece] <= position:
            piece += 1
        self._piece = piece
        return self._times_ns[piece]


class UndecodableError(Exception):
    """The body is not what its content-encoding says."""


def decoded(
    body: bytes, coding: bytes, segments: Segments, ends: Sequence[int], times_ns: Sequence[int]
) -> tuple[bytes, Arrivals, bool]:
    """Return a compressed body's content, when its bytes could be read, and whether it came to its end.

    A byte of the content can be read when the piece of the stream has arrived with which the decoder yields
    it. `segments`, `ends` and `times_ns` are as in `Arrivals`.

    Raises:
        UndecodableError: it is not of this coding, or grows beyond all bounds.
    """
    decoder = _Decoder(coding)
    parts: list[bytes] = []
    content_ends: list[int] = []
    size = at = 0
    for stop in _in_body(segments, len(body), ends):
        part = decoder.feed(body[at:stop], MOST_DECODED - size) if stop > at else b""
        at = max(at, stop)
        size += len(part)
        parts.append(part)
        content_ends.append(size)
    return b"".join(parts), Arrivals([(0, 0)], content_ends, times_ns), decoder.ended


class _Decoder:
    def __init__(self, coding: bytes) -> None:
        self._deflate = coding == b"deflate"  # of which kind is not known yet
        self._gzip = not self._deflate
        self._members = 0
        self._decoder = self._new()
        self._unsure = b""  # what has come of a body of which nothing has been decoded

    def _new(self) -> "zlib._Decompress":
        return zlib.decompressobj(zlib.MAX_WBITS | (16 if self._gzip else 0))

    @property
    def ended(self) -> bool:
        return self._decoder.eof

    def feed(self, data: bytes, room: int) -> bytes:
        parts: list[bytes] = []
        while data:
            try:
                part = self._decoder.decompress(data, max(1, room))
            except zlib.error as error:
                if self._members:
                    break  # what some append to fill up
                if not self._deflate:
                    raise UndecodableError(str(error)) from None
                # Some servers send what is within the format that is meant.
                self._decoder, self._deflate = zlib.decompressobj(-zlib.MAX_WBITS), False
                data, self._unsure = self._unsure + data, b""
                continue
            if self._deflate and not part:
                self._unsure += data
            elif part:
                self._deflate = False
            parts.append(part)
            room -= len(part)
            if self._decoder.unconsumed_tail:
                raise UndecodableError(f"it is more than {MOST_DECODED} bytes long")
            data = self._decoder.unused_data
            if data and self._gzip:
                self._members += 1
                self._decoder = self._new()  # another member, which gzip may append
            elif data:
                break
        return b"".join(parts)


def _in_body(segments: Segments, size: int, ends: Sequence[int]) -> list[int]:
    """Return how much of the body had arrived with each piece of the stream."""
    sizes = [after - before for before, after in pairwise([*(start for start, _ in segments), size])]
    stops: list[int] = []
    k = 0
    for end in ends:
        while k + 1 < len(segments) and segments[k + 1][1] < end:
            k += 1
        if not segments:
            stops.append(0)
            continue
        in_body, in_stream = segments[k]
        stops.append(in_body + min(max(0, end - in_stream), sizes[k]))
    return stops
