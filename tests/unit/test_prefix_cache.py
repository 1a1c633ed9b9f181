"""The prefix cache, against sequences worked out by hand and against a plain model of what it should hold."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.simulator import (
    Batch,
    SglangRule,
    SimulatedRequests,
    SteppedService,
    TrtllmRule,
    VllmRule,
    converse_closed,
    converse_open,
)
from llmpilot.simulator.prefix_cache import PrefixCache
from llmpilot.simulator.scheduling import SteppedCore
from llmpilot.simulator.service import SchedulingRule
from llmpilot.workload import Conversation

VLLM = VllmRule(max_num_seqs=64, max_num_batched_tokens=4096, overlapped=False)
PLENTY = 1_000_000


# --- the cache alone ----------------------------------------------------------------------------------------


def test_what_was_used_least_recently_is_lost_first_and_of_a_prefix_its_end() -> None:
    cache = PrefixCache(6)
    cache.take(3)
    cache.fill(["a0", "a1", "a2"])
    assert (cache.free, cache.found(["a0", "a1", "a2", "a3"]), cache.in_use(["a0", "a1"])) == (3, 3, 2)
    cache.leave(["a0", "a1", "a2"])
    assert (cache.free, cache.found(["a0", "a1", "a2"]), cache.in_use(["a0"])) == (6, 3, 0)
    cache.take(4)  # three are empty: a2, which was freed first, is the fourth
    assert (cache.free, cache.found(["a0", "a1", "a2"])) == (2, 2)
    cache.fill(["b0", "b1", "b2"])
    cache.use(["a0"])  # and so a1 is what may be lost now
    cache.take(1)
    assert (cache.free, cache.found(["a0", "a1"]), cache.found(["b0", "b1", "b2"])) == (0, 1, 3)
    cache.give(2)  # blocks of which nothing can be found queue up like all others
    cache.leave(["a0"])
    cache.take(2)
    assert (cache.free, cache.found(["a0"])) == (1, 1)
    cache.take(1)
    assert (cache.free, cache.found(["a0"])) == (0, 0)


def test_a_page_that_two_use_is_free_when_both_have_left() -> None:
    cache = PrefixCache(4)
    cache.take(1)
    cache.fill(["s"])
    cache.use(["s"])
    assert (cache.free, cache.shared(["s"])) == (3, 1)
    cache.leave(["s"])
    assert (cache.free, cache.shared(["s"])) == (3, 0)
    cache.leave(["s"])
    assert cache.free == 4


def test_who_computes_the_same_at_once_frees_its_copy() -> None:
    cache = PrefixCache(4)
    cache.take(2)
    cache.fill(["s"])
    cache.fill(["s"])
    assert (cache.free, cache.shared(["s"])) == (3, 1)


@given(
    total=st.integers(1, 12),
    per_page=st.sampled_from([1, 3]),
    acts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5)), max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_the_cache_holds_what_a_plain_model_holds(
    total: int, per_page: int, acts: list[tuple[int, int, int]]
) -> None:
    """Requests of five chains of pages come and go; the model keeps one list of free blocks by age."""
    total *= per_page
    cache = PrefixCache(total, per_page)
    free: list[Any] = [None] * total  # what each free block holds, in the order in which they are taken
    running: list[list[tuple[int, int]]] = []
    users: dict[tuple[int, int], int] = {}
    for act, chain, length in acts:
        keys = [(chain, page) for page in range(length)]
        if act < 3:  # a request: what is found, and new blocks for the rest
            known = 0
            while known < length and (keys[known] in users or keys[known] in free):
                known += 1
            assert cache.found(keys) == known
            waits = sum(key not in users for key in keys[:known])
            if (waits + length - known) * per_page > len(free):
                continue
            cache.use(keys[:known])
            cache.take((length - known) * per_page)
            cache.fill(keys[known:])
            for key in keys[:known]:
                free = [held for held in free if held != key]
            for _ in range((length - known) * per_page):
                lost = free.pop(0)
                if lost is not None and lost in free:  # the other blocks of its page hold nothing any more
                    rest = [None] * free.count(lost)
                    free = rest + [held for held in free if held != lost]
            for key in keys:
                users[key] = users.get(key, 0) + 1
            running.append(keys)
        elif running:
            keys = running.pop(length % len(running))
            cache.leave(keys)
            for key in reversed(keys):
                users[key] -= 1
                if not users[key]:
                    del users[key]
                    free += [key] * per_page
        assert cache.free == len(free)
        assert cache.free + len(users) * per_page == total


# --- conversations on an engine -----------------------------------------------------------------------------


class Linear:
    """Step times that are a straight line in what a step holds."""

    def step_ms(self, batch: Batch) -> float:
        return 2.0 + 0.1 * batch.decodes + 0.02 * batch.prefill_tokens + 0.0001 * batch.prefill_pairs


@dataclass
class Script:
    """Conversations as written down: (added, output, think_s) of each turn; they repeat by number."""

    turns: list[list[tuple[int, int, float]]]
    system_tokens: int = 0
    longest_tokens: int = 100_000
    content_hash: str = ""

    def conversation(self, number: int) -> Conversation:
        added, output, think = zip(*self.turns[number % len(self.turns)], strict=True)
        return Conversation(self.system_tokens, np.array(added), np.array(output), np.array(think, float))


@dataclass(frozen=True)
class Watched(SteppedService):
    """A service whose engine can be looked at afterwards."""

    cores: list[SteppedCore] = field(default_factory=list)

    def core(self) -> SteppedCore:
        core = super().core()
        assert isinstance(core, SteppedCore)
        self.cores.append(core)
        return core


def service(rule: SchedulingRule = VLLM, capacity: int = PLENTY) -> Watched:
    return Watched(Linear(), rule, capacity)


def cached(found: SimulatedRequests, conversation: int) -> list[int]:
    assert found.conversation is not None
    assert found.cached_tokens is not None
    return list(found.cached_tokens[found.conversation == conversation])


def test_a_turn_finds_the_whole_blocks_of_all_that_was_said_before() -> None:
    turns = [(40, 10, 0.0), (7, 14, 1.0), (1, 200, 0.5), (100, 1, 0.0), (16, 3, 2.0)]
    found = converse_closed(service(), Script([turns]), 1, 10_000.0, 60_000.0)
    # The last token of an answer is not in the cache: it was not put back into the model.
    held = [40 + 10 - 1, 57 + 14 - 1, 72 + 200 - 1, 372 + 1 - 1]
    assert found.requests.input_tokens[:5].tolist() == [40, 57, 72, 372, 389]
    assert cached(found, 0)[:5] == [0, *(16 * (tokens // 16) for tokens in held)]
    assert found.turn is not None
    assert found.turn[:6].tolist() == [0, 1, 2, 3, 4, 0]
    assert cached(found, 1)[:1] == [0], "the next conversation has nothing in common with the last"


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    # The second prompt is whole blocks, and all but its last token was there before.
    found = converse_closed(service(), Script([[(32, 16, 0.0), (1, 1, 0.0)]]), 1, 10_000.0, 60_000.0)
    assert found.requests.input_tokens[1] == 49
    assert cached(found, 0)[1] == 32, "of 47 tokens that are in the cache"
    repeated = Script([[(1, 1, 0.0)]], system_tokens=63)  # each prompt is the system prompt and one token
    found = converse_closed(service(), repeated, 1, 50.0, 60_000.0)
    assert set(cached(found, 1)) == {48}


def test_only_what_is_new_is_computed_and_it_attends_to_all_before() -> None:
    found = converse_closed(service(), Script([[(40, 10, 0.0), (7, 14, 1.0)]]), 1, 10_000.0, 60_000.0)
    ttft_us = found.first_token_us - found.sent_us
    new = 57 - 48
    assert ttft_us[0] == round(1e3 * (2 + 0.02 * 40 + 0.0001 * 40 * 41 / 2))
    assert ttft_us[1] == round(1e3 * (2 + 0.02 * new + 0.0001 * new * (48 + (new + 1) / 2)))


def test_what_a_small_cache_still_holds_is_known_by_hand() -> None:
    """Five blocks. A holds a0 a1, then B b0 b1 b2; A's second turn takes b2's block, and so on."""
    a = [(31, 2, 0.0), (14, 2, 2.0), (14, 2, 2.0)]  # prompts of 31, 47 and 63 tokens
    b = [(47, 2, 0.0), (14, 2, 2.0)]
    found = converse_open(service(capacity=80), Script([a, b]), np.array([0.0, 1000.0]), 6000.0, 60_000.0)
    assert (found.outcome == 0).all()
    assert cached(found, 0) == [0, 32, 16]
    assert cached(found, 1) == [0, 32]
    roomy = converse_open(service(capacity=160), Script([a, b]), np.array([0.0, 1000.0]), 6000.0, 60_000.0)
    assert cached(roomy, 0) == [0, 32, 48]
    assert cached(roomy, 1) == [0, 48]


def test_the_first_computes_the_system_prompt_and_others_find_it() -> None:
    talk = Script([[(20, 5, 0.0)]], system_tokens=100)
    found = converse_open(service(), talk, np.array([0.0, 0.0, 500.0]), 1000.0, 60_000.0)
    assert [cached(found, number) for number in range(3)] == [[0], [96], [96]]
    # SGLang and TensorRT-LLM know a prompt when it has been computed: not yet in the same step.
    for rule, system in ((SglangRule, 96), (TrtllmRule, 96)):
        late = service(rule(max_num_seqs=64, max_num_batched_tokens=4096, overlapped=False))
        found = converse_open(late, talk, np.array([0.0, 0.0, 500.0]), 1000.0, 60_000.0)
        assert [cached(found, number) for number in range(3)] == [[0], [0], [system]]


def test_without_prefix_caching_nothing_is_found() -> None:
    rule = VllmRule(max_num_seqs=64, max_num_batched_tokens=4096, prefix_caching=False)
    found = converse_closed(
        service(rule), Script([[(40, 10, 0.0)] * 4], system_tokens=100), 4, 500.0, 60_000.0
    )
    assert found.cached_tokens is not None
    assert set(found.cached_tokens[found.first_token_us >= 0]) == {0}


def test_more_users_than_the_cache_can_hold_find_less() -> None:
    talk = Script([[(200, 50, 0.05)] * 6])
    shares = []
    for users in (2, 8, 24):
        found = converse_closed(service(capacity=16_000), talk, users, 20_000.0, 600_000.0)
        assert found.cached_tokens is not None
        shares.append(found.cached_tokens.sum() / found.requests.input_tokens.sum())
    # Six turns of 250 tokens: of 4,950 prompt tokens 3,750 were said before, but for parts of blocks.
    assert shares[0] == pytest.approx(3750 / 4950, abs=0.03)
    assert shares[0] > shares[1] + 0.02 or shares[1] > shares[2] + 0.02
    assert shares[2] < 0.5 * shares[0]


rules = st.one_of(
    st.builds(
        VllmRule,
        max_num_seqs=st.integers(1, 8),
        max_num_batched_tokens=st.integers(8, 90),
        block_size=st.sampled_from([4, 16, 32]),
        chunked_prefill=st.booleans(),
        overlapped=st.booleans(),
    ),
    st.builds(
        SglangRule,
        max_num_seqs=st.integers(1, 8),
        max_num_batched_tokens=st.integers(8, 90),
        max_prefill_tokens=st.integers(8, 90),
        chunked_prefill=st.booleans(),
        mixed=st.booleans(),
        overlapped=st.booleans(),
    ),
    st.builds(
        TrtllmRule,
        max_num_seqs=st.integers(1, 8),
        max_num_batched_tokens=st.integers(40, 300),
        block_size=st.sampled_from([4, 32]),
        chunked_prefill=st.booleans(),
        overlapped=st.booleans(),
    ),
)
scripts = st.builds(
    Script,
    st.lists(
        st.lists(
            st.tuples(st.integers(1, 60), st.integers(1, 30), st.sampled_from([0.0, 0.03])),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 70),
)


@given(rule=rules, script=scripts, users=st.integers(1, 9), capacity=st.integers(200, 2500))
@settings(max_examples=120, deadline=None)
def test_blocks_are_conserved_and_no_more_is_found_than_was_said(
    rule: SchedulingRule, script: Script, users: int, capacity: int
) -> None:
    watched = service(rule, capacity)
    found, again = (converse_closed(watched, script, users, 300.0, 60_000.0) for _ in range(2))
    assert found.cached_tokens is not None
    assert found.conversation is not None
    assert found.turn is not None
    for name in ("sent_us", "first_token_us", "done_us", "gap_us", "cached_tokens", "turn", "conversation"):
        assert np.array_equal(getattr(found, name), getattr(again, name)), name
    inputs, outputs = found.requests.input_tokens, found.requests.output_tokens
    assert (np.diff(found.sent_us) >= 0).all()
    let_in = found.first_token_us >= 0
    assert (found.cached_tokens[let_in] >= 0).all()
    assert (found.cached_tokens < inputs).all()
    said = np.zeros(len(inputs), dtype=np.int64)
    for number in set(found.conversation.tolist()):
        mine = np.flatnonzero(found.conversation == number)
        assert found.turn[mine].tolist() == list(range(len(mine))), "turns come one after the other"
        said[mine[1:]] = (inputs + outputs)[mine[:-1]] - 1
        assert (found.sent_us[mine[1:]] >= found.done_us[mine[:-1]]).all()
    assert (found.cached_tokens <= np.maximum(said, script.system_tokens)).all()
    scheduler = watched.cores[0].scheduler
    held = scheduler.blocks.total - scheduler.blocks.free
    if not scheduler.running and not scheduler._late_known:
        assert held == 0, "blocks leaked"
    blocks = scheduler.prefixes
    if blocks is not None:
        assert blocks.free == blocks._empty + sum(blocks._queue.values())
        assert all(count > 0 for count in blocks._users.values())


@given(script=scripts, users=st.integers(1, 9), block=st.sampled_from([8, 16]))
@settings(max_examples=40, deadline=None)
def test_with_room_for_all_every_turn_finds_all_that_was_said(script: Script, users: int, block: int) -> None:
    page = max(16, block)
    rule = VLLM.model_copy(update={"block_size": block, "overlapped": True})
    found = converse_closed(service(rule), script, users, 300.0, 60_000.0)
    assert found.cached_tokens is not None
    assert found.turn is not None
    assert found.conversation is not None
    inputs, outputs = found.requests.input_tokens, found.requests.output_tokens
    last: dict[int, int] = {}
    for row, number in enumerate(found.conversation.tolist()):
        if row and found.first_token_us[row] >= 0:
            before = last.get(number, script.system_tokens)
            pages = min(before // page, (inputs[row] - 1) // page)
            assert found.cached_tokens[row] == page * pages
        last[number] = int(inputs[row] + outputs[row]) - 1
