"""One exchange as the probe of a service has it: the load test's connection, bounded, closed behind it."""

import gzip
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import needs_openssl, of_internal_ca, self_signed
from odd_service import HEAD, MODELS, SOUND, Way, again_and_again, service, whole

from llmpilot.errors import ConfigError
from llmpilot.openai_client import connecting
from llmpilot.openai_client.access import Access, resolve
from llmpilot.openai_client.exchange import Exchange, NoAnswerError, ask_now, wire_of
from llmpilot.openai_client.reading import read_answer

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def no_certificates_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def get(
    url: str, path: str = "/v1/models", *, limits: dict[str, Any] | None = None, **access: Any
) -> Exchange:
    reached = Access(url, **access)
    return ask_now(resolve(reached), wire_of(reached, "GET", path, {}), **(limits or {}))


def post(url: str, **access: Any) -> Exchange:
    reached = Access(url, **access)
    return ask_now(resolve(reached), wire_of(reached, "POST", "/v1/completions", {}, b"{}"), timeout_s=5)


def test_an_answer_is_there_with_its_times_and_can_be_read_as_the_load_test_reads() -> None:
    stream = HEAD + b"Location: /Not/Lowered\r\nContent-Length: %d\r\n\r\n" % len(SOUND) + SOUND
    with service(lambda send: send(stream)) as url:
        answer = post(url)
    assert (answer.status, answer.headers["location"]) == (200, "/Not/Lowered")
    assert answer.text.encode() == SOUND
    assert answer.raw == stream
    assert answer.ends[-1] == len(stream)
    read = read_answer(answer.raw, answer.ends, answer.flight.times, output_tokens=1, sequences=1)
    assert read.failure == ""
    assert read.token_ns[0] > answer.flight.sent_ns > 0


def test_an_early_hint_is_no_answer_and_what_is_compressed_is_unpacked() -> None:
    packed = gzip.compress(b'{"data": []}')
    hinted = b"HTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\n"
    way = whole(packed, "200 OK", "Content-Encoding: gzip", "X-B: 2")
    with service(lambda send: (send(hinted), way(send)), "GET") as url:
        answer = get(url)
    assert answer.text == '{"data": []}'
    assert "x-a" not in answer.headers
    assert answer.headers["x-b"] == "2"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_is_not_waited_for(status: str) -> None:
    head = f"HTTP/1.1 {status}\r\nX-A: b\r\n\r\n".encode()
    with service(lambda send: send(head), "GET") as url:
        answer = get(url, limits={"timeout_s": 5})
    assert (str(answer.status), answer.text) == (status[:3], "")


@pytest.mark.parametrize("cut", [1000, 30, 1])
def test_lines_may_end_without_a_carriage_return(cut: int) -> None:
    answers = b"HTTP/1.1 100 Go on\n\nHTTP/1.1 200 OK\nContent-Type: text/event-stream\nContent-Length: "
    answers += b"%d\n\n%b" % (len(SOUND), SOUND)

    def way(send: Callable[[bytes], Any]) -> None:
        for at in range(0, len(answers), cut):
            send(answers[at : at + cut])
            time.sleep(0.0001)

    with service(way) as url:
        answer = post(url)
    assert (answer.status, answer.text.encode()) == (200, SOUND)
    read = read_answer(answer.raw, answer.ends, answer.flight.times, output_tokens=1, sequences=1)
    assert read.failure == ""


@needs_openssl
def test_a_body_ends_with_its_connection_however_that_ends(tmp_path: Path) -> None:
    def way(send: Callable[[bytes], Any]) -> None:
        send(HEAD + b"\r\n" + SOUND)
        raise OSError  # the handler closes the connection, and says no farewell in TLS either

    with service(way) as url:
        assert post(url).text.encode() == SOUND
    with service(way, tls=self_signed(tmp_path)) as url:
        assert post(url, verify_tls=False).text.encode() == SOUND


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        (again_and_again(HEAD + b"\r\n", b"data: x\n\n" * 10_000, 0), "endless_answer"),
        (again_and_again(HEAD, b"X-A: b\r\n", 0.02), "request_timeout"),
        (again_and_again(HEAD + b"\r\n", b": ping\n\n", 0.02), "request_timeout"),
        (lambda send: send(b"SSH-2.0-OpenSSH\r\n"), "bad_http"),
        (lambda send: send(HEAD + b"Content-Length: 9\r\n\r\nabc") and 1 / 0, "request_timeout"),
    ],
    ids=["endless", "endless head", "drip", "no http", "half"],
)
def test_what_is_no_whole_answer_has_the_load_tests_name_for_it(way: Way, kind: str) -> None:
    limits = {"timeout_s": 0.25, "most_bytes": 200_000}
    began_s = time.monotonic()
    with service(way, "GET") as url, pytest.raises(NoAnswerError) as failed:
        get(url, limits=limits)
    assert failed.value.kind == kind
    assert failed.value.so_far is not None
    assert len(failed.value.so_far.raw) <= 200_000
    assert time.monotonic() - began_s < 10


