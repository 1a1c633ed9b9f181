"""The latency promise: numbers at one statistic, or limits on statistics of their own."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot.config import LATENCIES, STATISTICS, Sla, parse
from llmpilot.errors import ConfigError
from llmpilot.loadtest import Records
from llmpilot.metrics import meets_sla, summarize, window_problem
from llmpilot.report.words import conclusion
from llmpilot.sla_overrides import force_statistics
from llmpilot.workload import from_lengths

NO_LIMIT = dict.fromkeys(LATENCIES)


def labels(sla: Sla) -> list[str]:
    return [limit.label for limit in sla.limits]


def records_of(ttft_ms: list[float], gap_ms: float = 10.0) -> Records:
    """Requests of 10 tokens in and 3 out, one sent every 100 ms."""
    n = len(ttft_ms)
    sent_us = np.arange(n) * 100_000
    first_us = sent_us + np.rint(np.array(ttft_ms) * 1e3).astype(np.int64)
    gaps_us = np.full(2 * n, round(gap_ms * 1e3))
    return Records(
        level=1,
        window_us=(0, n * 100_000 + 10_000_000),
        requests=from_lengths([10] * n, [3] * n),
        sent_us=sent_us,
        first_token_us=first_us,
        done_us=first_us + 2 * round(gap_ms * 1e3),
        failure=np.full(n, ""),
        gap_us=gaps_us,
        gap_offsets=np.arange(n + 1) * 2,
    )


def test_a_number_is_a_limit_on_the_statistic_of_the_whole_sla() -> None:
    assert labels(Sla()) == ["nTTFT p50 <= 100 ms", "ITL p50 <= 50 ms"]
    assert labels(Sla(percentile=95, nttft_ms=None)) == ["ITL p95 <= 50 ms"]
    assert labels(Sla(percentile="mean", e2e_ms=9000, nttft_ms=None)) == [
        "ITL mean <= 50 ms",
        "E2E mean <= 9000 ms",
    ]
    assert Sla().model_dump() == {
        "nttft_ms": 100.0, "itl_ms": 50.0, "ttft_ms": None, "tpot_ms": None, "e2e_ms": None,
        "percentile": 50, "max_failure_rate": 0.01,
    }  # fmt: skip


def test_limits_of_its_own_replace_the_number_of_that_latency_alone() -> None:
    sla = parse(Sla, {"itl_ms": {"p99": 80, "p50": 30}, "ttft_ms": {"mean": 500}}, "sla")
    assert labels(sla) == [
        "TTFT mean <= 500 ms", "nTTFT p50 <= 100 ms", "ITL p50 <= 30 ms", "ITL p99 <= 80 ms",
    ]  # fmt: skip
    assert sla == parse(Sla, {"itl_ms": {"p50": 30, "p99": 80}, "ttft_ms": {"mean": 500}}, "sla")
    assert list(sla.model_dump()["itl_ms"].items()) == [("p50", 30.0), ("p99", 80.0)]
    assert Sla.model_validate(sla.model_dump()) == sla
    assert parse(Sla, {"itl_ms": {"p50": None}}, "sla").itl_ms is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"ttft_ms": {"p97": 5}},
            ["sla.ttft_ms.p97 is no statistic", "5", "did you mean 'p9", "p50, p90, p95"],
        ),
        ({"ttft_ms": {95: 5}}, ["sla.ttft_ms.95 is no statistic", "did you mean 'p95'"]),
        ({"ttft_ms": {"p95": -5}}, ["sla.ttft_ms.p95", "-5", "greater than 0"]),
        ({"ttft_ms": {"p95": True}}, ["sla.ttft_ms.p95", "True"]),
        ({"ttft_ms": {"p95": {"x": 1}}}, ["sla.ttft_ms.p95", "greater than 0"]),
        ({"ttft_ms": -5}, ["sla.ttft_ms", "-5", "greater than 0"]),
        ({"ttft_ms": "fast"}, ["sla.ttft_ms", "fast"]),
        ({"ttft_ms": {}}, ["sla.ttft_ms names no statistic", "sla.ttft_ms.p95=1000"]),
        ({"percentile": "median"}, ["sla.percentile", "median", "'mean'"]),
    ],
)
def test_what_is_no_limit_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(Sla, values, "sla")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("ttft_ms", "kept"),
    [
        ({"p50": 120, "p99": 2000}, True),
        ({"p50": 99, "p99": 2000}, False),
        ({"p50": 120, "p99": 500}, False),
        ({"mean": 200}, True),
        ({"mean": 180}, False),
    ],
)
def test_a_level_keeps_all_limits_or_breaks_the_sla(ttft_ms: dict[str, float], kept: bool) -> None:
    sla = Sla.model_validate(NO_LIMIT | {"ttft_ms": ttft_ms})
    level = summarize(records_of([100.0] * 90 + [1000.0] * 10), sla)
    assert meets_sla(level, sla) is kept


def test_a_request_is_good_at_the_largest_limit_of_each_latency() -> None:
    records = records_of([100.0] * 50 + [400.0] * 30 + [3000.0] * 20)
    both = Sla.model_validate(NO_LIMIT | {"ttft_ms": {"p50": 300, "p99": 2000}})
    tight = Sla.model_validate(NO_LIMIT | {"ttft_ms": {"p50": 300}})
    per_s = 1 / 20  # the window lasts 10 s of requests and 10 s more
    assert summarize(records, both)["goodput_per_s"] == pytest.approx(80 * per_s)
    assert summarize(records, tight)["goodput_per_s"] == pytest.approx(50 * per_s)
    # The mean gap of a request is judged by both the limits on ITL and those on TPOT.
    for limits in ({"itl_ms": {"p50": 5, "p95": 20}, "tpot_ms": 9}, {"itl_ms": {"p50": 5, "p95": 9}}):
        sla = Sla.model_validate(NO_LIMIT | limits)
        assert summarize(records, sla)["goodput_per_s"] == 0


@given(st.dictionaries(st.sampled_from(STATISTICS), st.floats(1, 1e4), min_size=1))
def test_the_strictest_percentile_decides_how_many_requests_are_wanted(limits: dict[str, float]) -> None:
    sla = Sla.model_validate(NO_LIMIT | {"e2e_ms": limits})
    highest = max(50 if name == "mean" else int(name[1:]) for name in limits)
    wanted = {50: 20, 90: 100, 95: 200, 99: 1000}[highest]
    assert sla.strictest_percentile == highest
    assert window_problem(1e6, wanted, 1.0, sla) is None
    assert f"a p{highest} wants {wanted}" in str(window_problem(1e6, wanted - 1, 1.0, sla))


def test_an_sla_is_said_shortly_where_all_limits_are_on_one_statistic() -> None:
    assert Sla().label == "nTTFT <= 100 ms, ITL <= 50 ms at p50"
    assert Sla(itl_ms={"p95": 60}).label == "nTTFT p50 <= 100 ms, ITL p95 <= 60 ms"
    assert Sla.model_validate(NO_LIMIT).label == "no latency limit"
    sla = {"ttft_ms": {"p95": 1000}, "percentile": 50, "max_failure_rate": 0.01}
    result = {
        "model": "m", "gpu": None, "sla": sla,
        "cost_per_hour": None, "level_max": 8, "level_unit": "users", "cost_per_million_output_tokens": None,
    }  # fmt: skip
    assert "within the SLA (TTFT <= 1000 ms at p95, failures <= 1.0%)" in conclusion(result)


def test_limits_by_statistic_are_forced_and_nothing_else_is() -> None:
    line = [
        "sla.ttft_ms.p95=1000",
        "+sla.itl_ms={p50: 3}",
        "sla.e2e_ms=9",
        "~sla.tpot_ms",
        "sla.percentile=95",
    ]
    forced = ["++sla.ttft_ms.p95=1000", "++sla.itl_ms={p50: 3}"]
    assert force_statistics(line) == [*forced, *line[2:]]
    with pytest.raises(ConfigError, match="as a number and by statistic"):
        force_statistics(["sla.itl_ms.p95=60", "sla.itl_ms=40"])
