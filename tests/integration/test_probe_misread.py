"""Token ids that a server takes for something else, gateways busy once, and what is said of both."""

from typing import Any

import pytest
from picky_service import Answer, Asked, picky, refused, stream, visited

from llmpilot.deploy.external import ServiceError
from llmpilot.engine.openai import OpenAIEngine


def counting(count: Any) -> Any:
    """A server that counts prompts of ids by `count`, and a token for each word of others."""

    def answers(asked: Asked) -> Answer:
        if asked.path != "/v1/completions":
            return None
        prompt = asked.body["prompt"]
        return stream(asked.body, prompt_tokens=len(prompt.split()) if type(prompt) is str else count(prompt))

    return answers


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (
            lambda ids: len(str(ids)) // 2,
            "counts 80 tokens in a prompt of 32 token ids and 640 in one of 256",
        ),
        (lambda _: 1, "counts 1 token in a prompt of 32 token ids and 1 in one of 256"),
    ],
)
def test_token_ids_that_are_taken_for_something_else_become_text(
    count: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with picky(counting(count)) as server:
        found = visited(server.url)
        assert not found.engine.takes_token_ids
        assert (found.path, found.words.measured) == ("/v1/completions", True)
        assert f"{said}: prompts are sent as text" in capsys.readouterr().err
        kept = visited(server.url, OpenAIEngine(prompt="token_ids"))
    assert kept.engine.takes_token_ids
    assert f"{said}: what it makes of them is not known" in capsys.readouterr().err


@pytest.mark.parametrize("count", [lambda ids: len(ids) + 1, lambda ids: len(ids) + 30, lambda _: 0])
def test_what_stands_before_token_ids_is_no_miscount(count: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with picky(counting(count)) as server:
        assert visited(server.url).engine.takes_token_ids
    assert "the server counts" not in capsys.readouterr().err


def test_a_gateway_that_was_busy_once_costs_no_field() -> None:
    answered: list[int] = []

    def answers(_: Asked) -> Answer:
        answered.append(1)
        return (502, b"<html><title>502 Bad Gateway</title></html>") if len(answered) == 2 else None

    with picky(answers) as server:  # the first request is for the list of models
        found = visited(server.url)
    assert (found.dialect, found.not_taken) == ("vllm", ())
    assert found.engine.takes_token_ids


def test_options_go_with_their_field(capsys: pytest.CaptureFixture[str]) -> None:
    def answers(asked: Asked) -> Answer:
        return refused("unknown field: stream_options") if "stream_options" in asked.fields else None

    with picky(answers) as server:
        assert visited(server.url).not_taken == ("stream_options",)
    assert "does not take stream_options: it need not say" in capsys.readouterr().err


def test_what_hung_up_is_said_to_have_hung_up(capsys: pytest.CaptureFixture[str]) -> None:
    def answers(asked: Asked) -> Answer:
        if type(asked.body.get("prompt")) is list:
            raise ConnectionError  # the handler ends, and the connection with it
        return None

    with picky(answers) as server:
        assert not visited(server.url).engine.takes_token_ids
    assert "/v1/completions hung up without an answer" in capsys.readouterr().err


PAGE = b"<html><head><title>400 Bad Request</title></head><body><hr>nginx &amp; co</body></html>"


@pytest.mark.parametrize(
    ("answer", "wrong", "cure"),
    [
        ((503, {"error": "Loading model"}), "is not ready: GET /v1/models answered 503", "it may still be"),
        ((400, PAGE), "with 400: 400 Bad Request: nginx & co", "see the server's log"),
        ((200, {"error": {"message": "no provider"}}), "with an error: no provider", "see what its message"),
    ],
)
def test_refusals_say_what_is_known_and_no_more(answer: Any, wrong: str, cure: str) -> None:
    with (
        picky(lambda asked: answer if asked.method == "POST" or answer[0] == 503 else None) as server,
        pytest.raises(ServiceError) as caught,
    ):
        visited(server.url)
    assert wrong in str(caught.value)
    assert caught.value.cure is not None
    assert caught.value.cure.startswith(cure)
