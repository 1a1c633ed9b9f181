"""Tuning against vLLM itself (its CPU build will do), with random weights. Takes many minutes: -m slow.

Names its command in LLMPILOT_VLLM; experiments/06_real_engines says how to get it.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from llmpilot.engine.tiny_model import write_hf
from llmpilot.workload import fit, from_lengths

BINARY = os.environ.get("LLMPILOT_VLLM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARY, reason="needs vLLM: LLMPILOT_VLLM=.../bin/vllm"),
]
INPUT, OUTPUT = 64, 64
HEAVIEST = INPUT + OUTPUT
BLOCK = 32


def test_the_largest_weight_and_the_best_of_few(run: Run) -> None:
    """Under a weight for one request many wait: more room is better, until memory is refused at start."""
    write_hf(Path("tiny"))
    rng = np.random.default_rng(5)
    shapes = [rng.integers(low, high + 1, 2000) for low, high in ((16, INPUT), (16, OUTPUT))]
    shapes[0][0], shapes[1][0] = INPUT, OUTPUT
    fit(lambda: [from_lengths(*shapes)]).save("short.parquet")
    served = (
        "task=tune", "+gpu=a100", "+model=starcoder", "engine=vllm", "deployment=process",
        f"engine.binary={BINARY}", "engine.model_path=tiny", "engine.weights=dummy",
        "engine.tensor_parallel=1", "engine.block_size=32", "engine.enforce_eager=true",
        "+engine.environment.VLLM_CPU_NUM_OF_RESERVED_CPU=1",
    )  # fmt: skip
    ran = run(
        *served, "workload=file", "workload.model=short.parquet", "load.users=[32]", "load.duration_s=10",
        "load.warmup_s=2", "tuner.users=32", "tuner.upper=8192", "tuner.trials=2", "tuner.repeats=2",
        "tuner.contenders=1", "result_file=r.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    result = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert result["deployments"] <= 5, "of 253 weights that are served differently"
    trials = {trial["max_batch_weight"]: trial for trial in result["trials"]}
    assert all(weight % BLOCK == 0 for weight in trials if weight != HEAVIEST)
    chosen = result["best_max_batch_weight"]
    assert trials[HEAVIEST]["e2e_ms_p50"] > 2 * trials[chosen]["e2e_ms_p50"]