def test_no_connection_has_its_own_name_too() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(NoAnswerError, match="refused") as failed:
            get(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert (failed.value.kind, failed.value.so_far) == ("connection_refused", None)
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        get("http://no-such-host.invalid")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """All sockets of clients that a test makes."""
    found: list[socket.socket] = []

    class Recorded(socket.socket):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            found.append(self)

    monkeypatch.setattr(connecting, "socket", SimpleNamespace(**(vars(socket) | {"socket": Recorded})))
    return found


@needs_openssl
@pytest.mark.parametrize("end", ["answer", "timeout", "Ctrl-C"])
@pytest.mark.parametrize("tls", [False, True])
def test_nothing_stays_open(opened: list[socket.socket], tmp_path: Path, end: str, tls: bool) -> None:
    way = whole(MODELS) if end == "answer" else again_and_again(HEAD, b"X-A: b\r\n", 0.02)
    interrupt = threading.Timer(0.15, signal.raise_signal, (signal.SIGINT,))
    with service(way, "GET", tls=self_signed(tmp_path) if tls else None) as url:
        if end == "Ctrl-C":
            interrupt.start()
        with suppress(NoAnswerError, KeyboardInterrupt):
            get(url, limits={"timeout_s": 0.1 if end == "timeout" else 10}, verify_tls=False)
    assert [sock.fileno() for sock in opened] == [-1]


def test_of_several_addresses_the_one_that_answers_is_used_and_remembered(
    opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "NEXT_AFTER_S", 0.02)
    with socket.socket() as full, socket.socket() as unused, service(whole(SOUND)) as url:
        unused.bind(("127.0.0.1", 0))
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # so many that the next one gets no answer
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        access = Access(url)
        target = resolve(access)
        own = target.addresses[0]
        others = [(socket.AF_INET, other.getsockname()) for other in (full, unused)]
        target.addresses[:0] = others
        wire = wire_of(access, "GET", "/v1/models", {})
        assert ask_now(target, wire).status == 200
        assert len(opened) == 3
        assert ask_now(target, wire).status == 200
        assert target.addresses == [own, *others]
        assert len(opened) == 4
        with pytest.raises(NoAnswerError) as failed:
            ask_now(replace(target, addresses=others), wire, connect_timeout_s=0.1)
        for one in waiting:
            one.close()
    assert failed.value.kind == "connect_timeout"
    assert {sock.fileno() for sock in opened} == {-1}


@needs_openssl
def test_an_internal_ca_is_trusted_by_every_way_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, ca = of_internal_ca(tmp_path)
    (hashed := tmp_path / "certs").mkdir()
    shutil.copy(ca, hashed)
    subprocess.run(["openssl", "rehash", hashed], check=True, capture_output=True)
    with service(whole(SOUND), tls=context) as url:
        with pytest.raises(NoAnswerError, match="local issuer") as untrusted:
            get(url)
        assert untrusted.value.kind == "tls_failed"
        assert get(url, ca_file=str(ca)).status == 200
        assert get(url, verify_tls=False).status == 200
        for variable in VARIABLES:
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(hashed if variable == "SSL_CERT_DIR" else ca))
                assert get(url).status == 200, variable


@needs_openssl
def test_trusting_a_ca_does_not_trust_others(tmp_path: Path) -> None:
    _, ca = of_internal_ca(tmp_path)
    with service(whole(SOUND), tls=self_signed(tmp_path)) as url, pytest.raises(NoAnswerError) as failed:
        get(url, ca_file=str(ca))
    assert failed.value.kind == "tls_failed"


@pytest.mark.parametrize("variable", [*VARIABLES, "deployment.ca_file"])
def test_a_ca_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("hello\n")
    for path in (tmp_path / "missing.pem", empty):
        settings = {}
        if variable.isupper():
            monkeypatch.setenv(variable, str(path))
        else:
            settings = {"ca_file": str(path)}
        with pytest.raises(ConfigError, match=variable.replace(".", r"\.")) as refused:
            resolve(Access("https://127.0.0.1:1", **settings))
        assert str(path) in str(refused.value)
        resolve(Access("http://127.0.0.1:1", **settings))
