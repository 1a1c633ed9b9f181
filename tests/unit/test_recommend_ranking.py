"""From a prediction to a ranking: hand-worked cases, and what must hold for any prediction."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.predict.decision import Need
from llmpilot.predict.prediction import Draws, Prediction
from llmpilot.recommendation.ranking import drawn_users_max, rank

MODEL = catalog.models(["llama_7b"])["llama_7b"]
USERS = (1, 2, 4, 8)
PAPER = catalog.price_list("paper")
A10, A100, H100 = catalog.gpus(("a10", "a100", "h100"), PAPER).values()
"""$2.448, $4.09625 and $12.29 an hour."""


def prediction(profiles: tuple[Gpu, ...], itl_ms: object, **more: object) -> Prediction:
    itl = np.asarray(itl_ms, dtype=float)
    return Prediction(MODEL, profiles, USERS, np.ones_like(itl), itl, **more)  # type: ignore[arg-type]


def drawn(profiles: tuple[Gpu, ...], itl_ms: object) -> Prediction:
    """Return a prediction from draws of the ITL [draw, profile, users]; nTTFT is always 1 ms."""
    itl = np.asarray(itl_ms, dtype=float)
    return prediction(profiles, np.median(itl, axis=0), draws=Draws(np.ones_like(itl), itl))


def test_without_uncertainty_the_cheapest_that_keeps_the_limit_comes_first() -> None:
    slow, fast = [10, 20, 40, 80], [10, 11, 12, 13]
    ranking = rank(prediction((A10, H100), [slow, fast]), Need(users=20, itl_ms=40), risk=0.1)
    first, second = ranking.options
    assert ranking.recommended is first
    # 4 users a pod at exactly 40 ms: 5 pods of $2.448; the H100 takes 8, so 3 pods of $12.29.
    assert (first.profile, first.pods, first.users_per_pod, first.users_max) == (A10, 5, 4, 4)
    assert first.cost_per_hour == pytest.approx(5 * 2.448)
    assert first.itl_ms == 40
    assert (first.p_sla, first.itl_ms_interval) == (1.0, None)
    # 20 users on 3 pods are 7 on the fullest: between the levels 4 and 8 the line decides.
    assert (second.pods, second.users_per_pod, second.users_max) == (3, 7, 8)
    assert second.itl_ms == pytest.approx(12 + 3 / 4)
    assert second.reason == "too dear: +$24.63/h (+201%)"


def test_the_limit_is_crossed_between_two_levels() -> None:
    ranking = rank(prediction((A10,), [[10, 20, 40, 80]]), Need(users=100, itl_ms=60), risk=0.1)
    (option,) = ranking.options
    assert (option.users_max, option.pods, option.users_per_pod) == (6, 17, 6)
    assert option.itl_ms == pytest.approx(60)


def test_the_level_of_risk_decides_between_cheap_and_sure() -> None:
    """The A10 keeps the limit with 4 users in 7 draws of 10, the A100 always."""
    itl = [[[10, 10, 30 if draw < 7 else 90, 90], [10, 10, 20, 90]] for draw in range(10)]
    need = Need(users=4, itl_ms=30)
    bold = rank(drawn((A10, A100), itl), need, risk=0.3)
    assert bold.recommended is not None
    assert (bold.recommended.profile, bold.recommended.pods, bold.recommended.p_sla) == (A10, 1, 0.7)
    careful = rank(drawn((A10, A100), itl), need, risk=0.29)
    assert careful.recommended is not None
    assert (careful.recommended.profile, careful.recommended.p_sla) == (A100, 1.0)
    dear = careful.options[1]
    assert (dear.profile, dear.pods, dear.users_per_pod, dear.p_sla) == (A10, 2, 2, 1.0)
    assert dear.itl_ms_interval == pytest.approx((10, 10))


def test_intervals_hold_eight_draws_of_ten() -> None:
    itl = [[[level, level, level, level]] for level in range(1, 102)]
    (option,) = rank(drawn((A10,), itl), Need(users=1, itl_ms=500), risk=0.1).options
    assert option.itl_ms == 51
    assert option.itl_ms_interval == pytest.approx((11, 91))
    assert option.nttft_ms_interval == pytest.approx((1, 1))


def test_services_that_lose_requests_do_not_keep_the_sla() -> None:
    failing = np.array([[0.0, 0.05, 0.5, 1.0]])
    itl = np.full((200, 1, 4), 10.0)
    tight = drawn((A10,), itl)
    tight = Prediction(MODEL, (A10,), USERS, tight.nttft_ms, tight.itl_ms, failing, tight.draws)
    need = Need(users=8, itl_ms=30, count_failures=True)
    (counted,) = rank(tight, need, risk=0.1).options
    assert (counted.users_max, counted.p_sla) == (2, 0.95)
    (ignored,) = rank(tight, Need(users=8, itl_ms=30), risk=0.1).options
    assert (ignored.users_max, ignored.p_sla) == (8, 1.0)


def test_where_nothing_will_do_the_nearest_is_named() -> None:
    itl = [[[50, 60, 70, 80], [35 + draw, 60, 70, 80]] for draw in range(10)]
    unfit = [(H100, "does not fit: too small")]
    ranking = rank(drawn((A10, A100), itl), Need(users=4, itl_ms=40), 0.1, unfit)
    assert ranking.recommended is None
    assert "a probability of 90% or more: nearest comes 1 x A100-40GB" in ranking.reason
    nearest, far, out = ranking.options
    assert (nearest.profile, nearest.p_sla, nearest.feasible, nearest.pods) == (A100, 0.6, False, None)
    assert nearest.cost_per_hour is None
    assert nearest.reason == "too slow: with one user ITL 39.5 ms (35.9 to 43.1), limit 40; P(SLA) 0.60"
    assert (far.profile, far.p_sla) == (A10, 0.0)
    assert (out.profile, out.reason, out.itl_ms) == (H100, "does not fit: too small", None)


def test_equally_cheap_the_surer_comes_first() -> None:
    twin = A10.model_copy(update={"name": "twin"})
    itl = [[[10, 10, 10, 31 if draw == 0 else 29], [10, 10, 10, 29]] for draw in range(20)]
    ranking = rank(drawn((A10, twin), itl), Need(users=8, itl_ms=30), risk=0.1)
    assert [option.profile.name for option in ranking.options] == ["twin", "A10"]
    assert ranking.options[1].reason == "no dearer than 1 x twin, but less sure"


@pytest.mark.parametrize(
    ("price", "said"),
    [
        (2.448 * (1 + 1e-12), "no dearer than 1 x A10, and no surer either"),
        (2.45, "too dear: +$0.002/h (less than 1%)"),
        (2.458, "too dear: +$0.01/h (less than 1%)"),
        (2.5, "too dear: +$0.05/h (+2%)"),
    ],
)
def test_prices_that_hardly_differ_are_told_apart_or_called_equal(price: float, said: str) -> None:
    twin = A10.model_copy(update={"name": "twin", "price_per_hour": {1: price}})
    ranking = rank(prediction((A10, twin), [[10, 11, 12, 13]] * 2), Need(users=8, itl_ms=30), risk=0.1)
    assert [option.profile.name for option in ranking.options] == ["A10", "twin"]
    assert ranking.options[1].reason == said


def test_a_price_that_is_less_by_rounding_does_not_beat_the_surer() -> None:
    """Three pods of 0.1 come to a little more than one of 0.3."""
    thirds, whole = (
        A10.model_copy(update={"name": name, "price_per_hour": {1: price}})
        for name, price in (("thirds", 0.1), ("whole", 0.3))
    )
    assert 3 * thirds.cost_per_hour > whole.cost_per_hour
    itl = [[[10, 10, 90, 90], [10, 10, 10, 90 if draw == 0 else 10]] for draw in range(20)]
    ranking = rank(drawn((thirds, whole), itl), Need(users=6, itl_ms=30), risk=0.1)
    assert [(option.profile.name, option.pods) for option in ranking.options] == [("thirds", 3), ("whole", 1)]
    assert ranking.options[1].reason == "no dearer than 1 x thirds, but less sure"


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    seed, sigma = draw(st.integers(0, 10_000)), draw(st.floats(0.0, 0.6))
    rng = np.random.default_rng(seed)
    profiles = tuple(catalog.gpu_profiles()[: draw(st.integers(1, 12))])
    shape = (40, len(profiles), len(USERS))
    base = rng.uniform(5, 60, (len(profiles), 1)) * np.array(USERS) ** rng.uniform(0, 1, (len(profiles), 1))
    itl, nttft = (base * np.exp(sigma * rng.standard_normal(shape)) for _ in range(2))
    failing = np.sort(rng.uniform(0, 0.5, (len(profiles), len(USERS))), axis=1)
    return Prediction(MODEL, profiles, USERS, base, base, failing, Draws(nttft, itl))


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(1, 300), st.sampled_from([0.02, 0.1, 0.3]), st.booleans())
def test_what_holds_for_any_prediction(
    said: Prediction, users: int, risk: float, count_failures: bool
) -> None:
    need = Need(users=users, nttft_ms=80, itl_ms=50, count_failures=count_failures)
    ranking = rank(said, need, risk)
    feasible = [option for option in ranking.options if option.feasible]
    assert {option.profile.label for option in ranking.options} == {gpu.label for gpu in said.profiles}
    assert list(ranking.options[: len(feasible)]) == feasible
    assert ranking.recommended is (feasible[0] if feasible else None)
    for cheap, dear in pairwise(feasible):
        assert cheap.cost_per_hour is not None
        assert dear.cost_per_hour is not None
        assert round(cheap.cost_per_hour, 4) <= round(dear.cost_per_hour, 4)  # [$]: the rest is rounding
        assert dear.reason
    for option in feasible:
        assert option.pods is not None
        assert option.users_per_pod is not None
        assert option.pods * option.users_per_pod >= users > (option.pods - 1) * option.users_per_pod
        assert option.users_per_pod <= option.users_max <= USERS[-1]
        assert option.p_sla >= 1 - risk
    for option in ranking.options[len(feasible) :]:
        assert option.p_sla < 1 - risk
        assert option.reason.startswith("too slow")
    bolder = rank(said, need, risk * 1.5).recommended
    if ranking.recommended is not None:
        assert bolder is not None
        assert bolder.cost_per_hour is not None
        assert bolder.cost_per_hour <= (ranking.recommended.cost_per_hour or 0)


@settings(max_examples=30, deadline=None)
@given(predictions())
def test_users_max_is_the_last_count_on_the_line_before_a_limit(said: Prediction) -> None:
    """Every user count tried in turn, on lines between the levels."""
    need = Need(users=1, nttft_ms=80, itl_ms=50)
    most = drawn_users_max(said, need)
    assert said.draws is not None
    for draw, profile in np.ndindex(*most.shape):
        count = 0
        for users in range(1, USERS[-1] + 1):
            nttft = np.interp(users, USERS, said.draws.nttft_ms[draw, profile])
            itl = np.interp(users, USERS, said.draws.itl_ms[draw, profile])
            if nttft > 80 or itl > 50:
                break
            count = users
        assert most[draw, profile] == count
