"""The emulator over its sockets: the API's answers, the truth it records, and faults asked for."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from llmpilot.emulator import Emulator, Faults, FixedTiming, Options, example_service, in_process, in_thread

FAST = FixedTiming(ttft_ms=5, itl_ms=1)
COMPLETION = {"model": "starcoder", "prompt": [300, 301, 302], "max_tokens": 6, "ignore_eos": True}
CHAT = {"model": "starcoder", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with in_thread(options=Options(fixed=FAST)) as running:
        yield running


def faulty(**faults: Any) -> Options:
    return Options(fixed=FAST, faults=Faults(**faults))


def events_of(url: str, path: str, body: dict[str, Any]) -> tuple[httpx.Response, list[Any]]:
    with httpx.stream("POST", url + path, json=body | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return response, [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def gauge(emulator: Emulator, name: str) -> float:
    text = httpx.get(f"{emulator.url}/metrics").text
    return float(re.search(rf"^{name}{{.*}} (.+)$", text, re.M)[1])


def raw(emulator: Emulator, data: bytes) -> bytes:
    host, port = emulator.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(data)
        received = b""
        while part := sock.recv(65536):
            received += part
    return received


def test_a_streamed_completion_is_one_chunk_a_token(emulator: Emulator) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    extras = options | {"return_token_ids": True}
    response, events = events_of(emulator.url, "/v1/completions", COMPLETION | extras)
    *tokens, last = events
    assert [event["usage"]["completion_tokens"] for event in tokens] == [1, 2, 3, 4, 5, 6]
    assert all(len(event["choices"][0]["token_ids"]) == 1 for event in tokens)
    assert tokens[0]["choices"][0]["prompt_token_ids"] == [300, 301, 302]
    assert [event["choices"][0]["finish_reason"] for event in tokens] == [None] * 5 + ["length"]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert {event["id"] for event in events} == {response.headers["x-request-id"]}


def test_a_streamed_chat_says_its_role_once(emulator: Emulator) -> None:
    _, events = events_of(emulator.url, "/v1/chat/completions", CHAT | {"min_tokens": 6, "n": 2})
    deltas = [[e["choices"][0]["delta"] for e in events if e["choices"][0]["index"] == k] for k in (0, 1)]
    for choice in deltas:
        assert [delta.get("role") for delta in choice] == ["assistant"] + [None] * 5
        assert all(len(delta["content"]) == 4 for delta in choice)


@pytest.mark.parametrize("stream", [False, True])
def test_both_ways_of_answering_say_the_same(emulator: Emulator, stream: bool) -> None:
    body = COMPLETION | {"prompt": ["one", "the second"], "n": 2}
    if stream:
        _, events = events_of(emulator.url, "/v1/completions", body)
        texts = [
            "".join(e["choices"][0]["text"] for e in events if e["choices"][0]["index"] == k)
            for k in range(4)
        ]
    else:
        answer = httpx.post(f"{emulator.url}/v1/completions", json=body).json()
        texts = [choice["text"] for choice in answer["choices"]]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 24, "total_tokens": 28}
    assert [len(text) for text in texts] == [24] * 4


def test_output_lengths_are_drawn_in_turn_and_bounded() -> None:
    with in_thread(options=Options(fixed=FixedTiming(ttft_ms=0, itl_ms=0))) as emulator:
        answers = [
            httpx.post(f"{emulator.url}/v1/chat/completions", json=CHAT | {"max_tokens": 40})
            for _ in range(4)
        ]
    ends = [
        (a.json()["usage"]["completion_tokens"], a.json()["choices"][0]["finish_reason"]) for a in answers
    ]
    assert ends == [(16, "stop"), (40, "length"), (32, "stop"), (40, "length")]


def test_the_truth_has_exact_due_times_and_joins_by_id(emulator: Emulator) -> None:
    response, _ = events_of(emulator.url, "/v1/completions", COMPLETION)
    name = response.headers["x-request-id"]
    wait_until(lambda: name in emulator.truth()["request_id"].to_pylist())
    row = next(row for row in emulator.truth().to_pylist() if row["request_id"] == name)
    assert row["outcome"] == "ok"
    assert row["due_ns"][0] - row["arrived_ns"] == 5_000_000
    assert set(np.diff(row["due_ns"])) == {1_000_000}
    assert len(row["sent_ns"]) == 6
    assert (np.array(row["sent_ns"]) >= row["due_ns"]).all()


def test_a_client_that_leaves_frees_its_place() -> None:
    slow = Options(speed=0.1)
    with in_thread(options=slow) as emulator:
        body = COMPLETION | {"max_tokens": 5000, "n": 3, "stream": True}
        with httpx.stream("POST", f"{emulator.url}/v1/completions", json=body) as response:
            parts = response.iter_raw()
            next(parts)
            assert gauge(emulator, "vllm:num_requests_running") == 3
            assert gauge(emulator, "vllm:kv_cache_usage_perc") > 0
        wait_until(lambda: gauge(emulator, "vllm:num_requests_running") == 0)
        assert gauge(emulator, "vllm:kv_cache_usage_perc") == 0
        assert emulator.truth()["outcome"].to_pylist() == ["disconnected"]


def test_a_client_that_does_not_read_hinders_nobody() -> None:
    with in_thread(options=Options(fixed=FixedTiming(ttft_ms=1, itl_ms=0.2))) as emulator:
        _neglect(emulator)


def _neglect(emulator: Emulator) -> None:
    host, port = emulator.url.removeprefix("http://").split(":")
    content = json.dumps(COMPLETION | {"max_tokens": 3000, "n": 8, "stream": True}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        )
        assert httpx.post(f"{emulator.url}/v1/completions", json=COMPLETION).status_code == 200
        # All tokens are made while it sleeps; then they come, none missing.
        wait_until(lambda: gauge(emulator, "vllm:generation_tokens_total") >= 24_000)
        received = bytearray()
        while b"0\r\n\r\n" not in received[-5:]:
            received += sock.recv(1 << 20)
    assert received.count(b"data: {") == 24_000


def test_models_health_version_and_metrics(emulator: Emulator) -> None:
    models = httpx.get(f"{emulator.url}/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["bigcode/starcoder"]
    assert httpx.get(f"{emulator.url}/v1/models/bigcode/starcoder").json() == models["data"][0]
    assert httpx.get(f"{emulator.url}/health").status_code == 200
    assert "version" in httpx.get(f"{emulator.url}/version").json()
    assert httpx.head(f"{emulator.url}/v1/models").content == b""
    before = gauge(emulator, "vllm:generation_tokens_total")
    httpx.post(f"{emulator.url}/v1/completions", json=COMPLETION)
    assert gauge(emulator, "vllm:generation_tokens_total") == before + 6
    text = httpx.get(f"{emulator.url}/metrics").text
    sample = re.compile(r'[a-zA-Z0-9_:]+\{(\w+="[^"]*",?)+\} [0-9.e+-]+')
    assert [line for line in text.splitlines() if not (line.startswith("# ") or sample.fullmatch(line))] == []
    for name in (
        "num_requests_waiting",
        "num_preemptions_total",
        "prompt_tokens_total",
        "request_success_total",
    ):
        assert f"vllm:{name}{{" in text
    assert (
        'vllm:time_to_first_token_seconds_bucket{engine="0",model_name="bigcode/starcoder",le="+Inf"}' in text
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/completions", None, 405),
        ("DELETE", "/health", None, 405),
        ("GET", "/v1/models/other", None, 404),
        ("POST", "/v1/completions", b"{", 400),
        ("POST", "/v1/completions", b'{"model": "starcoder"}', 400),
        ("POST", "/v1/completions", b'{"model": "other", "prompt": "x"}', 404),
        ("POST", "/v1/chat/completions", b'{"model": "starcoder", "messages": []}', 400),
    ],
)
def test_refusals_are_openai_errors(
    emulator: Emulator, method: str, path: str, body: bytes | None, status: int
) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.request(method, emulator.url + path, content=body, headers=headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in response.headers) == (status == 405)


def test_other_content_types_are_refused(emulator: Emulator) -> None:
    form = httpx.post(f"{emulator.url}/v1/completions", data={"model": "starcoder"})
    assert form.status_code == 415


def test_the_api_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATOR_KEY", "secret-1234")
    with in_thread(options=Options(fixed=FAST, api_key_env="EMULATOR_KEY")) as emulator:
        url = f"{emulator.url}/v1/completions"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-1234"}):
            response = httpx.post(url, json=COMPLETION, headers=headers)
            assert response.status_code == 401
            assert "secret-1234" not in response.text
        right = {"Authorization": "Bearer secret-1234"}
        assert httpx.post(url, json=COMPLETION, headers=right).status_code == 200
        assert httpx.get(f"{emulator.url}/health").status_code == 200


def test_a_share_of_requests_fails_as_asked() -> None:
    with in_thread(options=faulty(error_500_share=0.5, seed=1)) as emulator, httpx.Client() as client:
        url = f"{emulator.url}/v1/completions"
        statuses = [client.post(url, json=COMPLETION | {"max_tokens": 1}).status_code for _ in range(40)]
    assert set(statuses) == {200, 500}
    assert 8 <= statuses.count(500) <= 32


@pytest.mark.parametrize("stream", [True, False])
def test_a_reset_comes_in_the_middle(stream: bool) -> None:
    with in_thread(options=faulty(reset_share=1)) as emulator:
        received = b""
        body = COMPLETION | {"stream": stream}
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):  # noqa: PT012, SIM117
            with httpx.stream("POST", f"{emulator.url}/v1/completions", json=body) as response:
                for part in response.iter_raw():
                    received += part
        assert received.count(b"data: ") == (3 if stream else 0)
        assert emulator.truth()["outcome"].to_pylist() == ["reset"]


def test_a_stall_holds_tokens_back_and_loses_none() -> None:
    with in_thread(options=faulty(stall_share=1, stall_s=0.3)) as emulator:
        _, events = events_of(emulator.url, "/v1/completions", COMPLETION)
        wait_until(lambda: emulator.truth().num_rows == 1)
        (row,) = emulator.truth().to_pylist()
    assert len(events) == 6
    gaps = np.diff(row["sent_ns"])
    assert np.argmax(gaps) == 2
    assert gaps[2] > 10 * np.diff(row["due_ns"]).max()


def test_out_of_memory_above_a_weight() -> None:
    options = Options(speed=100, faults=Faults(out_of_memory_above_weight=50))
    with in_thread(options=options) as emulator:
        url = f"{emulator.url}/v1/completions"
        assert httpx.post(url, json=COMPLETION).status_code == 200
        response = httpx.post(url, json=COMPLETION | {"max_tokens": 60, "stream": True})
    assert response.status_code == 500
    assert "out of memory" in response.json()["error"]["message"]


def test_a_slow_start() -> None:
    with in_thread(options=faulty(start_delay_s=0.5)) as emulator:
        first = httpx.get(f"{emulator.url}/health")
        assert first.status_code == 503
        assert first.json()["error"]["code"] == "loading"
        wait_until(lambda: httpx.get(f"{emulator.url}/health").status_code == 200)
        assert httpx.post(f"{emulator.url}/v1/completions", json=COMPLETION).status_code == 200


def test_a_batch_out_of_memory_fails_inside_the_stream() -> None:
    from dataclasses import replace

    service = example_service()
    service = replace(service, service=replace(service.service, kv_capacity_tokens=20))
    with in_thread(service, Options(speed=100)) as emulator:
        body = COMPLETION | {"max_tokens": 100, "stream": True}
        response = httpx.post(f"{emulator.url}/v1/completions", json=body)
    assert response.status_code == 200
    lines = [line for line in response.text.splitlines() if line]
    assert "out of memory" in json.loads(lines[-2].removeprefix("data: "))["error"]["message"]
    assert lines[-1] == "data: [DONE]"


def test_a_process_of_its_own_leaves_its_truth() -> None:
    with in_process(options=Options(fixed=FAST)) as emulator:
        response, _ = events_of(emulator.url, "/v1/completions", COMPLETION)
        before = time.monotonic_ns()
    (row,) = emulator.truth().to_pylist()
    assert row["request_id"] == response.headers["x-request-id"]
    assert len(row["sent_ns"]) == 6
    assert row["sent_ns"][-1] < before


def test_speed_divides_all_times() -> None:
    with in_thread(options=Options(fixed=FixedTiming(ttft_ms=50, itl_ms=10), speed=10)) as emulator:
        events_of(emulator.url, "/v1/completions", COMPLETION)
        wait_until(lambda: emulator.truth().num_rows == 1)
        (row,) = emulator.truth().to_pylist()
    assert row["due_ns"][0] - row["arrived_ns"] == 5_000_000
    assert set(np.diff(row["due_ns"])) == {1_000_000}
