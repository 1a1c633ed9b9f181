"""The first requests to a service end, and say what is wrong and how to mend it, whatever answers them."""

from pathlib import Path
from typing import Any

import pytest
from certificates import needs_openssl, self_signed
from conftest import Run
from odd_service import HEAD, SOUND, Way, again_and_again, service, whole

from llmpilot.config import build
from llmpilot.deploy.endpoint import ClientSettings
from llmpilot.deploy.external import ExternalDeployment, ServiceError
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.errors import ConfigError

SERVICE = ("+gpu=a100", "+model=starcoder", "engine=openai", "deployment=external")

ENDLESS = again_and_again(HEAD + b"\r\n", SOUND.partition(b"\n\n")[0] * 1000, 0)
ENDLESS_HEAD = again_and_again(HEAD, b"X-A: b\r\n", 0.05)
DRIP = again_and_again(HEAD + b"\r\n", b": ping\n\n", 0.05)


def look_at(url: str, timeout_s: float = 60, **settings: Any) -> None:
    client = ClientSettings(request_timeout_s=timeout_s, connect_timeout_s=1)
    with ExternalDeployment(url=url, client=client, **settings).start(OpenAIEngine(), None, None, None):
        pass


@pytest.mark.parametrize("at", ["POST /v1/completions", "GET /v1/models"])
@pytest.mark.parametrize(
    ("way", "timeout_s", "said"),
    [
        (ENDLESS, 60, "without end: with more than 8 MB"),
        (ENDLESS_HEAD, 1.5, "timed out, without a whole answer in 1.5 s"),
        (DRIP, 1.5, "timed out, without a whole answer in 1.5 s"),
    ],
    ids=["endless", "endless head", "drip"],
)
def test_an_answer_without_end_is_not_waited_for(at: str, way: Way, timeout_s: float, said: str) -> None:
    with service(way, at) as url, pytest.raises(ServiceError, match=said) as stopped:
        look_at(url, timeout_s)
    assert at in str(stopped.value)


@pytest.mark.parametrize("way", [ENDLESS, ENDLESS_HEAD], ids=["endless", "endless head"])
def test_metrics_without_end_are_none(way: Way) -> None:
    with service(way, "GET /metrics") as url:
        look_at(url)


def test_what_is_nested_too_deeply_is_no_answer() -> None:
    deep = b"[" * 200_000
    with service(whole(b"data: " + deep + b"\n\n")) as url, pytest.raises(ServiceError, match="too deeply"):
        look_at(url)
    with (
        service(whole(deep), "GET /v1/models") as url,
        pytest.raises(ServiceError, match="not an OpenAI-compatible server"),
    ):
        look_at(url)


def test_a_stream_of_half_events_is_not_pieced_together_for_ever() -> None:
    halves = again_and_again(HEAD + b"\r\n", b"data: {\n\n" * 10_000, 0)
    half = whole(b"data: {\n\n" * 800_000)
    for way, said in ((halves, "without end"), (half, "an event that cannot be read")):
        with service(way) as url, pytest.raises(ServiceError, match=said):
            look_at(url)


def test_what_a_server_says_commands_no_terminal() -> None:
    refusal = whole(b"\x1b[2J\x1b]0;title\x07 no\x00 \xe2\x80\xaeway", "500 Oops")
    with service(refusal) as url, pytest.raises(ServiceError, match="no way") as refused:
        look_at(url)
    assert all(character.isprintable() or character == "\n" for character in str(refused.value))


@pytest.mark.parametrize("at", ["POST /v1/completions", "GET /v1/models"])
def test_a_redirect_says_where_to(at: str) -> None:
    path = at.split()[1]
    moved = whole(b"", "307 Temporary Redirect", f"Location: https://elsewhere:8443/x{path}")
    login = whole(b"", "302 Found", "Location: /login?next=1")
    with service(moved, at) as url, pytest.raises(ServiceError, match="307") as redirected:
        look_at(url)
    assert "deployment.url=https://elsewhere:8443/x," in redirected.value.cure
    with service(login, at) as url, pytest.raises(ServiceError, match="go to /login") as redirected:
        look_at(url)
    assert "login page" in redirected.value.cure


