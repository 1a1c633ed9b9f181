"""Conversations with the emulator, whose cache is known: what the client reports is what it held."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from workers_here import in_threads

from llmpilot import catalog
from llmpilot.config import Load, Sla
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.emulator import FixedTiming, Options, example_service, in_process, in_thread
from llmpilot.emulator.service import describe
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.loadtest import Records, Traffic, client, run_level
from llmpilot.metrics import summarize
from llmpilot.simulator import SteppedService
from llmpilot.workload.conversations import Chat, DrawnConversations

TURNS, ADDED, OUTPUT, SYSTEM, PAGE = 4, 21, 30, 100, 16
CLOSED = {"arrival": "closed", "users": [1], "warmup_s": 0.0, "duration_s": 0.5, "drain_s": 5.0}
OPEN = {"arrival": "poisson", "rates_per_s": [30.0], "warmup_s": 0.0, "duration_s": 0.5, "drain_s": 5.0}


def source(**changes: Any) -> DrawnConversations:
    facts = {"turns": TURNS, "added_tokens": ADDED, "output_tokens": OUTPUT, "system_prompt_tokens": SYSTEM}
    facts |= {"turns_stdev": 0, "added_stdev_tokens": 0, "output_stdev_tokens": 0, "max_context_tokens": 4000}
    return DrawnConversations(Chat.model_validate(facts | changes), 3)


def level(url: str, engine: OpenAIEngine, load: dict[str, Any], talks: DrawnConversations) -> Records:
    asked = Load.model_validate(load)
    settings = ClientSettings(workers=1)
    place = HttpEndpoint(url, "starcoder", engine, "vllm", client=settings, vocabulary_size=49152)
    return run_level(place, Traffic(asked, None, 3, conversations=talks), asked.levels[0])


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Records], pa.Table]:
    options = Options(fixed=FixedTiming(ttft_ms=5, itl_ms=1), prefix_cache_tokens=1_000_000)
    with in_thread(example_service(), options) as emulator, pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, "_started", in_threads)
        levels = {
            "alone": level(emulator.url, OpenAIEngine(), CLOSED, source()),
            "chat": level(emulator.url, OpenAIEngine(api="chat"), CLOSED, source()),
            "open": level(emulator.url, OpenAIEngine(), OPEN, source(system_prompt_tokens=0)),
        }
        return levels, emulator.truth()


def whole_pages(tokens: Any) -> Any:
    return tokens // PAGE * PAGE


def test_a_turn_finds_the_one_before(measured: tuple[dict[str, Records], pa.Table]) -> None:
    """One user: a turn finds whole pages of the prompt before it and of its answer, but the last token."""
    records = measured[0]["alone"]
    assert records.turn is not None
    assert records.cached_tokens is not None
    ok, turn = records.failure == "", records.turn
    before = SYSTEM + turn * (ADDED + OUTPUT) - 1
    expected = np.where(turn > 0, whole_pages(before), whole_pages(SYSTEM))
    expected[0] = 0  # nobody has said the system prompt
    assert ok.sum() > TURNS
    assert records.cached_tokens[ok].tolist() == expected[ok].tolist()
    level = summarize(records, Sla())
    for entry in level["turns"][1:]:
        prompt = SYSTEM + ADDED + (entry["turn"] - 1) * (ADDED + OUTPUT)
        assert entry["input_tokens_mean"] == prompt
        assert entry["cached_share"] == pytest.approx(whole_pages(prompt - ADDED - 1) / prompt, abs=1e-6)


def test_messages_of_a_chat_find_what_was_said(measured: tuple[dict[str, Records], pa.Table]) -> None:
    records = measured[0]["chat"]
    assert records.turn is not None
    assert records.cached_tokens is not None
    ok = np.flatnonzero(records.failure == "")
    prompts, cached = records.requests.input_tokens, records.cached_tokens
    checked = 0
    for i in ok[1:]:
        if records.turn[i] > 0:  # one user: the turn before is the row before
            assert cached[i] == whole_pages(prompts[i - 1] + OUTPUT - 1)
            checked += 1
    assert checked > 2


def test_conversations_at_once_find_their_own(measured: tuple[dict[str, Records], pa.Table]) -> None:
    """Without a system prompt there is nothing that conversations could have of each other."""
    records = measured[0]["open"]
    assert records.turn is not None
    assert records.cached_tokens is not None
    ok, turn = records.failure == "", records.turn
    assert (turn == TURNS - 1).any()
    before = np.maximum(0, turn * (ADDED + OUTPUT) - 1)
    assert records.cached_tokens[ok].tolist() == whole_pages(before)[ok].tolist()


def test_the_send_log_says_the_same(measured: tuple[dict[str, Records], pa.Table]) -> None:
    records, truth = measured
    row_of = {name: row for row, name in enumerate(truth["request_id"].to_pylist())}
    logged, lengths = truth["cached_tokens"].to_pylist(), truth["input_tokens"].to_pylist()
    for one in records.values():
        assert one.response_id is not None
        assert one.cached_tokens is not None
        ok = np.flatnonzero(one.failure == "")
        rows = [row_of[str(one.response_id[i])] for i in ok]
        assert one.cached_tokens[ok].tolist() == [logged[row] for row in rows]
        assert one.requests.input_tokens[ok].tolist() == [lengths[row] for row in rows]


def test_simulated_and_emulated_services_agree() -> None:
    """The same conversations in virtual and in real time: what is cached, and what a turn waits for it.

    But for what clients of real engines see later (`simulator.first_token`), which no emulator adds.
    """
    model, gpu = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"], catalog.gpus(["h100"])["h100"]
    caching = describe(model, gpu, VllmEngine(enable_prefix_caching=True), 300_000, (16,))
    assert isinstance(caching.service, SteppedService)
    service = replace(caching.service, first_token=None)
    talks = source(added_tokens=2000, output_tokens=20, system_prompt_tokens=800, max_context_tokens=9000)
    asked = Load.model_validate(CLOSED | {"duration_s": 1.6})
    traffic = Traffic(asked, None, 3, conversations=talks)
    with in_process(replace(caching, service=service), Options()) as emulator:
        settings = ClientSettings(workers=1)
        place = HttpEndpoint(emulator.url, model.name, OpenAIEngine(), "vllm", client=settings)
        real = summarize(run_level(place, traffic, 1), Sla())
    virtual = summarize(run_level(service, traffic, 1), Sla())
    assert len(real["turns"]) == len(virtual["turns"]) == TURNS
    for seen, simulated in zip(real["turns"][1:], virtual["turns"][1:], strict=True):
        # Whole pages, less the last token of an answer in the one and not in the other.
        assert seen["cached_share"] == pytest.approx(simulated["cached_share"], abs=PAGE / 2000)
        # The emulator's machine may be late; its service is not.
        assert seen["ttft_ms"]["p50"] == pytest.approx(simulated["ttft_ms"]["p50"], rel=0.1, abs=15)
    first = real["turns"][0]["ttft_ms"]["p50"]
    assert real["turns"][-1]["ttft_ms"]["p50"] < 1.5 * first, "four times the prompt, a quarter of it new"
