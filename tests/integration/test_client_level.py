"""A level over HTTP against the emulator, which knows what it sent: closed loop, open loop, their edges."""

import numpy as np
import pyarrow as pa
import pytest

from llmpilot.config import Load, Sla
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.loadtest.client_error import bottleneck, compare
from llmpilot.metrics import summarize
from llmpilot.workload import Requests, fit, from_lengths

WORKLOAD = fit(lambda: [from_lengths([5, 40], [1, 12])])
USERS = 6
TTFT_US, ITL_US = 20_000, 5_000
ENGINES = {
    "chat": OpenAIEngine(api="chat"),
    "text": OpenAIEngine(prompt="text"),
    "n": OpenAIEngine(sequences="n"),
    "prompts": OpenAIEngine(),
}
CLOSED = Traffic(Load(arrival="closed", users=[USERS], warmup_s=0.2, duration_s=0.5, drain_s=5), WORKLOAD, 3)
OPEN = Traffic(
    Load(arrival="poisson", rates_per_s=[60], warmup_s=0.2, duration_s=0.6, drain_s=5), WORKLOAD, 5
)
THINKING = Traffic(
    Load(arrival="closed", users=[1], warmup_s=0, duration_s=1.2, drain_s=5, think_time_s=0.1), WORKLOAD, 3
)
LONG = Traffic(  # answers of 2.5 s
    Load(arrival="closed", users=[2], warmup_s=0, duration_s=0.2, drain_s=1.5),
    fit(lambda: [from_lengths([5], [500])]),
    3,
)


def in_every_way(name: str) -> Traffic:
    rows = from_lengths([9] * 400, [7] * 400)
    if ENGINES[name].takes_token_ids:
        rows = Requests(**{**vars(rows), "batch_size": np.full(400, 3)})
    load = Load(arrival="closed", users=[2], warmup_s=0, duration_s=0.1, drain_s=5)
    return Traffic(load, WORKLOAD, 1, rows)


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Records], pa.Table]:
    """Return the records of every level that these tests look at, and what the emulator sent."""
    timing = FixedTiming(ttft_ms=TTFT_US / 1e3, itl_ms=ITL_US / 1e3)
    with in_process(options=Options(fixed=timing)) as emulator:

        def level(traffic: Traffic, level: float, engine: str = "prompts", workers: int = 1) -> Records:
            model, client = example_service().model_id, ClientSettings(workers=workers)
            place = HttpEndpoint(emulator.url, model, ENGINES[engine], "vllm", client=client)
            return run_level(place, traffic, level)

        levels = {
            "closed": level(CLOSED, USERS, workers=2),
            "open": level(OPEN, 60, workers=2),
            "thinking": level(THINKING, 1),
            "long": level(LONG, 2),
            **{name: level(in_every_way(name), 2, name) for name in ENGINES},
        }
    return levels, emulator.truth()


@pytest.fixture(scope="module")
def records(measured: tuple[dict[str, Records], pa.Table]) -> Records:
    return measured[0]["closed"]


def lengths(requests: Requests) -> list[tuple[int, int]]:
    return list(zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True))


def conserved(records: Records) -> None:
    """Successes have all of their tokens, in order, and times that follow each other."""
    ok = records.failure == ""
    assert (np.diff(records.gap_offsets)[ok] == records.requests.output_tokens[ok] - 1).all()
    assert (np.diff(records.sent_us) >= 0).all()
    assert (records.sent_us[ok] <= records.first_token_us[ok]).all()
    assert (records.first_token_us[ok] <= records.done_us[ok]).all()
    assert (records.gap_us >= 0).all()
    assert records.gap_offsets[-1] == len(records.gap_us)


def test_closed_loop_keeps_the_users_busy_until_the_last_measured_answer(records: Records) -> None:
    conserved(records)
    start_us, end_us = records.window_us
    in_window = (records.sent_us >= start_us) & (records.sent_us < end_us)
    assert in_window.any()
    assert set(records.failure[records.sent_us < end_us]) == {""}
    last_us = records.done_us[in_window].max()
    ends = np.where(records.done_us >= 0, records.done_us, last_us)
    middle_us = (start_us + end_us) // 2
    assert ((records.sent_us <= middle_us) & (ends > middle_us)).sum() <= USERS


def test_users_send_rows_of_their_own_from_the_beginning_of_the_traffic(records: Records) -> None:
    sent = lengths(records.requests)
    stream = lengths(CLOSED.requests().take(len(sent) * USERS))
    # Each user's share is a prefix of every USERS-th row, so all sent rows together are among the stream's.
    expected = sorted(stream[: len(sent) - 2 * USERS])
    assert len(sent) > 2 * USERS
    missing = [row for row in set(expected) if sent.count(row) == 0]
    assert not missing