def test_a_limit_of_requests_is_no_other_service() -> None:
    limited = whole(b'{"error": "slow down"}', "429 Too Many Requests", "Retry-After: 7")
    with service(limited) as url, pytest.raises(ServiceError, match=r"wait for 7 s.*slow down") as refused:
        look_at(url)
    assert "another service" not in refused.value.cure
    assert "later" in refused.value.cure


@needs_openssl
def test_tls_that_does_not_come_about_is_mended_by_its_cure(tmp_path: Path) -> None:
    with service(whole(SOUND), tls=self_signed(tmp_path)) as url:
        with pytest.raises(ServiceError, match="self-signed") as untrusted:
            look_at(url)
        cure = untrusted.value.cure
        assert (
            cure.index("deployment.ca_file")
            < cure.index("SSL_CERT_FILE")
            < cure.index("deployment.verify_tls")
        )
        look_at(url, verify_tls=False)
        with pytest.raises(ServiceError) as plain:
            look_at(url.replace("https", "http"))
        assert f"deployment.url={url}" in plain.value.cure
    with service(whole(SOUND)) as url:
        with pytest.raises(ServiceError) as tls:
            look_at(url.replace("http", "https"))
        assert f"deployment.url={url}" in tls.value.cure


@pytest.mark.parametrize("key", ["s3cret\nret-key", "s\xe9cret-key", "s3cret\x1b[2J-key"])
def test_what_is_no_key_is_not_shown(run: Run, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with service(whole(SOUND)) as url:
        ran = run(*SERVICE, f"deployment.url={url}", "deployment.api_key_env=MY_KEY")
    assert ran.code == 2
    assert "$MY_KEY" in ran.err
    assert "cret" not in ran.err + ran.out
    assert "ret-key" not in ran.err + ran.out
    assert "Traceback" not in ran.err


def test_a_key_ends_where_its_line_does_and_is_hidden_when_the_server_repeats_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINE", " s3cret-key\n")
    refusal = whole(b'{"error": "no quota left for s3cret-key"}', "402 Payment Required")
    with service(refusal) as url, pytest.raises(ServiceError, match="no quota left") as refused:
        look_at(url, api_key_env="MINE")
    assert "s3cret" not in str(refused.value)
    with service(whole(SOUND)) as url:
        deployment = ExternalDeployment(url=url, api_key_env="MINE")
        with deployment.start(OpenAIEngine(), None, None, None) as found:
            assert found.headers == {"Authorization": "Bearer s3cret-key"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:abc", "deployment.url=http://127.0.0.1:abc is no URL: .*abc"),
        ("http://127.0.0.1:99999", "0-65535"),
        ("http://127.0.0.1:0", "port 0"),
        ("http://[::1", "deployment.url"),
        ("http://127.0.0.1:8000/a b", "a space.*%20"),
        ("http://127.0.0.1:8000/a\x1bb", "control character"),
        ("http://127.0.0.1:8000/x#part", "goes on with .* fragment.*with #"),
        ("http://127.0.0.1:8000/\xfc", "ASCII"),
    ],
)
def test_a_url_that_no_request_could_go_to_is_one_message(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build({"_target_": "llmpilot.deploy.external.ExternalDeployment", "url": url}, "deployment")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["http://me:hunter2 x@h:80", "me:hunter2@h:80", "http://h/?key=hunter2", "http://me:hunter2@h:a"]
)
def test_what_is_secret_in_a_url_is_not_shown(run: Run, url: str) -> None:
    ran = run(*SERVICE, f"deployment.url='{url}'")
    assert ran.code == 2
    assert "deployment.url" in ran.err
    assert "hunter2" not in ran.err + ran.out
