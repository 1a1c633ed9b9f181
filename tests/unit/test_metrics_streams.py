"""Streams that show no latency are named and meet no SLA on one; sound ones are left alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot.config import LATENCIES, Sla
from llmpilot.loadtest import Records
from llmpilot.metrics import last_within_sla, meets_sla, problem_of, summarize
from llmpilot.workload import from_lengths

WINDOW_US = (0, 10_000_000)
ONLY_E2E = Sla(nttft_ms=None, itl_ms=None, e2e_ms=5_000)
TTFT_AND_TPOT = Sla(nttft_ms=None, itl_ms=None, ttft_ms=5_000, tpot_ms=500)
LIMITED_ALL = Sla(**dict.fromkeys(LATENCIES, 1e6))


def records_of(answers: list[list[int]], ttft_us: int = 200_000, **columns: Any) -> Records:
    """One request for each list of gaps [us]."""
    counts = [len(gaps) for gaps in answers]
    sent_us = np.arange(len(answers)) * 1_000
    first_us = sent_us + ttft_us
    return Records(
        level=1,
        window_us=WINDOW_US,
        requests=from_lengths([10] * len(answers), [count + 1 for count in counts]),
        sent_us=sent_us,
        first_token_us=first_us,
        done_us=first_us + np.array([sum(gaps) for gaps in answers]),
        failure=np.full(len(answers), ""),
        gap_us=np.array([gap for gaps in answers for gap in gaps], dtype=np.int64),
        gap_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        **columns,
    )


def level_of(answers: list[list[int]], sla: Sla | None = None) -> dict[str, Any]:
    return summarize(records_of(answers), Sla() if sla is None else sla)


def test_answers_in_one_piece_show_when_they_ended_and_nothing_else() -> None:
    held_back = level_of([[0, 0, 0]] * 3 + [[20_000] * 3])
    assert held_back["streams"] == {
        "one_piece_share": 0.75,
        "short_gap_share": 0.75,
        "not_shown": ["ttft_ms", "nttft_ms", "itl_ms", "tpot_ms"],
    }
    assert "75% of the answers with several tokens came in one piece" in held_back["stream_problem"]
    assert "proxy_buffering off" in held_back["stream_problem"]
    assert held_back["stream_problem"].endswith("sla.e2e_ms=<ms> sla.nttft_ms=null sla.itl_ms=null")
    assert held_back["ttft_ms"]["p50"] == 200.0, "the figures stay as they are"
    assert not meets_sla(held_back, Sla())
    assert held_back["goodput_per_s"] == 0
    assert last_within_sla([held_back], Sla()) is None


def test_an_sla_on_what_is_shown_is_judged_as_ever() -> None:
    held_back = level_of([[0, 0, 0]] * 4, ONLY_E2E)
    assert "sla." not in held_back["stream_problem"]
    assert meets_sla(held_back, ONLY_E2E)
    assert held_back["goodput_per_s"] == pytest.approx(0.4)
    bursts = level_of([[0, 0, 40_000, 0]] * 4, TTFT_AND_TPOT)
    assert bursts["streams"]["not_shown"] == ["itl_ms"]
    assert meets_sla(bursts, TTFT_AND_TPOT)
    assert bursts["goodput_per_s"] == pytest.approx(0.4)


def test_what_a_proxy_cuts_into_pieces_a_few_microseconds_apart_is_one_piece() -> None:
    assert level_of([[0, 3, 0, 250, 0, 8]])["streams"]["one_piece_share"] == 1
    assert level_of([[99, 99]])["streams"]["one_piece_share"] == 1
    assert level_of([[100, 100]])["stream_problem"] is None


def test_bursts_hide_percentiles_of_itl_and_show_its_mean() -> None:
    bursts = level_of([[0, 0, 40_000, 0, 0, 40_000]] * 2)
    assert bursts["streams"]["one_piece_share"] == 0
    assert "67% of the gaps between tokens are below 0.1 ms" in bursts["stream_problem"]
    assert bursts["stream_problem"].endswith("Limit what can be seen: sla.tpot_ms=<ms> sla.itl_ms=null")
    assert not meets_sla(bursts, Sla())
    assert bursts["goodput_per_s"] == 0
    mean = Sla(nttft_ms=None, itl_ms={"mean": 50})
    assert bursts["itl_ms"]["mean"] == pytest.approx(40 / 3)
    assert meets_sla(bursts, mean)
    assert not meets_sla(bursts, Sla(nttft_ms=None, itl_ms={"mean": 50, "p99": 50}))


def test_sound_streams_are_left_alone() -> None:
    fast = level_of([[1_000, 900, 1_100] * 20] * 5)
    single_tokens = level_of([[]] * 20)
    half = level_of([[0, 40_000, 0, 40_000]] * 5)
    pairs_among_singles = level_of([[0]] * 2 + [[]] * 10 + [[20_000]] * 2)
    for level in (fast, single_tokens, half, pairs_among_singles):
        assert level["stream_problem"] is None
        assert level["streams"]["not_shown"] == []
        assert meets_sla(level, Sla())
    assert single_tokens["streams"]["one_piece_share"] is None


def test_single_tokens_show_when_they_came_beside_pairs_in_one_piece() -> None:
    level = level_of([[0]] * 2 + [[]] * 10)
    assert level["streams"]["not_shown"] == ["itl_ms", "tpot_ms"]
    assert "so ITL and TPOT say nothing" in level["stream_problem"]
    assert meets_sla(level, Sla(itl_ms=None))


def test_failed_requests_and_those_outside_the_window_do_not_count() -> None:
    records = records_of([[0, 0]] * 5 + [[20_000, 20_000]])
    records.failure[:5] = "reset"
    assert summarize(records, Sla())["stream_problem"] is None
    nothing = records_of([[0, 0]])
    nothing.failure[:] = "reset"
    assert summarize(nothing, Sla())["stream_problem"] is None


def test_levels_of_one_kind_share_one_sentence() -> None:
    levels = [level_of([[0, 0]] * n + [[30_000, 30_000]]) for n in (3, 9)]
    assert str(problem_of(levels, Sla())).startswith("75% to 90% of the answers")


gaps = st.lists(st.sampled_from([0, 50, 99, 100, 5_000, 40_000]), max_size=5)


@given(st.lists(gaps, min_size=1, max_size=8))
def test_what_is_not_shown_follows_from_the_shares(answers: list[list[int]]) -> None:
    level = level_of(answers, LIMITED_ALL)
    several = [gaps for gaps in answers if gaps]
    one_piece = [gaps for gaps in several if sum(gaps) / len(gaps) < 100]
    flat = [gap for gaps in several for gap in gaps]
    short = [gap for gap in flat if gap < 100]
    expected: list[str] = []
    if len(one_piece) * 2 > len(answers):
        expected = ["ttft_ms", "nttft_ms", "itl_ms", "tpot_ms"]
    elif len(one_piece) * 2 > len(several):
        expected = ["itl_ms", "tpot_ms"]
    elif len(short) * 2 > len(flat):
        expected = ["itl_ms"]
    assert level["streams"]["not_shown"] == expected
    assert (level["stream_problem"] is None) == (not expected)
    assert meets_sla(level, LIMITED_ALL) == (not expected)
    assert (level["goodput_per_s"] == 0) == bool(expected)
