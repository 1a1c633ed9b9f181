"""What an answer said, for the next turn of its conversation: its token ids and its text, not its times.

Read while other answers come in, so in slices: who reads goes on with other things between them.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmpilot.openai_client.arrivals import CODINGS, UndecodableError, decoded
from llmpilot.openai_client.counting import completion_of
from llmpilot.openai_client.events import ERROR, MAX_LINES, events, json_of, with_plain_lines
from llmpilot.openai_client.framing import body_of, encoding_of, split_head

SLICE_EVENTS, SLICE_CHUNKS, SLICE_IDS = 8, 32, 128
"""What is read in one go: some 50 µs, as long as it takes to read a few pieces from sockets."""
_LAST_BYTES = 2048
_IDS = re.compile(rb'"token_ids"\s*:\s*\[([\d\s,]+)\]')
_COUNT = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')


@dataclass
class Said:
    """An answer's first sequence: the ids of its tokens where the server told them, its text (without
    thoughts that it marks as such), and how many tokens the server counted; -1: it did not say."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    tokens: int = -1


def reading(pieces: Sequence[bytes], ids_suffice: bool = False) -> Generator[None, None, Said]:
    """Read an answer that came in these pieces; yields between slices, returns what it said.

    What cannot be read is left out: whoever judges the answer does so elsewhere (`reading.read_answer`).
    With `ids_suffice` the text may stay away, where the ids of all tokens are there.
    """
    raw = b"".join(pieces)
    if ids_suffice:
        said = yield from _ids_alone(raw)
        if said is not None:
            return said
    said = Said()
    _, headers, start = split_head(raw)
    if b"transfer-encoding" in headers:
        body = yield from _dechunked(raw, start)
    else:
        body = body_of(raw, headers, start)[0]
    if coding := encoding_of(headers):
        try:
            if coding in CODINGS:
                body, _, _ = decoded(body, coding, [(0, 0)], [len(body)], [0])
        except UndecodableError:
            return said
    yield
    texts: list[str] = []
    if body.lstrip()[:1] == b"{" and (whole := _parsed(body.strip())) is not None:
        _take(whole, said, texts)
    else:
        pending, lines = b"", 0
        for number, (data, _, sort) in enumerate(events(with_plain_lines(body))):
            if data == b"[DONE]" or sort == ERROR:
                break
            payload = _parsed(pending + data if pending else data)
            if payload is None:  # data may go on over several lines
                pending, lines = pending + data + b"\n", lines + 1
                if lines == MAX_LINES:
                    break
            else:
                _take(payload, said, texts)
                pending, lines = b"", 0
            if number % SLICE_EVENTS == SLICE_EVENTS - 1:
                yield
    # Halves of characters, which JSON may hold, are refused by servers that are sent them.
    said.text = "".join(texts).encode("utf-8", "replace").decode()
    return said


def _ids_alone(raw: bytes) -> Generator[None, None, Said | None]:
    """Read the ids as they stand in the stream, a tenth of the work; None: they are not all there.

    Where a chunk ends within an event some are missed, which the server's own count says, or the size of the
    next chunk stands among them.
    """
    found: list[bytes] = []
    for match in _IDS.finditer(raw):
        found.append(match[1])
        if len(found) % SLICE_IDS == 0:
            yield
    yield
    counted = _COUNT.findall(raw, max(0, len(raw) - _LAST_BYTES))
    try:
        ids = [int(one) for one in b",".join(found).split(b",")] if found else []
    except ValueError:
        return None
    return Said(ids, tokens=len(ids)) if counted and int(counted[-1]) == len(ids) > 0 else None


def _dechunked(raw: bytes, at: int) -> Generator[None, None, bytes]:
    """Return a chunked body, as far as it goes."""
    parts: list[bytes] = []
    while (line_end := raw.find(b"\r\n", at)) >= 0:
        try:
            size = int(raw[at:line_end].partition(b";")[0], 16)
        except ValueError:
            break
        if size <= 0:
            break
        at = line_end + 2
        parts.append(raw[at : at + size])
        at += size + 2
        if len(parts) % SLICE_CHUNKS == 0:
            yield
    return b"".join(parts)


def _parsed(data: bytes) -> Any:
    """Return what JSON says, or None."""
    try:
        return json_of(data)
    except (ValueError, RecursionError):
        return None


def _take(payload: Any, said: Said, texts: list[str]) -> None:
    if type(payload) is not dict:
        return
    usage = payload.get("usage")
    if type(usage) is dict and (counted := completion_of(usage)) > 0:
        said.tokens = counted
    told = payload.get("__verbose")  # llama.cpp
    if type(told) is dict and type(ids := told.get("tokens")) is list:
        said.ids += (one for one in ids if type(one) is int and one >= 0)
    choices = payload.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is not dict:
            continue
        ids = choice.get("token_ids")
        if type(ids) is list:
            said.ids += (one for one in ids if type(one) is int and one >= 0)
        text = choice.get("text")
        if text is None:
            message = choice.get("delta") or choice.get("message")
            text = message.get("content") if type(message) is dict else None
        if type(text) is str:
            texts.append(text)
        elif type(text) is list:  # parts, thoughts among them
            texts += (part["text"] for part in text if _is_text(part))


def _is_text(part: Any) -> bool:
    return (
        type(part) is dict and part.get("type") in ("text", "output_text") and type(part.get("text")) is str
    )
