"""The plan of a study: pure decisions over trials."""

from math import ceil, log
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.tune.plan import (
    BEST,
    FEASIBLE,
    REPEAT,
    Bounds,
    Seen,
    Step,
    Stop,
    Wait,
    answer,
    any_untested,
    boundary,
    is_of_the_weight,
    limit_of,
    next_step,
    noise_of,
)
from llmpilot.tune.settings import Tuner


def trial(
    number: int,
    weight: int,
    value: float | None,
    *,
    question: str = FEASIBLE,
    seed: int = 0,
    part: bool = False,
    ladder: dict[int, float] | None = None,
) -> Seen:
    reason = None if value is not None else "out of memory"
    held = value is not None
    return Seen(number, question, weight, seed, held, reason, value, not part, ladder or {})  # type: ignore[arg-type]


def search(truth: int, bounds: Bounds, tuner: Tuner, value: float = 1.0) -> tuple[list[Seen], Stop]:
    seen: list[Seen] = []
    while isinstance(step := next_step(seen, tuner, bounds, 0), Step):
        weight = step.weight or bounds.lower
        held = value if weight <= truth else None
        part = step.question == FEASIBLE
        seen.append(trial(len(seen), weight, held, question=step.question, seed=step.seed, part=part))
    assert isinstance(step, Stop)
    return seen, step


@given(st.integers(10, 5000), st.floats(1.05, 4000), st.floats(0, 1.1))
@settings(max_examples=200, deadline=None)
def test_bisection_finds_any_boundary_within_the_tolerance(lower: int, ratio: float, where: float) -> None:
    bounds = Bounds(lower, max(lower + 1, int(lower * ratio)))
    truth = int(bounds.lower * (bounds.upper / bounds.lower) ** where)
    seen, stop = search(truth, bounds, Tuner(question="feasible"))
    held, failed = boundary(seen)
    assert held is not None
    assert held <= truth
    assert failed is None or truth < failed
    assert failed is None or failed <= held * 1.02 or failed == held + 1
    assert len(seen) <= 12
    assert len({s.weight for s in seen}) == len(seen)
    assert f"{held:,}" in stop.because


def test_bisection_needs_far_fewer_deployments_than_a_grid() -> None:
    bounds = Bounds(1000, 400_000)
    seen, _ = search(123_456, bounds, Tuner(question="feasible"))
    assert len(seen) <= 11
    assert ceil(log(bounds.upper / bounds.lower) / log(1.02)) > 50


def test_nothing_feasible_says_why() -> None:
    seen, stop = search(5, Bounds(10, 100), Tuner())
    assert len(seen) == 1
    assert "out of memory" in stop.because
    assert answer(seen, Tuner()).weight is None


def test_workers_take_gaps_of_their_own_and_wait_when_there_is_none() -> None:
    tuner, bounds = Tuner(question="feasible"), Bounds(100, 10_000)
    seen = [trial(0, 100, 1.0), trial(1, 10_000, None)]
    weights = set()
    for number in range(2, 6):
        step = next_step(seen, tuner, bounds, 0)
        assert isinstance(step, Step)
        assert step.weight is not None
        weights.add(step.weight)
        seen.append(Seen(number, FEASIBLE, step.weight, 0, None))
    assert len(weights) == 4
    closing = [trial(0, 100, 1.0), trial(1, 10_000, None), trial(2, 1000, 1.0), trial(3, 1030, None)]
    closing.append(Seen(4, FEASIBLE, 1015, 0, None))
    assert next_step(closing, tuner, bounds, 0) == Wait()


def test_stages_follow_each_other_and_stop_for_a_reason() -> None:
    seen, stop = search(500, Bounds(100, 1000), Tuner(trials=8, patience=3, repeats=3))
    questions = [s.question for s in seen]
    assert questions == sorted(questions, key=[FEASIBLE, REPEAT, BEST].index) or questions[-1] == REPEAT
    assert questions.count(BEST) == 3
    assert "3 proposals in a row" in stop.because
    seen, stop = search(500, Bounds(100, 1000), Tuner(trials=2, patience=9))
    assert "all 2 proposals" in stop.because


