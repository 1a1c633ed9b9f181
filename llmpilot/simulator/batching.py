"""Continuous batching: which requests are in the batch, what the engine does next, and when it is full.

A state machine without a clock: a driver asks `next_action`, lets the time pass (virtual or real), and
reports back with `finish_prefill` or `finish_decode`. The rule is that of text-generation-inference and
IBM's TGIS: requests are admitted under a batch weight, prefill interrupts decoding, nobody is preempted.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from pydantic import PositiveInt

from llmpilot.config import Facts, NonNegative
from llmpilot.simulator.steptime import StepTimes


class Outcome(IntEnum):
    """How a request ended; the name is the failure's kind in reports."""

    OK = 0
    OUT_OF_MEMORY = 1
    TOO_LONG = 2
    UNFINISHED = 3


class BatchingRule(Facts):
    """The engine's admission rule.

    A padded batch weighs (longest input + longest output) x sequences, another the sum of its requests.
    Waiting requests interrupt decoding once `max_waiting_steps` decode steps have passed since the last
    prefill. One that does not fit may be overtaken by later ones for `overtake_ms` after its arrival.
    """

    max_batch_weight: PositiveInt
    max_batch_size: PositiveInt | None = None
    max_waiting_steps: int = 0
    overtake_ms: NonNegative = 0.0
    padded: bool = False


class Sequence:
    """A request inside the engine: `copies` equal sequences that are admitted and decoded together."""

    __slots__ = (
        "copies",
        "enqueued_ms",
        "finish_step",
        "first_step",
        "index",
        "input_tokens",
        "output_tokens",
        "weight",
    )

    def __init__(self, index: int, input_tokens: int, output_tokens: int, copies: int, enqueued_ms: float) -> None:
        self.index = index
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.copies = copies
        self.weight = copies * (input_tokens + output_tokens)
        self.enqueued_ms = enqueued_ms
        self.first_step = self.finish_step = -1


class Prefill(NamedTuple):
    """Prefill these sequences; each emits its first token at the end, unless memory runs out."""

    sequences: list[Sequence]
    duration_ms: float
    out_of_memory: bool


