"""Lengths, thoughts, hidden tokens, cached prompts and turns: records made by hand, figures known by hand."""

from dataclasses import replace

import numpy as np
import pytest
from test_metrics_streams import records_of

from llmpilot.config import Sla
from llmpilot.loadtest import Records
from llmpilot.metrics import summarize

GAPS = [[20_000] * 9] * 4  # four answers of ten tokens, over 10 s


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def asking(records: Records, *output_tokens: int) -> Records:
    records.requests.output_tokens[:] = output_tokens
    return records


def test_answers_as_long_as_asked_for_are_faithful() -> None:
    assert summarize(records_of(GAPS), Sla())["fidelity"] == {
        "output_tokens_asked": 10,
        "output_tokens_received": 10,
        "ended_early_share": 0,
        "longer_share": 0,
        "input_tokens_asked": 10,
        "input_tokens_counted": None,
        "problem": None,
    }


def test_answers_that_end_early_or_go_on_are_another_workload() -> None:
    found = summarize(asking(records_of(GAPS), 10, 64, 64, 4), Sla())["fidelity"]
    assert (found["output_tokens_asked"], found["output_tokens_received"]) == (35.5, 10)
    assert (found["ended_early_share"], found["longer_share"]) == (0.5, 0.25)
    assert found["problem"].startswith("answers had 10.0 tokens on average where 35.5 were asked for; 50%")
    longer = summarize(asking(records_of(GAPS), 5, 5, 10, 10), Sla())["fidelity"]
    assert longer["problem"].endswith("50% of them were longer")


def test_a_difference_of_five_percent_is_tolerated() -> None:
    gaps = [[20_000] * 99] * 4
    assert summarize(asking(records_of(gaps), 105, 105, 105, 105), Sla())["fidelity"]["problem"] is None
    assert summarize(asking(records_of(gaps), 106, 106, 106, 106), Sla())["fidelity"]["problem"]


def test_prompts_are_compared_where_the_server_counts_them() -> None:
    asked, counted = ints(10, 20, 30, 40), ints(12, -1, 36, -1)
    records = records_of(GAPS, asked_input_tokens=asked, counted_input_tokens=counted)
    found = summarize(records, Sla())["fidelity"]
    assert (found["input_tokens_asked"], found["input_tokens_counted"]) == (20, 24)
    assert (
        found["problem"] == "prompts had 24.0 tokens on average by the server's count where 20.0 were meant"
    )
    begun = records_of(GAPS, asked_input_tokens=asked, counted_input_tokens=ints(11, 21, 32, -1))
    assert summarize(begun, Sla())["fidelity"]["problem"] is None  # a token or two that begin each prompt


def test_no_request_has_no_lengths() -> None:
    records = records_of(GAPS)
    records.failure[:] = "reset"
    found = summarize(records, Sla())["fidelity"]
    assert set(found.values()) == {None}


def test_hidden_tokens_are_throughput_at_the_first_token_and_part_of_the_length() -> None:
    records = asking(records_of(GAPS, hidden_tokens=ints(30, 0, 0, 10)), 40, 10, 10, 20)
    level = summarize(records, Sla())
    assert level["hidden_tokens"] == {"total": 40, "share": 0.5}
    assert level["throughput_tok_s"] == pytest.approx(80 / 10)
    assert level["total_tok_s"] == pytest.approx((80 + 40) / 10)
    assert level["tpot_ms"]["p50"] == 20, "of the tokens that are seen"
    assert level["fidelity"]["output_tokens_received"] == 20
    assert level["fidelity"]["problem"] is None
    late = records_of(GAPS, hidden_tokens=ints(30, 0, 0, 10))
    late.first_token_us[0] = 10_000_000  # its first token, and so its hidden ones, come behind the window
    assert summarize(late, Sla())["hidden_tokens"]["total"] == 10
    several = records_of(GAPS, hidden_tokens=ints(3, 0, 0, 0))
    several.requests.batch_size[:] = 2
    assert summarize(several, Sla())["hidden_tokens"]["total"] == 6
    assert "hidden_tokens" not in summarize(records_of(GAPS, hidden_tokens=ints(0, 0, 0, 0)), Sla())


