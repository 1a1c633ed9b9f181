"""Invariants of the schedulers of today's engines, checked by an oracle that keeps its own books."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmpilot.simulator import (
    Batch,
    Outcome,
    SglangRule,
    SimulatedRequests,
    SteppedService,
    TrtllmRule,
    VllmRule,
    simulate_closed,
    simulate_finite,
    simulate_open,
)
from llmpilot.simulator.scheduling import Scheduler, Sequence, Step
from llmpilot.simulator.service import SchedulingRule
from llmpilot.workload import Requests, from_lengths

Arrivals = list[tuple[int, int, int, float]]

arrivals_of = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(1, 3), st.floats(0, 400)),
    min_size=1,
    max_size=40,
)
vllm_rules = st.builds(
    VllmRule,
    max_num_seqs=st.integers(1, 12),
    max_num_batched_tokens=st.integers(12, 90),
    block_size=st.sampled_from([1, 4, 16]),
    chunked_prefill=st.booleans(),
    prefix_caching=st.booleans(),
    prefix_hit_share=st.sampled_from([0.0, 0.4, 1.0]),
    overlapped=st.booleans(),
)
sglang_rules = st.builds(
    SglangRule,
    max_num_seqs=st.integers(1, 12),
    max_num_batched_tokens=st.integers(5, 90),
    max_prefill_tokens=st.integers(5, 90),
    block_size=st.sampled_from([1, 4]),
    chunked_prefill=st.booleans(),
    mixed=st.booleans(),
    conservativeness=st.sampled_from([0.01, 1.0, 2.0]),
    prefix_hit_share=st.sampled_from([0.0, 0.4]),
    overlapped=st.booleans(),
)
trtllm_rules = st.builds(
    TrtllmRule,
    max_num_seqs=st.integers(1, 12),
    max_num_batched_tokens=st.integers(5, 90),
    block_size=st.sampled_from([4, 32]),
    chunked_prefill=st.booleans(),
    prefix_hit_share=st.sampled_from([0.0, 0.4]),
    overlapped=st.booleans(),
)
rules = vllm_rules | sglang_rules | trtllm_rules


class Linear:
    """Step times that are a straight line in all that a step holds."""

    def step_ms(self, batch: Batch) -> float:
        return (
            2.0
            + 0.1 * batch.decodes
            + 0.001 * batch.decode_context_tokens
            + 0.0005 * batch.longest_context_tokens
            + 0.02 * batch.prefill_tokens
            + 0.0001 * batch.prefill_pairs
        )


class Rows:
    """A table of requests as a stream."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests

    def take(self, n: int) -> Requests:
        head, self.requests = self.requests.take(slice(n)), self.requests.take(slice(n, None))
        return head


def rows_of(arrivals: Arrivals) -> Rows:
    inputs, outputs, copies, _ = zip(*arrivals, strict=True)
    return Rows(replace(from_lengths(list(inputs), list(outputs)), batch_size=np.array(copies)))


