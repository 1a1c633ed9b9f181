"""Every fault of a server is counted under its own name, beside users that notice nothing of it."""

import socket
from pathlib import Path

import numpy as np
import pytest
from certificates import needs_openssl, self_signed
from misbehaving import FIRST_LENGTH, WAYS, serving

from llmpilot.config import Load
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.workload import fit, from_lengths

TOKENS = 6
WORKLOAD = fit(lambda: [from_lengths([8], [TOKENS])])


def level(
    url: str, users: int, duration_s: float, *, ways: tuple[str, ...] = tuple(WAYS), verify_tls: bool = True
) -> Records:
    """Return the records of a level whose users meet these ways in turn, always the same ones."""
    rows = np.arange(50_000)
    load = Load(arrival="closed", users=[users], warmup_s=0, duration_s=duration_s, drain_s=20)
    lengths = FIRST_LENGTH + np.array([list(WAYS).index(way) for way in ways])
    traffic = Traffic(
        load,
        WORKLOAD,
        1,
        from_lengths(lengths[rows % users % len(lengths)], np.full(len(rows), TOKENS)),
    )
    settings = ClientSettings(token_timeout_s=2, request_timeout_s=5, backoff_s=0.05)
    place = HttpEndpoint(url, "m", OpenAIEngine(), "vllm", verify_tls=verify_tls, client=settings)
    return run_level(place, traffic, users)


@pytest.fixture(scope="module")
def records() -> Records:
    with serving() as url:
        return level(url, len(WAYS), 1.5)


@pytest.mark.parametrize("way", WAYS)
def test_fault_has_its_own_name(records: Records, way: str) -> None:
    own = records.requests.input_tokens == FIRST_LENGTH + list(WAYS).index(way)
    own &= records.failure != "unfinished"  # cut off with the level
    assert own.any()
    assert set(records.failure[own]) == {WAYS[way][1]}


def test_successes_are_whole_and_failures_have_no_gap_beyond_what_came(records: Records) -> None:
    gaps = np.diff(records.gap_offsets)
    ok = records.failure == ""
    wanted = np.full(len(records), TOKENS)
    ways = list(WAYS)
    wanted[records.requests.input_tokens == FIRST_LENGTH + ways.index("too few")] -= 1
    wanted[records.requests.input_tokens == FIRST_LENGTH + ways.index("too many")] += 3
    assert (gaps[ok] == wanted[ok] - 1).all()
    assert (records.first_token_us[ok] >= records.sent_us[ok]).all()
    assert (records.done_us[ok] >= records.first_token_us[ok]).all()
    assert (records.gap_us >= 0).all()
    last_us = records.first_token_us + np.add.reduceat(np.append(records.gap_us, 0), records.gap_offsets[:-1])
    several = ok & (gaps > 0)
    assert (last_us[several] == records.done_us[several]).all()
    cut = records.failure == "stall_timeout"
    assert (gaps[cut] == TOKENS // 2 - 1).all()


def test_notes_say_what_columns_cannot(records: Records) -> None:
    assert records.notes["tokens_counted_by"].keys() == {"token_ids"}
    # What was cut off is no answer, however many of its tokens came.
    assert records.notes["tokens_counted_by"]["token_ids"] == (records.failure == "").sum()
    assert records.notes["chunks_merged_share"] > 0
    messages = records.notes["failure_messages"]
    assert "slow down" in messages["http_429"]
    assert messages["truncated_stream"].startswith(f"the stream ended after {TOKENS - 1} of {TOKENS} tokens")
    assert records.notes["ended_early"] > 0
    assert records.notes["longer_than_asked"] > 0


def test_parquet_keeps_every_request(records: Records) -> None:
    table = records.to_table()
    assert table.num_rows == len(records)
    assert set(table["failure"].to_pylist()) == set(records.failure.tolist())


def test_dead_server_is_not_hammered() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        records = level(f"http://127.0.0.1:{unused.getsockname()[1]}", 2, 0.6)
    assert set(records.failure) - {"unfinished"} == {"connection_refused"}
    assert (records.first_token_us == -1).all()
    assert len(records) <= 2 * 8  # waits of 50, 100, 200, 400 ms


def test_answers_that_only_begin_as_successes_are_no_reason_to_hammer() -> None:
    with serving() as url:
        records = level(url, 2, 0.6, ways=("half an answer at once", "none"))
    assert set(records.failure) - {"unfinished"} == {"bad_sse", "no_tokens"}
    assert len(records) <= 2 * 8


@needs_openssl
def test_tls(tmp_path: Path) -> None:
    with serving(self_signed(tmp_path)) as url:
        records = level(url, 2, 0.2, verify_tls=False)
        assert (records.failure == "").any()
        assert set(records.failure) <= {"", "unfinished"}
        assert set(level(url, 1, 0.1).failure) == {"tls_failed"}