def test_the_first_answer_token_is_timed_where_models_thought_aloud() -> None:
    records = records_of(GAPS)
    sent_us = records.sent_us
    answered = np.where(ints(1, 0, 1, 1) == 1, sent_us + ints(250_000, 0, 270_000, 900_000), -1)
    records = records_of(GAPS, first_answer_us=answered)
    level = summarize(records, Sla())
    assert level["ttft_ms"]["p50"] == 200
    assert level["thought_aloud"] == 3
    assert level["ttfa_ms"]["p50"] == 270
    assert level["ttfa_ms"]["mean"] == pytest.approx((250 + 270 + 900) / 3)
    records.failure[3] = "reset"
    assert summarize(records, Sla())["ttfa_ms"]["p50"] == 260
    none = records_of(GAPS, first_answer_us=ints(-1, -1, -1, -1))
    assert "ttfa_ms" not in summarize(none, Sla())


def test_the_cached_share_is_of_the_prompts_of_which_the_server_says_it() -> None:
    records = records_of(GAPS, cached_tokens=ints(8, -1, 0, 6))
    records.requests.input_tokens[:] = [20, 1_000, 10, 10]
    assert summarize(records, Sla())["cached_share"] == pytest.approx(14 / 40)
    counted = records_of(GAPS, cached_tokens=ints(8, -1, 0, 6), counted_input_tokens=ints(16, -1, -1, 12))
    counted.requests.input_tokens[:] = [20, 1_000, 12, 10]
    assert summarize(counted, Sla())["cached_share"] == pytest.approx(14 / 40)
    assert "cached_share" not in summarize(records_of(GAPS, cached_tokens=ints(-1, -1, -1, -1)), Sla())
    assert "cached_share" not in summarize(records_of(GAPS), Sla())


def test_turns_are_counted_from_one_and_the_tenth_gathers_the_later() -> None:
    turn = ints(0, 0, 1, 9, 10, 25)
    records = records_of([[20_000]] * 6, turn=turn, cached_tokens=ints(0, 0, 50, 90, 90, 90))
    records.requests.input_tokens[:] = [40, 60, 100, 100, 100, 200]
    records.first_token_us[:] += ints(0, 10_000, 50_000, 0, 0, 60_000)
    turns = summarize(records, Sla())["turns"]
    assert [entry["turn"] for entry in turns] == [1, 2, 10]
    assert [entry["and_later"] for entry in turns] == [False, False, True]
    assert [entry["requests"] for entry in turns] == [2, 1, 3]
    assert [entry["ttft_ms"]["mean"] for entry in turns] == [205, 250, 220]
    assert [entry["input_tokens_mean"] for entry in turns] == [50, 100, pytest.approx(400 / 3)]
    assert [entry["cached_share"] for entry in turns] == [0, 0.5, pytest.approx(270 / 400)]
    records.failure[2] = "reset"
    assert [entry["turn"] for entry in summarize(records, Sla())["turns"]] == [1, 10]
    ten = summarize(records_of([[20_000]], turn=ints(9)), Sla())["turns"]
    assert ten[0]["and_later"] is False


def test_no_longer_window_is_asked_for_where_every_request_failed() -> None:
    records = records_of(GAPS)
    assert summarize(records, Sla())["window_problem"]
    refused = summarize(replace(records, failure=np.array(["http_400"] * 4)), Sla())
    assert (refused["window_problem"], refused["window_wanted_s"]) == (None, None)
    cut = summarize(replace(records, failure=np.array(["unfinished"] * 4)), Sla())
    assert cut["window_problem"], "it may have been too short for the first to end"