class Decode(NamedTuple):
    """Decode the batch at most `steps` times; step k (from 0) takes `first_ms` + k `increment_ms`.

    With `out_of_memory` the step after these would exceed the memory: the whole batch is lost.
    """

    steps: int
    first_ms: float
    increment_ms: float
    out_of_memory: bool

    def duration_ms(self, steps: int) -> float:
        """Return how long the first `steps` steps take."""
        return steps * self.first_ms + self.increment_ms * (steps * (steps - 1) // 2)


class Batcher:
    """The engine's queue and running batch. `step` counts the decode steps since the start."""

    def __init__(self, rule: BatchingRule, step_times: StepTimes, kv_capacity_tokens: int) -> None:
        self.rule, self.step_times, self.kv_capacity_tokens = rule, step_times, kv_capacity_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[tuple[int, int, Sequence]] = []  # a heap by the step at which each finishes
        self.step = 0
        self.sequences = 0  # copies counted
        self.weight = 0
        self.kv_tokens = 0
        self._longest_input = self._longest_output = 0  # of the running batch, where it is padded
        self._steps_since_prefill = 0
        self._queue_stuck = False  # nothing in the queue fits until the batch or the queue changes
        self._decode_ms: dict[int, float] = {}

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never fit under the caps."""
        rule = self.rule
        if sequence.weight > rule.max_batch_weight or sequence.copies > (rule.max_batch_size or sequence.copies):
            return False
        self.waiting.append(sequence)
        self._queue_stuck = False
        return True

    def next_action(self, now_ms: float) -> Prefill | Decode | None:
        """Return what the engine does now, or None when it has nothing to do."""
        if self.waiting and not self._queue_stuck:
            if not self.running or self._steps_since_prefill >= self.rule.max_waiting_steps:
                admitted = self._admit(now_ms)
                if admitted:
                    return self._prefill(admitted)
                self._queue_stuck = True
        return self._decode() if self.running else None

    def finish_prefill(self, action: Prefill) -> list[Sequence]:
        """Put the prefilled sequences into the batch; return those that needed a single token only."""
        self._steps_since_prefill = 0
        done = []
        for sequence in action.sequences:
            sequence.first_step = self.step
            sequence.finish_step = self.step + sequence.output_tokens - 1
            if sequence.output_tokens == 1:
                done.append(sequence)
                continue
            heappush(self.running, (sequence.finish_step, sequence.index, sequence))
            self.sequences += sequence.copies
            self.weight += sequence.weight
            self.kv_tokens += sequence.copies * (sequence.input_tokens + 1)
        if self.rule.padded:
            self._pad()
        return done

    def drop_prefill(self) -> None:
        """Forget a prefill that ran out of memory: its sequences are lost, the batch goes on."""
        self._steps_since_prefill = 0

    def finish_decode(self, steps: int) -> list[Sequence]:
        """Advance the batch by `steps` decode steps; return the sequences that ended with the last one."""
        self.step += steps
        self._steps_since_prefill += steps
        self.kv_tokens += steps * self.sequences
        running, done = self.running, []
        while running and running[0][0] == self.step:
            sequence = heappop(running)[2]
            self.sequences -= sequence.copies
            self.weight -= sequence.weight
            self.kv_tokens -= sequence.weight
            done.append(sequence)
        if done:
            self._queue_stuck = False
            if self.rule.padded:
                self._pad()
        return done

    def lose_batch(self) -> list[Sequence]:
        """Empty the batch after an out-of-memory; return the sequences that were in it."""
        lost = [entry[2] for entry in self.running]
        self.running.clear()
        self.sequences = self.weight = self.kv_tokens = 0
        self._longest_input = self._longest_output = 0
        self._queue_stuck = False
        return lost

    def _admit(self, now_ms: float) -> list[Sequence]:
        """Take from the queue, oldest first, what fits beside the batch."""
        rule, waiting = self.rule, self.waiting
        sequences, weight = self.sequences, self.weight
        longest_input, longest_output = self._longest_input, self._longest_output
        admitted: list[Sequence] = []
        overtaken: list[Sequence] = []
        while waiting:
            head = waiting.popleft()
            new_sequences = sequences + head.copies
            if rule.padded:
                new_input = max(longest_input, head.input_tokens)
                new_output = max(longest_output, head.output_tokens)
                new_weight = (new_input + new_output) * new_sequences
            else:
                new_input = new_output = 0
                new_weight = weight + head.weight
            if new_weight <= rule.max_batch_weight and new_sequences <= (rule.max_batch_size or new_sequences):
                admitted.append(head)
                sequences, weight = new_sequences, new_weight
                longest_input, longest_output = new_input, new_output
            else:
                overtaken.append(head)
                if now_ms - head.enqueued_ms >= rule.overtake_ms:
                    break
        waiting.extendleft(reversed(overtaken))
        return admitted

    def _prefill(self, admitted: list[Sequence]) -> Prefill:
        sequences = sum(s.copies for s in admitted)
        if self.rule.padded:
            longest = max(s.input_tokens for s in admitted)
            tokens, squared = sequences * longest, float(sequences * longest * longest)
        else:
            tokens = sum(s.copies * s.input_tokens for s in admitted)
            squared = float(sum(s.copies * s.input_tokens * s.input_tokens for s in admitted))
        duration_ms = self.step_times.prefill_ms(tokens, sequences, squared)
        return Prefill(admitted, duration_ms, self.kv_tokens + tokens + sequences > self.kv_capacity_tokens)

    def _decode(self) -> Decode:
        sequences = self.sequences
        base_ms = self._decode_ms.get(sequences)
        if base_ms is None:
            base_ms = self._decode_ms[sequences] = self.step_times.decode_ms(sequences)
        steps = self.running[0][0] - self.step
        if self.waiting and not self._queue_stuck:
            steps = min(steps, self.rule.max_waiting_steps - self._steps_since_prefill)
        affordable = max(0, (self.kv_capacity_tokens - self.kv_tokens) // sequences)
        out_of_memory = affordable < steps
        if out_of_memory:
            steps = affordable
        per_token_ms = self.step_times.kv_ms_per_token
        return Decode(steps, base_ms + per_token_ms * self.kv_tokens, per_token_ms * sequences, out_of_memory)

    def _pad(self) -> None:
        """Weigh the running batch as a rectangle: every sequence as long as the longest."""
        members = [entry[2] for entry in self.running]
        self._longest_input = max((s.input_tokens for s in members), default=0)
        self._longest_output = max((s.output_tokens for s in members), default=0)
        self.weight = (self._longest_input + self._longest_output) * self.sequences
        held = max((s.input_tokens + self.step - s.first_step + 1 for s in members), default=0)
        self.kv_tokens = held * self.sequences
