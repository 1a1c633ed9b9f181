"""What an answer said, read after the fact: status, chunked body, server-sent events, tokens and their times.

Pure functions of the bytes, where the pieces ended that they arrived in, and when each piece arrived. How
the stream was cut into pieces decides times only, never what was said.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmpilot.engine.openai import StreamError, Tokens, error_kind

HEAD_END = b"\r\n\r\n"
MESSAGE_LENGTH = 500


@dataclass
class Answer:
    """One request's answer: how it failed ("" for a success) and when the first sequence's tokens came [ns].

    `last_ns` is when the last token of any sequence came; `chunks` counts the pieces of the stream that
    carried tokens of the first sequence, `merged` those of them that carried more than one.
    """

    failure: str = ""
    message: str = ""
    token_ns: list[int] = field(default_factory=list)
    last_ns: int = -1
    chunks: int = 0
    merged: int = 0
    method: str = ""
    input_tokens: int | None = None
    ended_early: bool = False
    response_id: str = ""


def read_answer(
    raw: bytes,
    ends: Sequence[int],
    times_ns: Sequence[int],
    *,
    output_tokens: int,
    sequences: int,
    broken: str = "",
    may_end_early: bool = False,
) -> Answer:
    """Return what an answer said.

    `ends[i]` is the length of the stream up to and with piece i, which arrived at `times_ns[i]`. `broken`
    is how the connection failed, if it did; a fault that the server itself states goes before it.
    `may_end_early`: the server could not be told to ignore an end of text.
    """
    answer = Answer(failure=broken)
    status, headers, start = split_head(raw)
    if not status:
        answer.failure = broken or "bad_http"
        return answer
    body, segments, whole, sound = body_of(raw, headers, start)
    if status != 200:
        answer.message = _text(body)
        answer.failure = error_kind(answer.message, f"http_{status}")
        return answer
    content_type = headers.get(b"content-type", b"text/event-stream")
    if b"event-stream" not in content_type:
        answer.message = _text(content_type + b": " + body)
        answer.failure = error_kind(answer.message, "wrong_content_type")
        return answer
    tokens = Tokens(sequences)
    arrivals = _Arrivals(segments, ends, times_ns)
    stated = _read_events(body, arrivals, tokens, answer, cut=bool(broken) or not whole)
    answer.method, answer.input_tokens = tokens.method, tokens.input_tokens
    answer.response_id = tokens.response_id
    if stated:
        answer.failure = stated
    elif not answer.failure:
        if not (whole and sound):
            answer.failure = "bad_http"
        else:
            _check_lengths(answer, tokens, output_tokens, may_end_early)
    return answer


def split_head(raw: bytes) -> tuple[int, dict[bytes, bytes], int]:
    """Return status, header fields (names in lower case) and where the body starts; status 0 for no HTTP."""
    end = raw.find(HEAD_END)
    lines = raw[: max(end, 0)].split(b"\r\n")
    words = lines[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return 0, {}, 0
    fields = (line.partition(b":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip().lower() for name, _, value in fields}
    return int(words[1]), headers, end + len(HEAD_END)


Segments = list[tuple[int, int]]
"""Where parts of the body lie: (offset in the body, offset in the stream), rising."""


def body_of(raw: bytes, headers: dict[bytes, bytes], start: int) -> tuple[bytes, Segments, bool, bool]:
    """Return the body without its framing, where its parts lie in `raw`, whether it is whole, and sound.

    A body that the connection's end delimits counts as whole.
    """
    if b"transfer-encoding" in headers:
        return _dechunk(raw, start)
    length = headers.get(b"content-length")
    if length is None:
        return raw[start:], [(0, start)], True, True
    if not length.isdigit():
        return b"", [(0, start)], False, False
    body = raw[start : start + int(length)]
    return body, [(0, start)], len(body) == int(length), True


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


class _Arrivals:
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


def events(body: bytes, cut: bool = False) -> Iterator[tuple[bytes, int]]:
    """Yield (data, offset of its last byte) for every line of data of a stream of server-sent events.

    A line that is no field of this format is yielded as it stands behind a b"?". With `cut`, a last line
    without an end is dropped: its rest never came.
    """
    at, end = 0, len(body)
    while at < end:
        newline = body.find(b"\n", at)
        if newline < 0:
            if cut:
                return
            newline = end
        line = body[at:newline].rstrip(b"\r")
        last = min(newline, end - 1)
        at = newline + 1
        if line.startswith(b"data:"):
            yield line[5:].strip(), last
        elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
            yield b"?" + line, last


def _read_events(body: bytes, arrivals: _Arrivals, tokens: Tokens, answer: Answer, cut: bool) -> str:
    """Read all events into `tokens` and `answer`; return the fault that the stream states, or ""."""
    token_ns, loads, feed = answer.token_ns, json.loads, tokens.feed
    arrivals_of: list[int] = []
    carried: list[int] = []
    fault = ""
    counted = 0
    pending = b""
    for data, last in events(body, cut):
        if data == b"[DONE]":
            break
        if data.startswith(b"?"):
            # llama.cpp before 2025 states errors as a field of their own.
            is_error = data.startswith(b"?error:")
            answer.message = _text(data[1:])
            fault = error_kind(answer.message, "error_in_stream") if is_error else "bad_sse"
            break
        try:
            payload = loads(pending + data)
        except ValueError:
            # Data may go on over several lines; what never becomes JSON is garbage.
            pending += data + b"\n"
            continue
        pending = b""
        try:
            new = feed(payload)
        except StreamError as error:
            answer.message = _text(str(error).encode())
            fault = error_kind(answer.message, "error_in_stream")
            break
        except (ValueError, TypeError, AttributeError) as error:
            answer.message = _text(f"{error}: ".encode() + data)
            fault = "bad_sse"
            break
        total = sum(tokens.counts) if len(tokens.counts) > 1 else tokens.counts[0]
        if total > counted:
            counted = total
            answer.last_ns = arrivals.at(last)
            if new:
                arrivals_of.append(answer.last_ns)
                carried.append(new)
    if pending and not fault and not cut:
        answer.message = _text(pending)
        fault = "bad_sse"
    if not fault and not cut:
        _spread_uncounted(tokens, carried)
    for arrived_ns, count in zip(arrivals_of, carried, strict=True):
        token_ns.extend([arrived_ns] * count)
    answer.chunks = len(carried)
    answer.merged = sum(count > 1 for count in carried)
    return fault


def _spread_uncounted(tokens: Tokens, carried: list[int]) -> None:
    """Where only the answer's total is known, and chunks were fewer: spread the rest evenly over them."""
    if tokens.method != "chunks" or not carried or len(tokens.counts) != 1 or not tokens.total:
        return
    missing = tokens.total - tokens.counts[0]
    if missing <= 0:
        return
    tokens.method = "total"
    tokens.counts[0] = tokens.total
    each, extra = divmod(missing, len(carried))
    for i in range(len(carried)):
        carried[i] += each + (i * extra // len(carried) != (i + 1) * extra // len(carried))


def _check_lengths(answer: Answer, tokens: Tokens, output_tokens: int, may_end_early: bool) -> None:
    fewest, most = min(tokens.counts), max(tokens.counts)
    if most > output_tokens:
        answer.failure = "too_many_tokens"
    elif fewest < output_tokens:
        if may_end_early and fewest > 0 and tokens.finish == "stop":
            answer.ended_early = True
        else:
            answer.failure = "too_few_tokens"
    if answer.failure:
        answer.message = f"asked for {output_tokens} tokens, got {fewest}" + (
            f" to {most}" if most > fewest else ""
        )


def _text(data: bytes) -> str:
    return data[:MESSAGE_LENGTH].decode("utf-8", "replace")
