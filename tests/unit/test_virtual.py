"""The simulator in virtual time: conservation, physics, and the same bytes every time."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.config import Load
from llmpilot.engine.tgis import TgisEngine
from llmpilot.loadtest import Records, Traffic, open_traffic, run_level
from llmpilot.simulator import VirtualService
from llmpilot.workload import fit, from_lengths, load_workload

PAPER = load_workload({"name": "paper", "model": "shipped:paper"})


def service_of(
    model: str = "starcoder", gpu: str = "a100", count: int = 1, weight: int | None = None
) -> VirtualService:
    engine = TgisEngine()
    facts, profile = (
        catalog.models([model])[model],
        catalog.gpus([gpu])[gpu].model_copy(update={"count": count}),
    )
    return engine.service(facts, profile, weight or engine.default_max_batch_weight(facts, profile))


def traffic_of(**load: object) -> Traffic:
    defaults = {"arrival": "closed", "users": [1], "duration_s": 20.0, "warmup_s": 2.0}
    return open_traffic(Load.model_validate(defaults | load), PAPER, seed=7)


def in_flight(records: Records) -> int:
    """Return the most requests that were open at one time."""
    done = np.where(records.done_us >= 0, records.done_us, np.iinfo(np.int64).max)
    events = sorted([(t, 1) for t in records.sent_us.tolist()] + [(t, 0) for t in done.tolist()])
    open_now = most = 0
    for _, opens in events:
        open_now += 1 if opens else -1
        most = max(most, open_now)
    return most


@given(
    users=st.integers(1, 40),
    model=st.sampled_from(["starcoder", "llama_7b", "flan_t5_xl", "mpt_7b", "mixtral_8x7b"]),
    weight=st.integers(1000, 20_000),
)
@settings(max_examples=25, deadline=None)
def test_a_closed_loop_conserves_users_requests_and_tokens(users: int, model: str, weight: int) -> None:
    service = service_of(model, gpu="h100", count=2, weight=weight)
    records = run_level(service, traffic_of(users=[users]), users)
    ok = records.failure == ""
    assert in_flight(records) <= users
    assert np.all(np.diff(records.sent_us) >= 0)
    gaps = np.diff(records.gap_offsets)
    assert np.array_equal(gaps[ok] + 1, records.requests.output_tokens[ok]), "a token lost or invented"
    ends = records.first_token_us + np.add.reduceat(
        np.append(records.gap_us, 0), records.gap_offsets[:-1]
    ) * (gaps > 0)
    assert np.array_equal(ends[ok], records.done_us[ok]), "a request ends with its last token"
    assert np.all(records.gap_us > 0)
    window = (records.sent_us >= records.window_us[0]) & (records.sent_us < records.window_us[1])
    assert np.all(ok[window]), "everything sent in the window ends"
    prefill_us = [
        service.step_times.prefill_ms(int(n), 1, float(n * n)) * 1e3
        for n in records.requests.input_tokens[ok] * records.requests.batch_size[ok]
    ]
    ttft_us = (records.first_token_us - records.sent_us)[ok]
    assert np.all(ttft_us + 1 >= np.array(prefill_us)), "no first token before its prefill"


def test_requests_are_served_in_order_when_all_fit() -> None:
    records = run_level(service_of(), traffic_of(users=[32]), 32)
    assert np.all(np.diff(records.first_token_us[records.first_token_us >= 0]) >= 0)


def test_a_smaller_batch_weight_queues_more() -> None:
    waits = []
    for weight in (1200, 5000, 100_000):
        records = run_level(service_of(weight=weight), traffic_of(users=[32]), 32)
        waits.append(float(np.median((records.first_token_us - records.sent_us)[records.failure == ""])))
    assert waits[0] > waits[1] > waits[2]


def test_open_loop_sends_on_schedule_whatever_the_service_does() -> None:
    traffic = traffic_of(arrival="poisson", users=None, rates_per_s=[5.0, 50.0])
    calm, flooded = (run_level(service_of(), traffic, rate) for rate in (5.0, 50.0))
    for records, rate in ((calm, 5.0), (flooded, 50.0)):
        window = (records.sent_us >= records.window_us[0]) & (records.sent_us < records.window_us[1])
        assert abs(window.sum() - rate * 20) < 5 * (rate * 20) ** 0.5
    wait = [np.median((r.first_token_us - r.sent_us)[r.failure == ""]) for r in (calm, flooded)]
    assert wait[1] > wait[0]


def test_levels_share_their_requests_and_seeds_change_them() -> None:
    few, many = (run_level(service_of(), traffic_of(users=[u]), u).requests for u in (2, 8))
    assert np.array_equal(few.input_tokens[:50], many.input_tokens[:50])
    other = open_traffic(Load(arrival="closed", users=[2], duration_s=20.0, warmup_s=2.0), PAPER, seed=8)
    assert not np.array_equal(
        run_level(service_of(), other, 2).requests.input_tokens[:50], few.input_tokens[:50]
    )


def test_long_contexts_and_a_thousand_users_run() -> None:
    long = fit(lambda: [from_lengths(np.full(200, 32_000), np.full(200, 200))])
    load = Load(arrival="closed", users=[1024], duration_s=10.0, warmup_s=1.0, drain_s=5.0)
    service = service_of("llama_3_1_8b", gpu="h100", count=8)
    records = run_level(service, open_traffic(load, long, seed=1), 1024)
    assert (records.failure == "unfinished").any()
    assert in_flight(records) <= 1024


def test_the_same_seed_gives_the_same_bytes() -> None:
    digests = set()
    for _ in range(2):
        records = run_level(service_of(), traffic_of(users=[16]), 16)
        columns = (records.sent_us, records.first_token_us, records.done_us, records.gap_us)
        digests.add(hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest())
    assert len(digests) == 1


def test_requests_beyond_the_context_window_are_refused_and_their_users_pause() -> None:
    workload = fit(lambda: [from_lengths(np.array([100, 3000]), np.array([5, 5]))])
    load = Load(arrival="closed", users=[4], duration_s=20.0, warmup_s=2.0)
    service = service_of("llama_7b", gpu="h100")  # 2,048 positions
    records = run_level(service, open_traffic(load, workload, seed=1), 4)
    long = records.requests.input_tokens == 3000
    assert long.any()
    ended = records.failure != "unfinished"
    assert np.array_equal((records.failure == "too_long")[ended], long[ended])
    assert in_flight(records) <= 4


def test_an_open_loop_reports_only_what_was_sent() -> None:
    traffic = traffic_of(arrival="poisson", users=None, rates_per_s=[5.0], drain_s=200.0)
    records = run_level(service_of(), traffic, 5.0)
    last_end_us = records.done_us[(records.sent_us < records.window_us[1])].max()
    assert records.sent_us.max() <= last_end_us
