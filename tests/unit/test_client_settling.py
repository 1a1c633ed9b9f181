"""How many tokens each piece carried, by whatever a server says: what holds of it, and what does not."""

from typing import Any

import pytest

from llmpilot.openai_client.counting import StreamError, Tokens
from llmpilot.openai_client.settling import Counted, settle, spread

MS = 1_000_000
SENT_NS = 1000 * MS


def text(value: str = " word", index: int = 0, used: int | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": value, **more}], "usage": used_up(used)}


def delta(used: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}], "usage": used_up(used)}


def used_up(tokens: int | None, **more: Any) -> dict[str, Any] | None:
    return None if tokens is None else {"prompt_tokens": 4, "completion_tokens": tokens, **more}


def total(tokens: int, **more: Any) -> dict[str, Any]:
    return {"choices": [], "usage": used_up(tokens, **more)}


def settled(
    *payloads: Any, asked: int = 8, sequences: int = 1, first_ms: int = 10, sent_ns: int = SENT_NS
) -> Counted:
    """Settle payloads of which the first came `first_ms` after sending, and each other 10 ms later."""
    tokens = Tokens(sequences)
    for payload in payloads:
        tokens.feed(payload)
    times_ns = [SENT_NS + (first_ms + 10 * i) * MS for i in range(len(tokens.rows))]
    return settle(tokens, times_ns, asked, sent_ns)


def carries(got: Counted, method: str, counts: list[int], hidden: int = 0) -> bool:
    return (got.method, got.counts, got.hidden) == (method, counts, hidden)


def test_token_ids_in_the_last_piece_alone_are_not_those_of_each() -> None:
    pieces = [text(token_ids=[])] * 3 + [text(token_ids=[1, 2, 3, 4])]
    assert carries(settled(*pieces), "chunks", [1, 1, 1, 1])
    assert carries(settled(*pieces, total(4)), "chunks_confirmed", [1, 1, 1, 1])


def test_token_ids_that_the_total_denies_are_not_the_answer_s() -> None:
    pieces = [text(token_ids=list(range(k + 1))) for k in range(8)]  # all so far, in every piece
    assert carries(settled(*pieces, total(8)), "chunks_confirmed", [1] * 8)


@pytest.mark.parametrize("stated", [[0, 0, 0, 0], [4, 4, 4, 4], [0, 0, 0, 4], [0, None, None, None]])
def test_a_usage_that_does_not_run_counts_no_pieces(stated: list[int | None]) -> None:
    pieces = [text(used=count) for count in stated]
    assert settled(*pieces, total(4)).counts == [1, 1, 1, 1]
    assert settled(*pieces, total(4)).method == "chunks_confirmed"
    assert settled(*pieces).counts == [1, 1, 1, 1]


def test_a_usage_that_runs_counts_pieces_without_text_too() -> None:
    pieces = [text("", used=1), text("", used=2), text("é", used=3), text(used=5)]
    assert carries(settled(*pieces), "usage", [1, 1, 1, 2])


def test_a_piece_that_opens_the_answer_is_no_token_whatever_its_usage_says() -> None:
    pieces = [delta(1, role="assistant", content=""), delta(1, content="a"), delta(2, content="b")]
    assert carries(settled(*pieces), "usage", [0, 1, 1])
    pieces = [delta(1, content=""), *(delta(k, content="a") for k in range(1, 7))]
    assert carries(settled(*pieces), "usage", [0, 1, 1, 1, 1, 1, 1])


def test_a_usage_may_state_what_was_before_its_piece() -> None:
    pieces = [text(used=k) for k in range(4)]
    assert carries(settled(*pieces, total(4)), "usage", [1, 1, 1, 1])
    assert carries(settled(*pieces), "usage", [1, 1, 1, 1])
    assert carries(settled(*pieces, asked=3), "total", [1, 1, 0, 1])  # no more than were asked for


def test_a_usage_that_jumps_at_first_counts_thoughts_before_it() -> None:
    pieces = [text(used=49 + k) for k in range(4)]
    assert carries(settled(*pieces), "usage", [1, 1, 1, 1], hidden=48)


def test_stated_thoughts_are_taken_out_of_a_running_usage() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 5}}
    silent = [delta(k + 1, content="") for k in range(5)]
    spoken = [delta(6 + k, content="a") for k in range(3)]
    assert carries(settled(*silent, *spoken, total(8, **details)), "usage", [0] * 5 + [1] * 3, hidden=5)
    jump = [delta(6, content="a"), delta(7, content="a"), delta(8, content="a")]
    assert carries(settled(*jump, total(8, **details)), "usage", [1, 1, 1], hidden=5)


