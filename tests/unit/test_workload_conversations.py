"""Conversations that are drawn: means and spreads, one number one conversation, and where they end."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.errors import ConfigError
from llmpilot.workload import ConversationSource, load_conversations, load_workload
from llmpilot.workload.conversations import TurnRequests, means_of, sample_of

FACTS = {
    "name": "w",
    "model": "conversations",
    "turns": 4,
    "added_tokens": 200,
    "output_tokens": 100,
    "think_time_s": 8,
    "system_prompt_tokens": 50,
    "max_context_tokens": 1_000_000,
}
ALIKE = {"turns_stdev": 0, "added_stdev_tokens": 0, "output_stdev_tokens": 0, "think_time_stdev_s": 0}


def conversations(seed: int = 7, **changes: Any) -> ConversationSource:
    source = load_conversations(FACTS | changes, seed)
    assert source is not None
    return source


def test_conversations_without_spread_are_known_by_hand() -> None:
    talk = conversations(turns=3, **ALIKE).conversation(11)
    assert talk.added_tokens.tolist() == [200, 200, 200]
    assert talk.output_tokens.tolist() == [100, 100, 100]
    assert talk.think_s.tolist() == [0, 8, 8]
    assert talk.input_tokens().tolist() == [250, 550, 850]
    assert len(talk) == 3
    source = conversations(turns=3, **ALIKE)
    assert source.longest_tokens == 950
    # Of 1,650 prompt tokens, 600 are new; the system prompt was there before, and all that was said.
    assert means_of(sample_of(source))["repeated_share"] == pytest.approx(1 - 600 / 1650)


@given(turns=st.floats(1, 12), stdev=st.floats(0, 1.5), tokens=st.integers(2, 3_000))
@settings(max_examples=6, deadline=None)
def test_means_and_spreads_are_those_asked_for(turns: float, stdev: float, tokens: int) -> None:
    spread = stdev * (turns - 1)
    source = conversations(
        turns=turns, turns_stdev=spread, added_tokens=tokens, output_tokens=1, max_context_tokens=10_000_000
    )
    talks = [source.conversation(number) for number in range(2_500)]
    lengths = np.array([len(talk) for talk in talks])
    assert lengths.min() >= 1
    assert lengths.mean() == pytest.approx(turns, rel=0.12)
    if spread:
        assert lengths.std() == pytest.approx(spread, rel=0.2, abs=0.6)
    added = np.concatenate([talk.added_tokens for talk in talks])
    assert added.min() >= 1
    assert added.mean() == pytest.approx(tokens, rel=0.12)
    pauses = np.concatenate([talk.think_s[1:] for talk in talks])
    if len(pauses) > 2_000:
        assert pauses.mean() == pytest.approx(8, rel=0.1)
        assert pauses.std() == pytest.approx(8, rel=0.2)
    assert all(talk.think_s[0] == 0 for talk in talks)


def test_a_number_is_the_same_conversation_in_any_order_and_another_seed_has_others() -> None:
    first, again, other = conversations(), conversations(), conversations(seed=8)
    wanted = [first.conversation(number).added_tokens.tolist() for number in range(20)]
    assert wanted == [again.conversation(number).added_tokens.tolist() for number in range(20)]
    assert wanted[13] == again.conversation(13).added_tokens.tolist()
    assert wanted != [other.conversation(number).added_tokens.tolist() for number in range(20)]
    assert len({tuple(row) for row in wanted}) > 15
    assert first.content_hash == again.content_hash == other.content_hash
    assert first.content_hash != conversations(turns=5).content_hash


@given(most=st.integers(60, 2_000))
@settings(max_examples=25, deadline=None)
def test_a_conversation_ends_before_a_turn_that_its_context_cannot_hold(most: int) -> None:
    source, free = conversations(max_context_tokens=most), conversations()
    assert source.longest_tokens == most
    for number in range(30):
        talk, whole = source.conversation(number), free.conversation(number)
        lengths = talk.input_tokens() + talk.output_tokens
        assert len(talk) >= 1
        assert lengths.max() <= most
        assert talk.added_tokens.min() >= 1
        assert talk.output_tokens.min() >= 1
        if whole.input_tokens()[0] + whole.output_tokens[0] <= most:
            assert talk.added_tokens.tolist() == whole.added_tokens[: len(talk)].tolist()
            assert len(talk) == int((whole.input_tokens() + whole.output_tokens <= most).sum())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"turns": 0.5}, ["workload.turns", "0.5"]),
        ({"turn": 3}, ["workload.turn is not a key", "'turns'"]),
        ({"turns_stdev": 13}, ["workload.turns_stdev=13", "at most 9"]),
        ({"added_tokens": 1, "added_stdev_tokens": 1}, ["workload.added_stdev_tokens=1", "at most 0"]),
        ({"output_tokens": None}, ["workload.output_tokens"]),
        ({"max_context_tokens": 51}, ["workload.max_context_tokens=51", "workload.system_prompt_tokens=50"]),
        ({"cached_share": 0.5}, ["workload.cached_share=0.5", "its turns decide"]),
    ],
)
def test_impossible_conversations_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_conversations(FACTS | changes, 7)
    for word in words:
        assert word in str(error.value)


def test_where_requests_are_drawn_one_by_one_the_error_says_what_comes_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        load_workload(FACTS | ALIKE | {"turns": 3})
    assert "workload.input_tokens=550 workload.output_tokens=100 workload.cached_share=0.64" in str(
        error.value
    )


def test_the_shipped_defaults_are_those_that_their_comments_name() -> None:
    source = load_conversations(catalog.option("workload", "conversations"), 42)
    assert source is not None
    means = means_of(sample_of(source))
    assert means["turns"] == pytest.approx(2.5, rel=0.05)
    assert means["added_tokens"] == pytest.approx(296, rel=0.05)
    assert means["output_tokens"] == pytest.approx(441, rel=0.05)
    assert means["think_time_s"] == pytest.approx(10, rel=0.05)
    assert source.longest_tokens == 8192


def test_as_a_stream_of_requests_conversations_come_one_after_the_other() -> None:
    source = conversations()
    stream, talks = TurnRequests(source), [source.conversation(number) for number in range(40)]
    parts = [stream.take(n) for n in (1, 0, 7, 30)]
    taken = [tokens for part in parts for tokens in part.input_tokens.tolist()]
    assert taken == [tokens for talk in talks for tokens in talk.input_tokens().tolist()][:38]
