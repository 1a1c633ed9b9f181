"""What must hold of the one rule of decision, whatever pods take."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmpilot.predict.decision import CERTAINTY_WORTH, LEAST_CERTAINTY, Deployments, decide

DRAWS, OPTIONS = 20, 4
capacities = arrays(np.float64, (DRAWS, OPTIONS), elements=st.floats(0, 100).map(lambda x: round(x, 2)))
prices = arrays(np.float64, OPTIONS, elements=st.floats(0.5, 20).map(lambda x: round(x, 2)))
loads = st.floats(0.5, 500)
risks = st.sampled_from([0.05, 0.1, 0.3, 0.5])


def cost(found: Deployments, price: np.ndarray) -> float:
    return float("inf") if found.best is None else float(found.pods[found.best] * price[found.best])


@settings(max_examples=200)
@given(capacities, prices, loads, loads, risks)
def test_more_load_never_costs_less(
    capacity: np.ndarray, price: np.ndarray, load: float, more: float, risk: float
) -> None:
    assert cost(decide(capacity, price, load + more, risk), price) >= cost(
        decide(capacity, price, load, risk), price
    )


@settings(max_examples=200)
@given(capacities, prices, loads, risks, st.floats(1, 3))
def test_a_looser_sla_never_costs_more(
    capacity: np.ndarray, price: np.ndarray, load: float, risk: float, looser: float
) -> None:
    assert cost(decide(capacity * looser, price, load, risk), price) <= cost(
        decide(capacity, price, load, risk), price
    )


@settings(max_examples=200)
@given(capacities, prices, loads, risks, st.tuples(st.integers(0, OPTIONS - 1), st.floats(0.1, 1)))
def test_a_cheaper_price_never_costs_more(
    capacity: np.ndarray, price: np.ndarray, load: float, risk: float, change: tuple[int, float]
) -> None:
    which, share = change
    lower = price.copy()
    lower[which] *= share
    assert cost(decide(capacity, lower, load, risk), lower) <= cost(
        decide(capacity, price, load, risk), price
    )


@settings(max_examples=200)
@given(capacities, prices, loads, st.one_of(st.none(), risks))
def test_an_option_is_judged_by_itself_and_more_of_them_never_cost_more(
    capacity: np.ndarray, price: np.ndarray, load: float, risk: float | None
) -> None:
    all_of_them, some = decide(capacity, price, load, risk), decide(capacity[:, :2], price[:2], load, risk)
    assert some.pods.tolist() == all_of_them.pods[:2].tolist()
    assert some.probability.tolist() == all_of_them.probability[:2].tolist()
    if risk is not None:
        assert cost(all_of_them, price) <= cost(some, price[:2])
    else:  # what is paid for a promise that is kept
        assert all_of_them.score.min() <= some.score.min()


@settings(max_examples=200)
@given(capacities, prices, loads, risks)
def test_what_is_taken_keeps_the_promise_with_what_is_said(
    capacity: np.ndarray, price: np.ndarray, load: float, risk: float
) -> None:
    found = decide(capacity, price, load, risk)
    for option in range(OPTIONS):
        pods = int(found.pods[option])
        if not pods:
            continue
        kept = float((pods * capacity[:, option] >= load * (1 - 1e-9)).mean())
        assert kept == pytest.approx(found.probability[option])
        assert kept >= 1 - risk - 1e-9
        fewer = float(((pods - 1) * capacity[:, option] >= load * (1 - 1e-9)).mean()) if pods > 1 else 0.0
        assert fewer < 1 - risk


def test_without_a_risk_price_and_certainty_are_weighed() -> None:
    """One pod does in 60 of 100 draws, two always: certainty is worth 1.4 times the price, and not twice."""
    unsure = np.where(np.arange(100) < 60, 10.0, 6.0)[:, None]
    sure = np.full((100, 1), 10.0)
    assert 0.6**-CERTAINTY_WORTH < 2.0
    assert decide(unsure, np.array([1.0]), 10.0).pods.tolist() == [1]
    both = np.concatenate([unsure, sure], axis=1)
    assert decide(both, np.array([1.0, 1.4]), 10.0).best == 1
    assert decide(both, np.array([1.0, 1.6]), 10.0).best == 0
    assert decide(both, np.array([1.0, 9.0]), 10.0, risk=0.1).pods.tolist() == [2, 1]


def test_nothing_will_do() -> None:
    assert decide(np.zeros((5, 2)), np.ones(2), 1.0).best is None
    assert decide(np.zeros((5, 0)), np.ones(0), 1.0).best is None
    assert decide(np.ones((5, 1)), np.ones(1), 10.0, most_pods=np.array([9.0])).best is None
    assert decide(np.ones((5, 1)), np.ones(1), 10.0, most_pods=np.array([10.0])).best == 0


@pytest.mark.parametrize(("within", "option"), [(9, None), (10, 0), (11, 0)])
def test_nothing_is_recommended_where_no_size_is_likely_enough(within: int, option: int | None) -> None:
    assert LEAST_CERTAINTY == 0.5
    capacity = np.zeros((20, 2))
    capacity[:within, 0] = 10.0
    capacity[:5, 1] = 1000.0
    found = decide(capacity, np.array([100.0, 1000.0]), 100.0)
    assert found.best == option
    assert found.pods.tolist() == [10, 1]  # each option's own figures stay
    # Who states a risk is taken at their word.
    assert decide(capacity, np.array([100.0, 1000.0]), 100.0, risk=0.75).best == 0


def test_nothing_is_recommended_where_likely_sizes_are_too_many_pods() -> None:
    capacity = np.array([[10.0], [10.0], [1.0], [1.0], [1.0]])
    at_most = [decide(capacity, np.ones(1), 10.0, most_pods=np.array([most])).best for most in (9.0, 10.0)]
    assert at_most == [None, 0]
