"""Streams as servers and proxies are reported to write them, on a socket, beside the server's send log."""

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scripted_service import Log, Step, playing

from llmpilot import metrics
from llmpilot.config import Load, Sla
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.workload import fit, from_lengths

PAUSE_S = 0.012
FIRST_LENGTH = 8
N = 8
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = SSE + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
WORKLOAD = fit(lambda: [from_lengths([8], [N])])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def said(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def piece(usage: Any = None, finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return said({"id": "r1", "choices": [choice], "usage": usage})


def usage(tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": 8, "completion_tokens": tokens, **more}


def total(tokens: int, **more: Any) -> bytes:
    return said({"id": "r1", "choices": [], "usage": usage(tokens, **more)})


def stream(
    pieces: list[bytes], end: bytes = b"", first_s: float = PAUSE_S, between: bytes = b""
) -> list[Step]:
    """Every piece shows output, `between` stands in front of each, and `end` behind the last."""
    steps = [Step(CHUNKED)]
    for i, one in enumerate(pieces):
        steps.append(Step(chunk(between + one), PAUSE_S if i else first_s, shows=True))
    return [*steps, Step((chunk(end) if end else b"") + END)]


def contents(n: int = N, **more: Any) -> list[bytes]:
    return [piece(content=" word", **more) for _ in range(n)]


def reasoned(tokens: int) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": tokens}}


FINISH = piece(finish="length")


@dataclass(frozen=True)
class Case:
    """A script and what is known of its answer: `carried` tokens in each piece that shows output."""

    script: list[Step]
    carried: list[int]
    method: str
    asked: int = N
    answer_at: int = -1
    hidden: int = 0
    cached: int = -1


def compressed(pieces: list[bytes], end: bytes) -> list[Step]:
    """As `stream`, compressed, and flushed behind every piece."""
    coder = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    steps = [Step(CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))]
    for one in pieces:
        data = coder.compress(one) + coder.flush(zlib.Z_SYNC_FLUSH)
        steps.append(Step(chunk(data), PAUSE_S, shows=True))
    return [*steps, Step(chunk(coder.compress(end) + coder.flush()) + END)]


def not_streamed(encode: bool = False) -> list[Step]:
    message = {"role": "assistant", "content": " word" * N, "reasoning_content": None}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    body = json.dumps({"id": "", "choices": [choice], "usage": usage(N)}, indent=1).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    if encode:
        body, head = gzip.compress(body), head + b"Content-Encoding: gzip\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    return [Step(head + body[:40], PAUSE_S), Step(body[40:], PAUSE_S, shows=True)]


THOUGHTS = [piece(reasoning_details=[{"type": "reasoning.text", "text": " hm", "index": 0}])] * 3
PING = b'event: ping\ndata: 2026-01-01 12:00\n\nevent: ping\ndata: {"type": "ping"}\n\n'
ROLE = piece(role="assistant", content="")
ONE = [1] * N

CASES = {
    "a usage of zeros in every piece": Case(
        stream(contents(usage=usage(0)), FINISH + total(N) + DONE), ONE, "chunks_confirmed"
    ),
    "a usage of zeros in every piece, the total in the last": Case(
        stream(contents(N - 1, usage=usage(0)) + contents(1, usage=usage(N), finish="length"), DONE),
        ONE,
        "chunks_confirmed",
    ),
    "a usage of zeros in the first piece": Case(
        stream(contents(1, usage=usage(0)) + contents(N - 1), FINISH + total(N) + DONE),
        ONE,
        "chunks_confirmed",
    ),
    "a usage that runs, by two": Case(
        stream([piece(content=" a word", usage=usage(2 * k + 2)) for k in range(N // 2)], FINISH + total(N)),
        [2] * (N // 2),
        "usage",
    ),
    "a usage that is one piece late": Case(
        stream([piece(content=" word", usage=usage(k)) for k in range(N)], FINISH + total(N) + DONE),
        ONE,
        "usage",
    ),
    "thoughts in silence": Case(
        stream(contents(), FINISH + total(N + 24, **reasoned(24)) + DONE, first_s=0.1),
        ONE,
        "chunks_confirmed",
        asked=N + 24,
        hidden=24,
    ),
    "thoughts in silence that nobody states": Case(
        stream(contents(), FINISH + total(N + 24) + DONE, first_s=26 * PAUSE_S),
        ONE,
        "visible",
        asked=N + 24,
        hidden=24,
    ),
    "thoughts in reasoning_details only": Case(
        stream(THOUGHTS + contents(N - 3), FINISH + total(N, **reasoned(3)) + DONE),
        ONE,
        "chunks_confirmed",
        answer_at=3,
    ),
    "a stream held back to its end": Case(
        [
            Step(CHUNKED, 3 * PAUSE_S),
            Step(b"".join(chunk(one) for one in [ROLE, *contents(), total(N), DONE]) + END, shows=True),
        ],
        [N],
        "chunks_confirmed",
    ),
    "an early end": Case(
        stream(contents(5), piece(finish="stop") + total(5) + DONE), [1] * 5, "chunks_confirmed"
    ),
    "more than asked": Case(
        stream(contents(N + 3), FINISH + total(N + 3) + DONE), [1] * (N + 3), "chunks_confirmed"
    ),
    "another reason to finish": Case(
        stream(contents(5), piece(finish="eos_reached") + DONE), [1] * 5, "chunks"
    ),
    "no reason to finish": Case(stream(contents(), total(N)), ONE, "chunks_confirmed"),
    "more pieces than tokens": Case(
        stream(contents(2 * N), FINISH + total(N) + DONE),
        [int(k in {j * (2 * N - 1) // (N - 1) for j in range(N)}) for k in range(2 * N)],
        "total",
    ),
    "more pieces than tokens, and no usage": Case(
        stream(contents(2 * N), FINISH + DONE),
        [int(k in {j * (2 * N - 1) // (N - 1) for j in range(N)}) for k in range(2 * N)],
        "capped",
    ),
    "fewer pieces than tokens, no usage, and an end for length": Case(
        stream([piece(content=" alpha beta gamma")] * (N // 2), FINISH + DONE), [2] * (N // 2), "total"
    ),
    "a long text in one piece, and no usage": Case(
        stream([piece(content=" four" * N)], piece(finish="stop") + DONE), [N], "text"
    ),
    "empty events": Case(
        stream(contents(), FINISH + DONE, between=b"data:\n\ndata: \n\n:\n\n"), ONE, "chunks"
    ),
    "pings with data": Case(stream(contents(), FINISH + DONE, between=PING), ONE, "chunks"),
    "a usage event without choices": Case(
        stream(
            contents(),
            FINISH + said({"usage": usage(N, prompt_tokens_details={"cached_tokens": 5})}) + DONE,
            between=said({"choices": [], "prompt_filter_results": []}),
        ),
        ONE,
        "chunks_confirmed",
        cached=5,
    ),
    "lines that end in CR": Case(
        stream([one.replace(b"\n", b"\r") for one in contents()], FINISH + total(N) + DONE),
        ONE,
        "chunks_confirmed",
    ),
    "gzip": Case(
        compressed(
            [ROLE + one if not i else one for i, one in enumerate(contents())], FINISH + total(N) + DONE
        ),
        ONE,
        "chunks_confirmed",
    ),
    "not streamed": Case(not_streamed(), [N], "not_streamed"),
    "not streamed, gzip": Case(not_streamed(encode=True), [N], "not_streamed"),
}


def level(url: str, names: list[str], duration_s: float) -> Records:
    """Return the records of a level of one user for each case."""
    users = len(names)
    lengths = [FIRST_LENGTH + list(CASES).index(name) for name in names]
    rows = from_lengths(lengths * 500, [CASES[name].asked for name in names] * 500)
    load = Load(arrival="closed", users=[users], warmup_s=0, duration_s=duration_s, drain_s=10)
    place = HttpEndpoint(url, "m", OpenAIEngine(), "vllm", client=ClientSettings(backoff_s=0.05))
    return run_level(place, Traffic(load, WORKLOAD, 1, rows), users)


@pytest.fixture(scope="module")
def measured() -> tuple[Records, Log]:
    scripts = {FIRST_LENGTH + i: case.script for i, case in enumerate(CASES.values())}
    with playing(scripts) as (url, log):
        return level(url, list(CASES), 1.2), log


def answers(measured: tuple[Records, Log], name: str) -> list[tuple[int, list[int], list[int]]]:
    """Return (record, token times, send times) of a case's successes, in us of the level."""
    records, log = measured
    start_ns = records.notes["start_ns"]
    own = records.requests.input_tokens == FIRST_LENGTH + list(CASES).index(name)
    own &= records.failure != "unfinished"
    assert own.any()
    assert set(records.failure[own]) == {""}
    found = []
    sent_ns = log.sent_ns[FIRST_LENGTH + list(CASES).index(name)]  # of one user, one after the other
    for i, truth_ns in zip(np.flatnonzero(own), sent_ns, strict=False):
        gaps = records.gap_us[records.gap_offsets[i] : records.gap_offsets[i + 1]]
        token_us = np.cumsum([records.first_token_us[i], *gaps]).tolist()
        found.append((int(i), token_us, [(ns - start_ns) // 1000 for ns in truth_ns]))
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_token_has_the_time_of_the_piece_that_showed_it(
    measured: tuple[Records, Log], name: str
) -> None:
    case = CASES[name]
    late_us = []
    for _, token_us, sent_us in answers(measured, name):
        truth = [at for at, count in zip(sent_us, case.carried, strict=True) for _ in range(count)]
        assert len(token_us) == len(truth)
        late_us += [got - at for got, at in zip(token_us, truth, strict=True)]
    assert min(late_us) >= -1
    assert np.median(late_us) < PAUSE_S * 1e6 / 2  # none is another piece's


@pytest.mark.parametrize("name", CASES)
def test_thoughts_and_caches_are_as_stated(measured: tuple[Records, Log], name: str) -> None:
    records, case = measured[0], CASES[name]
    assert records.first_answer_us is not None
    assert records.hidden_tokens is not None
    assert records.cached_tokens is not None
    for i, token_us, _ in answers(measured, name):
        assert len(token_us) == sum(case.carried)
        assert records.hidden_tokens[i] == case.hidden
        assert records.cached_tokens[i] == case.cached
        assert records.first_answer_us[i] == (-1 if case.answer_at < 0 else token_us[case.answer_at])


def test_notes_say_what_the_streams_were_like(measured: tuple[Records, Log]) -> None:
    records, _ = measured
    notes = records.notes
    assert notes["answers"] == (records.failure == "").sum()
    assert set(notes["tokens_counted_by"]) == {case.method for case in CASES.values()}
    count = {name: len(answers(measured, name)) for name in CASES}
    assert notes["in_one_piece"] >= sum(n for name, n in count.items() if len(CASES[name].carried) == 1)
    assert notes["ended_early"] == count["an early end"] + count["another reason to finish"]
    assert notes["longer_than_asked"] == count["more than asked"]
    assert notes["hidden_tokens"] == sum(CASES[name].hidden * n for name, n in count.items())
    assert 0 < notes["thinking_share"] < 0.5


def test_a_level_of_usages_of_zero_has_the_latencies_of_its_pieces() -> None:
    name = "a usage of zeros in every piece, the total in the last"
    with playing({FIRST_LENGTH + list(CASES).index(name): CASES[name].script}) as (url, _):
        figures = metrics.summarize(level(url, [name], 0.5), Sla())
    assert figures["requests_failed"] == 0
    pause_ms = PAUSE_S * 1e3
    for latency in ("ttft_ms", "itl_ms"):
        assert pause_ms <= figures[latency]["p50"] < 3 * pause_ms  # and not 0, nor the whole answer's 8
    assert figures["tpot_ms"]["p50"] >= pause_ms


def test_secrets_are_hidden_before_a_message_is_cut() -> None:
    key = "sk-" + "0123456789abcdef" * 4
    for before in (460, 490):  # where messages are cut
        words = "x" * before + f" bad key {key}"
        body = json.dumps({"error": {"message": words}}).encode()
        refused = [Step(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), PAUSE_S)]
        with playing({FIRST_LENGTH: refused}) as (url, _):
            load = Load(arrival="closed", users=[1], warmup_s=0, duration_s=0.1, drain_s=1)
            rows = from_lengths([FIRST_LENGTH] * 500, [N] * 500)
            endpoint = HttpEndpoint(
                url, "m", OpenAIEngine(), "vllm", headers={"Authorization": f"Bearer {key}"}
            )
            records = run_level(endpoint, Traffic(load, WORKLOAD, 1, rows), 1)
        message = records.notes["failure_messages"]["http_401"]
        assert "bad key" in message or before == 490
        assert "sk-0" not in message
