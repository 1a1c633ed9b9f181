"""What an answer said, read after the fact: status, chunked body, server-sent events, tokens and their times.

Pure functions of the bytes, where the pieces ended that they arrived in, and when each piece arrived. How
the stream was cut into pieces decides times only, never what was said.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmpilot.openai_client.counting import StreamError, Tokens, error_kind
from llmpilot.openai_client.framing import Segments, body_of, encoding_of, split_head

MESSAGE_LENGTH = 500
ID_LENGTH = 200
MAX_LINES = 1000
"""Over which the data of one event may go on: far more than any server writes."""


@dataclass
class Reading:
    """One request's answer: how it failed ("" for a success) and when the first sequence's tokens came [ns].

    Tokens beyond what was asked for have no times. `last_ns` is when the last token of any sequence came;
    `chunks` counts the pieces of the stream that carried tokens of the first sequence, `merged` those of
    them that carried more than one. `first_answer_ns` is when the first token of the answer itself came,
    behind what the model thought aloud; -1 where it did not think. `hidden_tokens` are tokens of the first
    sequence that the server counted and never showed: thoughts that it keeps to itself. `cached_tokens` are
    those of the prompt that it says it had in its cache; None where it does not say. `thinking_tokens` are
    those of `token_ns` that were thoughts. An answer may end early or be longer than asked: it is one all
    the same, of its own length.
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
    first_answer_ns: int = -1
    hidden_tokens: int = 0
    cached_tokens: int | None = None
    longer_than_asked: bool = False
    thinking_tokens: int = 0


def read_answer(
    raw: bytes,
    ends: Sequence[int],
    times_ns: Sequence[int],
    *,
    output_tokens: int,
    sequences: int,
    broken: str = "",
    may_end_early: bool = False,
) -> Reading:
    """Return what an answer said.

    `ends[i]` is the length of the stream up to and with piece i, which arrived at `times_ns[i]`. `broken`
    is how the connection failed, if it did; a fault that the server itself states goes before it.
    `may_end_early`: the server could not be told to ignore an end of text.
    """
    answer = Reading(failure=broken)
    status, headers, start = split_head(raw)
    if not status:
        answer.failure = broken or "bad_http"
        return answer
    body, segments, whole, sound = body_of(raw, headers, start)
    if status != 200:
        answer.message = _text(body)
        answer.failure = error_kind(answer.message, f"http_{status}")
        return answer
    if encoding := encoding_of(headers):
        answer.failure = "encoded_answer"
        answer.message = _text(b"the body comes as " + encoding + b", which was not asked for")
        return answer
    content_type = headers.get(b"content-type", b"text/event-stream")
    if b"event-stream" not in content_type:
        answer.message = _text(content_type + b": " + body)
        answer.failure = error_kind(answer.message, "wrong_content_type")
        return answer
    tokens = Tokens(sequences)
    arrivals = _Arrivals(segments, ends, times_ns)
    cut = bool(broken) or not whole
    stated = _read_events(body, arrivals, tokens, answer, output_tokens=output_tokens, cut=cut)
    answer.method, answer.input_tokens = tokens.method, tokens.input_tokens
    answer.response_id = _clean(tokens.response_id, ID_LENGTH)
    if stated:
        answer.failure = stated
    elif not answer.failure:
        if not (whole and sound):
            answer.failure = "bad_http"
        else:
            _check_lengths(answer, tokens, output_tokens, may_end_early)
    return answer


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


def _read_events(
    body: bytes, arrivals: _Arrivals, tokens: Tokens, answer: Reading, *, output_tokens: int, cut: bool
) -> str:
    """Read all events into `tokens` and `answer`; return the fault that the stream states, or ""."""
    token_ns, loads, feed = answer.token_ns, json.loads, tokens.feed
    arrivals_of: list[int] = []
    carried: list[int] = []
    fault = ""
    counted = lines = 0
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
            # Data may go on over several lines, to an empty one; what is no JSON then is garbage.
            pending += data + b"\n"
            lines += 1
            if lines == MAX_LINES or body.startswith((b"\n", b"\r\n"), last + 1):
                break
            continue
        except RecursionError as error:
            fault = _misread(answer, error, data)
            break
        pending, lines = b"", 0
        try:
            new = feed(payload)
        except StreamError as error:
            answer.message = _clean(str(error), MESSAGE_LENGTH)
            fault = error_kind(answer.message, "error_in_stream")
            break
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            fault = _misread(answer, error, data)
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
    answer.chunks = len(carried)
    answer.merged = sum(count > 1 for count in carried)
    if sum(carried) > output_tokens:
        carried = list(_first(carried, output_tokens))
    for arrived_ns, count in zip(arrivals_of, carried, strict=True):
        token_ns.extend([arrived_ns] * count)
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


def _first(counts: list[int], total: int) -> Iterator[int]:
    """Yield the counts, cut where their sum would exceed this total."""
    for count in counts:
        yield min(count, total)
        total -= min(count, total)


def _check_lengths(answer: Reading, tokens: Tokens, output_tokens: int, may_end_early: bool) -> None:
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


def _misread(answer: Reading, error: Exception, data: bytes) -> str:
    answer.message = _text(_clean(str(error), MESSAGE_LENGTH).encode() + b": " + data)
    return "bad_sse"


def _text(data: bytes) -> str:
    return data[:MESSAGE_LENGTH].decode("utf-8", "replace")


def _clean(text: str, length: int) -> str:
    """Return text that can be written down: JSON may hold halves of characters, and a name of any length."""
    return text[:length].encode("utf-8", "replace").decode()
