"""Recommendations for measured LLMs, and how they are judged, on menus whose answers follow by hand."""

from dataclasses import replace
from math import inf, isnan, prod

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_measured_curves import curve

from llmpilot.predict.decision import decide
from llmpilot.predict.service.measured_curves import Limits
from llmpilot.predict.service.recommended import (
    Forecast,
    Menu,
    Outcome,
    by_margin,
    drawn_loads,
    forecast,
    judge,
    menus,
    recommended,
    score,
    true_loads,
)

ANY = Limits(tpot_ms=20)
# Of one token a request, which is there with the first: throughput follows from TTFT alone.
SMALL = replace(curve([10, 20], [10, 10], [100, 400]), mean_output_tokens=1.0)
LARGE = replace(curve([5, 20], [10 / 3, 10 / 3], [300, 1200]), mean_output_tokens=1.0, n_gpus=2)
MENU = Menu((SMALL, LARGE), np.array([1.0, 2.5]))


def right(menu: Menu, steps_spread: float = 0.0, first_token_spread: float = 0.0) -> list[Forecast]:
    """Predictions whose middle is what was measured."""
    spreads = (steps_spread, first_token_spread)
    return [forecast(one, one.measured.tpot_ms, one.measured.ttft_ms, *spreads) for one in menu.curves]


def said(menu: Menu, capacity: list[float], load: float, limits: Limits = ANY) -> Outcome:
    deployments = decide(np.array([capacity]), menu.price_per_hour, load, 0.0)
    return judge(menu, deployments, true_loads(menu, limits), limits, load)


def test_truth_is_the_largest_measured_load() -> None:
    assert true_loads(MENU, ANY) == pytest.approx([400, 1200])
    assert true_loads(MENU, Limits(9)) == pytest.approx([0, 300 * 4 ** (np.log(9 / 5) / np.log(4))])
    assert true_loads(MENU, Limits(4)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("load", "option", "pods", "cost"),
    [(100, 0, 1, 1.0), (400, 0, 1, 1.0), (401, 0, 2, 2.0), (801, 1, 1, 2.5), (12000, 1, 10, 25.0)],
)
def test_who_knows_the_truth_pays_the_least_possible(
    load: float, option: int, pods: int, cost: float
) -> None:
    found = said(MENU, [400, 1200], load)
    assert (found.option, found.pods) == (MENU.curves[option].label, pods)
    assert found.cost_per_hour == found.least_cost_per_hour == cost
    assert (found.kept, found.overspend) == (True, 0.0)


def test_too_few_pods_are_not_kept() -> None:
    found = said(MENU, [600, 0], 600)
    assert (found.option, found.pods, found.kept) == (SMALL.label, 1, False)
    assert isnan(found.overspend)


def test_more_than_needed_is_kept_and_overspends() -> None:
    found = said(MENU, [0, 600], 1200)
    assert (found.pods, found.cost_per_hour, found.least_cost_per_hour) == (2, 5.0, 2.5)
    assert (found.kept, found.overspend) == (True, 1.0)


def test_an_option_that_cannot_is_not_kept_in_any_number() -> None:
    found = said(MENU, [1, 0], 100, Limits(9))
    assert found.pods == 100
    assert not found.kept


def test_where_nothing_can_only_nothing_is_right() -> None:
    nothing, something = said(MENU, [0, 0], 100, Limits(4)), said(MENU, [400, 0], 100, Limits(4))
    assert (nothing.option, nothing.kept, nothing.overspend) == (None, True, 0.0)
    assert nothing.least_cost_per_hour == inf
    assert not something.kept
    silent = said(MENU, [0, 0], 100)
    assert (silent.option, silent.kept) == (None, False)


def test_draws_slow_a_curve_down_as_a_whole() -> None:
    (drawn,) = drawn_loads(right(MENU, steps_spread=0.5), [ANY])
    small = np.sort(drawn[:, 0])
    # Half of the draws are slower than expected. Those over twice as slow have no level left.
    assert np.median(small) == pytest.approx(400, rel=0.02)
    assert (small == 0).mean() == pytest.approx(0.083, abs=0.003)
    # The fastest have nothing but their last level, which is as much faster.
    assert small[-1] == pytest.approx(400 * np.exp(0.5 * 3.09), rel=0.01)