def test_ties_within_the_noise_go_to_the_larger_weight() -> None:
    tuner = Tuner(repeats=2)
    seen = [trial(0, 100, 50.0), trial(1, 200, 10.0), trial(2, 400, 10.1), trial(3, 800, None)]
    seen += [trial(4, 400, 10.5, seed=1), trial(5, 200, 10.4, seed=1)]
    found = answer(seen, tuner)
    assert found.weight == 400
    assert found.value == pytest.approx(fmean([10.1, 10.5]))
    assert found.noise == noise_of(seen)
    assert 0.02 < (found.noise or 0) < 0.05


def test_a_clear_difference_beats_size_and_directions_count() -> None:
    seen = [trial(0, 100, 50.0), trial(1, 200, 10.0), trial(2, 400, 30.0)]
    assert answer(seen, Tuner()).weight == 200
    assert answer(seen, Tuner(objective="throughput_tok_s")).weight == 100
    assert answer(seen, Tuner(question="feasible")).weight == 400


def test_a_weight_above_a_failed_one_is_not_trusted() -> None:
    seen = [trial(0, 100, 1.0), trial(1, 200, None), trial(2, 400, 1.0)]
    assert boundary(seen) == (100, 200)
    assert answer(seen, Tuner()).weight == 100


@given(st.integers(10, 2000), st.integers(2, 300), st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_bisection_tries_only_weights_that_are_served_differently(step: int, most: int, truth: int) -> None:
    bounds = Bounds(step, most * step, step)
    seen, _ = search(truth * step, bounds, Tuner(question="feasible", tolerance=1e-6))
    assert all(s.weight % step == 0 for s in seen)
    assert boundary(seen)[0] == min(truth, most) * step
    assert len({s.weight for s in seen}) == len(seen)


def test_a_part_of_the_measurement_is_no_value_of_the_objective() -> None:
    seen = [trial(0, 100, 50.0, part=True), trial(1, 400, 1.0, part=True), trial(2, 800, None)]
    step = next_step(seen, Tuner(tolerance=1), Bounds(100, 800), 0)
    assert step == Step(REPEAT, 400, 0)
    assert answer(seen, Tuner(question="feasible")).value == 1.0
    seen += [trial(3, 400, 10.0, question=REPEAT), trial(4, 200, 2.0, question=BEST, part=True)]
    assert answer(seen, Tuner()).weight == 400, "what was given up is not chosen"
    assert answer(seen, Tuner()).value == 10.0


def test_costs_are_compared_at_the_same_users() -> None:
    tuner = Tuner(objective="cost_per_million_output_tokens", prune_beyond=0.5)
    best = trial(0, 400, 2.0, question=REPEAT, ladder={1: 20.0, 8: 4.0, 64: 2.0})
    worse = trial(1, 200, 3.0, question=BEST, ladder={1: 20.0, 8: 3.0})
    limit = limit_of([worse, best], tuner)
    assert (limit(1), limit(8), limit(32)) == (30.0, 6.0, None)
    for other in ({"prune_beyond": None}, {"objective": "e2e_ms.p50"}):
        assert limit_of([worse, best], tuner.model_copy(update=other))(1) is None
    assert limit_of([], tuner)(1) is None


def test_it_ends_when_every_weight_is_measured() -> None:
    bounds = Bounds(100, 300, 100)
    seen, stop = search(1000, bounds, Tuner(repeats=1))
    assert "gained nothing" in stop.because or "every weight" in stop.because
    seen = [trial(n, w, 1.0) for n, w in enumerate((100, 200, 300))]
    assert not any_untested(seen, bounds, 300)
    assert any_untested(seen[:2], bounds, 300)
    stop = next_step(seen, Tuner(repeats=1), bounds, 0)  # type: ignore[assignment]
    assert "every weight that is served differently is measured" in stop.because


def test_a_failure_to_start_tells_of_a_weight_only_above_one_that_held() -> None:
    assert not is_of_the_weight([], 100), "it may be the same for all"
    assert not is_of_the_weight([trial(0, 100, None)], 400), "nothing has held"
    held = [trial(0, 100, 1.0), trial(1, 300, 1.0)]
    assert is_of_the_weight(held, 400)
    assert not is_of_the_weight(held, 300), "it held under this very one"
    assert not is_of_the_weight(held, 200), "it held under a larger one"
    assert not is_of_the_weight(held[:1], 100)
