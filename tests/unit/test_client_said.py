"""What answers said, read in slices for the next turn: ids and text of every kind of stream."""

import gzip
import json
from typing import Any

import pytest

from llmpilot.openai_client.said import SLICE_EVENTS, Said, reading

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
TEXTS = [' "quoted"', "\n", " naïve 🙂", " \\", ' "token_ids": [7]', " end"]


def heard(*pieces: bytes, ids_suffice: bool = False) -> tuple[Said, int]:
    slices, steps = 1, reading(pieces, ids_suffice)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, slices
        slices += 1


def event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def completion(count: int = len(TEXTS), *, ids: bool = True) -> bytes:
    events = b"".join(
        event({"choices": [{"text": TEXTS[k % len(TEXTS)], **({"token_ids": [100 + k]} if ids else {})}]})
        for k in range(count)
    )
    return events + event({"choices": [], "usage": {"completion_tokens": count}}) + b"data: [DONE]\n\n"


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("ids_suffice", [True, False])
@pytest.mark.parametrize("size", [1, 7, 50, 100_000])
def test_chunks_may_end_anywhere(size: int, ids_suffice: bool) -> None:
    raw = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(completion(), size)
    said, _ = heard(raw[:100], raw[100:], ids_suffice=ids_suffice)
    assert said.ids == [100 + k for k in range(len(TEXTS))]
    assert said.tokens == len(TEXTS)
    if not ids_suffice:
        assert said.text == "".join(TEXTS)


def test_without_ids_the_text_is_there_all_the_same() -> None:
    said, _ = heard(HEAD + b"\r\n" + completion(ids=False), ids_suffice=True)
    assert (said.ids, said.text, said.tokens) == ([], "".join(TEXTS), len(TEXTS))


def test_long_answers_are_read_in_slices() -> None:
    count = 40 * SLICE_EVENTS
    raw = HEAD + b"\r\n" + completion(count)
    assert heard(raw)[1] > 40
    assert len(heard(raw, ids_suffice=True)[0].ids) == count


def test_messages_without_what_was_thought() -> None:
    deltas = [{"role": "assistant", "content": None}, {"reasoning_content": "hm"}, {"content": "Yes"}]
    deltas += [{"content": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": ", so"}]}, {}]
    body = b"".join(event({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas)
    assert heard(HEAD + b"\r\n" + body + b"data: [DONE]\n\n")[0].text == "Yes, so"


def test_llamacpps_ids_stand_beside_the_choices() -> None:
    body = b"".join(
        event({"choices": [{"text": "a"}], "__verbose": {"tokens": [k], "content": "a"}}) for k in (5, 6)
    )
    last = {"choices": [{"text": ""}], "usage": {"completion_tokens": 2}, "__verbose": {"tokens": []}}
    assert heard(HEAD + b"\r\n" + body + event(last), ids_suffice=True)[0].ids == [5, 6]


def test_whole_and_compressed_answers() -> None:
    answer = {"choices": [{"message": {"content": "all\nof it"}}], "usage": {"completion_tokens": 3}}
    body = json.dumps(answer, indent=1).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n"
    assert heard(head % len(body) + b"\r\n" + body)[0] == Said([], "all\nof it", 3)
    packed = gzip.compress(completion())
    raw = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    assert heard(raw, ids_suffice=True)[0].ids == [100 + k for k in range(len(TEXTS))]


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 200 OK\r\n\r\n", HEAD + b"\r\ndata: {\n\ndata: 5\n\n", b"\xff" * 9]
)
def test_garbage_says_nothing(raw: bytes) -> None:
    assert heard(raw)[0] == Said()


def test_halves_of_characters_are_not_repeated() -> None:
    body = b'data: {"choices": [{"text": "a\\ud83d"}]}\n\n'
    assert heard(HEAD + b"\r\n" + body)[0].text == "a?"


def test_ids_are_the_same_wherever_a_chunk_ends() -> None:
    ids = [1234, 56, 78901]
    events = event({"choices": [{"text": "a", "token_ids": ids}]})
    body = events + event({"choices": [], "usage": {"completion_tokens": len(ids)}})
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for cut in range(1, len(body)):  # within the ids, too: the size of the next chunk looks like one
        two = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]))
        said, _ = heard(head + two + b"0\r\n\r\n", ids_suffice=True)
        assert said.ids == ids
