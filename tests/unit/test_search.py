"""A search finds the most that a service takes: in few levels, and its interval holds what it promises."""

from collections.abc import Callable
from itertools import pairwise
from math import exp, inf, log
from typing import Any

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from llmpilot.boundary import MOST_MARGIN, margin, representative
from llmpilot.config import LATENCIES, STATISTICS, Load, Sla, parse
from llmpilot.errors import ConfigError
from llmpilot.search import (
    MOST_WINDOWS,
    Found,
    Range,
    Seen,
    Step,
    conclude,
    isotonic,
    next_step,
    range_of,
    stated,
)

Service = Callable[[float], float]
USERS = Range(first=1, last=1024, until=0.05, repeats=2, whole=True)
RATES = Range(first=0.5, last=64.0, until=0.05, repeats=2, whole=False)


def searched(service: Service, within: Range, noise: float = 0.0, seed: int = 0) -> list[Seen]:
    random, seen = np.random.default_rng(seed), list[Seen]()
    while (step := next_step(seen, within)) is not None:
        assert step.repeat == sum(one.level == step.level for one in seen)
        assert within.first <= step.level <= within.last
        drawn = service(step.level) + random.normal() * noise / step.windows**0.5
        seen.append(Seen(step.level, float(np.clip(drawn, -MOST_MARGIN, MOST_MARGIN)), step.windows))
        assert len(seen) < 60
    return seen


def in_proportion(most: float) -> Service:
    """A latency that is a fifth of its limit without load, and then grows in proportion to it."""
    return lambda load: -log(0.2 + 0.8 * load / most)


def with_a_queue(most: float) -> Service:
    """A latency that hardly grows until the service is full, and then jumps to twenty times its limit."""
    return lambda load: 0.3 if load <= most else -MOST_MARGIN


@pytest.mark.parametrize("service", [in_proportion, with_a_queue])
@pytest.mark.parametrize("most", [1.5, 7, 40.2, 333, 1000])
def test_without_noise_the_boundary_lies_between_the_last_kept_and_the_first_broken(
    service: Callable[[float], Service], most: float
) -> None:
    seen = searched(service(most), USERS)
    found = conclude(seen, USERS)
    kept, broken = found.boundary.kept, found.boundary.broken
    assert kept is not None
    assert broken is not None
    assert kept <= most < broken
    assert broken - kept <= 1 or broken / kept <= 1.05
    low, high = stated(found, seen, USERS)["interval"]
    assert low <= int(most) <= high
    assert all(sum(one.level == end for one in seen) == 2 for end in (kept, broken))


def test_it_takes_fewer_levels_than_doubling_from_1_to_1024() -> None:
    random = np.random.default_rng(1)
    levels = [
        len({one.level for one in searched(in_proportion(exp(random.uniform(0.5, 6.9))), USERS)})
        for _ in range(100)
    ]
    assert np.mean(levels) < 8
    assert max(levels) < 11, "and a ladder knows the most only to a factor of two"


@pytest.mark.parametrize("within", [USERS, RATES])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(within: Range, noise: float) -> None:
    random, held, windows = np.random.default_rng(7), 0, []
    for seed in range(100):
        most = exp(random.uniform(log(within.first * 1.5), log(within.last / 1.5)))
        steep = random.uniform(0.3, 3)  # how fast the latency grows with the load

        def service(load: float, most: float = most, steep: float = steep) -> float:
            return steep * log(most / load)

        seen = searched(service, within, noise, seed)
        low, high = stated(conclude(seen, within), seen, within)["interval"]
        held += low <= (int(most) if within.whole else most) <= (inf if high is None else high)
        windows.append(len(seen))
    assert held >= 91, "of 100, where 95 are promised: fewer than 91 would be luck once in 40 times"
    assert np.mean(windows) < 11


def test_one_lucky_level_does_not_decide() -> None:
    # 16 is too much, as its neighbours say: that it kept the SLA once was luck.
    margins = {4: 1.0, 8: 0.4, 12: -0.2, 16: 0.1, 24: -0.5, 32: -0.9}
    seen = [Seen(level, margin) for level, margin in margins.items()]
    found = conclude(seen, USERS)
    assert (found.boundary.kept, found.boundary.broken) == (8, 12)
    # And one unlucky one among those that were measured more often.
    seen = [Seen(4, 1.0), Seen(8, -0.1), Seen(12, 0.3), Seen(12, 0.3), Seen(16, -0.5)]
    assert conclude(seen, USERS).boundary.kept == 12


def test_isotonic_regression_is_the_libraries() -> None:
    random = np.random.default_rng(3)
    for n in (1, 2, 5, 12):
        margins, weights = random.normal(size=(4, n)), random.uniform(0.5, 4, n)
        fitted = isotonic(margins, weights)
        for row, expected in zip(fitted, margins, strict=True):
            known = (
                IsotonicRegression(increasing=False)
                .fit(np.arange(n), expected, weights)
                .predict(np.arange(n))
            )
            assert row == pytest.approx(known)
        assert (np.diff(fitted, axis=-1) <= 1e-12).all()


