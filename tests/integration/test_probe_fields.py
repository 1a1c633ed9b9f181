"""The first requests find out which fields a server takes, whatever it answers to those that it does not."""

from typing import Any

import pytest
from picky_service import Answer, Asked, picky, refused, stream, visited

from llmpilot.deploy.external import ServiceError
from llmpilot.engine.openai import OpenAIEngine

VLLM_ONLY = {"ignore_eos", "min_tokens", "return_token_ids", "continuous_usage_stats"}


def unknown(
    *names: str, status: int = 400, message: str = "Unrecognized request argument supplied: {}"
) -> Any:
    """A server that refuses the first of these fields that it meets, by name."""

    def answers(asked: Asked) -> Answer:
        met = sorted(asked.fields & {*names})
        return refused(message.format(met[0]), status) if met else None

    return answers


def silent(*names: str, status: int = 500, body: Any = b"Internal Server Error") -> Any:
    """A server that does not know these fields, and does not say so."""
    return lambda asked: (status, body) if asked.fields & {*names} else None


def test_a_server_that_takes_all_is_asked_once() -> None:
    with picky(lambda _: None) as server:
        found = visited(server.url)
    assert (found.dialect, found.fields.left_out, found.not_taken) == ("vllm", frozenset(), ())
    assert len(server.posts) == 1
    assert server.posts[0].fields >= VLLM_ONLY


@pytest.mark.parametrize("name", sorted(VLLM_ONLY | {"stream_options", "temperature"}))
@pytest.mark.parametrize("status", [400, 404, 422, 500, 501])
def test_a_field_that_is_named_is_left_out_alone(name: str, status: int) -> None:
    with picky(unknown(name, status=status)) as server:
        found = visited(server.url)
    assert found.dialect == "vllm"
    assert found.fields.left_out == {name}
    assert name in found.not_taken
    last = server.posts[-1]
    assert name not in last.fields
    assert len(server.posts) <= 3
    if name not in ("stream_options", "continuous_usage_stats"):
        assert last.fields >= VLLM_ONLY - {name}


def test_fields_are_named_in_the_words_of_many_servers() -> None:
    bodies: list[Answer] = [
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "ignore_eos"], "msg": "Extra"}]}),
        (400, {"error": {"message": "Unsupported parameter.", "param": "ignore_eos", "code": "unsupported"}}),
        (400, {"error": "property 'ignore_eos' is unsupported"}),
        (400, {"object": "error", "message": "[{'loc': ('body', 'ignore_eos'), 'msg': 'Extra inputs'}]"}),
        (400, b"unknown field `ignore_eos`, expected one of `model`, `prompt`"),
        (200, b'data: {"error": {"message": "ignore_eos is not supported"}}\n\n'),
        (400, [{"error": {"message": 'Unknown name "ignore_eos": Cannot find field.', "code": 400}}]),
    ]  # fmt: skip
    for body in bodies:
        with picky(lambda asked, body=body: body if "ignore_eos" in asked.fields else None) as server:
            assert visited(server.url).fields.left_out == {"ignore_eos"}, body


def test_a_message_that_repeats_the_request_names_nothing() -> None:
    def answers(asked: Asked) -> Answer:
        return refused(f"bad request: {asked.body}") if "ignore_eos" in asked.fields else None

    with picky(answers) as server:
        found = visited(server.url)
    assert (found.dialect, found.fields.left_out) == ("standard", frozenset())


@pytest.mark.parametrize("status", [400, 422, 500, 503])
def test_fields_that_are_not_named_are_left_out_step_by_step(status: int) -> None:
    with picky(silent("ignore_eos", status=status)) as server:
        found = visited(server.url)
    assert "ignore_eos" in found.not_taken
    with picky(silent("ignore_eos", "stream_options", status=status)) as server:
        found = visited(server.url)
    assert found.fields.left_out == {"stream_options", "temperature"}
    assert {"ignore_eos", "stream_options"} < {*found.not_taken}


@pytest.mark.parametrize("status", [400, 500, 502])
def test_a_page_may_be_a_refusal_like_any_other(status: int) -> None:
    page = b"<!doctype html><title>Error</title><h1>Something went wrong</h1>"
    with picky(silent("ignore_eos", status=status, body=page)) as server:
        found = visited(server.url)
    assert found.engine.api == "completions"
    assert "ignore_eos" in found.not_taken


@pytest.mark.parametrize(
    "message",
    [
        "Could not finish the message because max_tokens or model output limit was reached. "
        "Please try again with higher max_tokens.",
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 2 instead.",
        "max_tokens must be at least 16",
    ],
)
def test_a_longer_answer_is_asked_for_where_two_tokens_are_too_few(message: str) -> None:
    def answers(asked: Asked) -> Answer:
        return refused(message) if asked.body.get("max_tokens", 99) < 16 else None

    with picky(answers) as server:
        found = visited(server.url)
    assert (found.dialect, found.not_taken, found.fields.length) == ("vllm", (), "max_tokens")


def test_many_fields_are_left_out_one_after_the_other() -> None:
    names = ("ignore_eos", "min_tokens", "return_token_ids", "stream_options", "temperature")
    with picky(unknown(*names)) as server:
        found = visited(server.url)
    assert found.fields.left_out == {*names}
    assert server.posts[-2].fields == {"model", "prompt", "stream", "max_tokens"} or len(server.posts) == 6


