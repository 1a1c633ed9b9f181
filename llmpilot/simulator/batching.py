"""Continuous batching: which requests are in the batch, what the engine does next, and when it is full.

A state machine without a clock: a driver asks `next_action`, lets the time pass (virtual or real), and
reports back with `finish_prefill` or `finish_decode`. The rule is that of IBM's TGIS (its router's
batcher.rs, queue.rs and batch_types.rs): requests are admitted while the batch's peak weight stays under
a cap, prefill interrupts decoding once enough of them wait, nobody is preempted.
"""

from bisect import bisect_left
from collections import deque
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from pydantic import PositiveInt

from llmpilot.config import Facts, NonNegative
from llmpilot.simulator.scheduling import Sequence
from llmpilot.simulator.steptime import StepTimes

NEVER = 1 << 60  # steps


class BatchingRule(Facts):
    """The engine's admission rule.

    The batch's peak weight stays under `max_batch_weight`: at the end of each of its requests, what the
    requests not yet ended hold by then, summed; a padded batch holds (longest context + output still owed)
    x sequences. Prefill interrupts decoding when the requests that can be admitted are at least the share
    1 - w / max_waiting_steps of those running, w steps after the last prefill; after `max_waiting_steps`
    one is enough, and 0 means at once. A request that does not fit may be overtaken by those that came at
    most `overtake_ms` after it. One longer than the model's `max_positions` is refused.
    """

    max_batch_weight: PositiveInt
    max_batch_size: PositiveInt | None = None
    max_positions: PositiveInt | None = None
    max_waiting_steps: int = 0
    overtake_ms: NonNegative = 0.0
    padded: bool = False


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
        self.weight = 0  # sum over the batch of copies x (input + output), an upper bound of its peak
        self.kv_tokens = 0
        self._steps_since_prefill = 0
        self._must_decode = False  # an interrupted batch decodes once before the next prefill
        self._join = False  # that step first joins freshly prefilled sequences to the batch
        self._most_admissible = NEVER  # of those waiting, at most so many fit beside the batch
        self._decode_ms: dict[int, float] = {}

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never fit under the caps."""
        rule, copies = self.rule, sequence.copies
        tokens = sequence.input_tokens + sequence.output_tokens
        if sequence.weight > rule.max_batch_weight or copies > (rule.max_batch_size or copies):
            return False
        if tokens > (rule.max_positions or tokens):
            return False
        self.waiting.append(sequence)
        self._most_admissible += 1
        return True

    def next_action(self, now_ms: float) -> Prefill | Decode | None:
        """Return what the engine does now, or None when it has nothing to do."""
        if self.waiting and not self._must_decode and self._steps_since_prefill >= self._wait():
            admitted = self._admissible()
            self._most_admissible = len(admitted)
            if self._steps_since_prefill >= self._wait():
                chosen = set(admitted)
                self.waiting = deque(s for s in self.waiting if s not in chosen)
                return self._prefill(admitted)
        return self._decode() if self.running else None

    def finish_prefill(self, action: Prefill) -> list[Sequence]:
        """Put the prefilled sequences into the batch; return those that needed a single token only."""
        self._steps_since_prefill = 0
        self._must_decode = bool(self.running)
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
        self._join = self._must_decode and len(done) < len(action.sequences)
        self.batch_changed()
        return done

    def drop_prefill(self) -> None:
        """Forget a prefill that ran out of memory: its sequences are lost, the batch goes on."""
        self._steps_since_prefill = 0
        self._most_admissible = NEVER

    def finish_decode(self, steps: int) -> list[Sequence]:
        """Advance the batch by `steps` decode steps; return the sequences that ended with the last one."""
        self.step += steps
        self._steps_since_prefill += steps
        self._must_decode = self._join = False
        self.kv_tokens += steps * self.sequences
        running, done = self.running, []
        while running and running[0][0] == self.step:
            sequence = heappop(running)[2]
            self.sequences -= sequence.copies
            self.weight -= sequence.weight
            self.kv_tokens -= sequence.weight
            done.append(sequence)
        if done:
            self.batch_changed()
        return done

    def lose_batch(self) -> list[Sequence]:
        """Empty the batch after an out-of-memory; return the sequences that were in it."""
        lost = [entry[2] for entry in self.running]
        self.running.clear()
        self.sequences = self.weight = self.kv_tokens = 0
        self._most_admissible = NEVER
        self._must_decode = self._join = False
        return lost

    def batch_changed(self) -> None:
        """Find out anew who fits, now that others run or wait; and how long a padded batch's rows are."""
        self._most_admissible = NEVER
        if self.rule.padded:
            self._pad()

    def _wait(self) -> int:
        """Return how many steps after the last prefill those that may fit will have waited long enough."""
        running, full = len(self.running), self.rule.max_waiting_steps
        waiting = min(len(self.waiting), self._most_admissible)
        if waiting == 0:
            return NEVER
        if running <= 1 or full == 0:
            return 0
        # TGIS counts w from 1 and asks for floor(running (full - w) / full) requests, and at least one.
        steps = full - 1 - ((waiting + 1) * full - 1) // running
        return max(0, min(steps, full - 1))

    def _admissible(self) -> list[Sequence]:
        """Return what fits beside the batch, oldest first, with the overtaking that the rule allows."""
        rule = self.rule
        sequences, weight = self.sequences, self.weight
        peak: _Peak | None = None
        chosen: list[Sequence] = []
        cutoff_ms = inf
        for head in self.waiting:
            if head.enqueued_ms > cutoff_ms:
                break
            fits = sequences + head.copies <= (rule.max_batch_size or sequences + head.copies)
            # A batch whose requests' full lengths fit needs no closer look; padding breaks this bound.
            if fits and (rule.padded or weight + head.weight > rule.max_batch_weight):
                if peak is None:
                    peak = _Peak(rule, self.step, [entry[2] for entry in self.running], chosen)
                fits = peak.fits(head)
            if fits:
                chosen.append(head)
                sequences += head.copies
                weight += head.weight
                if peak is not None:
                    peak.add(head)
            elif cutoff_ms == inf:
                cutoff_ms = head.enqueued_ms + rule.overtake_ms
        return chosen

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
        if self._join:
            steps = 1
            base_ms += self.step_times.join_ms + self.step_times.join_ms_per_sequence * sequences
        elif self.waiting:
            steps = min(steps, max(1, self._wait() - self._steps_since_prefill))
        affordable = max(0, (self.kv_capacity_tokens - self.kv_tokens) // sequences)
        out_of_memory = affordable < steps
        if out_of_memory:
            steps = affordable
        per_token_ms = self.step_times.kv_ms_per_token
        return Decode(steps, base_ms + per_token_ms * self.kv_tokens, per_token_ms * sequences, out_of_memory)

    def _pad(self) -> None:
        """Count the running batch's KV cache as a rectangle: every sequence as long as the longest."""
        members = [entry[2] for entry in self.running]
        held = max((s.input_tokens + self.step - s.first_step + 1 for s in members), default=0)
        self.kv_tokens = held * self.sequences


class _Peak:
    """The weight of a batch at the end of each of its requests, the longest-lived first."""

    def __init__(
        self, rule: BatchingRule, step: int, running: list[Sequence], chosen: list[Sequence]
    ) -> None:
        self._cap, self._padded = rule.max_batch_weight, rule.padded
        # (- tokens still owed, tokens held, sequences)
        self._rows = [
            (step - s.finish_step, s.input_tokens + step - s.first_step + 1, s.copies) for s in running
        ]
        self._rows += [(-s.output_tokens, s.input_tokens, s.copies) for s in chosen]
        self._rows.sort()
        self._scan()

    def add(self, sequence: Sequence) -> None:
        """Count `sequence` in."""
        row = (-sequence.output_tokens, sequence.input_tokens, sequence.copies)
        self._rows.insert(bisect_left(self._rows, row), row)
        self._scan()

    def fits(self, sequence: Sequence) -> bool:
        """Whether the cap holds with `sequence` in the batch, at its end and at all earlier ones."""
        owed, held, copies = sequence.output_tokens, sequence.input_tokens, sequence.copies
        cap, before = self._cap, self._before
        at = bisect_left(self._rows, (-owed, held, copies))
        count, longest, total = before[at]
        count += copies
        if self._padded:
            if (max(longest, held) + owed) * count > cap:
                return False
            for index in range(len(self._rows) - 1, at - 1, -1):  # the fullest batch first
                count, longest, _ = before[index + 1]
                longest = max(longest, held)
                if (longest - self._rows[index][0]) * (count + copies) > cap:
                    return False
            return True
        if total + copies * held + count * owed > cap:
            return False
        if copies == 1:
            return self._later[at] + held <= cap
        # Each later end grows by what the sequence holds then: its input and `owed` of that end.
        for index in range(at, len(self._rows)):
            count, _, total = before[index + 1]
            if total + copies * held - (count + copies) * self._rows[index][0] > cap:
                return False
        return True

    def _scan(self) -> None:
        count = longest = total = 0
        self._before = [(0, 0, 0)]
        for _, held, copies in self._rows:
            count, longest, total = count + copies, max(longest, held), total + copies * held
            self._before.append((count, longest, total))
        # The largest weight at any end from this one on, were one more single sequence in the batch.
        heaviest = 0
        self._later = [0] * (len(self._rows) + 1)
        if not self._padded:
            for index in range(len(self._rows) - 1, -1, -1):
                count, _, total = self._before[index + 1]
                heaviest = max(heaviest, total - (count + 1) * self._rows[index][0])
                self._later[index] = heaviest
