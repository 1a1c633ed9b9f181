"""How a service is reached is found out by the first visit, and the load test then does the same."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from certificates import needs_openssl, of_internal_ca
from forward_proxy import forward_proxy
from http2_service import Asked as Http2Asked
from http2_service import http2_service
from odd_service import MODELS, SOUND, service, whole
from picky_service import Answer, Asked, picky, refused, stream, visited

from llmpilot.config import Load
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.external import ServiceError
from llmpilot.errors import ConfigError
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.workload import fit, from_lengths


def measured(endpoint: HttpEndpoint, output_tokens: int = 2) -> Records:
    """Return the records of a short level: what the probe has taken is measured without failures."""
    load = Load(arrival="closed", users=[1], warmup_s=0.01, duration_s=0.1, drain_s=5)
    workload = fit(lambda: [from_lengths([8], [output_tokens])])
    records = run_level(endpoint, Traffic(load, workload, 0), 1)
    assert len(records.failure) > 0
    assert set(records.failure) <= {"", "unfinished"}, records.notes["failure_messages"]
    return records


@needs_openssl
@pytest.mark.parametrize("by", ["ca_file", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_internal_ca_is_trusted_by_probe_and_load_alike(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, ca = of_internal_ca(tmp_path)
    settings = {"ca_file": str(ca)} if by == "ca_file" else {}
    with service(whole(SOUND), tls=context) as url:
        with pytest.raises(ServiceError, match="does not trust") as untrusted:
            visited(url)
        cure = untrusted.value.cure
        assert cure.index("deployment.ca_file") < cure.index("SSL_CERT_FILE") < cure.index("verify_tls=false")
        if by != "ca_file":
            monkeypatch.setenv(by, str(ca))
        found = visited(url, **settings)
        assert found.ca_file == settings.get("ca_file")
        if by == "ca_file":
            measured(found)
        with pytest.raises(ServiceError, match="localhost") as wrong_host:
            visited(url.replace("127.0.0.1", "localhost"), **settings)
        assert "correct the host" in wrong_host.value.cure
        assert "ca_file" not in wrong_host.value.cure


def test_a_file_of_certificates_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deployment\.ca_file names a file that does not exist"):
        visited("https://127.0.0.1:9", ca_file=str(tmp_path / "none.pem"))


def test_a_proxy_is_said_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    with picky(lambda _: None) as server, forward_proxy() as passed:
        proxy = passed.url.replace("http://", "http://me:hunter2@")
        found = visited(server.url, proxy=proxy)
        said = capsys.readouterr().err
        assert f"requests go through the proxy {passed.url}: its time is part of every latency" in said
        assert "hunter2" not in said + repr(found)
        assert any("/v1/completions" in line for line, _ in passed.asked)
        passed.asked.clear()
        visited(server.url, proxy="none")
        assert not passed.asked


def test_a_proxy_that_is_not_there_is_said_with_its_cure() -> None:
    with pytest.raises(ServiceError, match=r"proxy http://127\.0\.0\.1:9 cannot be reached") as stopped:
        visited("http://service.internal", proxy="http://127.0.0.1:9")
    assert "deployment.proxy=none" in stopped.value.cure


def http2_answers(asked: Http2Asked) -> None:
    path = asked.fields[":path"]
    if path == "/v1/models":
        asked.head()
        asked.data(MODELS, end=True)
    elif path == "/v1/completions":
        asked.head()
        for _ in range(json.loads(asked.body)["max_tokens"]):
            asked.data(SOUND.partition(b"\n\n")[0] + b"\n\n")
        asked.data(b"data: [DONE]\n\n", end=True)
    else:
        asked.head(fields=[(":status", "404")], end=True)


def test_http2_is_spoken_where_the_server_insists_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    with http2_service(http2_answers) as url:
        found = visited(url)
        assert found.http2
        assert "insists on HTTP/2" in capsys.readouterr().err
        measured(found)
        assert visited(url, http_version="2").http2
        with pytest.raises(ServiceError):
            visited(url, http_version="1.1")
    with picky(lambda _: None) as server:
        assert not visited(server.url).http2


@needs_openssl
def test_http2_is_spoken_over_tls_where_the_server_insists_on_it(tmp_path: Path) -> None:
    context, ca = of_internal_ca(tmp_path)
    with http2_service(http2_answers, tls=context) as url:
        assert visited(url, ca_file=str(ca)).http2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_a_post_says_the_line_to_type(status: int) -> None:
    def answers(there: str) -> Any:
        return lambda asked: (
            (status, b"", {"Location": there + asked.path}) if asked.method == "POST" else None
        )

    with picky(answers("https://llm.example.com")) as server:
        with pytest.raises(
            ServiceError, match=rf"answered /v1/completions with {status}: go to https://llm"
        ) as moved:
            visited(server.url)
        assert "deployment.url=https://llm.example.com," in moved.value.cure
        with pytest.raises(ServiceError) as moved:
            visited(f"{server.url}/v1/chat/completions", model="m")
        assert "deployment.url=https://llm.example.com/v1/chat/completions," in moved.value.cure
        with pytest.raises(ServiceError) as moved:
            visited(f"{server.url}/v3", model="m")
        assert "deployment.url=https://llm.example.com/v3," in moved.value.cure


def test_tls_that_is_wanted_is_said() -> None:
    page = b"<html><body>400 The plain HTTP request was sent to HTTPS port</body></html>"
    with picky(lambda _: (400, page)) as server, pytest.raises(ServiceError, match="wants TLS") as stopped:
        visited(server.url, model="m")
    assert f"deployment.url={server.url.replace('http', 'https')}" in stopped.value.cure


def as_whole(asked: Asked) -> Answer:
    """An answer that comes whole, however it was asked for."""
    if asked.method == "GET":
        return None
    choice = {"index": 0, "text": " a b", "finish_reason": "length"}
    return 200, {"id": "r", "choices": [choice], "usage": {"prompt_tokens": 8, "completion_tokens": 2}}


def compressed(asked: Asked) -> Answer:
    """A stream that a proxy compresses though nobody asked it to."""
    if asked.method == "GET":
        return None
    _, body, head = stream(asked.body)  # type: ignore[misc]
    return 200, gzip.compress(body), head | {"Content-Encoding": "gzip"}


def odd(*events: str) -> Any:
    """A sound stream with other events around it."""

    def answers(asked: Asked) -> Answer:
        if asked.method == "GET":
            return None
        _, body, head = stream(asked.body)  # type: ignore[misc]
        return 200, "".join(events).encode() + body, head

    return answers


@pytest.mark.parametrize("answers", [as_whole, compressed], ids=["whole", "gzip"])
def test_what_the_probe_takes_is_measured(answers: Any) -> None:
    with picky(answers) as server:
        measured(visited(server.url))


@pytest.mark.parametrize(
    "answers",
    [
        odd("event: ping\ndata: {}\n\n"),
        odd('event: ping\ndata: {"type": "ping"}\n\n'),
        odd("data:\n\n", ": comment\n\n"),
        odd('data: {"id": "r", "usage": {"prompt_tokens": 8, "completion_tokens": 0}}\n\n'),
        odd('data: {"choices": [], "prompt_filter_results": []}\n\n'),
        odd("\ufeff"),
    ],
    ids=["ping", "typed ping", "empty data", "usage first", "azure", "bom"],
)
def test_events_that_say_nothing_are_passed_over(answers: Any) -> None:
    with picky(answers) as server:
        assert visited(server.url).dialect == "vllm"


@pytest.mark.parametrize("length", [280, 290, 295, 299, 300, 310])
def test_a_key_that_crosses_the_cut_of_a_message_is_not_shown(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "k3y-Zq9/vW7+x5")
    for written in ("k3y-Zq9/vW7+x5", "k3y-Zq9\\/vW7\\u002bx5", "k3y-Zq9/\n vW7+x5"):
        body = f"{'x' * length} {written} is no key".encode()
        with (
            picky(lambda asked, body=body: (402, body) if asked.method == "POST" else None) as server,
            pytest.raises(ServiceError) as stopped,
        ):
            visited(server.url, api_key_env="MINE")
        assert not any(part in str(stopped.value) for part in ("k3y", "Zq9", "vW7"))


def test_a_refusal_in_a_stream_leads_on_like_any_other() -> None:
    def answers(asked: Asked) -> Answer:
        if "ignore_eos" not in asked.fields:
            return None
        return (
            200,
            b'event: error\ndata: {"message": "something went wrong"}\n\n',
            {"Content-Type": "text/event-stream"},
        )

    with picky(answers) as server:
        assert visited(server.url).dialect == "standard"
    with picky(lambda asked: refused("x", 418) if "ignore_eos" in asked.fields else None) as server:
        assert visited(server.url).dialect == "standard"