class Oracle:
    """Drives a scheduler step by step and checks every one against its own books."""

    def __init__(self, rule: SchedulingRule, capacity: int, arrivals: Arrivals) -> None:
        self.rule, self.capacity = rule, capacity
        self.scheduler: Scheduler = rule.scheduler(capacity)
        self.pending = [
            Sequence(i, inputs, outputs, copies, at_ms)
            for i, (inputs, outputs, copies, at_ms) in enumerate(sorted(arrivals, key=lambda row: row[3]))
        ]
        self.everyone = list(self.pending)
        self.tokens = dict.fromkeys(self.everyone, 0)
        self.decoding: set[Sequence] = set()
        self.ended: set[Sequence] = set()
        self.refused: set[Sequence] = set()
        self.started: list[int] = []
        self.now = 0.0

    def let_in(self) -> None:
        while self.pending and self.pending[0].enqueued_ms <= self.now:
            sequence = self.pending.pop(0)
            if not self.scheduler.enqueue(sequence):
                self.refused.add(sequence)

    def run(self) -> None:
        for _ in range(100_000):
            self.let_in()
            step = self.scheduler.next_step()
            if step is not None:
                self.check(step)
                self.finish(step)
                self.now += 1.0
            elif self.pending:
                self.now = self.pending[0].enqueued_ms
            else:
                return
        raise AssertionError("the scheduler never came to an end")

    def check(self, step: Step) -> None:
        batch = step.batch
        assert step.steps >= 1
        assert step.steps == 1 or batch.prefill_tokens == 0
        self.decoding -= set(step.preempted)
        if batch.decodes:
            assert batch.decodes == sum(s.copies for s in self.decoding), "somebody does not decode"
            held = sum(s.copies * (s.input_tokens + self.tokens[s]) for s in self.decoding)
            assert batch.decode_context_tokens == held
            longest = max(s.input_tokens + self.tokens[s] for s in self.decoding)
            assert batch.longest_context_tokens == longest
        assert batch.decodes + batch.prefill_tokens > 0, "an empty step"
        assert self.scheduler.gauges().kv_tokens <= self.capacity
        assert self.scheduler.gauges().running <= self.rule.max_num_seqs  # type: ignore[attr-defined]

    def finish(self, step: Step) -> None:
        steps = min(step.steps, 3)  # a clock may stop early
        ended = self.scheduler.finish(steps)
        if step.batch.decodes:
            for sequence in self.decoding:
                self.tokens[sequence] += steps
        assert len(ended.started) == step.starts
        for sequence in ended.started:
            if not self.tokens[sequence]:
                self.started.append(sequence.index)
            self.tokens[sequence] += 1
            self.decoding.add(sequence)
        for sequence in ended.done:
            assert self.tokens[sequence] == sequence.output_tokens, "a token lost or invented"
            self.decoding.remove(sequence)
            self.ended.add(sequence)
        assert not ended.lost


def check_all_served(oracle: Oracle) -> None:
    oracle.run()
    assert oracle.ended | oracle.refused == set(oracle.everyone)
    assert not oracle.ended & oracle.refused
    assert oracle.scheduler.gauges() == (0, 0, 0), "something leaked"
    for sequence in oracle.everyone:
        assert (sequence in oracle.refused) == refuses(oracle.rule, oracle.capacity, sequence)


def refuses(rule: SchedulingRule, capacity: int, sequence: Sequence) -> bool:
    longest = rule.longest_request_tokens(capacity, sequence.copies)
    if isinstance(rule, TrtllmRule) and not rule.chunked_prefill:
        longest = min(longest, rule.max_num_batched_tokens + sequence.output_tokens)
    return sequence.input_tokens + sequence.output_tokens > longest


@given(rules, st.integers(1, 800), arrivals_of)
@settings(max_examples=400, deadline=None)
def test_no_request_token_or_block_is_lost(rule: SchedulingRule, capacity: int, arrivals: Arrivals) -> None:
    check_all_served(Oracle(rule, capacity, arrivals))


@given(rules, st.integers(1, 800), arrivals_of)
@settings(max_examples=200, deadline=None)
def test_first_come_first_served(rule: SchedulingRule, capacity: int, arrivals: Arrivals) -> None:
    oracle = Oracle(rule, capacity, arrivals)
    oracle.run()
    assert oracle.started == sorted(oracle.started)


@given(vllm_rules, st.integers(100, 800), arrivals_of)
@settings(max_examples=200, deadline=None)
def test_vllm_keeps_the_budget_of_tokens(rule: VllmRule, capacity: int, arrivals: Arrivals) -> None:
    class Budget(Oracle):
        def check(self, step: Step) -> None:
            super().check(step)
            batch = step.batch
            if rule.chunked_prefill:
                assert batch.decodes + batch.prefill_tokens <= rule.max_num_batched_tokens
            else:
                assert not batch.decodes or not batch.prefill_tokens, "prompts have steps of their own"
                assert batch.prefill_tokens <= rule.max_num_batched_tokens or step.starts == 1

    Budget(rule, capacity, arrivals).run()


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 60), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 50), st.just(0)),
    ),
    max_size=80,
)


