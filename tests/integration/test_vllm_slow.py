"""The whole way against vLLM itself (its CPU build will do), with random weights. Takes minutes: -m slow.

Names its command in LLMPILOT_VLLM, or finds `vllm` on PATH; experiments/06_real_engines says how to get it.
"""

import os
import shutil
from pathlib import Path

import httpx
import pytest
from real_servers import alike, measure_level, require_every_token

from llmpilot import catalog
from llmpilot.deploy.process import ProcessDeployment, ServerOutOfMemoryError
from llmpilot.engine.tiny_model import write_hf
from llmpilot.engine.vllm import VllmEngine

BINARY = os.environ.get("LLMPILOT_VLLM") or shutil.which("vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARY, reason="needs vLLM: LLMPILOT_VLLM=.../bin/vllm"),
]

MODEL, GPU = catalog.models()["starcoder"], catalog.gpus()["a100"]
INPUT, OUTPUT = 32, 64
HEAVIEST = INPUT + OUTPUT


@pytest.fixture
def engine(tmp_path: Path) -> VllmEngine:
    write_hf(tmp_path / "tiny")
    return VllmEngine(
        binary=BINARY,
        model_path=str(tmp_path / "tiny"),
        weights="dummy",
        tensor_parallel=1,
        block_size=32,
        enforce_eager=True,
        environment={"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"},
    )


def test_ladder_under_a_small_batch_weight(engine: VllmEngine, tmp_path: Path) -> None:
    """Exact token counts; under a cap of two requests, more of them wait or are preempted."""
    with ProcessDeployment().start(
        engine, MODEL, GPU, 2 * HEAVIEST, heaviest_request_tokens=HEAVIEST, log_path=tmp_path / "server.log"
    ) as endpoint:
        ttft_ms, said = {}, {}
        for users in (1, 16):
            rows = alike((INPUT, OUTPUT))
            records = measure_level(endpoint, users, rows, warmup_s=2, duration_s=10, drain_s=60)
            endpoint.raise_if_ended()
            level = require_every_token(records, users, OUTPUT, "token_ids")
            ttft_ms[users] = level["ttft_ms"]["p50"]
            said[users] = level["server"]
        shown = httpx.get(endpoint.url + engine.metrics.path, trust_env=False).text
    assert ttft_ms[16] > 3 * ttft_ms[1]
    assert said[1]["running"]["max"] == 1
    assert said[1]["waiting"]["max"] == 0 == said[1]["preemptions"]
    assert said[1]["waiting"]["max"] < said[16]["waiting"]["max"] < 16
    assert said[1]["kv_usage"]["max"] < said[16]["kv_usage"]["max"] <= 1
    assert said[16]["preemptions"] > 0
    names = engine.metrics
    for name in (names.running, names.waiting, names.kv_use, names.preemptions, names.tokens):
        assert f"\n{name}{{" in shown
    assert f'num_gpu_blocks="{engine.blocks(2 * HEAVIEST)}"' in shown


def test_too_large_a_weight_is_an_outcome(engine: VllmEngine, tmp_path: Path) -> None:
    with (
        pytest.raises(ServerOutOfMemoryError, match="less than requested memory for kv"),
        ProcessDeployment().start(
            engine,
            MODEL,
            GPU,
            100_000_000,
            heaviest_request_tokens=HEAVIEST,
            log_path=tmp_path / "server.log",
        ),
    ):
        pass
