"""A service behind a proxy: the load test and the single exchange go through it, or say why they cannot."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from certificates import needs_openssl, of_internal_ca
from forward_proxy import forward_proxy
from misbehaving import FIRST_LENGTH, serving
from odd_service import SOUND, service, whole

from llmpilot.config import Load
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.errors import ConfigError
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.openai_client.access import Access, resolve
from llmpilot.openai_client.exchange import Exchange, NoAnswerError, ask_now, wire_of
from llmpilot.openai_client.proxies import proxy_for, read_proxy
from llmpilot.workload import fit, from_lengths

TOKENS = 6
REFUSED = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
BAD_GATEWAY = b"HTTP/1.1 502 No Such Host\r\nContent-Length: 0\r\n\r\n"


def get(url: str, **access: Any) -> Exchange:
    reached = Access(url, **access)
    return ask_now(resolve(reached), wire_of(reached, "GET", "/v1/models", {}), timeout_s=5)


def level(url: str, **access: Any) -> Records:
    """Return the records of two users, each of whose requests is answered by TOKENS tokens."""
    load = Load(arrival="closed", users=[2], warmup_s=0, duration_s=0.2, drain_s=5)
    traffic = Traffic(load, fit(lambda: [from_lengths([FIRST_LENGTH], [TOKENS])]), 1)
    settings = ClientSettings(backoff_s=0.05)
    return run_level(HttpEndpoint(url, "m", OpenAIEngine(), "vllm", client=settings, **access), traffic, 2)


def test_single_requests_are_passed_on_by_the_proxy() -> None:
    with service(whole(SOUND)) as url, forward_proxy() as passed:
        with_password = passed.url.replace("//", "//me:p%40ss@")
        answer = get(url, proxy=with_password)
        assert "me:p" not in repr(Access(url, proxy=with_password)) + repr(
            resolve(Access(url, proxy=with_password))
        )
    assert (answer.status, answer.text) == (200, '{"data": [{"id": "m"}]}')
    [(line, fields)] = passed.asked
    assert line == f"GET {url}/v1/models HTTP/1.1"
    assert fields["host"] == url.partition("//")[2]
    assert fields["proxy-authorization"] == f"Basic {b64encode(b'me:p@ss').decode()}"


@needs_openssl
@pytest.mark.parametrize("proxy_tls", [False, True], ids=["http proxy", "https proxy"])
def test_tls_goes_through_a_tunnel_end_to_end(tmp_path: Path, proxy_tls: bool) -> None:
    context, ca = of_internal_ca(tmp_path)
    with (
        service(whole(SOUND), tls=context) as url,
        forward_proxy(tls=context if proxy_tls else None) as passed,
    ):
        # The proxy looks the name up, which nobody else knows; the certificate has that very name.
        port = url.rpartition(":")[2]
        answer = get(
            f"https://service.internal:{port}", ca_file=str(ca), proxy=passed.url.replace("//", "//a:b@")
        )
    assert answer.status == 200
    [(line, fields)] = passed.asked
    assert line == f"CONNECT service.internal:{port} HTTP/1.1"
    assert fields["proxy-authorization"] == f"Basic {b64encode(b'a:b').decode()}"


@needs_openssl
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_load_test_goes_through_the_proxy(tmp_path: Path, tls: bool) -> None:
    context, ca = of_internal_ca(tmp_path) if tls else (None, None)
    with serving(context) as url, forward_proxy() as passed:
        records = level(url, ca_file=ca and str(ca), proxy=passed.url)
    assert set(records.failure) <= {"", "unfinished"}
    assert (records.failure == "").sum() > 2
    methods = {line.split()[0] for line, _ in passed.asked}
    assert methods == ({"CONNECT"} if tls else {"POST"})
    # Connections are kept in a tunnel; the proxy itself closes behind each single request.
    assert len(passed.asked) == 2 if tls else len(passed.asked) >= (records.failure == "").sum()


@pytest.mark.parametrize(
    ("refusal", "kind", "said"),
    [
        (REFUSED, "proxy_refused", "wants a user and a password, or other ones"),
        (BAD_GATEWAY, "proxy_refused", "answered 502 No Such Host"),
        (b"SSH-2.0\r\n", "proxy_refused", "no HTTP"),
        (b"HTTP/1.1 100 Go on\r\n\r\n" + BAD_GATEWAY, "proxy_refused", "answered 502"),
        (b"HTTP/1.1 2", "proxy_refused", "closed the connection"),
    ],
    ids=["407", "502", "no http", "interim", "half"],
)
def test_a_proxy_that_refuses_is_named(refusal: bytes, kind: str, said: str) -> None:
    with forward_proxy(refusal) as passed, pytest.raises(NoAnswerError, match=said) as failed:
        get("https://service.internal", proxy=passed.url.replace("//", "//me:secret@"))
    assert failed.value.kind == kind
    assert passed.url in str(failed.value)
    assert "secret" not in str(failed.value)


def test_a_password_that_is_wanted_for_a_single_request_is_the_proxys() -> None:
    with forward_proxy(REFUSED) as passed, pytest.raises(NoAnswerError, match="wants a user") as failed:
        get("http://service.internal", proxy=passed.url)
    assert failed.value.kind == "proxy_refused"


def test_a_proxy_that_is_not_there_is_named() -> None:
    with pytest.raises(NoAnswerError, match=r"proxy http://127\.0\.0\.1:9 cannot be reached") as failed:
        get("https://service.internal", proxy="http://127.0.0.1:9")
    assert failed.value.kind == "proxy_unreachable"


def test_the_load_test_counts_what_its_proxy_refuses() -> None:
    with forward_proxy(REFUSED) as passed:
        records = level("https://service.internal", proxy=passed.url)
    assert set(records.failure) - {"unfinished"} == {"proxy_refused"}
    assert f"the proxy {passed.url} wants a user" in records.notes["failure_messages"]["proxy_refused"]


HTTP, HTTPS = "http://llm.corp.example:8000", "https://llm.corp.example"
P, Q = "http://p:1", "http://q:2"


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        (HTTP, {}, None),
        (HTTP, {"http_proxy": P}, P),
        (HTTP, {"HTTP_PROXY": P}, None),  # as curl: a CGI program has it from whoever asks
        (HTTP, {"https_proxy": P}, None),
        (HTTPS, {"http_proxy": P}, None),
        (HTTPS, {"https_proxy": P, "HTTPS_PROXY": Q}, P),
        (HTTPS, {"HTTPS_PROXY": Q}, Q),
        (HTTP, {"ALL_PROXY": Q}, Q),
        (HTTP, {"all_proxy": Q, "http_proxy": P}, P),
        (HTTP, {"http_proxy": "", "all_proxy": Q}, Q),
        (HTTP, {"all_proxy": P, "no_proxy": "*"}, None),
        (HTTP, {"all_proxy": P, "NO_PROXY": "other, corp.example"}, None),
        (HTTP, {"all_proxy": P, "no_proxy": ".corp.example"}, None),
        (HTTP, {"all_proxy": P, "no_proxy": "LLM.corp.example:8000"}, None),
        (HTTP, {"all_proxy": P, "no_proxy": "llm.corp.example:8001"}, P),
        (HTTP, {"all_proxy": P, "no_proxy": "rp.example"}, P),
        ("http://10.1.2.3:8000", {"all_proxy": P, "no_proxy": "10.0.0.0/8"}, None),
        ("http://10.1.2.3:8000", {"all_proxy": P, "no_proxy": "10.1.2.3"}, None),
        ("http://10.1.2.3:8000", {"all_proxy": P, "no_proxy": "10.1.3.0/24 2.3"}, P),
        ("http://[fd00::7]:8000", {"all_proxy": P, "no_proxy": "fd00::/8"}, None),
        ("http://127.0.0.1:8000", {"all_proxy": P}, None),
        ("http://[::1]:8000", {"all_proxy": P}, None),
        ("http://localhost:8000", {"all_proxy": P}, None),
        ("https://x.localhost", {"all_proxy": P}, None),
    ],
)
def test_the_environment_says_which_proxy_as_it_does_to_curl(
    url: str, environment: dict[str, str], expected: str | None
) -> None:
    assert proxy_for(url, "auto", environment) == expected
    assert proxy_for(url, "none", environment) is None
    assert proxy_for(url, "http://r:3", environment) == "http://r:3"


def test_a_proxy_needs_no_scheme_and_has_curls_port() -> None:
    assert read_proxy("proxy.corp").shown == "http://proxy.corp:1080"
    assert read_proxy("https://[fd00::1]").shown == "https://[fd00::1]:443"
    assert read_proxy("proxy.corp:3128").shown == "http://proxy.corp:3128"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("socks5h://me:secret@p:1", "SOCKS"),
        ("ftp://me:secret@p", "no URL of an HTTP proxy"),
        ("http://me:secret@p:99999", "no URL of an HTTP proxy"),
        ("http://me:secret@", "no URL of an HTTP proxy"),
        ("me:secret@a b", "no URL of an HTTP proxy"),
    ],
)
def test_what_is_no_http_proxy_is_refused_without_its_password(given: str, said: str) -> None:
    for setting, environment, named in (
        (given, {}, "deployment.proxy"),
        ("auto", {"ALL_PROXY": given}, "ALL_PROXY"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            proxy_for(HTTP, setting, environment)
        assert named in str(refused.value)
        assert "secret" not in str(refused.value)
