"""Arrival times: rates, burstiness, exact reproduction, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.errors import ConfigError, TraceError
from llmpilot.workload import gamma, poisson, replay


@given(st.floats(0.01, 500), st.floats(0.05, 8), st.floats(0.1, 60), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_arrivals_are_sorted_whole_microseconds_within_the_duration(
    rate: float, burstiness: float, duration: float, seed: int
) -> None:
    times = gamma(rate, burstiness, duration, seed)
    assert times.dtype == np.float64
    assert (np.diff(times) >= 0).all()
    assert (times >= 0).all()
    assert (times < duration).all()
    assert np.array_equal(np.rint(times * 1e6) / 1e6, times)
    assert np.array_equal(times, gamma(rate, burstiness, duration, seed))


@pytest.mark.parametrize(("burstiness", "variation"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_rate_and_variation_are_as_promised(burstiness: float, variation: float) -> None:
    times = gamma(50, burstiness, 4000, 3)
    assert len(times) == pytest.approx(200_000, rel=0.02)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)


def test_longer_durations_extend_shorter_ones() -> None:
    assert np.array_equal(poisson(1000, 10, 5)[: len(poisson(1000, 2, 5))], poisson(1000, 2, 5))


def test_burstiness_one_is_poisson() -> None:
    assert np.array_equal(gamma(7, 1.0, 100, 9), poisson(7, 100, 9))


def test_golden_arrivals() -> None:
    assert poisson(10, 1, 42)[:4].tolist() == [0.148702, 0.206484, 0.402099, 0.521622]
    assert gamma(10, 0.25, 2, 42)[:4].tolist() == [0.122102, 0.132325, 0.350524, 0.424163]


def test_rates_far_above_one_per_microsecond_stay_unbiased() -> None:
    assert len(poisson(2e6, 0.5, 1)) == pytest.approx(1e6, rel=0.01)


def test_a_slow_rate_over_a_long_time() -> None:
    assert len(poisson(0.001, 1e6, 1)) == pytest.approx(1000, rel=0.15)
    assert len(poisson(1e-9, 1e6, 1)) == 0


def test_replay_keeps_the_shape_of_the_trace() -> None:
    stamps = np.array([100.0, 100.5, 103.0, 110.0])
    assert replay(stamps, 1, 60).tolist() == [0, 0.5, 3, 10]
    assert replay(stamps, 2, 4).tolist() == [0, 0.25, 1.5]
    assert len(replay(np.array([5.0]), 1, 1)) == 1


@pytest.mark.parametrize("stamps", [[0.0, 2.0, 1.0], [0.0, float("nan")], [float("inf"), 1.0]])
def test_replay_refuses_times_out_of_order(stamps: list[float]) -> None:
    with pytest.raises(TraceError, match=r"in row \d\n.*sort the trace"):
        replay(np.array(stamps), 1, 10)


def test_impossible_arrivals_are_refused() -> None:
    with pytest.raises(TraceError, match="trace has none"):
        replay(np.array([]), 1, 10)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="request rate is not possible"):
            poisson(bad, 1, 1)
        with pytest.raises(ConfigError, match="duration_s is not possible"):
            poisson(1, bad, 1)
        with pytest.raises(ConfigError, match="burstiness is not possible"):
            gamma(1, bad, 1, 1)
        with pytest.raises(ConfigError, match="speedup is not possible"):
            replay(np.array([1.0]), bad, 1)
    with pytest.raises(ConfigError, match="so many requests"):
        poisson(1e9, 3600, 1)
    with pytest.raises(ConfigError, match="23 days"):
        poisson(1e-3, 3e6, 1)
