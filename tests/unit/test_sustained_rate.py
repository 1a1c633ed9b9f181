"""The largest rate that a service sustains in open loop."""

from dataclasses import replace

import pandas as pd
import pytest

from llmpilot.dataset.measurements import CLOSED, Measurements
from llmpilot.predict.service.levels import Level, described
from llmpilot.predict.service.sustained import delivered_rate_per_s, sustained_rate_per_s, sustains
from llmpilot.simulator.step_times import OperatorStepTimes


@pytest.fixture(scope="module")
def level() -> Level:
    row = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "h100",
        "n_gpus": 1,
        "engine": "vllm",
        "load_kind": CLOSED,
        "concurrency": 8,
        "input_tokens": 500,
        "output_tokens": 100,
        "max_num_seqs": 32,
    }
    (found,) = described(Measurements(pd.DataFrame([row])), {}).levels
    return found


@pytest.fixture(scope="module")
def rate(level: Level) -> float:
    return sustained_rate_per_s(level, OperatorStepTimes(level.service, {}))


def test_below_it_requests_settle_and_above_it_they_pile_up(level: Level, rate: float) -> None:
    times = OperatorStepTimes(level.service, {})
    assert sustains(level, times, rate)
    assert sustains(level, times, 0.5 * rate)
    assert not sustains(level, times, 1.1 * rate)


def test_it_is_more_than_what_is_delivered_where_all_march_in_step(level: Level, rate: float) -> None:
    # All prompts first, then all decoding: steps that mix both are the shorter way.
    delivered = delivered_rate_per_s(level, OperatorStepTimes(level.service, {}))
    assert delivered < rate < 1.5 * delivered


def test_steps_twice_as_long_halve_it_and_the_row_s_own_load_does_not_count(
    level: Level, rate: float
) -> None:
    times = OperatorStepTimes(level.service, {})
    assert sustained_rate_per_s(level, times.scaled(2.0)) == pytest.approx(rate / 2, rel=0.03)
    other = replace(level, users=2.0)
    assert sustained_rate_per_s(other, times) == rate
