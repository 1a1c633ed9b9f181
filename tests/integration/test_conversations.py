"""Conversations from the command line, and what is refused of them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Run
from tracked import client_here, read

from llmpilot import catalog
from llmpilot.config import Load, Sla, Tracking
from llmpilot.dataset.runs import TALKS, collect
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import ConfigError
from llmpilot.loadtest import Traffic, open_traffic, run_level
from llmpilot.metrics import summarize
from llmpilot.tasks.conversing import note_short_warm_up
from llmpilot.workload import load_conversations

CELL = ("+gpu=h100", "+model=llama_3_1_8b", "max_batch_weight=300000", "workload=conversations")
CACHING = "engine.enable_prefix_caching=true"
SHORT = ("load.duration_s=60", "load.warmup_s=20")
SCRIPTED = {"turns": 3, "turns_stdev": 0, "think_time_s": 10, "think_time_stdev_s": 0}
MODEL, GPU = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"], catalog.gpus(["h100"])["h100"]


def traffic(seed: int = 7, **load: object) -> Traffic:
    talks = load_conversations(catalog.option("workload", "conversations"), seed)
    given = {"arrival": "closed", "users": [4], "duration_s": 100.0, "warmup_s": 10.0} | load
    return open_traffic(Load.model_validate(given), None, seed, talks)


def service(weight: int = 300_000):  # type: ignore[no-untyped-def]
    return VllmEngine(enable_prefix_caching=True).service(MODEL, GPU, weight)


def test_users_hold_conversations_one_after_the_other() -> None:
    records = run_level(service(), traffic(), 4)
    assert records.conversation is not None
    assert records.turn is not None
    assert records.cached_tokens is not None
    ok = records.failure == ""
    for user in range(4):
        mine = records.conversation % 4 == user
        numbers = records.conversation[mine]
        assert (np.diff(numbers) >= 0).all()
        assert set(np.diff(numbers).tolist()) <= {0, 4}
        ends, begins = records.done_us[mine & ok][:-1], records.sent_us[mine][1:]
        assert (begins[: len(ends)] >= ends - 1).all(), "a user does one thing at a time"
    source = traffic().conversations
    assert source is not None
    for number in set(records.conversation.tolist()):
        talk, sent = source.conversation(number), records.conversation == number
        assert records.requests.input_tokens[sent].tolist() == talk.input_tokens()[: sent.sum()].tolist()
        pauses = (records.sent_us[sent][1:] - records.done_us[sent][:-1]) / 1e6
        assert pauses == pytest.approx(talk.think_s[1 : sent.sum()], abs=2e-6)


def test_in_an_open_loop_conversations_begin_at_the_arrivals() -> None:
    sent = traffic(arrival="poisson", users=None, rates_per_s=[2.0], duration_s=400.0)
    assert sent.unit == "conversations/s"
    records = run_level(service(), sent, 2.0)
    assert records.turn is not None
    first = records.turn == 0
    assert records.sent_us[first] == pytest.approx(sent.arrivals_s(2.0, 710)[: first.sum()] * 1e6, abs=1)
    window = (records.sent_us >= records.window_us[0]) & (records.sent_us < records.window_us[1])
    per_s = window.sum() / 400
    assert per_s == pytest.approx(2.0 * 2.5, rel=0.15), "requests/s are those of all turns"


def test_a_repeat_of_a_measurement_has_other_conversations() -> None:
    again, other = traffic().requests().take(20), traffic().reseeded(8).requests().take(20)
    assert traffic().requests().take(20).input_tokens.tolist() == again.input_tokens.tolist()
    assert again.input_tokens.tolist() != other.input_tokens.tolist()
    assert traffic().content_hash == traffic().reseeded(8).content_hash


def test_users_are_told_once_how_long_they_think() -> None:
    with pytest.raises(ConfigError, match="think as these say") as error:
        traffic(think_time_s=3)
    assert "workload.think_time_s=3" in str(error.value)


def test_a_prefix_cache_shows_in_what_is_cached_and_in_ttft(run: Run) -> None:
    ran = run(*CELL, CACHING, *SHORT, "load.users=[16]", "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "keeps nothing of a conversation" not in ran.err
    result = read("r.json")
    (level,) = result["levels"]
    assert level["cached_share"] > 0.7
    (kept,) = Path(client_here().download_artifacts(result["run_id"], "")).rglob("*.parquet")
    assert {"conversation", "turn", "cached_tokens"} <= set(pq.read_table(kept).column_names)

    # What is cached differs from turn to turn: no table of measurements has such a level.
    found = collect(Tracking(uri="sqlite:///mlflow.db"), simulated=True)
    assert (len(found.dataset), len(found.measurements.table), found.left_out[TALKS]) == (0, 0, 1)

    forgetful = VllmEngine().service(MODEL, GPU, 300_000)
    records = run_level(forgetful, traffic(42, users=[16], duration_s=60, warmup_s=20), 16)
    cold = summarize(records, Sla())
    assert cold["cached_share"] == 0
    for before, after in zip(cold["turns"][:4], level["turns"][:4], strict=True):
        assert after["ttft_ms"]["p50"] < before["ttft_ms"]["p50"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ("engine=sglang", "engine.enable_prefix_caching=true", "engine.prefix_hit_share=0.5"),
            ["engine.prefix_hit_share=0.5", "its turns decide"],
        ),
        (("engine=tgis", "load.users=[1]", "load.duration_s=2"), ["keeps nothing of a conversation"]),
        (("load.think_time_s=5",), ["workload.think_time_s=5"]),
        (("workload.turns=0",), ["workload.turns"]),
        (("+model=llama_2_7b",), ["llama_2_7b takes 4,096", "workload.max_context_tokens=4096"]),
    ],
)
def test_what_conversations_cannot_have_is_said(run: Run, given: tuple[str, ...], words: list[str]) -> None:
    cell = [key for key in CELL if not (key.startswith("+model") and any("+model" in one for one in given))]
    ran = run(*cell, *given)
    for word in words:
        assert word in ran.err


def test_a_warm_up_that_late_turns_outlast_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    talks = load_conversations(catalog.option("workload", "conversations") | SCRIPTED, 7)
    assert talks is not None
    note_short_warm_up(talks, 19.0)
    assert "load.warmup_s=20" in capsys.readouterr().err
    note_short_warm_up(talks, 20.0)
    assert not capsys.readouterr().err


def test_tasks_that_draw_requests_one_by_one_say_what_comes_nearest(run: Run) -> None:
    ran = run("task=recommend", "+model=llama_3_1_8b", "requests_per_s=5", "workload=conversations")
    assert ran.code == 2
    assert "workload=lengths workload.input_tokens=" in ran.err
    assert "workload.cached_share=0.8" in ran.err


def test_conversations_are_described(run: Run) -> None:
    ran = run("task=workload", "workload=conversations", "result_file=w.json")
    assert ran.code == 0, ran.err
    result = read("w.json")
    assert result["mean"]["turns"] == pytest.approx(2.5, rel=0.05)
    assert result["heaviest_weight_tokens"] == 8192
    assert "tokens were sent before" in ran.out
    refused = run("task=workload", "workload=conversations", "samples_file=s.csv")
    assert refused.code == 2
    assert "turns of conversations are not" in refused.err
