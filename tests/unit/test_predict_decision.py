"""From predictions to a choice, and from a choice to a score."""

from math import inf, isnan

import numpy as np
import pytest

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.dataset import published
from llmpilot.predict.decision import Choice, Need, choose, users_max
from llmpilot.predict.prediction import Draws, Floats, Prediction
from llmpilot.predict.scores import grid_of, judge, score, truth_of

USERS = (1, 2, 4, 8)
MODEL = catalog.models(["starcoder"])["starcoder"]


def profiles(*prices: float) -> tuple[Gpu, ...]:
    gpu = catalog.gpus(["t4"])["t4"]
    return tuple(
        gpu.model_copy(update={"name": f"G{number}", "price_per_hour": {1: price}})
        for number, price in enumerate(prices)
    )


def prediction(
    itl_ms: Floats, *prices: float, failing: Floats | None = None, draws: bool = False
) -> Prediction:
    """`itl_ms` is [profile, users], or [draw, profile, users] with draws; nTTFT is always 1 ms."""
    itl_ms = np.asarray(itl_ms, dtype=float)
    median = np.median(itl_ms, axis=0) if draws else itl_ms
    joint = Draws(np.ones_like(itl_ms), itl_ms) if draws else None
    return Prediction(
        MODEL, profiles(*prices), USERS, np.ones_like(median), median, failing=failing, draws=joint
    )


def test_u_max_is_the_last_level_before_the_first_that_is_too_slow() -> None:
    within = np.array([[True, True, False, True], [False, True, True, True], [True] * 4])
    assert users_max(within, USERS).tolist() == [2, 0, 8]


def test_takes_the_cheapest_and_the_first_of_equals() -> None:
    need = Need(users=8, itl_ms=50.0)
    slow, fast = [40, 60, 60, 60], [10, 20, 30, 40]
    assert choose(prediction([slow, fast], 1.0, 9.0), need) == Choice(profiles(1.0, 9.0)[0], 8)
    assert choose(prediction([slow, fast], 1.0, 7.0), need) == Choice(profiles(1.0, 7.0)[1], 1)
    equal = choose(prediction([fast, fast], 3.0, 3.0), need)
    assert equal is not None
    assert equal.profile.name == "G0"
    assert choose(prediction([[90] * 4], 1.0), need) is None


def test_counts_predicted_failures_where_asked() -> None:
    failing = np.array([[0.0, 0.0, 0.9, 0.9]])
    said = prediction([[1, 1, 1, 1]], 1.0, failing=failing)
    lenient, strict = Need(8, itl_ms=50.0), Need(8, itl_ms=50.0, count_failures=True)
    assert (choose(said, lenient).pods, choose(said, strict).pods) == (1, 4)  # type: ignore[union-attr]


def test_draws_that_agree_lead_to_the_same_choice_as_the_median() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        latency = np.cumsum(rng.uniform(1, 30, size=(3, 4)), axis=1)
        prices = tuple(rng.uniform(1, 9, size=3).tolist())
        sure = prediction(np.repeat(latency[None], 5, axis=0), *prices, draws=True)
        for users in (1, 5, 8, 40):
            need = Need(users=users, itl_ms=50.0)
            assert choose(sure, need) == choose(prediction(latency, *prices), need)


def test_buys_safety_where_it_is_cheap_and_not_where_it_is_dear() -> None:
    # One pod of the first profile suffices in 60% of the draws, in the others it takes two.
    draws = np.ones((100, 1, 4))
    draws[:40, 0, 3] = 99.0
    need = Need(users=8, itl_ms=50.0)
    assert choose(prediction(draws, 1.0, draws=True), need).pods == 1  # type: ignore[union-attr]
    # A second profile that always suffices and costs a tenth more is worth it.
    both = np.concatenate([draws, np.ones((100, 1, 4))], axis=1)
    assert choose(prediction(both, 1.0, 1.1, draws=True), need).profile.name == "G1"  # type: ignore[union-attr]
    assert choose(prediction(both, 1.0, 9.0, draws=True), need).profile.name == "G0"  # type: ignore[union-attr]
    assert choose(prediction(draws + 99, 1.0, draws=True), need) is None


@pytest.fixture(scope="module")
def data():
    return published()


def test_knowing_the_truth_scores_one(data) -> None:
    needs = grid_of([50, 100, 200], [30, 50, 100], [50, 200, 1000])
    truths = [truth_of(data, name) for name in data.models]
    for need in needs:
        outcomes = [
            judge(choose(Prediction(t.model, t.profiles, t.users, t.nttft_ms, t.itl_ms), need), t, need)
            for t in truths
        ]
        found = score(outcomes)
        assert (found.success_rate, found.overspend, found.so_score, found.efficiency) == (1, 0, 1, 1)


def test_failures_make_deployments_fail(data) -> None:
    truth = truth_of(data, "llama_7b")
    need = Need(users=128, nttft_ms=1e9, itl_ms=1e9)
    lenient, strict = truth.users_max(need), truth.users_max(need.counting_failures())
    assert (strict <= lenient).all()
    at = [gpu.label for gpu in truth.profiles].index("2 x T4")  # 89% of its requests failed at 128 users
    assert lenient[at] == 128
    assert strict[at] < 128


def test_too_few_pods_fail_and_too_many_overspend(data) -> None:
    truth = truth_of(data, "starcoder")
    need = Need(users=200, nttft_ms=100.0, itl_ms=50.0)
    most = truth.users_max(need)
    at = int(np.argmax(most))
    gpu, enough = truth.profiles[at], -(-200 // int(most[at]))
    assert not judge(Choice(gpu, enough - 1), truth, need).success
    assert isnan(judge(Choice(gpu, enough - 1), truth, need).overspend)
    exact, double = (judge(Choice(gpu, pods), truth, need) for pods in (enough, 2 * enough))
    assert exact.success
    assert double.overspend == pytest.approx(2 * (exact.overspend + 1) - 1)
    assert double.efficiency == pytest.approx(exact.efficiency / 2)
    hopeless = Need(users=200, nttft_ms=1e-6, itl_ms=1e-6)
    assert truth.least_cost(hopeless) == inf
    assert judge(None, truth, hopeless).success
    assert not judge(None, truth, need).success