def test_the_ends_of_the_range_are_said_to_be_ends() -> None:
    within = Range(4, 64, 0.05, 2, whole=True)
    seen = searched(lambda _: 1.0, within)
    found = conclude(seen, within)
    assert [one.level for one in seen][-2:] == [64, 64], "the last level is not left to luck either"
    assert found.boundary.meaning(whole=True) == "at_least"
    assert stated(found, seen, within)["interval"] == [64, None]
    seen = searched(lambda _: -1.0, within)
    found = conclude(seen, within)
    assert [one.level for one in seen] == [4, 4]
    assert found.boundary.meaning(whole=True) == "below"
    assert stated(found, seen, within)["interval"] == [0, 3]


def test_without_repeats_the_interval_is_the_bracket_and_says_so() -> None:
    within = Range(1, 1024, 0.05, 1, whole=True)
    seen = searched(in_proportion(40.2), within)
    found = conclude(seen, within)
    assert found.noise is None
    assert (found.low, found.high) == (found.boundary.kept, found.boundary.broken)
    assert len(seen) == len({one.level for one in seen})


def test_rates_are_tried_in_few_digits_and_end_close_together() -> None:
    seen = searched(in_proportion(3.14159), RATES)
    assert all(len(f"{one.level:g}".replace(".", "").lstrip("0")) <= 3 for one in seen)
    levels = sorted({one.level for one in seen})
    assert any(low <= 3.14159 < high and high / low <= 1.05 for low, high in pairwise(levels))


def test_a_level_at_the_boundary_is_measured_for_longer_where_its_window_is_too_short() -> None:
    within = Range(2, 3, 0.05, 1, whole=True)
    seen = [Seen(2, 0.2, 1.0, wanted=2.4), Seen(3, -0.2, 1.0, wanted=50.0)]
    first = next_step(seen, within)
    assert first == Step(2, 1, 3.0)
    seen.append(Seen(2, 0.2, 3.0))
    second = next_step(seen, within)
    assert second == Step(3, 1, MOST_WINDOWS), "what would take all day is named instead"
    seen.append(Seen(3, -0.2, MOST_WINDOWS, wanted=50.0))
    assert next_step(seen, within) is None
    trace = Range(2, 3, 0.05, 1, whole=True, lengthens=False)
    assert next_step(seen[:2], trace) is None, "a trace has no more than it has"


def test_a_search_goes_on_from_what_there_is() -> None:
    seen = searched(in_proportion(77), USERS, 0.05)
    for known in range(len(seen)):
        step = next_step(seen[:known], USERS)
        assert step is not None
        assert step.level == seen[known].level


def level(itl_ms: float | None, failure_rate: float = 0.0, **more: Any) -> dict[str, Any]:
    latencies = {name: dict.fromkeys(STATISTICS, itl_ms) for name in LATENCIES}
    ok = 0 if itl_ms is None else 30
    return {"level": 8, "requests_ok": ok, "failure_rate": failure_rate} | latencies | more


def test_the_margin_is_that_of_the_nearest_limit_and_agrees_with_the_sla() -> None:
    sla = Sla(itl_ms=50, nttft_ms=None, max_failure_rate=0.01)
    assert margin(level(40), sla) == pytest.approx(log(50 / 40))
    assert margin(level(50), sla) == 0
    assert margin(level(60), sla) == pytest.approx(log(50 / 60))
    assert margin(level(40, failure_rate=0.009), sla) == pytest.approx(log(0.01 / 0.009))
    assert margin(level(40, failure_rate=0.02), sla) == pytest.approx(log(0.5))
    assert margin(level(1), sla) == margin(level(0), sla) == MOST_MARGIN
    assert margin(level(None), sla) == -MOST_MARGIN
    none_may_fail = sla.model_copy(update={"max_failure_rate": 0.0})
    assert margin(level(40, failure_rate=0.001), none_may_fail) == -MOST_MARGIN


def test_a_level_stands_for_its_repeats_as_their_mean_judges() -> None:
    def of(*margins: float, seconds: tuple[float, ...] = (60, 60, 60)) -> float:
        measured = [{"sla_margin": one, "duration_s": s} for one, s in zip(margins, seconds, strict=False)]
        return float(representative(measured)["sla_margin"])

    assert of(0.3, -0.1) == 0.3
    assert of(0.1, -0.3) == -0.3
    assert of(0.5, 0.2, -0.1) == 0.2
    assert of(0.3, -0.1, seconds=(60, 240)) == -0.1


def test_a_range_has_two_ends() -> None:
    load = {"arrival": "poisson", "rates_per_s": [0.5, 3, 10], "search": True}
    parsed = parse(Load, load, "load")
    assert range_of(parsed) == Range(0.5, 10, 0.05, 2, whole=False)
    assert parsed.levels == [0.5, 1, 2, 4, 8, 10], "what else climbs a ladder doubles"
    with pytest.raises(ConfigError, match="no range to search"):
        parse(Load, load | {"rates_per_s": [3]}, "load")


def test_what_is_found_says_little_of_nothing() -> None:
    found = conclude([Seen(3, 0.5)], USERS)
    assert isinstance(found, Found)
    assert found.estimate is None
    assert (found.low, found.high) == (3, None)
