"""SGLang's rule of who is in the next step.

Facts from SGLang's own sources (python/sglang/srt/managers/scheduler.py, schedule_policy.py and
schedule_batch.py of 0.5).
"""

from heapq import heappop, heappush

from pydantic import PositiveFloat, PositiveInt

from llmpilot.simulator.schedulers.paged import PagedRule, PagedScheduler
from llmpilot.simulator.scheduling import Ended, Sequence, Step

LONGEST_RESERVED = 4096
"""No sequence is expected to owe more output tokens than this."""
FIRST_RATIO, LEAST_RATIO, DECAY_STEPS = 0.7, 0.14, 600
"""The share of the output still owed that is reserved: at first, its floor relative to that, and the decode
steps from one to the other."""
RETRACTED_STEPS = 20
"""So many decode steps must fit once somebody was retracted."""


class SglangRule(PagedRule):
    """SGLang's settings that decide who is in a step.

    Prompts go before decoding, in steps of their own: of up to `max_num_batched_tokens` tokens
    (chunked_prefill_size), the last of them in part; without `chunked_prefill` whole prompts of up to
    `max_prefill_tokens`. With `mixed` (enable_mixed_chunk) sequences that run decode along.

    Who waits first is let in if its prompt and all of its output (4,096 tokens of it at most) fit beside what
    the running ones hold and a share of what they still owe. That share falls from 0.7 `conservativeness`
    with each decode step. Once somebody did not fit, nobody is let in until a sequence ends. When a decode
    step does not fit, those with the fewest tokens are retracted, to the end of the queue, and computed anew;
    the share rises to what was owed in truth.
    """

    block_size: PositiveInt = 1
    chunked_prefill: bool = True
    max_prefill_tokens: PositiveInt = 16384
    mixed: bool = False
    conservativeness: PositiveFloat = 1.0

    def scheduler(self, kv_capacity_tokens: int) -> "SglangScheduler":
        """Return a scheduler with nothing to do."""
        return SglangScheduler(self, kv_capacity_tokens)

    def longest_request_tokens(self, kv_capacity_tokens: int, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may become; 0 for more than fit."""
        # Only what is smaller than the room is admitted.
        return max(0, super().longest_request_tokens(kv_capacity_tokens - 1, copies))


class SglangScheduler(PagedScheduler):
    """The queue, the running batch and the KV cache of one SGLang engine."""

    def __init__(self, rule: SglangRule, kv_capacity_tokens: int) -> None:
        super().__init__(rule, kv_capacity_tokens)
        self.rule = rule
        self._first_ratio = min(1.0, FIRST_RATIO * rule.conservativeness)
        self._least_ratio = self._first_ratio * LEAST_RATIO
        self._ratio = self._first_ratio
        self._full = False  # somebody did not fit, and nothing has become free since
        self._owed = _Owed()
        self._youngest: list[tuple[int, int, int, Sequence]] = []  # a heap: who has the fewest tokens

    def compose(self) -> Step | None:
        """Return the next step."""
        tokens, pairs = self._prompts()
        if tokens:
            along = self.rule.mixed and self.decoding.new_blocks(1) <= self.blocks.free
            return self.batch_of(tokens, pairs, [], decodes=along)
        retracted: list[Sequence] = []
        if self.decoding.new_blocks(1) > self.blocks.free:
            self.learn()
            self._retract(retracted)
        step = self.batch_of(0, 0.0, retracted, decodes=True, once=bool(retracted))
        if step is None:
            self._ratio = self._first_ratio
        return step

    def finish(self, steps: int) -> Ended:
        """Count the first `steps` steps of the last `next_step` as done."""
        if self._decodes:
            decay = (self._first_ratio - self._least_ratio) / DECAY_STEPS
            self._ratio = max(self._least_ratio, self._ratio - steps * decay)
        ended = super().finish(steps)
        for sequence in ended.done:
            self._owed.drop(sequence)
        for sequence in ended.started:
            if sequence in self.running:
                self._owed.add(sequence, self.step)
                born = sequence.first_step - sequence.generated
                heappush(self._youngest, (-born, -sequence.input_tokens, -sequence.index, sequence))
        return ended

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is: its place is free from the next step on."""
        self._owed.drop(sequence)
        super().leave(sequence)

    def give(self, blocks: int, places: int) -> None:
        """Free blocks and places: who did not fit may fit now."""
        super().give(blocks, places)
        self._full = False

    def _prompts(self) -> tuple[int, float]:
        """Put prompts into the step while places, memory and budget last; return the tokens and pairs."""
        rule, waiting, partial = self.rule, self.waiting, self.partial
        if partial is None and (self._full or not waiting):
            return 0, 0.0
        budget = rule.max_num_batched_tokens if rule.chunked_prefill else rule.max_prefill_tokens
        free = self.blocks.free
        if rule.mixed:  # what decodes along takes its tokens from the chunk, and needs memory too
            budget -= self.decoding.sequences
            free -= self.decoding.new_blocks(1)
        tokens, pairs = 0, 0.0
        if partial is not None and budget > 0:
            tokens = min(budget, partial.copies * partial.target - partial.computed)
            pairs = self.prefill(partial, tokens, 0)
        if self._full:
            return tokens, pairs
        room = free * self.block_size - self._ratio * self._owed.tokens(self.step)
        while waiting and tokens < budget:
            head = waiting[0]
            copies = head.copies
            kept = self.find(head)
            whole = self.blocks_for(head, copies * head.target)
            needed = self.missing(head, whole)
            reserved = needed * self.block_size
            reserved += copies * min(head.output_tokens - head.generated, LONGEST_RESERVED)
            # Whoever is alone fits.
            fits = needed <= free and (reserved < room or not self.running)
            if not fits or self.places + copies > rule.max_num_seqs:
                self._full = bool(self.running)
                break
            cached = copies * head.cached
            chunk = copies * head.target - cached
            if chunk > budget - tokens:
                if rule.chunked_prefill:
                    chunk = budget - tokens
                elif tokens:  # a prompt longer than the budget has a step for itself
                    break
            tokens, room, free = tokens + chunk, room - reserved, free - needed
            # The blocks of a whole prompt are its own from its first chunk on: nothing decodes meanwhile.
            pairs += self.admit(head, chunk, whole, cached=cached, kept=kept)
        return tokens, pairs

    def _retract(self, retracted: list[Sequence]) -> None:
        """Retract those with the fewest tokens until the others can decode for a while."""
        decoding = self.decoding
        if decoding.new_blocks(1) <= self.blocks.free:
            return
        while self.blocks.free * self.block_size < RETRACTED_STEPS * decoding.sequences:
            born, _, _, victim = heappop(self._youngest)
            if victim not in self.running or victim.first_step - victim.generated != -born:
                continue
            if decoding.sequences == victim.copies:  # alone, it fits
                heappush(self._youngest, (born, -victim.input_tokens, -victim.index, victim))
                break
            self._owed.drop(victim)
            self.preempt(victim, keep=False)
            retracted.append(victim)
        self.waiting.extend(retracted)
        outputs, owed = self._owed.outputs, self._owed.unlimited(self.step)
        expected = outputs - owed + RETRACTED_STEPS * decoding.sequences
        self._ratio = min(1.0, expected / max(1, outputs))


class _Owed:
    """How many output tokens the running sequences owe, each counted as LONGEST_RESERVED at most.

    `outputs` sums what they owed at first.
    """

    def __init__(self) -> None:
        self.outputs = 0
        self._sequences = self._finish_steps = 0  # copies, and the sum of the steps at which they end
        self._long = self._long_finish_steps = 0  # those among them that owe more than is counted
        self._members: dict[Sequence, bool] = {}  # whether it is among these
        self._shortening: list[tuple[int, int, Sequence]] = []  # a heap: when it is no more

    def add(self, sequence: Sequence, step: int) -> None:
        copies, finish_step = sequence.copies, sequence.finish_step
        long = self._members[sequence] = finish_step - step > LONGEST_RESERVED
        self.outputs += copies * sequence.output_tokens
        self._sequences += copies
        self._finish_steps += copies * finish_step
        if long:
            self._long += copies
            self._long_finish_steps += copies * finish_step
            heappush(self._shortening, (finish_step - LONGEST_RESERVED, sequence.index, sequence))

    def drop(self, sequence: Sequence) -> None:
        long = self._members.pop(sequence, None)
        if long is None:
            return
        copies = sequence.copies
        self.outputs -= copies * sequence.output_tokens
        self._sequences -= copies
        self._finish_steps -= copies * sequence.finish_step
        if long:
            self._shorten(sequence)

    def tokens(self, step: int) -> int:
        """Return the tokens owed at `step`."""
        shortening, members = self._shortening, self._members
        while shortening and shortening[0][0] <= step:
            until, _, sequence = heappop(shortening)
            if members.get(sequence) and sequence.finish_step - LONGEST_RESERVED == until:
                members[sequence] = False
                self._shorten(sequence)
        short = self._sequences - self._long
        finish_steps = self._finish_steps - self._long_finish_steps
        return finish_steps - short * step + self._long * LONGEST_RESERVED

    def unlimited(self, step: int) -> int:
        """Return the tokens owed at `step`, all of them counted."""
        return self._finish_steps - self._sequences * step

    def _shorten(self, sequence: Sequence) -> None:
        self._long -= sequence.copies
        self._long_finish_steps -= sequence.copies * sequence.finish_step
