"""What a measurement is worth: nothing where nothing is unsure, and most where it tells most."""

from dataclasses import replace

import numpy as np
import pytest

from llmpilot.recommendation.settle import NOISE, Floats, Stakes, _after_measuring, worth_of_measuring

PRICES = np.array([2.448, 2.176, 12.29])
LOAD = 80.0
DRAWS = 200


STAKES = Stakes(PRICES, LOAD, 0.1)


def unsure(sigma: float, *, alike: bool = True) -> Floats:
    """An A10 that takes 8 users or, if it is slow, 1; a T4 that takes hardly any but errs as the A10 does; an
    H100 that is sure to take 8."""
    rng = np.random.default_rng(1)
    error = sigma * rng.standard_normal(DRAWS)
    other = error if alike else sigma * rng.standard_normal(DRAWS)
    a10, t4 = 9.0 * np.exp(2 * error), 0.1 * np.exp(2 * other)
    return np.stack([a10, t4, np.full(DRAWS, 8.0)], axis=1)


def test_where_nothing_is_unsure_nothing_is_gained() -> None:
    for one in worth_of_measuring(unsure(0.0), STAKES, [0, 1, 2]):
        assert (one.gain, one.settles) == (0.0, 0.0)


def test_what_tells_about_the_doubtful_option_is_worth_most() -> None:
    capacity = unsure(0.8)
    assert STAKES.choice(capacity) == (2, 10)
    a10, t4, h100 = worth_of_measuring(capacity, STAKES, [0, 1, 2])
    # The T4 errs as the A10 does: measuring it tells as much, although it will never be chosen.
    assert a10.gain > 0
    assert t4.gain == pytest.approx(a10.gain, rel=0.25)
    assert h100.gain == 0.0
    assert 0.2 < a10.settles < 0.9


def test_a_measurement_that_could_only_lead_to_more_gpus_than_there_may_be_is_worth_nothing() -> None:
    capacity = unsure(0.8)
    assert worth_of_measuring(capacity, STAKES, [0])[0].gain > 0
    # An A10 that takes 1 to 40 users: no draw needs fewer than 2 pods of it.
    capped = replace(STAKES, most_pods=np.array([1.0, 100.0, 100.0]))
    assert worth_of_measuring(np.minimum(capacity, 40.0), capped, [0])[0].gain == 0.0


def test_of_independent_errors_only_the_measured_one_is_learned() -> None:
    on_a10, on_t4 = worth_of_measuring(unsure(0.8, alike=False), STAKES, [0, 1])
    assert on_a10.gain > 3 * on_t4.gain


def test_conditioning_agrees_with_the_normal_distribution() -> None:
    """Two options with correlated normal errors: the posterior is known in closed form."""
    rng = np.random.default_rng(3)
    sigma, rho, draws = 0.3, 0.8, 4000
    common, own = rng.standard_normal((2, draws))
    seen, other = sigma * common, sigma * (rho * common + np.sqrt(1 - rho**2) * own)
    share = sigma**2 / (sigma**2 + NOISE**2)
    after = [np.log(moved[:, 0]) for moved in _after_measuring(np.exp(np.stack([seen, other], 1)), 0, [1])]
    expected = sigma * np.sqrt(1 - rho**2 * share)
    assert np.mean([one.std() for one in after]) == pytest.approx(expected, rel=0.1)
    # Their means spread as much as the measurement explains.
    assert np.std([one.mean() for one in after]) == pytest.approx(rho * sigma * np.sqrt(share), rel=0.4)


def test_an_option_that_takes_nothing_stays_so() -> None:
    capacity = unsure(0.8)
    capacity[:, 1] = 0.0
    moved = _after_measuring(capacity, 0, [0, 1, 2])
    assert all((one[:, 1] == 0).all() for one in moved)


def test_what_may_take_nothing_does_not_outweigh_all() -> None:
    """A third of the draws take nothing at all: no measurement then saves more than a few pods."""
    rng = np.random.default_rng(0)
    capacity = np.where(rng.random(DRAWS) < 0.35, 0.0, LOAD * np.exp(rng.normal(0.0, 0.3, DRAWS)))[:, None]

    (worth,) = worth_of_measuring(capacity, Stakes(PRICES[:1], LOAD), [0])
    assert 0 < worth.gain < 2 * PRICES[0]
    assert worth.settles >= 1 / 3
