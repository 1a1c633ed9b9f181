"""What a person reads of a level whose requests failed: every kind, how often, and the server's own words."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from misbehaving import FIRST_LENGTH, WAYS, serving
from odd_service import HEAD, service, whole

from llmpilot import metrics
from llmpilot.config import Load, Sla
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Traffic, run_level
from llmpilot.tasks import client_check
from llmpilot.workload import fit, from_lengths

TOKENS = 6
WORKLOAD = fit(lambda: [from_lengths([8], [TOKENS])])


def level_of(url: str, lengths: list[int]) -> metrics.Level:
    """Return a level of as many users as prompt lengths, each with its own one."""
    users = len(lengths)
    load = Load(arrival="closed", users=[users], warmup_s=0, duration_s=1, drain_s=5)
    rows = from_lengths(lengths * 5000, [TOKENS] * 5000 * users)
    settings = ClientSettings(token_timeout_s=0.5, request_timeout_s=5, backoff_s=0.05)
    place = HttpEndpoint(url, "m", OpenAIEngine(), "vllm", client=settings)
    records = run_level(place, Traffic(load, WORKLOAD, 1, rows), users)
    return metrics.summarize(records, Sla()) | {"client": client_check.notes_of(records)}


def test_every_kind_of_failure_is_named_the_most_frequent_first(capfd: pytest.CaptureFixture[str]) -> None:
    ways = ["good", "500", "reset mid-stream", "stall", "reset before a byte"]
    with serving() as url:
        level = level_of(url, [FIRST_LENGTH + list(WAYS).index(way) for way in ways])
    client_check.warn(level)
    said = [line.strip() for line in capfd.readouterr().err.splitlines()]
    kinds = {"http_500", "reset_mid_stream", "stall_timeout", "reset_before_response"}
    assert kinds <= level["failures"].keys()
    for kind, count in level["failures"].items():
        assert any(line.startswith(f"{count} x {kind}") for line in said), said
    assert any(line.startswith("0 x") for line in said) is False
    counts = [int(line.split()[0]) for line in said]
    assert counts == sorted(counts, reverse=True)
    assert any(line.endswith("x http_500: oops") for line in said), said


def test_a_server_that_is_gone_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as url:
        pass
    level = level_of(url, [8])
    client_check.warn(level)
    assert f"{level['requests_failed']} x connection_refused" in capfd.readouterr().err


def test_what_the_server_says_commands_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with service(whole(b"\x1b[2J\x1b]0;title\x07 no\r way", "500 Oops")) as url:
        level = level_of(url, [8])
    client_check.warn(level)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable()
    assert "no way" in line
    assert line.split("http_500: ")[1] == level["client"]["failure_messages"]["http_500"]


def test_thoughts_are_timed_apart_and_an_early_end_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    pause_s = 0.02

    def piece(**delta: str) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"

    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    end["usage"] = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 6}}

    def thinking(send: Callable[[bytes], Any]) -> None:
        send(HEAD + b"Connection: close\r\n\r\n")
        for part in (piece(reasoning_content=" a"), piece(reasoning_content=" b"), piece(content=" c")):
            time.sleep(pause_s)
            send(part)
        send(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")
        raise OSError  # the connection's end is the answer's

    with service(thinking) as url:
        level = level_of(url, [8])
    client_check.warn(level)
    assert level["requests_ok"] > 2, level["failures"]
    assert level["thought_aloud"] == level["requests_ok"]
    waited_ms = level["ttfa_ms"]["p50"] - level["ttft_ms"]["p50"]
    assert 2 * pause_s * 1e3 * 0.9 <= waited_ms <= level["e2e_ms"]["p50"]
    found = level["fidelity"]
    assert (found["output_tokens_asked"], found["output_tokens_received"]) == (TOKENS, 3)
    assert (found["input_tokens_asked"], found["input_tokens_counted"]) == (8, 9)
    assert level["cached_share"] == pytest.approx(6 / 9)
    assert level["stream_problem"] is None
    said = capfd.readouterr().err
    assert "another workload than configured: answers had 3.0 tokens on average where 6.0 were asked" in said
    assert "100% of them ended early" in said