@given(rules, st.integers(100, 400), EVENTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_who_leaves_gives_back_what_it_held(
    rule: SchedulingRule, capacity: int, events: list[tuple[str, int, int]], in_flight: bool
) -> None:
    scheduler = rule.scheduler(capacity)
    present: list[Sequence] = []
    underway: Step | None = None

    def end_step() -> None:
        nonlocal underway
        if underway is not None:
            for sequence in scheduler.finish(1).done:
                present.remove(sequence)
        underway = None

    for index, (kind, first, second) in enumerate(events):
        if kind == "arrive":
            sequence = Sequence(index, first, second, 1, float(index))
            if scheduler.enqueue(sequence):
                present.append(sequence)
        elif kind == "step":
            for _ in range(first):
                end_step()
                underway = scheduler.next_step()
            if not in_flight:
                end_step()
        elif present:
            scheduler.leave(present.pop(first % len(present)))
    end_step()
    while (underway := scheduler.next_step()) is not None:
        end_step()
    assert not present
    assert scheduler.gauges() == (0, 0, 0)


@dataclass(frozen=True)
class OneByOne:
    """A rule whose steps are never taken together."""

    rule: SchedulingRule

    def scheduler(self, kv_capacity_tokens: int) -> Scheduler:
        scheduler = self.rule.scheduler(kv_capacity_tokens)
        compose = scheduler.next_step

        def next_step() -> Step | None:
            step = compose()
            return step and step._replace(steps=1)

        scheduler.next_step = next_step  # type: ignore[method-assign]
        return scheduler

    def longest_request_tokens(self, kv_capacity_tokens: int, copies: int) -> int:
        return self.rule.longest_request_tokens(kv_capacity_tokens, copies)


def assert_same(one: SimulatedRequests, other: SimulatedRequests) -> None:
    assert np.array_equal(one.outcome, other.outcome)
    assert np.array_equal(one.gap_offsets, other.gap_offsets)
    for name in ("sent_us", "first_token_us", "done_us", "gap_us"):
        # The sum of a stretch and that of its steps round differently.
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=2, err_msg=name)


@given(rules, st.integers(100, 600), arrivals_of, st.sampled_from([0.0, 1.3]))
@settings(max_examples=150, deadline=None)
def test_steps_taken_together_are_the_steps_one_by_one(
    rule: SchedulingRule, capacity: int, arrivals: Arrivals, overhead_ms: float
) -> None:
    # Who is refused hears so when a step ends, and many steps together end later.
    arrivals = [row for row in arrivals if not refuses(rule, capacity, Sequence(0, *row))]
    assume(arrivals)
    arrivals.sort(key=lambda row: row[3])
    arrivals_ms = np.array([row[3] for row in arrivals])
    fast = SteppedService(Linear(), rule, capacity, overhead_ms)
    slow = replace(fast, rule=OneByOne(rule))
    assert_same(*(simulate_open(s, rows_of(arrivals), arrivals_ms) for s in (fast, slow)))
    assert_same(*(simulate_finite(s, rows_of(arrivals), 3, len(arrivals)) for s in (fast, slow)))


@given(rules, st.integers(1, 60), st.integers(150, 1200))
@settings(max_examples=60, deadline=None)
def test_a_closed_loop_conserves_users_and_tokens(rule: SchedulingRule, users: int, capacity: int) -> None:
    lengths = np.random.default_rng(3).integers(1, 70, (2, 30_000))
    service = SteppedService(Linear(), rule, capacity, 0.5)
    result = simulate_closed(service, Rows(from_lengths(*lengths)), users, 2_000.0, 1e9)
    ok = result.outcome == Outcome.OK
    sent_early = result.sent_us < 2_000_000
    assert np.all(result.outcome[sent_early] != Outcome.UNFINISHED)
    gaps = np.diff(result.gap_offsets)
    assert np.array_equal(gaps[ok] + 1, result.requests.output_tokens[ok])
    assert np.all(result.gap_us > 0)
    sums = np.add.reduceat(np.append(result.gap_us, 0), result.gap_offsets[:-1]) * (gaps > 0)
    assert np.array_equal((result.first_token_us + sums)[ok], result.done_us[ok]), "a gap is missing"
    times = np.concatenate([result.sent_us, result.done_us[result.done_us >= 0]])
    signs = np.repeat([1, -1], [len(result.sent_us), len(times) - len(result.sent_us)])
    order = np.lexsort((signs, times))
    assert np.cumsum(signs[order]).max() <= users


