"""Secrets are found by name and hidden wherever they stand."""

import pytest

from llmpilot.deploy.served_text import MOST_CHARACTERS, shown
from llmpilot.secrets import (
    hide_argument,
    is_secret_name,
    redact,
    redact_tree,
    remember,
    secret_values,
)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "token",
        "api_key",
        "deployment.api-key",
        "DB_PASSWORD",
        "secret",
        "Set-Cookie",
        "x-api-key",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["input_tokens", "max_batch_weight", "kv_bytes_per_token_count", "api_key_env", "keys"]
)
def test_names_that_only_look_alike(name: str) -> None:
    assert not is_secret_name(name)


def test_values_of_the_environment_and_urls_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    assert redact("the header was Bearer hf_abcdefgh!") == "the header was Bearer ***!"
    assert redact("http://me:pass@host:5000/x") == "http://***@host:5000/x"
    assert redact("http://me:p@ss@host/x") == "http://***@host/x"
    assert redact("deployment.proxy=me:pass@host:3128") == "deployment.proxy=***@host:3128"
    assert redact("at 10:30 mail me@host:25") == "at 10:30 mail me@host:25"
    assert redact("https://host/v1?api_key=abcdef&n=1") == "https://host/v1?api_key=***&n=1"


@pytest.mark.parametrize("name", ["PGPASSWORD", "GH_PAT", "HF_TOKEN_READ", "AWS_SECRET_ACCESS_KEY"])
def test_secret_variables_are_known_by_any_part_of_their_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "abcdefgh")
    monkeypatch.setenv("PWD", "no-secret")
    assert redact("abcdefgh no-secret") == "*** no-secret"


def test_nested_configuration() -> None:
    tree = {
        "deployment": {"api_key": "sk-123456", "url": "http://u:p@h"},
        "input_tokens": 5,
        "env": [{"token": "abc"}],
    }
    assert redact_tree(tree) == {
        "deployment": {"api_key": "***", "url": "http://***@h"},
        "input_tokens": 5,
        "env": [{"token": "***"}],
    }
    gateway = {"url": "https://h/v1?api-version=2&who=me-myself", "other": "https://h?n=1"}
    assert redact_tree(gateway) == {"url": "https://h/v1?api-version=2&who=***", "other": "https://h?n=1"}
    assert secret_values(gateway) == ("me-myself",)
    assert secret_values(tree) == ("sk-123456",)


KEY = "sk-Ab/3xYz+7890"


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        r"sk-Ab\/3xYz+7890",
        r"sk-Ab\u002f3xYz\u002B7890",
        "sk-Ab%2F3xYz%2b7890",
        "sk-Ab/3x\n  Yz+78\x0090",
        "s k - A b / 3 x Y z + 7 8 9 0",
        "sk-Ab/3x\u200bYz+7890",
    ],
)
def test_a_secret_is_hidden_however_a_server_writes_it(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    assert shown(f"no quota for {written} today") == "no quota for *** today"


@pytest.mark.parametrize("before", range(MOST_CHARACTERS - 20, MOST_CHARACTERS + 2))
def test_a_secret_that_crosses_the_cut_is_not_shown_in_part(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    said = shown("x" * before + KEY + " is no key")
    assert len(said) <= MOST_CHARACTERS
    assert set(said.lstrip("x")) <= set("* is no key")
    assert "sk" not in said


@pytest.mark.parametrize("length", range(4, len(KEY)))
def test_the_beginning_of_a_secret_at_the_end_of_a_cut_text_is_hidden(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    assert shown("no quota for " + KEY[:length]) == "no quota for ***"


def test_what_is_remembered_is_hidden_from_then_on() -> None:
    assert redact("a gateway's own-s3cret") == "a gateway's own-s3cret"
    remember(["own-s3cret", "short"])
    assert redact("a gateway's own-s3cret is short") == "a gateway's *** is short"


def test_headers_are_secrets_whatever_their_name_and_references_are_none() -> None:
    tree = {"deployment": {"headers": {"X-Team": "blue42", "api-key": "env:AZURE_KEY", "n": 123456}}}
    hidden = {"X-Team": "***", "api-key": "env:AZURE_KEY", "n": "***"}
    assert redact_tree(tree) == {"deployment": {"headers": hidden}}
    assert secret_values(tree) == ("blue42", "123456")


@pytest.mark.parametrize(
    ("argument", "hidden"),
    [
        ("deployment.headers.api-key=xyz", "deployment.headers.api-key=***"),
        ("++deployment.headers.X-Team=blue,red", "++deployment.headers.X-Team=***"),
        ("deployment.headers={api-key:xyz}", "deployment.headers={api-key:***}"),
        ("deployment.headers={a: 'x y', b: env:NAME}", "deployment.headers={a: '***', b: env:NAME}"),
        ("deployment.headers.api-key=env:NAME", "deployment.headers.api-key=env:NAME"),
        ("deployment.url=https://h/v1?code=abc&n=1", "deployment.url=https://h/v1?code=***&n=***"),
        (
            "deployment.url='https://h?api-version=2&who=me'",
            "deployment.url='https://h?api-version=2&who=***'",
        ),
        ("deployment.proxy=me:hunter2@proxy.corp", "deployment.proxy=***@proxy.corp"),
        ("deployment.proxy=me:hu@t/r2@proxy:3128", "deployment.proxy=***@proxy:3128"),
        ("deployment.proxy='http://me:hunter2@proxy'", "deployment.proxy='http://***@proxy'"),
        ("deployment.proxy=http://proxy:3128", "deployment.proxy=http://proxy:3128"),
        ("load.users=[1]", "load.users=[1]"),
    ],
)
def test_arguments_are_shown_without_the_secrets_in_them(argument: str, hidden: str) -> None:
    assert hide_argument(argument) == hidden


@pytest.mark.parametrize("proxy", ["me:hunter2@proxy.corp", "me:hu@t/r2@proxy:3128", "http://me:h@proxy"])
def test_a_proxy_s_password_is_hidden_without_a_scheme_or_a_port_too(proxy: str) -> None:
    (shown,) = redact_tree({"deployment": {"proxy": proxy}})["deployment"].values()
    assert shown.removeprefix("http://") == f"***@{proxy.rpartition('@')[2]}"
    user = proxy.removeprefix("http://").rpartition("@")[0]
    assert secret_values({"deployment": {"proxy": proxy}}) == (user, user.partition(":")[2])
    assert secret_values({"deployment": {"proxy": "auto"}}) == ()
    assert redact_tree({"deployment": {"proxy": "auto"}}) == {"deployment": {"proxy": "auto"}}
