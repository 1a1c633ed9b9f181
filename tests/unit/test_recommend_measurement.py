"""What a measurement is worth: nothing where nothing is unsure, and most where it tells most."""

import numpy as np
import pytest

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.prediction import Draws, Prediction
from llmpilot.recommendation.measurement import NOISE, _after_measuring, worth_of_measuring
from llmpilot.recommendation.ranking import rank

MODEL = catalog.models(["llama_7b"])["llama_7b"]
USERS = (1, 2, 4, 8)
PAPER = catalog.price_list("paper")
A10, T4, H100 = catalog.gpus(("a10", "t4", "h100"), PAPER).values()
NEED = Need(users=80, itl_ms=40)
RISK = 0.1


def drawn(profiles: tuple[Gpu, ...], itl_ms: np.ndarray) -> Prediction:
    ones = np.ones_like(itl_ms)
    middle = np.median(itl_ms, axis=0)
    return Prediction(MODEL, profiles, USERS, np.ones_like(middle), middle, draws=Draws(ones, itl_ms))


def decide(prediction: Prediction) -> Choice | None:
    best = rank(prediction, NEED, RISK).recommended
    return None if best is None or best.pods is None else Choice(best.profile, best.pods)


def unsure_a10(sigma: float) -> Prediction:
    """An H100 that is sure to take 8 users a pod; an A10 that is far cheaper if it takes them as well. The T4
    is too slow for anything, but as much off as the A10 is."""
    error = np.random.default_rng(1).standard_normal((200, 1)) * sigma
    flat = np.ones((200, len(USERS)))
    a10, t4 = 38 * np.exp(error) * flat, 400 * np.exp(error) * flat
    return drawn((A10, T4, H100), np.stack([a10, t4, 5 * flat], axis=1))


def test_where_nothing_is_unsure_nothing_is_gained() -> None:
    for one in worth_of_measuring(unsure_a10(0.0), NEED, decide, [A10, T4, H100], 0.5):
        assert (one.gain, one.settles) == (0.0, 0.0)


def test_what_tells_about_the_doubtful_profile_is_worth_most() -> None:
    prediction = unsure_a10(0.2)
    assert decide(prediction) == Choice(H100, 10)
    a10, t4, h100 = worth_of_measuring(prediction, NEED, decide, [A10, T4, H100], 0.5)
    # The T4 errs as the A10 does: measuring it tells as much, although it will never be chosen.
    assert a10.gain > 0
    assert t4.gain == pytest.approx(a10.gain, rel=0.25)
    assert h100.gain == 0.0
    assert (t4.cost, a10.cost, h100.cost) == pytest.approx((2.176 / 2, 2.448 / 2, 12.29 / 2))
    # In 6 draws of 10 the A10 keeps the limit, and saves 10 x (12.29 - 2.448) an hour then.
    assert 0.3 < a10.settles < 0.7
    assert 0.3 * 98.42 < a10.gain < 0.7 * 98.42


def test_of_independent_errors_only_the_measured_one_is_learned() -> None:
    rng = np.random.default_rng(2)
    flat = np.ones((200, len(USERS)))
    a10, t4 = (base * np.exp(0.2 * rng.standard_normal((200, 1))) * flat for base in (38, 400))
    prediction = drawn((A10, T4, H100), np.stack([a10, t4, 5 * flat], axis=1))
    on_a10, on_t4 = worth_of_measuring(prediction, NEED, decide, [A10, T4], 0.5)
    assert on_a10.gain > 10 * on_t4.gain


def test_conditioning_agrees_with_the_normal_distribution() -> None:
    """Two profiles with correlated normal errors of one level: the posterior is known in closed form."""
    rng = np.random.default_rng(3)
    sigma, rho, draws = 0.3, 0.8, 4000
    common, own = rng.standard_normal((2, draws))
    seen, other = sigma * common, sigma * (rho * common + np.sqrt(1 - rho**2) * own)
    logs = np.zeros((draws, 2, 2, 1))
    logs[:, 1, 0, 0], logs[:, 1, 1, 0] = seen, other
    share = sigma**2 / (sigma**2 + NOISE**2)
    means, spreads = [], []
    for after in _after_measuring(logs, 0, [1]):
        means.append(after[:, 1, 0, 0].mean())
        spreads.append(after[:, 1, 0, 0].std())
    expected = sigma * np.sqrt(1 - rho**2 * share)
    assert np.allclose(spreads, expected, rtol=0.15)
    assert np.mean(spreads) == pytest.approx(expected, rel=0.1)
    # Their means spread as much as the measurement explains.
    assert np.std(means) == pytest.approx(rho * sigma * np.sqrt(share), rel=0.4)
