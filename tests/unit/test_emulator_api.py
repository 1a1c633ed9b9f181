"""Bodies of the OpenAI API: what is understood, and that everything else is refused by naming the field."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.emulator import example_service
from llmpilot.emulator.api import ApiError, Generation, read_chat, read_completion, read_json
from llmpilot.emulator.tokens import IDS, TEXTS, count_text

SERVICE = example_service()
COMPLETION = {"model": "starcoder", "prompt": "hello"}
CHAT = {"model": "bigcode/starcoder", "messages": [{"role": "user", "content": "hello"}]}


def completion(**fields: Any) -> Generation:
    return read_completion(COMPLETION | fields, SERVICE)


def refusal(fields: dict[str, Any], base: dict[str, Any] = COMPLETION) -> ApiError:
    with pytest.raises(ApiError) as caught:
        (read_chat if "messages" in base else read_completion)(base | fields, SERVICE)
    return caught.value


def test_every_generated_token_counts_one() -> None:
    assert len(set(TEXTS)) == len(set(IDS)) == 256
    assert {len(text) for text in TEXTS} == {4}
    assert count_text(b"".join(TEXTS).decode()) == 256


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("", [1]),
        ("abcd", [1]),
        ("abcde", [2]),
        (["abcd", "abcdefgh"], [1, 2]),
        ([5, 6, 7], [3]),
        ([[5], [6, 7]], [1, 2]),
    ],
)
def test_prompts_in_every_form(prompt: Any, tokens: list[int]) -> None:
    assert completion(prompt=prompt).prompt_tokens == tokens


def test_how_long_the_output_is() -> None:
    drawn = 40
    assert completion().output_tokens(drawn, 999) == (16, "length")
    assert completion(max_tokens=100).output_tokens(drawn, 999) == (40, "stop")
    assert completion(max_tokens=100, min_tokens=60).output_tokens(drawn, 999) == (60, "stop")
    assert completion(max_tokens=100, min_tokens=100).output_tokens(drawn, 999) == (100, "length")
    assert completion(max_tokens=100, ignore_eos=True).output_tokens(drawn, 999) == (100, "length")
    assert completion(max_completion_tokens=7).output_tokens(drawn, 999) == (7, "length")
    chat = read_chat(CHAT, SERVICE)
    assert chat.output_tokens(drawn, 999) == (40, "stop")
    assert chat.output_tokens(drawn, 30) == (30, "length")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": "gpt-4"}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": [1] * 9000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"max_tokens": 8192}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 100, "prompt": ["a"] * 11}, "n"),
        ({"n": 100, "max_tokens": 8000}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"echo": True}, "echo"),
        ({"logprobs": 1}, "logprobs"),
    ],
)
def test_the_refusal_names_the_field(fields: dict[str, Any], param: str) -> None:
    error = refusal(fields)
    assert error.param == param
    assert error.status == (404 if error.code == "model_not_found" else 400)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "king", "content": "hi"}], "messages[0].role"),
        ([{"role": ["user"], "content": "hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0].text"),
    ],
)
def test_a_conversation_is_checked_to_its_parts(messages: Any, param: str) -> None:
    assert refusal({"messages": messages}, CHAT).param == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b'"x"', b"\xff\xfe\xfd", b'{"a": NaN}', b"[" * 100_000, b"9" * 5000]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_json(body)
    assert caught.value.status == 400


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["model", "prompt", "messages", "max_tokens", "min_tokens", "n", "best_of", "stream", "stop", "seed"]
NAMES += [
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "echo",
    "logprobs",
    "ignore_eos",
    "max_completion_tokens",
]


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.booleans())
def test_any_json_is_a_generation_or_an_api_error(fields: dict[str, Any], chat: bool) -> None:
    base = CHAT if chat else COMPLETION
    with suppress(ApiError):
        body = read_json(json.dumps(base | fields).encode())
        _check((read_chat if chat else read_completion)(body, SERVICE))


def _check(wanted: Generation) -> None:
    tokens, _ = wanted.output_tokens(40, SERVICE.max_model_tokens - max(wanted.prompt_tokens))
    assert max(1, wanted.min_tokens) <= tokens <= (wanted.max_tokens or tokens)