@pytest.mark.parametrize(
    ("usage", "hidden"),
    [
        ({"completion_tokens": 20, "completion_tokens_details": {"reasoning_tokens": 16}}, 16),
        ({"output_tokens": 20, "output_tokens_details": {"reasoning_tokens": 16}}, 16),
        ({"completion_tokens": 20, "reasoning_tokens": 16}, 16),
        # Beside the others, as xAI and Gemini count them.
        ({"completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 16}}, 16),
        (
            {
                "prompt_tokens": 4,
                "completion_tokens": 4,
                "total_tokens": 24,
                "completion_tokens_details": {"reasoning_tokens": 16},
            },
            16,
        ),
        ({"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 24}, 16),
        ({"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}, 0),
        ({"completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 0}}, 0),
        ({"completion_tokens": 4, "completion_tokens_details": None}, 0),
    ],
)
def test_hidden_thoughts_however_they_are_stated(usage: dict[str, Any], hidden: int) -> None:
    got = settled(*[text()] * 4, {"choices": [], "usage": usage})
    assert carries(got, "chunks_confirmed", [1, 1, 1, 1], hidden)


def test_a_shown_summary_of_thoughts_leaves_the_rest_hidden() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 100}}
    pieces = [delta(reasoning="Summary.")] * 2 + [delta(content="a")] * 2
    assert carries(settled(*pieces, total(102, **details), asked=102), "chunks_confirmed", [1, 1, 1, 1], 98)


def test_thoughts_that_are_shown_are_not_hidden() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 4}}
    pieces = [delta(reasoning_content=" some words")] * 2 + [delta(content="a")] * 2
    got = settled(*pieces, total(6, **details))
    assert (got.method, sum(got.counts), got.hidden) == ("total", 6, 0)


def test_silence_tells_hidden_thoughts_from_pieces_of_several_tokens() -> None:
    pieces = [*[text(" w")] * 8, total(32)]
    assert carries(settled(*pieces, first_ms=240, asked=32), "visible", [1] * 8, hidden=24)
    assert carries(settled(*pieces, first_ms=20, asked=32), "visible", [1] * 8, hidden=24)  # of 16 bytes
    few = [*[text(" wor")] * 8, total(20)]
    assert carries(settled(*few, first_ms=80, asked=20), "visible", [1] * 8, hidden=12)
    assert settled(*few, first_ms=20, asked=20).method == "total"
    assert settled(*few, first_ms=80, asked=20, sent_ns=0).method == "total"
    several = [*[text(" a b c d")] * 8, total(32)]
    assert carries(settled(*several, first_ms=240, asked=32), "total", [4] * 8)


@pytest.mark.parametrize("wrong", [0, 1, 2**31 - 1])
def test_a_total_that_cannot_be_is_none(wrong: int) -> None:
    assert carries(settled(*[text(" a long word")] * 16, total(wrong), asked=16), "chunks", [1] * 16)


def test_pieces_without_text_are_tokens_where_the_total_says_so() -> None:
    pieces = [text(""), text("a"), text(""), text("b"), text("", finish_reason="length")]
    assert carries(settled(*pieces, total(4)), "chunks_confirmed", [0, 1, 1, 1, 1])
    assert carries(settled(*pieces[1:], total(3)), "chunks_confirmed", [1, 1, 1, 0])


def test_more_pieces_than_asked_for_and_no_usage_cannot_be_a_token_each() -> None:
    got = settled(*[text("ab")] * 9, asked=3)
    assert carries(got, "capped", [1, 0, 0, 0, 1, 0, 0, 0, 1])


def test_timings_count_like_a_usage() -> None:
    pieces = [text() | {"timings": {"predicted_n": k, "cache_n": 3}} for k in (1, 3, 4)]
    assert carries(settled(*pieces), "timings", [1, 2, 1])
    still = [text() | {"timings": {"predicted_n": 4}} for _ in range(4)]
    assert carries(settled(*still), "chunks", [1, 1, 1, 1])


def sequences_of(values: list[tuple[int, int | None]]) -> list[dict[str, Any]]:
    return [text(index=index, used=count) for index, count in values]


def test_choices_count_each_by_itself_or_all_together() -> None:
    own = sequences_of([(0, 1), (1, 1), (0, 2), (1, 2), (1, 3)])
    assert carries(settled(*own, total(5), sequences=2), "usage", [1] * 5)
    shared = sequences_of([(0, 1), (1, 2), (0, 4), (1, 5), (1, 6)])
    got = settled(*shared, total(6), sequences=2)
    assert carries(got, "usage", [1, 1, 2, 1, 1])
    assert (got.fewest, got.most) == (3, 3)


def test_choices_share_a_total_by_their_pieces() -> None:
    pieces = sequences_of([(0, None), (1, None), (0, None), (1, None), (1, None), (1, None)])
    assert carries(settled(*pieces, total(6), sequences=2), "chunks_confirmed", [1] * 6)
    got = settled(*pieces, total(12), sequences=2)
    assert (got.method, got.fewest, got.most) == ("total", 4, 8)
    even = settled(*pieces, total(16), sequences=2)
    assert (even.fewest, even.most) == (8, 8)  # just what was asked for of each


def test_the_first_sequence_with_tokens_is_timed() -> None:
    assert settled(text("", index=0), text(index=1), sequences=2).timed == 1


def test_one_answer_may_have_any_index() -> None:
    assert settled(text(index=1), text(index=1)).counts == [1, 1]
    assert settled(text(index=0), text(index=1)).counts == [1]  # the other was not asked for


@pytest.mark.parametrize(
    ("fields", "shows"),
    [
        ({"content": "a"}, True),
        ({"reasoning_content": "a"}, True),
        ({"reasoning": "a"}, True),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "a"}]}, True),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}]}, True),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "", "index": 0}]}, False),
        ({"thinking": "a"}, True),
        ({"thinking_blocks": [{"type": "thinking", "thinking": "a"}]}, True),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]}, True),
        ({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]}, True),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, True),
        ({"function_call": {"name": "f", "arguments": ""}}, True),
        ({"refusal": "a"}, True),
        ({"audio": {"id": "x", "data": "UklG"}}, True),
        ({"audio": {"id": "x", "expires_at": 1}}, False),
        ({"whatever_comes_next": "a"}, True),
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"content": None, "refusal": None, "tool_calls": []}, False),
        ({"role": "assistant", "context": {"citations": ["a"], "intent": "b"}}, False),
        ({}, False),
    ],
)
def test_any_field_with_something_in_it_is_output(fields: dict[str, Any], shows: bool) -> None:
    assert settled(delta(**fields)).counts == [int(shows)]