def run(rule: SchedulingRule, capacity: int, arrivals: Arrivals) -> SimulatedRequests:
    service = SteppedService(Linear(), rule, capacity)
    return simulate_open(service, rows_of(arrivals), np.array([row[3] for row in arrivals]))


@dataclass
class Recorded:
    """Step times that note the batches."""

    batches: list[Batch]

    def step_ms(self, batch: Batch) -> float:
        self.batches.append(batch)
        return 1.0


def batches_of(rule: SchedulingRule, capacity: int, arrivals: Arrivals) -> list[Batch]:
    seen = Recorded([])
    service = SteppedService(seen, OneByOne(rule), capacity)
    simulate_open(service, rows_of(arrivals), np.array([row[3] for row in arrivals]))
    return seen.batches


def test_vllm_decodes_first_and_fills_the_step_with_chunks() -> None:
    rule = VllmRule(max_num_seqs=8, max_num_batched_tokens=16, overlapped=False)
    arrivals: Arrivals = [(4, 9, 1, 0.0), (30, 2, 1, 0.5), (5, 2, 1, 0.5)]
    first, second, third, fourth, *_ = batches_of(rule, 1000, arrivals)
    assert first == Batch(0, 0, 4, 10.0, 1)
    assert second == Batch(1, 5, 15, 15 * 8, 1, 5), "a token decoded, the rest for the first chunk"
    assert third == Batch(1, 6, 15, 15 * 15 + 15 * 8, 1, 6), "the second chunk attends to the first"
    assert fourth == Batch(2, 7 + 31, 5, 15.0, 1, 31)


def test_vllm_composes_a_step_before_it_knows_how_the_last_one_ended() -> None:
    arrivals: Arrivals = [(4, 2, 1, 0.0), (5, 1, 1, 0.5)]
    steps = {
        overlapped: batches_of(
            VllmRule(max_num_seqs=1, max_num_batched_tokens=16, overlapped=overlapped), 1000, arrivals
        )
        for overlapped in (False, True)
    }
    assert steps[False] == steps[True]
    late = [(4, 5, 1, 0.0), (5, 1, 1, 0.5)]
    tokens = {
        overlapped: [
            batch.prefill_tokens
            for batch in batches_of(
                VllmRule(max_num_seqs=8, max_num_batched_tokens=16, overlapped=overlapped), 1000, late
            )
        ]
        for overlapped in (False, True)
    }
    assert tokens[False][:3] == [4, 5, 0]
    assert tokens[True][:3] == [4, 0, 5], "it came while the first step ran, when the second was composed"


def test_vllm_preempts_the_last_admitted_and_prefills_it_again() -> None:
    rule = VllmRule(max_num_seqs=8, max_num_batched_tokens=64, block_size=4, overlapped=False)
    arrivals: Arrivals = [(8, 12, 1, 0.0), (8, 12, 1, 0.0)]
    plain = rule.model_copy(update={"prefix_caching": False})
    again = [batch for batch in batches_of(plain, 28, arrivals) if batch.prefill_tokens]
    assert [batch.prefill_tokens for batch in again] == [16, 8 + 5]
    kept = [batch for batch in batches_of(rule, 28, arrivals) if batch.prefill_tokens]
    assert kept[1].prefill_tokens < 8 + 5, "some of its blocks nobody had taken"
    result = run(rule, 28, arrivals)
    assert np.all(result.outcome == Outcome.OK)
    assert result.gap_us[result.gap_offsets[1] :].max() > 3 * result.gap_us[: result.gap_offsets[1]].max()


def test_cached_prefixes_are_not_computed_but_held() -> None:
    rule = VllmRule(max_num_seqs=8, max_num_batched_tokens=64, prefix_hit_share=0.5, overlapped=False)
    arrivals: Arrivals = [(40, 1, 1, 0.0)]
    assert batches_of(rule, 64, arrivals) == [Batch(0, 0, 20, 20 * (20 + 10.5), 1)]
    assert run(rule, 32, arrivals).outcome[0] == Outcome.TOO_LONG


