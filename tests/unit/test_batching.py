"""Invariants of continuous batching, checked by an oracle that keeps its own books."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.simulator import BatchingRule, StepTimes
from llmpilot.simulator.batching import Batcher, Decode, Prefill
from llmpilot.simulator.scheduling import Sequence

STEP_TIMES = StepTimes(
    dense_weights_ms=10.0,
    expert_weights_ms=0.0,
    n_experts=1,
    experts_per_token=1,
    decode_ms_per_sequence=0.05,
    decode_overhead_ms=2.0,
    decode_overhead_ms_per_sequence=0.1,
    kv_ms_per_token=0.001,
    communication_ms_per_token=0.0,
    prefill_overhead_ms=3.0,
    prefill_overhead_ms_per_request=1.0,
    prefill_ms_per_token=0.1,
    prefill_ms_per_token_squared=0.0001,
)

requests = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(1, 3), st.floats(0, 400)),
    min_size=1,
    max_size=40,
)
rules = st.builds(
    BatchingRule,
    max_batch_weight=st.integers(1, 800),
    max_batch_size=st.none() | st.integers(1, 8),
    max_waiting_steps=st.integers(0, 6),
    overtake_ms=st.sampled_from([0.0, 50.0, 1e9]),
    padded=st.booleans(),
)


def held_by(batch: list[Sequence], tokens: Counter[int], padded: bool) -> int:
    """Count from scratch the tokens in a batch's KV cache: the last token of each has not entered it yet."""
    if not batch:
        return 0
    lengths = [s.input_tokens + tokens[s.index] - 1 for s in batch]
    copies = [s.copies for s in batch]
    return max(lengths) * sum(copies) if padded else sum(n * c for n, c in zip(lengths, copies, strict=True))


class Oracle:
    """Drives a Batcher through virtual time and checks every move against its own books."""

    def __init__(
        self, rule: BatchingRule, arrivals: list[tuple[int, int, int, float]], capacity: int
    ) -> None:
        self.rule = rule
        self.batcher = Batcher(rule, STEP_TIMES, capacity)
        self.now_ms = 0.0
        self.tokens: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.refused: set[int] = set()
        self.batch: dict[int, Sequence] = {}
        self.queued: dict[int, Sequence] = {}
        self.arrivals = [
            Sequence(i, inputs, outputs, copies, at_ms)
            for i, (inputs, outputs, copies, at_ms) in enumerate(sorted(arrivals, key=lambda item: item[3]))
        ]

    def run(self) -> None:
        pending = list(self.arrivals)
        for _ in range(100_000):
            while pending and pending[0].enqueued_ms <= self.now_ms:
                sequence = pending.pop(0)
                if self.batcher.enqueue(sequence):
                    self.queued[sequence.index] = sequence
                else:
                    self.refused.add(sequence.index)
            action = self.batcher.next_action(self.now_ms)
            if action is None:
                assert not self.queued, "idle although requests wait"
                if not pending:
                    return
                self.now_ms = pending[0].enqueued_ms
            elif isinstance(action, Prefill):
                self.prefill(action)
            else:
                self.decode(action)
        raise AssertionError("the batcher never came to an end")

    def prefill(self, action: Prefill) -> None:
        for sequence in action.sequences:
            overtaken = [
                s for s in self.queued.values() if s.index < sequence.index and s not in action.sequences
            ]
            for other in overtaken:
                assert sequence.enqueued_ms - other.enqueued_ms <= self.rule.overtake_ms, "unfair overtaking"
        tokens = sum(s.copies * s.input_tokens for s in action.sequences)
        assert action.duration_ms >= STEP_TIMES.prefill_ms_per_token * tokens
        self.now_ms += action.duration_ms
        for sequence in action.sequences:
            del self.queued[sequence.index]
        if action.out_of_memory:
            self.batcher.drop_prefill()
            self.ended.update(s.index for s in action.sequences)
            return
        for sequence in action.sequences:
            self.tokens[sequence.index] += 1
            self.batch[sequence.index] = sequence
        batch = list(self.batch.values())
        assert sum(s.copies for s in batch) <= (self.rule.max_batch_size or 10**9)
        self.check_weight()
        self.end(self.batcher.finish_prefill(action))

    def check_weight(self) -> None:
        held = held_by(list(self.batch.values()), self.tokens, self.rule.padded)
        assert held <= self.rule.max_batch_weight, "the batch outgrew its cap"

    def decode(self, action: Decode) -> None:
        assert action.steps > 0 or action.out_of_memory
        # A driver may stop early for an arrival: one step at a time must lead to the same books.
        steps = min(action.steps, 2)
        if steps:
            self.now_ms += action.duration_ms(steps)
            for index in self.batch:
                self.tokens[index] += steps
            self.check_weight()
            self.end(self.batcher.finish_decode(steps))
        if action.out_of_memory and steps == action.steps:
            lost = self.batcher.lose_batch()
            assert {s.index for s in lost} == set(self.batch)
            self.ended.update(list(self.batch))
            self.batch.clear()

    def end(self, done: list[Sequence]) -> None:
        for sequence in done:
            assert self.tokens[sequence.index] == sequence.output_tokens, "a token lost or invented"
            self.ended[sequence.index] += 1
            del self.batch[sequence.index]
        assert self.batcher.sequences == sum(s.copies for s in self.batch.values())


