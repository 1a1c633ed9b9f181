"""What an answer said, for the next turn of its conversation: its token ids and its text, not its times.

Read while other answers come in, so in slices: who reads goes on with other things between them.
"""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmpilot.openai_client.arrivals import CODINGS, UndecodableError, decoded
from llmpilot.openai_client.counting import completion_of
from llmpilot.openai_client.events import ERROR, MAX_LINES, events, with_plain_lines
from llmpilot.openai_client.framing import body_of, encoding_of, split_head

SLICE_EVENTS = 16
"""Events that are read in one go: some 50 µs, as long as it takes to read a few pieces from sockets."""

_raw_decode = json.JSONDecoder(strict=False).raw_decode


@dataclass
class Said:
    """An answer's first sequence: the ids of its tokens where the server told them, its text (without
    thoughts that it marks as such), and how many tokens the server counted; -1: it did not say."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    tokens: int = -1


def reading(pieces: Sequence[bytes]) -> Generator[None, None, Said]:
    """Read an answer that came in these pieces; yields between slices, returns what it said.

    What cannot be read is left out: whoever judges the answer does so elsewhere (`reading.read_answer`).
    """
    said = Said()
    raw = b"".join(pieces)
    _, headers, start = split_head(raw)
    body, segments, _, _ = body_of(raw, headers, start)
    if coding := encoding_of(headers):
        try:
            if coding in CODINGS:
                body, _, _ = decoded(body, coding, segments, [len(raw)], [0])
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


def _parsed(data: bytes) -> Any:
    """Return what JSON says, or None."""
    text = data.decode("utf-8", "replace")
    try:
        payload, end = _raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return payload if end == len(text) else None


def _take(payload: Any, said: Said, texts: list[str]) -> None:
    if type(payload) is not dict:
        return
    usage = payload.get("usage")
    if type(usage) is dict and (counted := completion_of(usage)) > 0:
        said.tokens = counted
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
            texts += (part["text"] for part in text if type(part) is dict and type(part.get("text")) is str)
