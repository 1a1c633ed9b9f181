"""What one measured level of an LLM says of its others."""

import numpy as np
import pandas as pd
import pytest

from llmpilot.dataset.measurements import CLOSED, Measurements
from llmpilot.predict.service.levels import described
from llmpilot.predict.service.measured_curves import latencies_ms, measured_curves
from llmpilot.predict.service.one_level import after_one_level, level_to_measure
from llmpilot.predict.service.recommended import Expected

USERS = [1, 16, 64]


def rows() -> Measurements:
    """One service on H100 at three levels, then it on B200, and another LLM."""
    n = len(USERS)
    return Measurements(
        pd.DataFrame(
            {
                "model": ["meta-llama/Llama-3.1-8B-Instruct"] * 2 * n + ["Qwen/Qwen3-32B"] * n,
                "gpu": ["h100"] * n + ["b200"] * n + ["h100"] * n,
                "n_gpus": 1,
                "engine": "vllm",
                "engine_version": "0.11",
                "precision": "fp8",
                "input_tokens": 1000,
                "output_tokens": 100,
                "load_kind": CLOSED,
                "concurrency": USERS * 3,
                "tpot_ms_mean": 12.0,
                "ttft_ms_mean": 150.0,
            }
        )
    )


@pytest.fixture(scope="module")
def learnt() -> tuple[Expected, Expected]:
    """Expectations before and after the level at 16 users on H100, which was 20% slower than expected."""
    table = rows()
    n = len(table)
    before = Expected(np.full(n, 10.0), np.full(n, 100.0), np.full(n, 0.14), np.full(n, 0.4))
    tpot, ttft = latencies_ms(table)
    levels = described(table, {}).levels
    return before, after_one_level(before, levels, {(1,): range(6)}, tpot_ms=tpot, ttft_ms=ttft)


def test_a_slow_level_makes_all_of_its_llm_slower_the_nearest_most(
    learnt: tuple[Expected, Expected],
) -> None:
    before, after = learnt
    slower = after.tpot_ms / before.tpot_ms
    assert 1.1 < slower[1] < 1.2
    assert slower[1] > slower[2] > slower[3:6].max()
    assert (slower[3:6] > 1.01).all()
    assert (slower[6:] == 1.0).all()


def test_late_first_tokens_are_learnt_beside_step_times(learnt: tuple[Expected, Expected]) -> None:
    before, after = learnt
    later = after.ttft_ms / before.ttft_ms / (after.tpot_ms / before.tpot_ms)
    assert 1.2 < later[1] < 1.25  # 150/100 beside 12/10
    assert later[1] > later[2] > later[3:6].max() > 1.0


def test_what_was_measured_is_surer(learnt: tuple[Expected, Expected]) -> None:
    before, after = learnt
    for name in ("steps_spread", "first_token_spread"):
        was, now = getattr(before, name), getattr(after, name)
        assert now[1] < now[2] < now[4] < was[4]
        assert (now[6:] == was[6:]).all()


def test_the_level_to_measure_is_near_16_users_of_the_most_measured_service() -> None:
    table = rows()
    dropped = table.select(np.arange(len(table)) != 3)
    llama = [
        one for one in measured_curves(dropped, described(dropped, {}).levels) if one.model.startswith("meta")
    ]
    assert level_to_measure(llama) == (1,)
    assert level_to_measure(llama[1:]) == (3,)