def test_first_tokens_that_come_late_do_not_slow_steps_down() -> None:
    late = right(MENU, first_token_spread=1.0)
    free, bound = drawn_loads(late, [ANY, Limits(20, 20)])
    assert (free > 0).all()
    assert (bound[:, 0] == 0).mean() == pytest.approx(0.244, abs=0.003)  # over twice as late


def test_sure_predictions_are_never_broken_and_cost_the_least() -> None:
    limits = [Limits(tpot, ttft) for tpot in (4, 9, 15, 20, 40) for ttft in (1, 5, 100)]
    outcomes = recommended(MENU, right(MENU), limits, [10, 1000, 1e5], [None, 0.1])
    for some in outcomes.values():
        assert len(some) == 45
        assert {(one.kept, one.overspend) for one in some} == {(True, 0.0)}
    without_margin = by_margin(MENU, right(MENU), limits, [10, 1000, 1e5], 1.0)
    assert [(one.option, one.pods) for one in without_margin] == [
        (one.option, one.pods) for one in outcomes[0.1]
    ]


def test_a_margin_slows_all_predictions_down() -> None:
    (found,) = by_margin(MENU, right(MENU), [Limits(20)], [400], 1.25)
    # At 1.25 times its step times the small one takes 400/1.25^3 tokens/s, the large one 768.
    assert (found.option, found.pods) == (SMALL.label, 2)
    assert found.overspend == 1.0


def test_menus_are_by_llm_and_lengths_and_leave_out_what_has_no_price() -> None:
    other = replace(SMALL, lengths=(8000.0, 100.0))
    llm = replace(SMALL, model="another/llm")
    found = menus([SMALL, LARGE, other, llm, replace(SMALL, gpu="tpu")], {"h100": {1: 2.0, 4: 8.0}})
    assert [(menu.model, menu.lengths[0], len(menu.curves)) for menu in found] == [
        ("an/llm", 1000.0, 1),
        ("an/llm", 8000.0, 1),
        ("another/llm", 1000.0, 1),
    ]
    assert found[0].price_per_hour.tolist() == [2.0]


def test_score_is_the_harmonic_mean_of_kept_and_thrift() -> None:
    outcomes = [
        said(MENU, [400, 0], 400),  # kept, +0%
        said(MENU, [200, 0], 400),  # kept, +100%
        said(MENU, [600, 0], 600),  # broken
        said(MENU, [0, 0], 1, Limits(4)),  # nothing can
    ]
    found = score(outcomes)
    assert (found.settings, found.kept, found.nothing_can) == (4, 0.75, 0.25)
    assert found.overspend == pytest.approx(1 / 3)
    assert found.overspend_median == 0.0
    assert found.so_score == pytest.approx(2 * 0.75 * (2 / 3) / (0.75 + 2 / 3))


rising = st.lists(st.floats(1.02, 3.0), min_size=0, max_size=4)


@given(rising, rising, st.floats(5, 200), st.floats(50, 2000))
def test_what_is_predicted_is_read_as_the_truth_is(
    slower: list[float], later: list[float], tpot_ms: float, ttft_ms: float
) -> None:
    """Of a curve whose latencies rise, the largest load of a right prediction is the true one."""
    levels = min(len(slower), len(later)) + 1
    tpot = np.array([10 * prod(slower[:at]) for at in range(levels)])
    ttft = np.array([100 * prod(later[:at]) for at in range(levels)])
    one = curve(tpot.tolist(), ttft.tolist(), [1.0] * levels)
    load = one.output_tokens_per_s(tpot, ttft)
    assume((np.diff(load) > 0).all())
    one = replace(one, measured=replace(one.measured, output_tokens_per_s=load))
    limits = Limits(tpot_ms, ttft_ms)
    (found,) = drawn_loads([forecast(one, tpot, ttft, 0.0, 0.0)], [limits], np.zeros(2))
    assert found[:, 0] == pytest.approx(one.largest_load(limits))
