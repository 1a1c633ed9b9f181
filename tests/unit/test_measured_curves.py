"""Largest loads of measured curves, on curves whose answers follow by hand."""

from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot.dataset.measurements import CLOSED, Measurements
from llmpilot.predict.service.levels import described
from llmpilot.predict.service.measured_curves import Limits, MeasuredCurve, Points, measured_curves

SERVICE = ("an/llm", "vllm", "0.11", "h100", 1, 1, None, None, None, None, "bf16")


def curve(tpot_ms: list[float], ttft_ms: list[float], load: list[float]) -> MeasuredCurve:
    """A curve at concurrencies 1, 4, 16, ..."""
    levels = len(tpot_ms)
    return MeasuredCurve(
        model="an/llm",
        family="llm",
        service=SERVICE,
        gpu="h100",
        n_gpus=1,
        lengths=(1000.0, 100.0),
        mean_output_tokens=100.0,
        concurrency=np.array([4.0**level for level in range(levels)]),
        rows=tuple((row,) for row in range(levels)),
        measured=Points(np.array(tpot_ms), np.array(ttft_ms), np.array(load)),
    )


def most(one: MeasuredCurve, **limits: float) -> float:
    return one.largest_load(Limits(**limits))


@pytest.mark.parametrize(
    ("tpot_ms", "expected"),
    [
        (9.9, 0.0),  # its first level breaks the limit: there is nothing below it
        (10.0, 100.0),
        (10.0 * sqrt(2.0), 200.0),  # half way between two levels, in logarithms
        (20.0, 400.0),
        (80.0, 1600.0),
        (1e6, 1600.0),  # nothing beyond the last level
    ],
)
def test_largest_load_within_a_limit(tpot_ms: float, expected: float) -> None:
    one = curve([10, 20, 80], [100, 200, 400], [100, 400, 1600])
    assert most(one, tpot_ms=tpot_ms) == pytest.approx(expected)


def test_the_tighter_of_two_limits_binds() -> None:
    one = curve([10, 20, 80], [100, 200, 400], [100, 400, 1600])
    assert most(one, tpot_ms=80, ttft_ms=200) == pytest.approx(400)
    assert most(one, tpot_ms=20, ttft_ms=400) == pytest.approx(400)
    assert most(one, tpot_ms=40, ttft_ms=200 * sqrt(2)) == pytest.approx(800)
    assert most(one, tpot_ms=40, ttft_ms=99) == 0.0


def test_a_slow_first_level_does_not_hide_the_others() -> None:
    one = curve([10, 20, 80], [900, 225, 400], [100, 400, 1600])
    assert most(one, ttft_ms=450, tpot_ms=20) == pytest.approx(400)
    # It is within the limit from half way on, where TPOT is at 14.1 ms.
    assert most(one, ttft_ms=450, tpot_ms=14.0) == 0.0


def test_throughput_that_falls_with_load_is_taken_at_its_best() -> None:
    assert most(curve([10, 20, 40], [1, 1, 1], [100, 400, 200]), tpot_ms=40) == pytest.approx(400)


def test_a_curve_of_one_level() -> None:
    one = curve([10], [100], [50])
    assert most(one, tpot_ms=10) == pytest.approx(50)
    assert most(one, tpot_ms=9) == 0.0


def test_equal_latencies_at_two_levels() -> None:
    one = curve([10, 10], [100, 100], [100, 400])
    assert most(one, tpot_ms=10) == pytest.approx(400)
    assert most(one, tpot_ms=9.9) == 0.0


positive = st.floats(1.0, 1e4)


@given(st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=6), positive, positive)
def test_looser_limits_never_carry_less(
    levels: list[tuple[float, float, float]], tpot_ms: float, ttft_ms: float
) -> None:
    one = curve(*(list(column) for column in zip(*levels, strict=True)))
    tight = most(one, tpot_ms=tpot_ms, ttft_ms=ttft_ms)
    for looser in (Limits(tpot_ms * 1.1, ttft_ms), Limits(tpot_ms, ttft_ms * 1.1), Limits(tpot_ms)):
        assert one.largest_load(looser) >= tight * (1 - 1e-9)
    within = [load for tpot, ttft, load in levels if tpot <= tpot_ms and ttft <= ttft_ms]
    assert tight >= max(within, default=0.0) * (1 - 1e-9)
    assert tight <= max(load for *_, load in levels) * (1 + 1e-9)


def table(**columns: object) -> Measurements:
    facts = {
        "source": "s",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "h100",
        "n_gpus": 1,
        "engine": "vllm",
        "engine_version": "0.11",
        "precision": "bf16",
        "input_tokens": 1000,
        "output_tokens": 101,
        "load_kind": CLOSED,
    }
    return Measurements(pd.DataFrame({**facts, **columns}))


def test_rows_make_curves() -> None:
    measurements = table(
        concurrency=[4, 1, 4, 1, 8],
        engine_version=["0.11", "0.11", "0.11", "0.12", "0.11"],
        tpot_ms_mean=[10.0, 5.0, 40.0, 7.0, 50.0],
        ttft_ms_p50=[100.0, 50.0, 400.0, 70.0, np.nan],
        throughput_out_tok_s=[np.nan, np.nan, np.nan, 123.0, np.nan],
    )
    old, new = measured_curves(measurements, described(measurements, {}).levels)
    # By rising concurrency; of two rows of a level the geometric mean; a row without TTFT is left out.
    assert old.concurrency.tolist() == [1, 4]
    assert old.rows == ((1,), (0, 2))
    assert old.measured.tpot_ms == pytest.approx([5, 20])
    assert old.measured.ttft_ms == pytest.approx([50, 200])
    # Not stated: concurrency x output / E2E. Stated: as it is.
    assert old.measured.output_tokens_per_s == pytest.approx([101 / 0.55, 4 * 101 / 2.2])
    assert new.measured.output_tokens_per_s == pytest.approx([123])
    assert old.label == "vllm 0.11 on 1 x h100, bf16"


def test_services_that_differ_in_any_stated_way_are_curves_of_their_own() -> None:
    measurements = table(
        concurrency=[1, 1, 1, 1],
        precision=["bf16", "fp8", "fp8", "fp8"],
        n_gpus=[1, 1, 2, 2],
        input_tokens=[1000, 1000, 1000, 2000],
        tpot_ms_mean=10.0,
        ttft_ms_mean=100.0,
    )
    assert len(measured_curves(measurements, described(measurements, {}).levels)) == 4
