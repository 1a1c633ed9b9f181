"""vLLM's rule of who is in the next step: that of its V1 engine, and that of its first one.

Facts from vLLM's own sources (vllm/v1/core/sched/scheduler.py and kv_cache_manager.py of 0.19;
vllm/core/scheduler.py and block_manager.py of 0.6).
"""

from collections import deque

from pydantic import PositiveInt, model_validator

from llmpilot.schema import Facts, Share
from llmpilot.simulator.batch import Batch
from llmpilot.simulator.schedulers.blocks import Blocks
from llmpilot.simulator.schedulers.decoding import Decoding
from llmpilot.simulator.scheduling import Ended, Gauges, Sequence, Step

WATERMARK = 0.01
"""vLLM's first scheduler admits nobody into the last hundredth of its blocks."""


class VllmRule(Facts):
    """vLLM's settings that decide who is in a step, under vLLM's names.

    With `chunked_prefill`, the V1 engine's rule: sequences that run come first, one token each; what they
    leave of `max_num_batched_tokens` goes to prompts, first come first served, the last of them in part.
    Without it, the rule of vLLM until 0.7: whole prompts in steps of their own, which go before decoding.

    Blocks of the KV cache are taken as tokens come. When none is free, the sequence admitted last loses all
    of its blocks and waits at the head of the queue; its prompt and its tokens so far are prefilled again,
    but for the blocks that with `prefix_caching` are found again. Nobody is admitted in a step that
    preempted, nor whose prompt does not fit as a whole. `prefix_hit_share` of every prompt is in the cache
    already: it is not computed, but needs blocks. `overlapped`: a step is composed while the one before it
    runs, so who arrived, or whose place became free, during that one waits for the step after it.
    """

    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt = 16
    chunked_prefill: bool = True
    prefix_caching: bool = True
    prefix_hit_share: Share = 0.0
    overlapped: bool = True
    max_positions: PositiveInt | None = None

    @model_validator(mode="after")
    def _every_sequence_has_its_token(self) -> "VllmRule":
        if self.chunked_prefill and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is smaller than "
                f"max_num_seqs={self.max_num_seqs}: not every sequence could decode in a step"
            )
        return self

    def scheduler(self, kv_capacity_tokens: int) -> "VllmScheduler":
        """Return a scheduler with nothing to do."""
        return VllmScheduler(self, kv_capacity_tokens)

    def longest_request_tokens(self, kv_capacity_tokens: int, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may become; 0 for more than fit."""
        if copies > self.max_num_seqs:
            return 0
        blocks = kv_capacity_tokens // self.block_size // copies
        # The last token never enters the cache.
        return min(blocks * self.block_size + 1, self.max_positions or 1 << 60)


class VllmScheduler:
    """The queue, the running batch and the blocks of one vLLM engine."""

    def __init__(self, rule: VllmRule, kv_capacity_tokens: int) -> None:
        self.rule = rule
        self._capacity = kv_capacity_tokens
        self._blocks = Blocks(kv_capacity_tokens // rule.block_size)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in the order of admission
        self._decoding = Decoding(rule.block_size)
        self._sequences = 0  # copies that hold a place
        self._partial: Sequence | None = None  # the one whose prompt is in the cache in part
        self._prefills: dict[Sequence, int] = {}  # the step's prompts, and how much of each
        self._decodes = False  # whether the step in flight decodes
        self._busy = False  # a step is in flight
        # With `overlapped`, what the next step was composed without knowing.
        self._door: list[Sequence] = []
        self._late_blocks = self._late_places = 0

    @property
    def step(self) -> int:
        """How many steps had sequences that decoded."""
        return self._decoding.step

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never be served."""
        tokens = sequence.input_tokens + sequence.output_tokens
        if tokens > self.rule.longest_request_tokens(self._capacity, sequence.copies):
            return False
        hits = round(self.rule.prefix_hit_share * sequence.input_tokens)
        sequence.cached = min(hits, sequence.input_tokens - 1)
        if self._busy and self.rule.overlapped:
            self._door.append(sequence)
        else:
            self._waiting.append(sequence)
        return True

    def next_step(self) -> Step | None:
        """Return what the engine computes next, or None when it has nothing to do."""
        step = self._compose()
        if self._door or self._late_places:
            self._learn_what_was_late()
            if step is None:  # nothing was in flight, so nothing was late
                step = self._compose()
            elif self._waiting:
                step = step._replace(steps=1)
        self._busy = step is not None
        return step

    def finish(self, steps: int) -> Ended:
        """Count the first `steps` steps of the last `next_step` as done."""
        started: list[Sequence] = []
        done: list[Sequence] = []
        if self._decodes:
            self._blocks.take(self._decoding.new_blocks(steps))
            done = self._decoding.advance(steps)
            for sequence in done:
                del self._running[sequence]
                self._release(sequence, self._decoding.blocks_of(sequence))
        for sequence, chunk in self._prefills.items():
            sequence.computed += chunk
            if sequence.computed < sequence.copies * sequence.target:
                continue
            sequence.generated += 1
            started.append(sequence)
            if sequence.generated < sequence.output_tokens:
                self._decoding.join(sequence)
            else:
                sequence.first_step = sequence.last_step = self.step
                del self._running[sequence]
                self._release(sequence, sequence.blocks)
                done.append(sequence)
        self._prefills.clear()
        return Ended(started, done, [])

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is: its place is free from the next step on."""
        if sequence not in self._running:
            self._blocks.take_kept(sequence, 0)
            (self._door if sequence in self._door else self._waiting).remove(sequence)
            return
        del self._running[sequence]
        if sequence.finish_step >= 0:
            held = self._decoding.remove(sequence)
        else:
            held = sequence.blocks
            self._prefills.pop(sequence, None)
            if sequence is self._partial:
                self._partial = None
        self._sequences -= sequence.copies
        self._blocks.give(held)

    def gauges(self) -> Gauges:
        """Return how much runs and waits."""
        waiting = sum(sequence.copies for sequence in (*self._waiting, *self._door))
        held = self._blocks.total - self._blocks.free - self._late_blocks
        return Gauges(self._sequences - self._late_places, waiting, held * self.rule.block_size)

    def _compose(self) -> Step | None:
        decoding, rule = self._decoding, self.rule
        prefills_first = not rule.chunked_prefill
        preempted: list[Sequence] = []
        tokens, pairs = 0, 0.0
        if prefills_first:
            tokens, pairs = self._admit(rule.max_num_batched_tokens, 0)
        if not tokens:
            needed = self._make_room(preempted)
            if not prefills_first:
                budget = rule.max_num_batched_tokens - decoding.sequences
                tokens, pairs = self._go_on(budget, needed, preempted)
                if not preempted:
                    more = self._admit(budget - tokens, needed)
                    tokens, pairs = tokens + more[0], pairs + more[1]
        self._waiting.extendleft(preempted)
        if tokens:
            self._decodes = decoding.sequences > 0 and not prefills_first
            decodes, context = (decoding.sequences, decoding.context) if self._decodes else (0, 0)
            prefills = sum(sequence.copies for sequence in self._prefills)
            starts = len(self._prefills) - (self._partial is not None)
            return Step(Batch(decodes, context, tokens, pairs, prefills), 1, True, starts, tuple(preempted))
        self._decodes = decoding.sequences > 0
        if not self._decodes:
            return None
        steps = 1
        if not preempted:
            steps = decoding.steps_within(self._blocks.free, decoding.steps_to_end())
        batch = Batch(decoding.sequences, decoding.context)
        # Behind a head that does not fit nobody is let in.
        return Step(batch, steps, not self._waiting, 0, tuple(preempted))

    def _make_room(self, preempted: list[Sequence]) -> int:
        """Preempt until the blocks that decoding needs next are free; return how many these are."""
        needed = self._decoding.new_blocks(1)
        while needed > self._blocks.free:
            victim = next(reversed(self._running))
            if victim.finish_step >= 0 and self._decoding.needs_block(victim):
                needed -= victim.copies
            self._preempt(victim)
            preempted.append(victim)
        return needed

    def _preempt(self, victim: Sequence) -> None:
        del self._running[victim]
        self._sequences -= victim.copies
        copies = victim.copies
        if victim.finish_step >= 0:
            held = self._decoding.remove(victim)
            if victim.earlier is None:
                victim.earlier = []
            victim.earlier.append((victim.started_ms, victim.first_step, victim.last_step))
            victim.first_step = -1
            victim.computed = copies * (victim.input_tokens + victim.generated - 1)
        else:
            held = victim.blocks
            if victim is self._partial:
                self._partial = None
        full = copies * (victim.computed // copies // self.rule.block_size)
        if self.rule.prefix_caching and full:
            self._blocks.give(held - full)
            self._blocks.give_kept(victim, full)
        else:
            self._blocks.give(held)
        victim.target = victim.input_tokens + victim.generated
        victim.blocks = 0

    def _go_on(self, budget: int, needed: int, preempted: list[Sequence]) -> tuple[int, float]:
        """Go on with the prompt that was begun; return its tokens and pairs in this step."""
        partial = self._partial
        if partial is None:
            return 0, 0.0
        chunk = min(budget, partial.copies * partial.target - partial.computed)
        more = self._blocks_for(partial, partial.computed + chunk) - partial.blocks
        if more > self._blocks.free - needed:
            self._preempt(partial)
            preempted.append(partial)
            return 0, 0.0
        if partial.computed + chunk == partial.copies * partial.target:
            self._partial = None
        return chunk, self._prefill(partial, chunk, more) if chunk else 0.0

    def _admit(self, budget: int, needed: int) -> tuple[int, float]:
        """Let in who waits, in order, while places, blocks and budget last; return the tokens and pairs."""
        rule, blocks, waiting = self.rule, self._blocks, self._waiting
        reserve = needed
        if not rule.chunked_prefill and self._running:
            reserve = int(WATERMARK * blocks.total)
        tokens, pairs = 0, 0.0
        while waiting and tokens < budget:
            head = waiting[0]
            copies, target = head.copies, head.target
            if self._sequences + copies > rule.max_num_seqs:
                break
            if self._blocks_for(head, copies * target) > blocks.free - reserve:
                break
            kept = min(blocks.kept(head) // copies, (target - 1) // rule.block_size)
            cached = copies * max(head.cached, kept * rule.block_size)
            chunk = copies * target - cached
            if chunk > budget - tokens:
                if rule.chunked_prefill:
                    chunk = budget - tokens
                elif tokens:  # a prompt longer than the budget has a step for itself
                    break
            waiting.popleft()
            self._running[head] = None
            self._sequences += copies
            blocks.take_kept(head, copies * kept)
            head.blocks, head.computed = copies * kept, cached
            pairs += self._prefill(head, chunk, self._blocks_for(head, cached + chunk) - head.blocks)
            tokens += chunk
            if cached + chunk < copies * target:
                self._partial = head
        return tokens, pairs

    def _prefill(self, sequence: Sequence, chunk: int, new_blocks: int) -> float:
        """Put a chunk of a prompt into the step; return its pairs of tokens."""
        self._blocks.take(new_blocks)
        sequence.blocks += new_blocks
        self._prefills[sequence] = chunk
        copies = sequence.copies
        return chunk * (2 * sequence.computed + chunk + copies) / (2 * copies)

    def _blocks_for(self, sequence: Sequence, tokens: int) -> int:
        """Return how many blocks `tokens` tokens need, those of all copies together."""
        copies = sequence.copies
        return -copies * ((-tokens // copies) // self.rule.block_size)

    def _release(self, sequence: Sequence, blocks: int) -> None:
        if self.rule.overlapped:
            self._late_blocks += blocks
            self._late_places += sequence.copies
        else:
            self._blocks.give(blocks)
            self._sequences -= sequence.copies

    def _learn_what_was_late(self) -> None:
        self._waiting.extend(self._door)
        self._door.clear()
        self._blocks.give(self._late_blocks)
        self._sequences -= self._late_places
        self._late_blocks = self._late_places = 0
