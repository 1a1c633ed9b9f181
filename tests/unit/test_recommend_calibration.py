"""Draws are drawn in towards the median, and what was measured stays as it is."""

import numpy as np
import pytest

from llmpilot import catalog
from llmpilot.predict.prediction import Draws, Prediction
from llmpilot.recommendation.calibration import drawn_in

USERS = (1, 8)


def prediction(draws: Draws | None) -> Prediction:
    model, gpu = catalog.models(["starcoder"])["starcoder"], catalog.gpus(["h100"])["h100"]
    return Prediction(model, (gpu,), USERS, np.array([[2.0, 5.0]]), np.array([[20.0, 40.0]]), draws=draws)


def test_draws_come_nearer_to_the_median_and_it_stays() -> None:
    errors = np.exp(0.4 * np.random.default_rng(1).standard_normal((2000, 1, 2)))
    said = prediction(Draws(np.array([2.0, 5.0]) * errors, np.array([20.0, 40.0]) * errors))
    near = drawn_in(said, 0.5)
    assert near.draws is not None
    for metric, middle in (("nttft_ms", [2.0, 5.0]), ("itl_ms", [20.0, 40.0])):
        logs = getattr(near.draws, metric)
        assert np.median(logs, axis=0)[0] == pytest.approx(middle, rel=0.05)
        assert np.log(logs).std(axis=0)[0] == pytest.approx([0.2, 0.2], rel=0.1)
        assert getattr(near, metric)[0] == pytest.approx(middle)


def test_what_was_measured_stays_certain() -> None:
    exact = np.ones((10, 1, 1))
    said = prediction(Draws(exact * [2.0, 5.0], exact * [20.0, 40.0]))
    near = drawn_in(said, 0.3).draws
    assert near is not None
    assert near.itl_ms == pytest.approx(np.array([20.0, 40.0]) * exact)


def test_a_prediction_without_draws_has_none() -> None:
    assert drawn_in(prediction(None), 0.5).draws is None
