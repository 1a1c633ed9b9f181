"""The whole way against llama.cpp's real server, which we start and stop, on a tiny random StarCoder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from real_servers import (
    InLittleMemory,
    alike,
    measure_level,
    needs_llamacpp,
    require_every_token,
    waits_per_service,
)

from llmpilot import catalog, metrics
from llmpilot.config import Sla
from llmpilot.deploy.process import (
    ProcessDeployment,
    ProcessEndpoint,
    ServerDiedError,
    ServerOutOfMemoryError,
)
from llmpilot.engine.llamacpp import LlamaCppEngine
from llmpilot.loadtest import Records
from llmpilot.workload import Requests

pytestmark = needs_llamacpp

MODEL, GPU = catalog.models()["starcoder"], catalog.gpus()["a100"]
INPUT, OUTPUT = 24, 16
HEAVIEST = INPUT + OUTPUT
SLOTS = 2


@pytest.fixture(scope="module")
def endpoint(gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEndpoint]:
    engine, log = LlamaCppEngine(model_path=gguf, threads=1), tmp_path_factory.mktemp("log") / "server.log"
    weight = SLOTS * HEAVIEST
    with ProcessDeployment().start(
        engine, MODEL, GPU, weight, heaviest_request_tokens=HEAVIEST, log_path=log
    ) as found:
        yield found
        found.raise_if_ended()


def measure(endpoint: ProcessEndpoint, users: int, rows: Requests) -> Records:
    return measure_level(endpoint, users, rows, warmup_s=0.4, duration_s=1.5, drain_s=20)


def test_ladder(endpoint: ProcessEndpoint) -> None:
    """Every token is counted, and users beyond the slots wait for one."""
    assert endpoint.dialect == "llamacpp"
    assert endpoint.vocabulary_size == 512  # of the model that is served, not of the facts
    for users in (1, 4, 16):
        records = measure(endpoint, users, alike((INPUT, OUTPUT)))
        level = require_every_token(records, users, OUTPUT, "timings")
    # Fourteen others go before, two at a time: seven times another's service. Without a cap there is no wait.
    assert waits_per_service(level) > 2


def test_sampling_and_several_sequences(endpoint: ProcessEndpoint) -> None:
    sampled = replace(
        alike((INPUT, OUTPUT), 2000),
        batch_size=np.full(2000, 2),
        greedy=np.zeros(2000, np.bool_),
        temperature=np.full(2000, 0.8),
        top_k=np.full(2000, 20),
        top_p=np.full(2000, 0.9),
    )
    records = measure(endpoint, 2, sampled)
    assert set(records.failure) <= {"", "unfinished"}
    assert (records.failure == "").any()


def test_metrics_are_called_what_the_engine_says(endpoint: ProcessEndpoint) -> None:
    assert endpoint.started_by is not None
    names = endpoint.started_by.metrics
    text = httpx.get(endpoint.url + names.path, trust_env=False).text
    for name in (names.running, names.waiting, names.tokens):
        assert f"\n{name} " in text


def test_error_in_the_middle_of_an_answer_is_a_failure(gguf: str, tmp_path: Path) -> None:
    """In one context for all slots, requests that no longer fit fail after a 200 and some tokens."""
    engine = LlamaCppEngine(model_path=gguf, threads=1, unified_kv=True, slots=12)
    with ProcessDeployment().start(
        engine, MODEL, GPU, 512, heaviest_request_tokens=108, log_path=tmp_path / "server.log"
    ) as endpoint:
        records = measure(endpoint, 12, alike((8, 100), 2000))
        endpoint.raise_if_ended()
    failed = records.failure == "error_in_stream"
    assert failed.any()
    level = metrics.summarize(records, Sla())
    assert level["failures"]["error_in_stream"] > 0
    assert level["failure_rate"] > 0
    tokens = np.diff(records.gap_offsets) + 1
    assert (tokens[records.failure == ""] == 100).all()
    assert (tokens[failed] < 100).all()
    assert (records.first_token_us[failed] >= 0).any()


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"this is no model")
    engine = LlamaCppEngine(model_path=str(tmp_path / "bad.gguf"))
    with (
        pytest.raises(ServerDiedError, match="has ended, with exit code 1") as died,
        ProcessDeployment().start(
            engine, MODEL, GPU, 80, heaviest_request_tokens=40, log_path=tmp_path / "server.log"
        ),
    ):
        pass
    assert "magic" in str(died.value) or "load" in str(died.value)


def test_too_large_a_weight_is_an_outcome(gguf: str, tmp_path: Path) -> None:
    engine, heaviest = InLittleMemory(model_path=gguf, threads=1), 200_000
    weight = 200 * heaviest
    with (
        pytest.raises(ServerOutOfMemoryError, match="the llamacpp server ran out of memory: ") as outcome,
        ProcessDeployment().start(
            engine, MODEL, GPU, weight, heaviest_request_tokens=heaviest, log_path=tmp_path / "server.log"
        ),
    ):
        pass
    assert "max_batch_weight" in outcome.value.cure
