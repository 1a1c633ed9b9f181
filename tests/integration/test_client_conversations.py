"""The client holds conversations with a server that keeps what it is told: each turn begins with the last."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from talking_service import Turn, talking
from workers_here import in_threads

from llmpilot.config import Load
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Records, Traffic, client, run_level, worker_talks
from llmpilot.workload.conversations import Chat, DrawnConversations

TURNS, ADDED, OUTPUT, SYSTEM = 3, 7, 5, 40
CLOSED = {"arrival": "closed", "users": [4], "warmup_s": 0.0, "duration_s": 0.25, "drain_s": 5.0}
OPEN = {"arrival": "poisson", "rates_per_s": [40.0], "warmup_s": 0.0, "duration_s": 0.3, "drain_s": 5.0}
IDS, TEXT, CHAT = OpenAIEngine(), OpenAIEngine(prompt="text"), OpenAIEngine(api="chat")
Told = list[Turn]


def source(**changes: Any) -> DrawnConversations:
    facts = {"turns": TURNS, "added_tokens": ADDED, "output_tokens": OUTPUT, "system_prompt_tokens": SYSTEM}
    facts |= {"turns_stdev": 0, "added_stdev_tokens": 0, "output_stdev_tokens": 0, "max_context_tokens": 500}
    return DrawnConversations(Chat.model_validate(facts | changes), 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_started", in_threads)


def level(url: str, engine: OpenAIEngine, load: dict[str, Any] = CLOSED, **changes: Any) -> Records:
    settings = ClientSettings(workers=2, backoff_s=0.02)
    place = HttpEndpoint(url, "m", engine, "vllm", client=settings)
    asked = Load.model_validate(load)
    traffic = Traffic(asked, None, 3, conversations=source(**changes))
    return run_level(place, traffic, asked.levels[0])


def parts(turn: Turn) -> Any:
    """What a turn said, and what was answered to it, in one: ids, text or messages."""
    if "messages" in turn.asked:
        return turn.asked["messages"], [{"role": "assistant", "content": turn.text}]
    prompt = turn.asked["prompt"]
    return prompt, turn.text if isinstance(prompt, str) else turn.ids


def chains(told: Told) -> list[Told]:
    """Put each turn behind the one whose prompt and answer it begins with; others begin a conversation."""
    found: list[Told] = []
    for turn in told:
        prompt, _ = parts(turn)
        for chain in found:
            before, answer = parts(chain[-1])
            if prompt[: len(before) + len(answer)] == before + answer:
                chain.append(turn)
                break
        else:
            found.append([turn])
    return found


def require_whole_conversations(told: Told, records: Records) -> list[Told]:
    """Require that turns make conversations of TURNS turns each, none of them lost or told twice."""
    found = chains(told)
    assert max(len(chain) for chain in found) == TURNS
    assert records.conversation is not None
    assert records.turn is not None
    lengths: dict[int, int] = defaultdict(int)
    for number in records.conversation.tolist():
        lengths[number] += 1
    # What was under way at the end is known to the one and not yet to the other, or the other way round.
    assert abs(len(found) - len(lengths)) <= 8
    assert sum(len(chain) == TURNS for chain in found) >= sum(n == TURNS for n in lengths.values()) - 8
    return found


@pytest.mark.parametrize("load", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("engine", [IDS, TEXT, CHAT], ids=["ids", "text", "chat"])
def test_a_turn_begins_with_all_that_was_said_before(engine: OpenAIEngine, load: dict[str, Any]) -> None:
    with talking() as (url, told):
        records = level(url, engine, load)
    assert set(records.failure) <= {"", "unfinished"}
    found = require_whole_conversations(told, records)
    first = [parts(chain[0])[0] for chain in found]
    system = first[0][0] if engine is CHAT else first[0][:SYSTEM]
    for prompt in first:
        assert (prompt[0] if engine is CHAT else prompt[:SYSTEM]) == system, "one system prompt for all"
    messages = {str(prompt[1:]) if engine is CHAT else str(prompt[SYSTEM:]) for prompt in first}
    assert len(messages) == len(first), "what users say is new"
    if engine is CHAT:
        roles = [[one["role"] for one in chain[-1].asked["messages"]] for chain in found if len(chain) == 3]
        assert roles[0] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_prompts_of_ids_are_as_long_as_they_are_said_to_be() -> None:
    with talking(tokens=lambda asked: asked - 2) as (url, told):
        records = level(url, IDS)
    ok = records.failure == ""
    assert records.turn is not None
    assert records.asked_input_tokens is not None
    shorter = SYSTEM + ADDED + records.turn * (ADDED + OUTPUT - 2)
    assert records.requests.input_tokens[ok].tolist() == shorter[ok].tolist()
    assert (records.asked_input_tokens == shorter + 2 * records.turn).all()
    sent = {len(turn.asked["prompt"]) for turn in told}
    assert sent == set(shorter.tolist())
    assert records.notes["histories"]["made_up_answers"] == 0


def test_answers_without_ids_have_others_of_the_same_number() -> None:
    with talking(ids=False, tokens=lambda asked: asked - 1) as (url, told):
        records = level(url, IDS)
    assert {len(turn.asked["prompt"]) for turn in told} == {
        SYSTEM + ADDED + turn * (ADDED + OUTPUT - 1) for turn in range(TURNS)
    }
    assert records.notes["histories"]["made_up_answers"] > 0
    prompts = [turn.asked["prompt"] for turn in told]
    later = [prompt for prompt in prompts if len(prompt) > SYSTEM + ADDED]
    begun = [prompt[: SYSTEM + ADDED] for prompt in prompts if len(prompt) == SYSTEM + ADDED]
    assert all(prompt[: SYSTEM + ADDED] in begun for prompt in later)


def test_an_answer_that_comes_whole_is_repeated_too() -> None:
    with talking(stream=False) as (url, told):
        records = level(url, CHAT)
    require_whole_conversations(told, records)


def test_users_think_from_the_end_of_an_answer() -> None:
    with talking(delay_s=0.02) as (url, told):
        records = level(url, IDS, CLOSED | {"duration_s": 0.4}, think_time_s=0.05, think_time_stdev_s=0)
    pauses_ms = [
        (later.came_ns - before.ended_ns) / 1e6 for chain in chains(told) for before, later in pairwise(chain)
    ]
    assert pauses_ms
    assert min(pauses_ms) >= 49
    assert records.turn is not None
    assert records.conversation is not None
    for number in set(records.conversation.tolist()):
        own = records.conversation == number
        assert (records.sent_us[own][1:] - records.done_us[own][:-1] >= 49_000).all()


def test_in_an_open_loop_a_later_turn_is_due_when_its_user_has_thought() -> None:
    with talking(delay_s=0.01) as (url, _):
        records = level(url, IDS, OPEN, think_time_s=0.03, think_time_stdev_s=0)
    assert records.conversation is not None
    assert records.turn is not None
    assert records.dispatch_delay_us is not None
    asked = Load.model_validate(OPEN)
    begun = np.rint(Traffic(asked, None, 3, conversations=source()).arrivals_s(40.0, 5.3) * 1e6)
    first = records.turn == 0
    assert records.sent_us[first].tolist() == begun[records.conversation[first]].tolist()
    for number in set(records.conversation.tolist()):
        own = records.conversation == number
        waited_us = records.sent_us[own][1:] - records.done_us[own][:-1]
        # Whole microseconds; the answer's end is known to a nanosecond.
        assert (abs(waited_us - 30_000) <= 1).all()
    assert (records.dispatch_delay_us >= 0).all()


@pytest.mark.parametrize("load", [CLOSED, OPEN], ids=["closed", "open"])
def test_a_turn_that_fails_ends_its_conversation_and_is_one_failure(load: dict[str, Any]) -> None:
    with talking(lambda turn: len(turn.asked["prompt"]) == SYSTEM + 2 * ADDED + OUTPUT) as (url, told):
        records = level(url, IDS, load)
    assert records.turn is not None
    failed = records.failure == "http_500"
    assert failed.any()
    assert (records.turn[failed] == 1).all()
    assert records.turn.max() == 1, "there is no history to go on from"
    assert set(records.failure[records.turn == 0]) <= {"", "unfinished"}
    assert abs(int(failed.sum()) - sum(turn.failed for turn in told)) <= 4
    if load is CLOSED:
        assert records.conversation is not None
        assert records.conversation.max() >= 4, "users go on with other conversations"


def test_another_level_has_another_system_prompt() -> None:
    with talking() as (url, told):
        level(url, IDS, CLOSED | {"duration_s": 0.05})
        before = len(told)
        level(url, IDS, CLOSED | {"duration_s": 0.05})
    assert told[0].asked["prompt"][:SYSTEM] != told[before].asked["prompt"][:SYSTEM]


def test_an_answer_that_cannot_be_read_costs_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any, **__: Any) -> Any:
        yield
        raise KeyError("what nobody has thought of")

    monkeypatch.setattr(worker_talks, "reading", unreadable)
    with talking() as (url, _):
        records = level(url, IDS)
    assert set(records.failure.tolist()) <= {"", "unfinished"}
    assert records.turn is not None
    assert records.turn.max() == TURNS - 1
    assert records.notes["histories"]["made_up_answers"] > 0
