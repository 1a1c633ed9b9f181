"""Secrets are found by name and hidden wherever they stand."""

import pytest

from llmpilot.secrets import is_secret_name, redact, redact_tree, secret_values


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "token", "api_key", "deployment.api-key", "DB_PASSWORD", "secret"]
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
    assert secret_values(tree) == ("sk-123456",)
