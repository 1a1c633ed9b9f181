"""vLLM's rule of who is in the next step: that of its V1 engine, and that of its first one.

Facts from vLLM's own sources (vllm/v1/core/sched/scheduler.py and kv_cache_manager.py of 0.19;
vllm/core/scheduler.py and block_manager.py of 0.6).
"""

from pydantic import PositiveInt, model_validator

from llmpilot.simulator.schedulers.paged import PagedRule, PagedScheduler
from llmpilot.simulator.scheduling import Sequence, Step

WATERMARK = 0.01
"""vLLM's first scheduler admits nobody into the last hundredth of its blocks."""


class VllmRule(PagedRule):
    """vLLM's settings that decide who is in a step.

    With `chunked_prefill`, the V1 engine's rule: sequences that run come first, one token each; what they
    leave of `max_num_batched_tokens` goes to prompts, first come first served, the last of them in part.
    Without it, the rule of vLLM until 0.7: whole prompts in steps of their own, which go before decoding.

    Blocks of the KV cache are taken as tokens come. When none is free, the sequence admitted last loses all
    of its blocks and waits at the head of the queue; its prompt and its tokens so far are prefilled again,
    but for the blocks that with `prefix_caching` are found again. Nobody is admitted in a step that
    preempted, nor whose prompt does not fit as a whole.
    """

    block_size: PositiveInt = 16
    chunked_prefill: bool = True

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


class VllmScheduler(PagedScheduler):
    """The queue, the running batch and the blocks of one vLLM engine."""

    finds_at_once = True

    def __init__(self, rule: VllmRule, kv_capacity_tokens: int) -> None:
        super().__init__(rule, kv_capacity_tokens)
        self.rule = rule

    def compose(self) -> Step | None:
        """Return the next step."""
        rule, decoding = self.rule, self.decoding
        preempted: list[Sequence] = []
        if rule.chunked_prefill:
            needed = self._make_room(preempted)
            budget = rule.max_num_batched_tokens - decoding.sequences
            tokens, pairs = self._go_on(budget, needed, preempted)
            if self.waiting and not preempted:
                more_tokens, more_pairs = self._admit(budget - tokens, needed)
                tokens, pairs = tokens + more_tokens, pairs + more_pairs
        else:
            watermark = int(WATERMARK * self.blocks.total) if self.running else 0
            tokens, pairs = self._admit(rule.max_num_batched_tokens, watermark)
            needed = 0 if tokens else self._make_room(preempted)
        once = False
        if preempted:
            # Nobody is let in together with a preemption, but in the next step whoever fits.
            self.waiting.extendleft(preempted)
            head = self.waiting[0]
            blocks = self.missing(head, self.blocks_for(head, head.copies * head.target))
            once = blocks <= self.blocks.free - needed
        decodes = rule.chunked_prefill or not tokens
        return self.batch_of(tokens, pairs, preempted, decodes=decodes, once=once)

    def _make_room(self, preempted: list[Sequence]) -> int:
        """Preempt until the blocks that decoding needs next are free; return how many these are."""
        needed = self.decoding.new_blocks(1)
        while needed > self.blocks.free:
            victim = next(reversed(self.running))
            if victim.finish_step >= 0 and self.decoding.needs_block(victim):
                needed -= victim.copies
            self.preempt(victim, keep=self.rule.prefix_caching)
            preempted.append(victim)
        return needed

    def _go_on(self, budget: int, needed: int, preempted: list[Sequence]) -> tuple[int, float]:
        """Go on with the prompt that was begun; return its tokens and pairs in this step."""
        partial = self.partial
        if partial is None or not budget:
            return 0, 0.0
        chunk = min(budget, partial.copies * partial.target - partial.computed)
        more = self.blocks_for(partial, partial.computed + chunk) - partial.blocks
        if more > self.blocks.free - needed:
            self.preempt(partial, keep=self.rule.prefix_caching)
            preempted.append(partial)
            return 0, 0.0
        return chunk, self.prefill(partial, chunk, more)

    def _admit(self, budget: int, reserve: int) -> tuple[int, float]:
        """Let in who waits, in order, while places, blocks and budget last; return the tokens and pairs."""
        rule, blocks, waiting = self.rule, self.blocks, self.waiting
        tokens, pairs = 0, 0.0
        while waiting and tokens < budget:
            head = waiting[0]
            copies = head.copies
            total = copies * head.target
            if self.places + copies > rule.max_num_seqs:
                break
            needed = self.blocks_for(head, total)
            if needed > blocks.free - reserve and self.missing(head, needed) > blocks.free - reserve:
                break
            kept = min(blocks.kept(head) // copies, (head.target - 1) // rule.block_size)
            cached = copies * max(head.cached, kept * rule.block_size)
            chunk = total - cached
            if chunk > budget - tokens:
                if rule.chunked_prefill:
                    chunk = budget - tokens
                elif tokens:  # a prompt longer than the budget has a step for itself
                    break
            tokens += chunk
            held = self.blocks_for(head, cached + chunk)
            pairs += self.admit(head, chunk, held, cached=cached, kept=copies * kept)
        return tokens, pairs