def test_a_budget_too_small_for_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens=8 is smaller than max_num_seqs=9"):
        VllmRule(max_num_seqs=9, max_num_batched_tokens=8)


def test_sglang_prefills_before_it_decodes() -> None:
    rule = SglangRule(max_num_seqs=8, max_num_batched_tokens=20, overlapped=False)
    arrivals: Arrivals = [(4, 9, 1, 0.0), (30, 2, 1, 0.5), (5, 2, 1, 0.5)]
    first, second, third, fourth, *_ = batches_of(rule, 1000, arrivals)
    assert first == Batch(0, 0, 4, 10.0, 1)
    assert second == Batch(0, 0, 20, 20 * 10.5, 1), "the running one waits"
    assert third == Batch(0, 0, 15, 10 * (20 + 5.5) + 15.0, 2), "the rest of the one, and the next"
    assert fourth == Batch(3, 5 + 31 + 6, longest_context_tokens=31)
    mixed = batches_of(rule.model_copy(update={"mixed": True}), 1000, arrivals)
    assert mixed[1] == Batch(1, 5, 19, 19 * 10, 1, 5)


def test_sglang_reserves_a_share_of_what_is_owed() -> None:
    careless, careful = (
        SglangRule(max_num_seqs=8, max_num_batched_tokens=100, conservativeness=c, overlapped=False)
        for c in (0.1, 1.4)
    )
    arrivals: Arrivals = [(10, 60, 1, 0.0), (10, 60, 1, 0.5)]
    waits = [run(rule, 120, arrivals) for rule in (careless, careful)]
    ttft_us = [result.first_token_us[1] - result.sent_us[1] for result in waits]
    assert ttft_us[1] > 10 * ttft_us[0], "the second waits for the first one's end"
    pieces = [batch for batch in batches_of(careless, 120, arrivals) if batch.prefill_tokens]
    assert len(pieces) == 3, "too little was reserved: the second is retracted, and computed anew"
    assert pieces[2].prefill_tokens > 10
    assert all(np.all(result.outcome == Outcome.OK) for result in waits)


def test_trtllm_evicts_nobody_and_keeps_room_for_the_whole_output() -> None:
    rule = TrtllmRule(max_num_seqs=8, max_num_batched_tokens=64, block_size=4, overlapped=False)
    arrivals: Arrivals = [(8, 12, 1, 0.0), (8, 12, 1, 0.0)]
    together = [batch.prefill_tokens for batch in batches_of(rule, 40, arrivals) if batch.prefill_tokens]
    assert together == [16]
    in_turn = batches_of(rule, 36, arrivals)
    assert [batch.prefill_tokens for batch in in_turn if batch.prefill_tokens] == [8, 8]
    assert max(batch.decodes for batch in in_turn) == 1


def test_trtllm_prefills_whole_prompts_beside_decoding_or_chunks_of_whole_blocks() -> None:
    rule = TrtllmRule(max_num_seqs=8, max_num_batched_tokens=30, block_size=8, overlapped=False)
    arrivals: Arrivals = [(4, 9, 1, 0.0), (27, 2, 1, 0.5), (20, 2, 1, 0.5)]
    whole = batches_of(rule, 1000, arrivals)
    assert [batch.prefill_tokens for batch in whole[:3]] == [4, 27, 20]
    assert whole[1].decodes == 1
    chunked = batches_of(rule.model_copy(update={"chunked_prefill": True}), 1000, arrivals)
    assert [batch.prefill_tokens for batch in chunked[:4]] == [4, 27, 20, 0]
    long: Arrivals = [(4, 9, 1, 0.0), (40, 2, 1, 0.5)]
    chunked = batches_of(rule.model_copy(update={"chunked_prefill": True}), 1000, long)
    assert [batch.prefill_tokens for batch in chunked[:4]] == [4, 24, 16, 0]
    assert run(rule, 1000, long).outcome.tolist() == [Outcome.OK, Outcome.TOO_LONG]
