"""Conversations with llama.cpp's real server: its own prompt cache holds what the client says it was sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_servers import alike, measure_level, needs_llamacpp

from llmpilot import catalog
from llmpilot.config import Load
from llmpilot.deploy.process import ProcessDeployment, ProcessEndpoint
from llmpilot.engine.llamacpp import LlamaCppEngine
from llmpilot.loadtest import Traffic, run_level
from llmpilot.workload.conversations import Chat, DrawnConversations

pytestmark = needs_llamacpp

TURNS, ADDED, OUTPUT, SYSTEM, USERS, MOST = 3, 20, 6, 30, 2, 240


@pytest.fixture(scope="module")
def endpoint(gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEndpoint]:
    engine = LlamaCppEngine(model_path=gguf, threads=1, enable_prefix_caching=True)
    model, gpu = catalog.models()["starcoder"], catalog.gpus()["a100"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ProcessDeployment().start(
        engine, model, gpu, USERS * MOST, heaviest_request_tokens=MOST, log_path=Path(log)
    ) as found:
        yield found
        found.raise_if_ended()


@pytest.mark.parametrize("users", [1, USERS])
def test_a_turn_finds_all_that_was_said(endpoint: ProcessEndpoint, users: int) -> None:
    """To the token: the prompt before and its answer, but for the last, from which nothing was computed."""
    facts: dict[str, Any] = {"turns": TURNS, "added_tokens": ADDED, "output_tokens": OUTPUT}
    facts |= {"turns_stdev": 0, "added_stdev_tokens": 0, "output_stdev_tokens": 0}
    facts |= {"system_prompt_tokens": SYSTEM, "max_context_tokens": MOST}
    talks = DrawnConversations(Chat.model_validate(facts), 3)
    load = Load(arrival="closed", users=[users], warmup_s=0.1, duration_s=0.5, drain_s=20)
    records = run_level(endpoint, Traffic(load, None, 3, conversations=talks), users)
    assert set(records.failure) <= {"", "unfinished"}
    assert records.notes["histories"]["made_up_answers"] == 0
    assert records.turn is not None
    assert records.cached_tokens is not None
    ok, turn = records.failure == "", records.turn
    assert set(turn[ok].tolist()) == set(range(TURNS))
    before = SYSTEM + turn * (ADDED + OUTPUT)
    assert (records.requests.input_tokens == before + ADDED).all()
    found, said = records.cached_tokens[ok & (turn > 0)], (before - 1)[ok & (turn > 0)]
    if users == 1:
        assert found.tolist() == said.tolist()
    else:  # a conversation that begins may take the slot of one whose user is about to go on
        assert (found <= said).all()
        assert (found == said).any()


def test_prompts_with_nothing_in_common_find_nothing(endpoint: ProcessEndpoint) -> None:
    records = measure_level(endpoint, USERS, alike((40, 4)), warmup_s=0.1, duration_s=0.3, drain_s=20)
    ok = records.failure == ""
    assert ok.any()
    assert records.cached_tokens is not None
    assert np.median(records.cached_tokens[ok]) == 0
    assert records.cached_tokens[ok].max() <= 2, "an id or two may be the same by chance"