def test_latencies_are_the_emulators(measured: tuple[dict[str, Records], pa.Table]) -> None:
    """No token is seen before it was sent, however busy the machine, and some right then."""
    records, truth = measured[0]["closed"], measured[1]
    assert records.response_id is not None
    ok = np.flatnonzero(records.failure == "")
    assert (records.first_token_us - records.sent_us)[ok].min() >= TTFT_US
    row_of = {name: row for row, name in enumerate(truth["request_id"].to_pylist())}
    rows = [row_of[str(records.response_id[i])] for i in ok]
    assert len(set(rows)) == len(rows)
    late_us = []
    for i, row in zip(ok, rows, strict=True):
        gaps_us = records.gap_us[records.gap_offsets[i] : records.gap_offsets[i + 1]]
        seen_us = records.first_token_us[i] + np.concatenate([[0], np.cumsum(gaps_us)])
        sent_ns = truth["sent_ns"][row].values.to_numpy() - records.notes["start_ns"]
        assert len(seen_us) == len(sent_ns)
        late_us.append(seen_us - sent_ns // 1000)
    assert np.concatenate(late_us).min() >= 0
    # Of one answer at least, each token before the next was due.
    assert min(late.max() for late in late_us if len(late) > 1) < ITL_US


def test_open_loop_counts_from_the_schedule(measured: tuple[dict[str, Records], pa.Table]) -> None:
    records = measured[0]["open"]
    conserved(records)
    arrivals_us = np.rint(OPEN.arrivals_s(60, 5.8) * 1e6).astype(np.int64)
    assert records.sent_us.tolist() == arrivals_us[: len(records)].tolist()
    assert lengths(records.requests) == lengths(OPEN.requests().take(len(records)))
    assert records.dispatch_delay_us is not None
    assert (records.dispatch_delay_us >= 0).all()
    assert set(records.failure[records.sent_us < records.window_us[1]]) == {""}


def test_users_think_before_every_request(measured: tuple[dict[str, Records], pa.Table]) -> None:
    records, times = measured[0]["thinking"], THINKING.think_times()
    conserved(records)
    assert times is not None
    assert len(records) > 1
    idle_us = records.sent_us - np.concatenate([[0], records.done_us[:-1]])
    pauses_us = np.array([times.pause_s(number) for number in range(len(records))]) * 1e6
    a_timers_tick_us = 2_000
    assert (idle_us >= pauses_us - a_timers_tick_us).all()
    assert set(records.failure[records.sent_us < records.window_us[1]]) == {""}


def test_what_the_drain_leaves_is_unfinished(measured: tuple[dict[str, Records], pa.Table]) -> None:
    records = measured[0]["long"]
    assert records.failure.tolist() == ["unfinished"] * 2
    assert (records.first_token_us > 0).all()
    assert (records.done_us == -1).all()


@pytest.mark.parametrize("name", ENGINES)
def test_every_way_of_asking_gets_exact_lengths(
    measured: tuple[dict[str, Records], pa.Table], name: str
) -> None:
    records = measured[0][name]
    conserved(records)
    ok = records.failure == ""
    assert ok.any()
    assert set(records.failure) <= {"", "unfinished"}


def test_error_against_the_truth_is_paired_by_request(measured: tuple[dict[str, Records], pa.Table]) -> None:
    records = measured[0]["closed"]
    error = compare(records, measured[1])
    assert error["requests"] > 0
    assert error["requests_failed"] == 0
    assert error["ttft_error_ms"]["p50"] >= 0
    assert error["reported"]["ttft_ms"]["p50"] >= error["sent"]["ttft_ms"]["p50"]
    busy = {**records.notes["client"], "busy_share": 0.97}
    assert "97%" in bottleneck(busy)
    late = {**error, "ttft_error_ms": {"p50": 40.0, "p99": 80.0}}
    assert "TTFT p50 is 40.0 ms" in bottleneck({"busy_share": 0.1}, late)
    slow = {"ttft_ms": {"p50": 2_000.0, "p99": 9_000.0}, "itl_ms": {"p50": 50.0, "p99": 90.0}}
    assert bottleneck({"busy_share": 0.1}, {**late, "itl_error_ms": {"p50": 0.1}}, slow) == ""


@pytest.mark.parametrize("name", ["prompts", "n"])
def test_what_the_server_counts_is_the_length_of_one_prompt(
    name: str, measured: tuple[dict[str, Records], pa.Table]
) -> None:
    records = measured[0][name]
    assert (records.requests.batch_size == 3).all()
    assert records.counted_input_tokens is not None
    assert set(records.counted_input_tokens[records.failure == ""].tolist()) == {9}
    assert summarize(records, Sla())["fidelity"]["problem"] is None