@given(requests, rules)
@settings(max_examples=300, deadline=None)
def test_no_request_or_token_is_lost_and_the_weight_never_exceeds_its_cap(
    arrivals: list[tuple[int, int, int, float]], rule: BatchingRule
) -> None:
    oracle = Oracle(rule, arrivals, capacity=10**9)
    oracle.run()
    for sequence in oracle.arrivals:
        too_heavy = sequence.weight > rule.max_batch_weight or sequence.copies > (
            rule.max_batch_size or 10**9
        )
        assert (sequence.index in oracle.refused) == too_heavy
        assert oracle.ended[sequence.index] == (0 if too_heavy else 1)


@given(requests, rules, st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_out_of_memory_loses_requests_but_never_twice_and_never_the_service(
    arrivals: list[tuple[int, int, int, float]], rule: BatchingRule, capacity: int
) -> None:
    oracle = Oracle(rule, arrivals, capacity)
    oracle.run()
    assert all(count == 1 for count in oracle.ended.values())
    assert set(oracle.ended) | oracle.refused == {s.index for s in oracle.arrivals}
    assert oracle.batcher.kv_tokens == 0
    assert oracle.batcher.weight == 0


def fill(rule: BatchingRule, sizes: list[tuple[int, int, float]]) -> Batcher:
    batcher = Batcher(rule, STEP_TIMES, 10**9)
    for index, (inputs, outputs, at_ms) in enumerate(sizes):
        assert batcher.enqueue(Sequence(index, inputs, outputs, 1, at_ms))
    return batcher


def admitted(batcher: Batcher, now_ms: float) -> list[int]:
    action = batcher.next_action(now_ms)
    assert isinstance(action, Prefill)
    return [s.index for s in action.sequences]


def test_first_come_first_served_when_overtaking_is_off() -> None:
    rule = BatchingRule(max_batch_weight=100, overtake_ms=0)
    batcher = fill(rule, [(60, 10, 0.0), (60, 10, 0.0), (5, 10, 1.0)])
    assert admitted(batcher, 2.0) == [0], "the small third must not pass the waiting second"


def test_a_small_request_may_overtake_one_that_does_not_fit_within_the_window() -> None:
    rule = BatchingRule(max_batch_weight=100, overtake_ms=1000)
    batcher = fill(rule, [(60, 10, 0.0), (60, 10, 0.0), (5, 10, 1.0), (5, 10, 1500.0)])
    assert admitted(batcher, 2000.0) == [0, 2]


def test_waiting_requests_interrupt_a_batch_only_after_the_waiting_steps() -> None:
    batcher = fill(BatchingRule(max_batch_weight=10_000, max_waiting_steps=3), [(10, 50, 0.0)] * 8)
    first = batcher.next_action(0.0)
    assert isinstance(first, Prefill)
    batcher.finish_prefill(first)
    batcher.enqueue(Sequence(8, 10, 20, 1, 1.0))
    steps = 0
    while isinstance(action := batcher.next_action(1.0), Decode):
        batcher.finish_decode(action.steps)
        steps += action.steps
    assert 1 < steps <= 3
    assert [s.index for s in action.sequences] == [8]


def test_a_padded_batch_weighs_as_a_rectangle() -> None:
    # Padded, they hold (40 + 2) x 2 = 84 tokens when the first ends; unpadded 40 + 2 + 2 + 2 = 46.
    sizes = [(40, 2, 0.0), (2, 9, 0.0)]
    assert admitted(fill(BatchingRule(max_batch_weight=84, padded=True), sizes), 0.0) == [0, 1]
    assert admitted(fill(BatchingRule(max_batch_weight=83, padded=True), sizes), 0.0) == [0]
    assert admitted(fill(BatchingRule(max_batch_weight=46, padded=False), sizes), 0.0) == [0, 1]