@pytest.mark.parametrize(
    "payload",
    [
        {"error": {"message": "boo"}},
        {"error": "boo"},
        {"object": "error", "message": "boo", "code": 400},
        {"type": "error", "message": "boo"},
        {"detail": "boo"},
        {"error_code": 50001, "text": "boo"},
        [{"error": {"message": "boo", "code": 429}}],
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "boo"}}]},
    ],
)
def test_errors_in_every_dialect(payload: Any) -> None:
    with pytest.raises(StreamError, match="boo"):
        Tokens(1).feed(payload)


def test_an_answer_that_the_server_gave_up_is_an_error() -> None:
    with pytest.raises(StreamError, match="abort"):
        Tokens(1).feed(text(finish_reason="abort"))


def test_the_usage_of_groq_is_found() -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": used_up(4)}}
    assert carries(settled(*[delta(content=" a b")] * 2, last), "total", [2, 2, 0])


def test_spread_is_even_and_spans_the_pieces() -> None:
    for pieces in range(1, 12):
        for tokens in range(1, 40):
            counts = spread(tokens, pieces)
            assert sum(counts) == tokens
            assert counts[0] >= 1
            assert tokens < 2 or counts[-1] >= 1
            assert max(counts) - min(counts) <= 1


def test_an_end_for_length_alone_is_a_count_where_the_text_is_enough() -> None:
    end = text("", finish_reason="length")
    assert carries(settled(*[text(" alpha beta gamma")] * 4, end, asked=12), "total", [3, 3, 3, 3, 0])
    assert carries(settled(*[text(" word")] * 4, end, asked=12), "chunks", [1, 1, 1, 1, 0])  # its own limit
    stop = text("", finish_reason="stop")
    assert carries(settled(*[text(" alpha beta gamma")] * 4, stop, asked=12), "chunks", [1, 1, 1, 1, 0])


def test_a_long_text_in_one_piece_is_no_single_token() -> None:
    stop = text("", finish_reason="stop")
    assert carries(settled(text(" four" * 12), stop, asked=20), "text", [15, 0])
    assert carries(settled(text(" four" * 12), stop, asked=8), "text", [8, 0])
    assert carries(settled(text(" four" * 12), stop, asked=1), "chunks", [1, 0])
    assert carries(settled(text(" word"), stop), "chunks", [1, 0])
