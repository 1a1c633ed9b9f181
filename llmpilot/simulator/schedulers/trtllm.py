"""TensorRT-LLM's rule of who is in the next step: in-flight batching that evicts nobody.

Facts from TensorRT-LLM's own sources and documentation (cpp/tensorrt_llm/batch_manager/capacityScheduler.cpp
and microBatchScheduler.cpp of 1.0; GUARANTEED_NO_EVICT is the default of its capacity scheduler).
"""

from pydantic import PositiveInt

from llmpilot.simulator.schedulers.paged import PagedRule, PagedScheduler
from llmpilot.simulator.scheduling import Sequence, Step


class TrtllmRule(PagedRule):
    """TensorRT-LLM's settings that decide who is in a step.

    A request is let in, first come first served, when the blocks for its whole input and output are free:
    whoever runs, runs to its end. Sequences that run decode in every step; what they leave of
    `max_num_batched_tokens` (max_num_tokens) goes to whole prompts, or with `chunked_prefill`
    (enable_chunked_context) to parts of them, in whole blocks but for the last; without it a longer prompt is
    refused. `max_num_seqs` is its max_batch_size.
    """

    block_size: PositiveInt = 32
    chunked_prefill: bool = False

    def scheduler(self, kv_capacity_tokens: int) -> "TrtllmScheduler":
        """Return a scheduler with nothing to do."""
        return TrtllmScheduler(self, kv_capacity_tokens)


class TrtllmScheduler(PagedScheduler):
    """The queue, the running batch and the blocks of one TensorRT-LLM engine."""

    grows = False

    def __init__(self, rule: TrtllmRule, kv_capacity_tokens: int) -> None:
        super().__init__(rule, kv_capacity_tokens)
        self.rule = rule

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never be served."""
        if not self.rule.chunked_prefill and sequence.input_tokens > self.rule.max_num_batched_tokens:
            return False
        return super().enqueue(sequence)

    def compose(self) -> Step | None:
        """Return the next step."""
        rule, waiting = self.rule, self.waiting
        budget = rule.max_num_batched_tokens - self.decoding.sequences
        tokens, pairs = 0, 0.0
        if self.partial is not None:
            tokens = self._chunk(self.partial, self.partial.computed, budget)
            if tokens:
                pairs = self.prefill(self.partial, tokens, 0)
        while waiting and self.partial is None:
            head = waiting[0]
            copies = head.copies
            kept = self.find(head)
            blocks = self.blocks_for(head, copies * (head.input_tokens + head.output_tokens))
            if self.places + copies > rule.max_num_seqs or self.missing(head, blocks) > self.blocks.free:
                break
            chunk = self._chunk(head, copies * head.cached, budget - tokens)
            if not chunk:
                break
            tokens += chunk
            pairs += self.admit(head, chunk, blocks, cached=copies * head.cached, kept=kept)
        return self.batch_of(tokens, pairs, [], decodes=True)

    def _chunk(self, sequence: Sequence, computed: int, budget: int) -> int:
        """Return how many tokens of a prompt go into a step with so many left."""
        whole = sequence.copies * sequence.target - computed
        if whole <= budget:
            return whole
        alone = not self.decoding.sequences and not self.prefills
        if self.rule.chunked_prefill:
            return max(0, budget) // self.block_size * self.block_size or (budget if alone else 0)
        # Copies that are longer together than a step have one that nobody else needs.
        return whole if alone else 0
