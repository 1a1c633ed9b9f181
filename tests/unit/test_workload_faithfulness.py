"""Faithfulness: the joint model keeps the correlations that independent draws lose."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot.workload import PARAMETERS, Requests, concatenate, fit, from_lengths
from llmpilot.workload.faithfulness import faithfulness, ks_distance, rank_correlations, row_sample


def conversations(n: int) -> Requests:
    """Synthetic traffic with the shape of a chat service: long inputs, answers that grow with them."""
    random = np.random.Generator(np.random.PCG64(11))
    inputs = np.clip(np.exp(random.normal(6.5, 1.0, n)), 2, 14_050).astype(np.int64)
    outputs = np.clip(inputs**0.7 * np.exp(random.normal(0.5, 0.6, n)), 1, 1_000).astype(np.int64)
    return from_lengths(inputs, outputs)


def test_the_joint_model_is_more_faithful_than_independent_draws() -> None:
    trace = conversations(20_000)
    found = faithfulness(trace, fit(lambda: [trace]), 42, 50_000)
    assert found.parameters == ("input_tokens", "output_tokens")
    assert found.constant == tuple(PARAMETERS[2:])
    assert max(found.ks_joint.values()) < 0.03
    assert found.difference_joint < 0.02
    assert found.difference_independent > 0.5
    text = json.dumps(found.as_dict())
    assert "NaN" not in text


def test_constant_traces_have_nothing_to_correlate() -> None:
    trace = from_lengths([5] * 10, [7] * 10)
    found = faithfulness(trace, fit(lambda: [trace]), 1, 100)
    assert found.parameters == ()
    assert (found.difference_joint, found.difference_independent) == (0.0, 0.0)
    assert set(found.ks_joint.values()) == {0.0}


def test_one_sample_is_enough_not_to_fail() -> None:
    trace = conversations(50)
    assert np.isfinite(faithfulness(trace, fit(lambda: [trace]), 1, 1).joint).all()


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_the_distance_is_that_of_its_definition(a: list[int], b: list[int]) -> None:
    x, y = np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)
    expected = max(abs((x <= at).mean() - (y <= at).mean()) for at in range(10))
    assert ks_distance(x, y) == pytest.approx(expected)


def test_rank_correlations_are_those_of_scipy() -> None:
    from scipy.stats import spearmanr

    random = np.random.Generator(np.random.PCG64(1))
    columns = [random.integers(0, 5, 200), random.integers(0, 50, 200), random.integers(0, 500, 200)]
    assert rank_correlations(columns) == pytest.approx(spearmanr(np.stack(columns).T).statistic)


def test_a_row_sample_is_fair_ordered_and_does_not_mind_chunks() -> None:
    rows = from_lengths(np.arange(1, 10_001), np.arange(1, 10_001))
    parts = [rows.take(slice(i, i + 700)) for i in range(0, 10_000, 700)]
    kept = row_sample(parts, 1_000, 4)
    assert len(kept) == 1_000
    assert (np.diff(kept.input_tokens) > 0).all()
    assert kept.input_tokens.mean() == pytest.approx(5_000, rel=0.06)
    assert np.array_equal(kept.input_tokens, row_sample([rows], 1_000, 4).input_tokens)
    assert len(row_sample(parts, 20_000, 4)) == 10_000
    assert len(concatenate([])) == 0


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    from llmpilot.workload import figure

    trace = conversations(500)
    for name, requests in (("many", trace), ("none", from_lengths([5], [7]))):
        path = tmp_path / f"{name}.png"
        figure.save(faithfulness(requests, fit(lambda r=requests: [r]), 1, 500), "a title", path)
        assert path.read_bytes().startswith(b"\x89PNG")
