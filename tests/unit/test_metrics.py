"""Metrics against a naive recount, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.config import Sla
from llmpilot.loadtest import Records
from llmpilot.metrics import (
    cost_per_million_output_tokens,
    last_within_sla,
    meets_sla,
    statistics,
    summarize,
    window_problem,
)
from llmpilot.workload import from_lengths

WINDOW_US = (1_000_000, 5_000_000)

rows = st.lists(
    st.tuples(
        st.integers(0, 6_000_000),  # sent
        st.integers(1, 500_000),  # TTFT
        st.lists(st.integers(0, 300_000), max_size=6),  # gaps
        st.integers(1, 50),  # input tokens
        st.sampled_from(["", "", "", "out_of_memory", "reset"]),
    ),
    min_size=1,
    max_size=30,
)


def records_of(requests: list[tuple[int, int, list[int], int, str]]) -> Records:
    gaps = [gap for _, _, own, _, _ in requests for gap in own]
    counts = [len(own) for _, _, own, _, _ in requests]
    sent = np.array([row[0] for row in requests])
    first = sent + np.array([row[1] for row in requests])
    return Records(
        level=4,
        window_us=WINDOW_US,
        requests=from_lengths([row[3] for row in requests], [len(row[2]) + 1 for row in requests]),
        sent_us=sent,
        first_token_us=first,
        done_us=first + np.array([sum(own) for _, _, own, _, _ in requests]),
        failure=np.array([row[4] for row in requests]),
        gap_us=np.array(gaps, dtype=np.int64),
        gap_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


@given(rows)
@settings(max_examples=200, deadline=None)
def test_summary_equals_a_recount_token_by_token(
    requests: list[tuple[int, int, list[int], int, str]],
) -> None:
    level = summarize(records_of(requests), Sla())
    start, end = WINDOW_US
    window_s = (end - start) / 1e6
    good = [r for r in requests if r[4] == "" and start <= r[0] < end]
    bad = [r for r in requests if r[4] != "" and start <= r[0] < end]
    assert (level["requests_ok"], level["requests_failed"]) == (len(good), len(bad))
    assert sum(level["failures"].values()) == len(bad)
    excluded = sum(level["excluded"].values())
    assert len(good) + len(bad) + excluded == len(requests), "every request is counted or said to be left out"

    tokens = completed = 0
    for sent, ttft, gaps, _, failure in requests:
        if failure:
            continue
        times = [sent + ttft]
        for gap in gaps:
            times.append(times[-1] + gap)
        tokens += sum(start <= t < end for t in times)
        completed += start <= times[-1] < end
    assert level["throughput_tok_s"] == pytest.approx(tokens / window_s)
    assert level["requests_per_s"] == pytest.approx(completed / window_s)

    if good:
        ttft_ms = [r[1] / 1e3 for r in good]
        assert level["ttft_ms"]["p95"] == pytest.approx(np.percentile(ttft_ms, 95), abs=1e-6)
        assert level["nttft_ms"]["mean"] == pytest.approx(
            np.mean([r[1] / 1e3 / r[3] for r in good]), abs=1e-6
        )
        e2e_ms = [(r[1] + sum(r[2])) / 1e3 for r in good]
        assert level["e2e_ms"]["p50"] == pytest.approx(np.median(e2e_ms), abs=1e-6)
    gaps_ms = [gap / 1e3 for r in good for gap in r[2]]
    if gaps_ms:
        assert level["itl_ms"]["p90"] == pytest.approx(np.percentile(gaps_ms, 90), abs=1e-6)
        tpot_ms = [np.mean(r[2]) / 1e3 for r in good if r[2]]
        assert level["tpot_ms"]["p50"] == pytest.approx(np.median(tpot_ms), abs=1e-6)
    else:
        assert level["itl_ms"]["p50"] is None


def test_batch_size_multiplies_tokens_and_gaps() -> None:
    records = records_of([(2_000_000, 100_000, [10_000, 30_000], 7, "")])
    records.requests.batch_size[:] = 3
    level = summarize(records, Sla())
    assert level["throughput_tok_s"] == pytest.approx(9 / 4)
    assert level["input_tok_s"] == pytest.approx(21 / 4)
    assert level["itl_ms"]["mean"] == pytest.approx(20)


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    fast = (2_000_000, 100_000, [10_000], 10, "")
    slow_start = (2_000_000, 4_000_000, [10_000], 10, "")
    slow_tokens = (2_000_000, 100_000, [80_000], 10, "")
    level = summarize(records_of([fast, slow_start, slow_tokens]), Sla(nttft_ms=100, itl_ms=50))
    assert level["goodput_per_s"] == pytest.approx(1 / 4)


def test_nothing_succeeded_gives_nulls_and_breaks_every_sla() -> None:
    level = summarize(records_of([(2_000_000, 100_000, [], 10, "out_of_memory")]), Sla())
    assert level["ttft_ms"]["p50"] is None
    assert level["failure_rate"] == 1
    assert not meets_sla(level, Sla(nttft_ms=None, itl_ms=None, max_failure_rate=1))
    assert cost_per_million_output_tokens(level, 1.0) is None


def test_statistics_do_not_depend_on_the_order_of_values() -> None:
    values = np.random.default_rng(1).exponential(size=10_001)
    assert statistics(values) == statistics(np.sort(values)[::-1])


levels = st.lists(
    st.tuples(st.floats(0.1, 300), st.floats(1, 200), st.sampled_from([0.0, 0.005, 0.02])), min_size=1
)


@given(levels)
def test_u_max_is_the_last_level_before_the_first_that_breaks_the_sla(
    figures: list[tuple[float, float, float]],
) -> None:
    ladder = [
        {
            "level": 2**i,
            "requests_ok": 10,
            "failure_rate": failures,
            **{name: {"p50": 1.0} for name in ("ttft_ms", "tpot_ms", "e2e_ms")},
            "nttft_ms": {"p50": nttft},
            "itl_ms": {"p50": itl},
        }
        for i, (nttft, itl, failures) in enumerate(figures)
    ]
    kept = [nttft <= 100 and itl <= 50 and failures <= 0.01 for nttft, itl, failures in figures]
    expected = kept.index(False) if False in kept else len(kept)
    best = last_within_sla(list(reversed(ladder)), Sla())
    assert best == (ladder[expected - 1] if expected else None)


def test_cost_is_the_price_of_a_million_tokens_at_that_throughput() -> None:
    assert cost_per_million_output_tokens({"throughput_tok_s": 1000.0}, 3.6) == pytest.approx(1.0)


def steady(
    count: int, e2e_us: int = 100_000, failure: str = ""
) -> list[tuple[int, int, list[int], int, str]]:
    """Requests evenly over the window."""
    start, end = WINDOW_US
    return [(start + i * (end - start) // count, e2e_us, [], 8, failure) for i in range(count)]


def test_a_window_of_enough_requests_and_latencies_has_no_problem() -> None:
    assert summarize(records_of(steady(20)), Sla())["window_problem"] is None
    few = summarize(records_of(steady(19)), Sla())["window_problem"]
    assert few.startswith("19 of the requests")
    assert "a p50 wants 20: set load.duration_s=5 or more" in few


def test_a_higher_percentile_wants_more_requests() -> None:
    records = records_of(steady(999))
    assert summarize(records, Sla(percentile=95))["window_problem"] is None
    assert "a p99 wants 1000" in summarize(records, Sla(percentile=99))["window_problem"]


def test_a_window_shorter_than_three_latencies_decides_rates_by_its_edges() -> None:
    assert window_problem(4.0, 500, 4 / 3, Sla()) is None
    problem = window_problem(4.0, 500, 2.0, Sla())
    assert problem is not None
    assert "2.0 mean request latencies" in problem
    assert problem.endswith("load.duration_s=7 or more")


def test_failures_end_requests_but_what_is_unfinished_has_not_ended() -> None:
    assert summarize(records_of(steady(40, failure="http_500")), Sla())["window_problem"] is None
    unfinished = summarize(records_of(steady(40, failure="unfinished")), Sla())["window_problem"]
    assert unfinished.startswith("0 of the requests sent in it ended")
    assert summarize(records_of([(0, 5, [], 8, "")]), Sla())["window_problem"] is not None


@given(st.integers(0, 3000), st.floats(0, 1e4), st.floats(0.01, 1e5), st.sampled_from([50, 90, 95, 99]))
def test_the_proposed_window_would_do(ended: int, e2e_s: float, window_s: float, percentile: int) -> None:
    sla = Sla(percentile=percentile)
    problem = window_problem(window_s, ended, e2e_s, sla)
    if problem is not None and ended:
        longer_s = float(problem.partition("load.duration_s=")[2].split()[0])
        assert longer_s > window_s
        assert window_problem(longer_s, int(ended * longer_s / window_s + 1e-9), e2e_s, sla) is None
