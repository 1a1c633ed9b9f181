"""Conversations of a trace with sessions, worked out by hand, and replayed at their times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmpilot.config import Load
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import ConfigError, TraceError
from llmpilot.loadtest import open_traffic, run_level
from llmpilot.simulator import SteppedService
from llmpilot.simulator.batch import Batch
from llmpilot.simulator.schedulers import VllmRule
from llmpilot.workload import TracedConversations, load_conversations, load_workload, open_trace
from llmpilot.workload.sessions import Sessions, read_sessions

HOLDING = """session,timestamp,input_tokens,output_tokens
a,0,10,5
b,1,20,5
a,4,18,5
,5,7,1
b,6,40,2
a,9,12,4
a,11,16,1
"""
ADDING = """session,timestamp,input_tokens,output_tokens
a,0,10,50
b,1,20,50
a,4,18,50
b,6,40,20
"""


def written(text: str) -> Path:
    path = Path("t.csv")
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sessions(text: str, **given: Any) -> Sessions:
    return read_sessions(open_trace({"path": str(written(text))} | given, timed=True), "trace", until_s=1e9)


def talks(known: Sessions) -> list[tuple[list[int], list[int], list[float]]]:
    source = TracedConversations(known)
    said = [source.conversation(number) for number in range(len(known))]
    return [(t.added_tokens.tolist(), t.output_tokens.tolist(), t.think_s.tolist()) for t in said]


def test_a_turn_adds_what_its_prompt_has_beyond_all_that_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    known = sessions(HOLDING)
    # Three of four later prompts are long enough. The third of session a is not: its history was cut.
    assert known.history_share == 0.75
    assert talks(known) == [
        ([10, 3], [5, 5], [0, 4]),
        ([20, 15], [5, 2], [0, 5]),
        ([7], [1], [0]),
        ([12, 1], [4, 1], [0, 2]),  # a prompt that is all that was said before has one new token
    ]
    assert known.starts_s is not None
    assert known.starts_s.tolist() == [0, 1, 5, 9]
    said = capsys.readouterr().err
    assert "4 conversations, of 1.8 turns" in said
    assert "75% of the later prompts" in said
    assert "are taken to hold it" in said
    source = TracedConversations(known)
    assert source.conversation(0).input_tokens().tolist() == [10, 18]
    assert source.longest_tokens == 42
    assert source.conversation(5).added_tokens.tolist() == [20, 15], "behind the last comes the first again"


def test_prompts_that_hold_no_history_are_what_their_turns_add(capsys: pytest.CaptureFixture[str]) -> None:
    known = sessions(ADDING)
    assert known.history_share == 0
    assert talks(known) == [([10, 18], [50, 50], [0, 4]), ([20, 40], [50, 20], [0, 5])]
    assert "are taken for what each turn adds" in capsys.readouterr().err
    assert TracedConversations(known).conversation(0).input_tokens().tolist() == [10, 78]


def test_drawn_conversations_are_the_traces_own_and_known_by_number() -> None:
    node = {"name": "s", "model": "sessions", "trace": {"path": str(written(HOLDING))}}
    source, again, other = (
        load_conversations(node, 7),
        load_conversations(node, 7),
        load_conversations(node, 8),
    )
    assert source is not None
    assert again is not None
    assert other is not None
    own = {tuple(added) for added, _, _ in talks(sessions(HOLDING))}
    drawn = [tuple(source.conversation(number).added_tokens.tolist()) for number in range(60)]
    assert set(drawn) == own
    assert drawn == [tuple(again.conversation(number).added_tokens.tolist()) for number in range(60)]
    assert drawn != [tuple(other.conversation(number).added_tokens.tolist()) for number in range(60)]
    assert {talk.think_s[-1] for talk in map(source.conversation, range(60)) if len(talk) > 1} == {4, 5, 2}
    assert source.content_hash == other.content_hash == source.reseeded(9).content_hash
    assert source.content_hash != load_conversations(node | {"max_context_tokens": 20}, 7).content_hash  # type: ignore[union-attr]


def test_pauses_and_context_can_be_said() -> None:
    node = {"name": "s", "model": "sessions", "trace": {"path": str(written(ADDING))}}
    source = load_conversations(node | {"think_time_s": 30, "max_context_tokens": 100}, 7)
    assert source is not None
    assert source.longest_tokens == 100
    said = [source.conversation(number) for number in range(500)]
    assert {len(talk) for talk in said} == {1}, "no second turn fits"
    roomy = load_conversations(node | {"think_time_s": 30}, 7)
    assert roomy is not None
    pauses = [roomy.conversation(number).think_s[1] for number in range(2000)]
    assert np.mean(pauses) == pytest.approx(30, rel=0.1)


def test_traces_that_are_no_conversations_are_refused() -> None:
    plain = written("timestamp,input_tokens,output_tokens\n0,10,5\n")
    with pytest.raises(ConfigError) as error:
        load_conversations({"name": "s", "model": "sessions", "trace": {"path": str(plain)}}, 7)
    assert "workload.trace.columns.session=<column>" in str(error.value)
    with pytest.raises(ConfigError, match=r"workload\.trace\.path"):
        load_conversations({"name": "s", "model": "sessions", "trace": {"path": None}}, 7)
    several = "session,timestamp,input_tokens,output_tokens,n\na,0,10,5,2\n"
    with pytest.raises(TraceError, match="one answer"):
        sessions(several, columns={"batch_size": "n"})
    node = {"name": "s", "model": "sessions", "trace": {"path": str(written(HOLDING))}}
    with pytest.raises(ConfigError, match="have nothing in common") as error:
        load_workload(node)
    assert "workload=s" in str(error.value)


class Instant:
    def step_ms(self, batch: Batch) -> float:
        return 1.0


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_replay_begins_conversations_at_their_times_and_keeps_their_pauses(speed: float) -> None:
    load = Load.model_validate(
        {"arrival": "replay", "speedups": [speed], "warmup_s": 0, "duration_s": 4.4, "drain_s": 60}
        | {"trace": {"path": str(written(HOLDING)), "conversations": True}}
    )
    traffic = open_traffic(load, None, 7)
    assert traffic.name == "replay of t.csv"
    assert traffic.unit == "x trace speed"
    rule = VllmRule(max_num_seqs=8, max_num_batched_tokens=512, block_size=16)
    records = run_level(SteppedService(Instant(), rule, 10_000), traffic, speed)
    assert records.conversation is not None
    assert records.turn is not None
    first = records.turn == 0
    assert records.sent_us[first].tolist() == [int(t * 1e6 / speed) for t in (0, 1, 5, 9)][: first.sum()]
    mine = np.flatnonzero(records.conversation == 0)
    assert records.requests.input_tokens[mine].tolist() == [10, 18]
    assert records.sent_us[mine[1]] == pytest.approx(records.done_us[mine[0]] + 4e6, abs=2)


def test_a_replay_of_requests_says_that_the_trace_has_conversations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"arrival": "replay", "speedups": [1], "warmup_s": 0, "duration_s": 4.4, "drain_s": 60}
    trace = {"path": str(written(HOLDING))}
    traffic = open_traffic(Load.model_validate(given | {"trace": trace}), None, 7)
    assert traffic.conversations is None
    assert "load.trace.conversations=true" in capsys.readouterr().err
    whole = open_traffic(Load.model_validate(given | {"trace": trace | {"conversations": True}}), None, 7)
    assert whole.content_hash != traffic.content_hash
    with pytest.raises(ConfigError, match="conversations is not possible"):
        open_traffic(Load.model_validate(given | {"trace": trace | {"conversations": "yes"}}), None, 7)


def test_the_engine_knows_whether_it_finds_prefixes() -> None:
    assert not VllmEngine().finds_prefixes
    assert VllmEngine(enable_prefix_caching=True).finds_prefixes
