"""Users slow down behind answers that failed, and not behind sound ones of any kind."""

import gzip
import json
from typing import Any

import pytest

from llmpilot.loadtest import first_look
from llmpilot.openai_client.flight import Flight

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 8, "completion_tokens": 2}


def event(**fields: Any) -> bytes:
    choice = {"index": 0, "text": " a", "finish_reason": fields.pop("finish", None)}
    return b"data: " + json.dumps({"choices": [choice], **fields}).encode() + b"\n\n"


def looks_good(*pieces: bytes, status: bytes = b"200") -> bool:
    flight = Flight(0, b"", 2, 1)
    flight.pieces, flight.status, flight.head_pieces = list(pieces), status, 1
    return first_look.looks_good(flight)


WHOLE = {
    "choices": [{"index": 0, "message": {"content": " a" * 9000}, "finish_reason": None}],
    "usage": USAGE,
}


@pytest.mark.parametrize(
    "pieces",
    [
        (SSE, event(), event(), DONE),
        (SSE, event(), event(finish="nobody knows")),
        (SSE, event(), event(finish={"type": "length"})),
        (SSE, event(), event(), b'data: {"usage": {"prompt_tokens": 8}}\n\n'),
        (SSE, event(), event(), b'data: {"choices": [], "usage": {"prompt_tokens": 8}}\n\n'),
        (SSE, event(), event()),  # all that was asked for, and no end
        (SSE, event(usage=USAGE), event(usage=USAGE), DONE),
        (JSON, json.dumps(WHOLE).encode()),
        (SSE[:-2] + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(event() * 2 + DONE)),
        (SSE[:-2] + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(event() * 2 + DONE),),
    ],
)
def test_sound_answers(pieces: tuple[bytes, ...]) -> None:
    assert looks_good(*pieces)
    assert not looks_good(*pieces, status=b"503")


@pytest.mark.parametrize(
    "pieces",
    [
        (SSE, DONE),
        (SSE, event(), b'data: {"error": {"message": "slot died"}}\n\n'),
        (SSE, event(usage=USAGE), event(usage=USAGE)[:12]),
        (SSE, b"<html>"),
        (JSON, b'{"error": {"message": "busy"}}'),
        (JSON, b'{"choices": []}'),
    ],
)
def test_answers_that_failed(pieces: tuple[bytes, ...]) -> None:
    assert not looks_good(*pieces)
