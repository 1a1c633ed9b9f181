"""What the client sends: prompts of exact lengths that no cache knows, in the fields of each dialect."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.engine.openai import Asked, OpenAIEngine
from llmpilot.engine.words import TextPrompts
from llmpilot.loadtest.client_prompts import SAFE_IDS, TokenIdPrompts, id_range
from llmpilot.openai_client.access import Access
from llmpilot.openai_client.flight import Flight
from llmpilot.openai_client.http import Connection, head_of, request
from llmpilot.openai_client.http2 import Http2Connection

GREEDY = Asked(8, 16, 1, True, 0.7, 40, 0.9)
SAMPLED = GREEDY._replace(greedy=False)


@given(st.integers(0, 99), st.sampled_from([None, 60, 300, 512, 4096, 32_000, 49_152, 256_000]), st.data())
@settings(max_examples=60, deadline=None)
def test_token_ids_are_exactly_as_many_within_the_vocabulary(
    seed: int, vocabulary: int | None, data: st.DataObject
) -> None:
    prompts = TokenIdPrompts(seed, vocabulary)
    low, high = id_range(vocabulary)
    number = data.draw(st.integers(0, 2**64 - 1))
    tokens = data.draw(st.integers(1, 3000))
    ids = json.loads(prompts.prompt(number, tokens))
    assert len(ids) == tokens
    assert low <= min(ids) <= max(ids) <= high < (vocabulary or SAFE_IDS[1] + 1)


def test_prompts_longer_than_the_pool() -> None:
    assert len(json.loads(TokenIdPrompts(0, None).prompt(3, 300_000))) == 300_000


def test_no_two_requests_share_their_beginning() -> None:
    prompts = TokenIdPrompts(1, 32_000)
    heads = sorted(tuple(json.loads(prompts.prompt(row << 12, 16))) for row in range(2_000))
    shared = [
        next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y) for a, b in pairwise(heads)
    ]
    assert max(shared) < 4  # well below any block of a prefix cache


def test_same_number_is_the_same_prompt_in_every_process() -> None:
    assert TokenIdPrompts(5, 500).prompt(77, 40) == TokenIdPrompts(5, 500).prompt(77, 40)
    assert TextPrompts(5).prompt(77, 40) == TextPrompts(5).prompt(77, 40) != TextPrompts(5).prompt(78, 40)


@given(st.integers(0, 2**64 - 1), st.integers(1, 500))
@settings(max_examples=50, deadline=None)
def test_text_prompts_have_a_word_for_each_token(number: int, tokens: int) -> None:
    assert len(json.loads(TextPrompts(2).prompt(number, tokens)).split()) == tokens


@pytest.mark.parametrize("dialect", ["vllm", "llamacpp", "standard"])
def test_body_asks_for_exact_lengths_where_the_dialect_can(dialect: str) -> None:
    body = json.loads(OpenAIEngine().body(GREEDY, [b"[1,2]"], "m", dialect))  # type: ignore[arg-type]
    assert (body["prompt"], body["max_tokens"], body["model"], body["stream"]) == ([1, 2], 16, "m", True)
    assert body["temperature"] == 0
    assert "top_p" not in body
    assert body["stream_options"]["include_usage"]
    assert body.get("ignore_eos", False) == (dialect != "standard")
    assert body.get("min_tokens") == (16 if dialect == "vllm" else None)


def test_decoding_parameters_follow_the_workload() -> None:
    body = json.loads(OpenAIEngine().body(SAMPLED, [b"[1]"], "m", "vllm"))
    assert (body["temperature"], body["top_k"], body["top_p"]) == (0.7, 40, 0.9)
    standard = json.loads(OpenAIEngine().body(SAMPLED, [b"[1]"], "m", "standard"))
    assert "top_k" not in standard
    unlimited = json.loads(OpenAIEngine().body(SAMPLED._replace(top_k=0, top_p=1.0), [b"[1]"], "m", "vllm"))
    assert not {"top_k", "top_p"} & unlimited.keys()


def test_several_sequences_are_prompts_or_n() -> None:
    asked = GREEDY._replace(sequences=3)
    prompts = OpenAIEngine()
    assert prompts.prompts_for(asked) == 3
    body = json.loads(prompts.body(asked, [b"[1]", b"[2]", b"[3]"], "m", "vllm"))
    assert body["prompt"] == [[1], [2], [3]]
    assert "n" not in body
    n = OpenAIEngine(sequences="n")
    assert n.prompts_for(asked) == 1
    assert json.loads(n.body(asked, [b"[1]"], "m", "vllm"))["n"] == 3


def test_chat_sends_text() -> None:
    engine = OpenAIEngine(api="chat")
    assert not engine.takes_token_ids
    body = json.loads(engine.body(GREEDY, [b'"the of"'], "m", "standard"))
    assert body["messages"] == [{"role": "user", "content": "the of"}]


def test_request_is_http() -> None:
    access = Access("https://user:secret@host:8443/base/")
    head = head_of(access, "/v1/completions", {"Authorization": "Bearer k"})
    lines = request(head, b"a-1", b"{}").decode().split("\r\n")
    assert lines[0] == "POST /base/v1/completions HTTP/1.1"
    assert {"Host: host:8443", "Authorization: Bearer k", "X-Request-Id: a-1", "Content-Length: 2"} <= set(
        lines
    )
    assert lines[-1] == "{}"


class Closing(asyncio.Transport):
    """A transport that is lost when the connection hears of it."""

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None:
        pass


@pytest.mark.parametrize("connection", [Connection(None), Http2Connection(None, b"https")])
def test_what_is_sent_on_a_connection_that_is_lost_already_fails_at_once(connection: Connection) -> None:
    async def drive() -> str:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        flight = Flight(0, b"POST / HTTP/1.1\r\n\r\n", 1, 1)
        flight.on_end = lambda _, kind: ended.set_result(kind)
        connection.connection_made(Closing())
        connection.send(flight)
        return await asyncio.wait_for(ended, 5)

    assert asyncio.run(drive()) == "reset_before_response"