def test_the_length_goes_by_another_name() -> None:
    message = (
        "Unsupported parameter: '{}' is not supported with this model. Use 'max_completion_tokens' instead."
    )

    def answers(asked: Asked) -> Answer:
        if asked.path.endswith("/v1/completions"):
            return 404, {"detail": "Not Found"}
        return unknown("max_tokens", "ignore_eos", message=message)(asked)

    with picky(answers) as server:
        found = visited(server.url)
        assert found.engine.api == "chat"
        assert found.fields.length == "max_completion_tokens"
        assert "ignore_eos" in found.fields.left_out
        # Said by nobody, it is tried too.
        server.asked.clear()
    with picky(
        lambda asked: silent("max_tokens", *VLLM_ONLY, status=400)(asked)
        if asked.path.endswith("chat/completions") else (404, b"") if asked.method == "POST" else None
    ) as server:  # fmt: skip
        assert visited(server.url).fields.length == "max_completion_tokens"


def test_a_choosy_server_is_asked_for_a_sampled_answer_too() -> None:
    def answers(asked: Asked) -> Answer:
        return unknown("ignore_eos", "top_k", "top_p")(asked)

    with picky(answers) as server:
        found = visited(server.url)
    assert found.fields.left_out == {"ignore_eos", "top_k", "top_p"}
    assert "temperature" in server.posts[-1].fields


def test_a_server_that_cannot_stream_is_measured_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def answers(asked: Asked) -> Answer:
        if asked.method == "GET":
            return None
        if asked.body.get("stream"):
            return refused("stream is not supported")
        text = {"choices": [{"index": 0, "text": " a b", "finish_reason": "length"}]}
        return 200, text | {"usage": {"prompt_tokens": 4, "completion_tokens": 2}}

    with picky(answers) as server:
        found = visited(server.url)
    assert "stream" in found.not_taken
    assert "stream_options" not in server.posts[-1].fields
    assert "in one piece" in capsys.readouterr().err


def test_a_server_that_stumbles_over_a_field_is_asked_without_it() -> None:
    def answers(asked: Asked) -> Answer:
        if asked.fields & VLLM_ONLY:
            raise ConnectionResetError  # as Go's server hangs up when its handler panics
        return None

    with picky(answers) as server:
        assert visited(server.url).dialect == "standard"

    def never(asked: Asked) -> Answer:
        if asked.method == "POST":
            raise ConnectionResetError
        return None

    with picky(never) as server, pytest.raises(ServiceError, match="closed the connection without an answer"):
        visited(server.url)


def test_what_is_not_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with picky(unknown("ignore_eos", "temperature")) as server:
        found = visited(server.url)
    said = capsys.readouterr().err
    assert "does not take ignore_eos, temperature: answers may end before the length" in said
    assert (
        found.wire
        == "/v1/completions, prompts of token ids, dialect vllm; does not take ignore_eos, temperature"
    )


def test_a_dialect_says_where_to_begin() -> None:
    with picky(lambda _: None) as server:
        found = visited(server.url, OpenAIEngine(dialect="standard"))
    assert (found.dialect, found.not_taken) == ("standard", ())
    assert not server.posts[0].fields & VLLM_ONLY


@pytest.mark.parametrize("status", [400, 422, 500, 503])
def test_the_number_of_tries_is_bounded(status: int) -> None:
    with (
        picky(lambda asked: (status, b"no") if asked.method == "POST" else None) as server,
        pytest.raises(ServiceError, match=rf"with {status}: no"),
    ):
        visited(server.url)
    assert len(server.posts) <= 12


def test_a_server_that_is_loading_is_not_asked_again_and_again() -> None:
    loading = refused("Loading model", 503)
    with (
        picky(lambda asked: loading if asked.method == "POST" else None) as server,
        pytest.raises(ServiceError, match="Loading model") as stopped,
    ):
        visited(server.url)
    assert len(server.posts) == 1
    assert "still be loading" in stopped.value.cure


def test_a_context_that_is_too_short_is_said() -> None:
    message = "This model's maximum context length is 4 tokens. However, you requested 6 (4 in the prompt)."
    with (
        picky(lambda asked: refused(message) if asked.method == "POST" else None) as server,
        pytest.raises(ServiceError, match="maximum context length") as stopped,
    ):
        visited(server.url)
    assert "start the server with a longer one" in stopped.value.cure
    assert len(server.posts) == 1


@pytest.mark.parametrize(
    "message",
    [
        "prompt must be a string",
        "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string",
        "Failed to deserialize the JSON body: prompt: invalid type: sequence, expected a string at line 1",
        "no",
    ],
)
def test_a_prompt_of_ids_may_be_refused(message: str) -> None:
    def answers(asked: Asked) -> Answer:
        return refused(message, 422) if isinstance(asked.body.get("prompt"), list) else None

    with picky(answers) as server:
        found = visited(server.url)
        assert (found.engine.api, found.engine.prompt, found.dialect) == ("completions", "text", "vllm")
        with pytest.raises(ServiceError, match="422") as stopped:
            visited(server.url, OpenAIEngine(prompt="token_ids"))
    assert "engine.prompt=text" in stopped.value.cure


def test_words_are_counted_as_the_server_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    def answers(asked: Asked) -> Answer:
        if asked.method == "GET" or asked.path == "/v1/completions":
            return None if asked.method == "GET" else (404, b"")
        words = len(asked.body["messages"][0]["content"].split())
        return stream(asked.body, prompt_tokens=11 + round(1.5 * words))

    with picky(answers) as server:
        found = visited(server.url)
    assert found.words.measured
    assert found.words.tokens_per_word == pytest.approx(1.5)
    assert found.words.extra_tokens == pytest.approx(11)
    assert found.words.words_for(311) == 200
    assert "1.50 tokens for each word" in capsys.readouterr().err
    with picky(lambda asked: stream(asked.body, usage=False) if asked.body else None) as server:
        found = visited(server.url, OpenAIEngine(prompt="text"))
    assert not found.words.measured
    assert found.words.words_for(200) == 200
    assert "each word is taken for one" in capsys.readouterr().err
