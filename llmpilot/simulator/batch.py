"""What is in one step of an engine, and who says how long such a step takes: the seam between scheduler,
step times and clock. None of the three knows another."""

from typing import NamedTuple, Protocol


class Batch(NamedTuple):
    """One step's work: sequences that decode a token each, and chunks of prompts that are prefilled.

    `decode_context_tokens` sums, over the sequences that decode, the positions in their KV cache.
    `prefill_pairs` sums over the chunks the pairs (token of the chunk, position that it attends to): a chunk
    of q tokens behind c that are in the cache already has q (c + (q + 1) / 2). `prefills` counts the chunks.
    `longest_context_tokens` is the largest of the positions that `decode_context_tokens` sums; 0: not known.
    """

    decodes: int
    decode_context_tokens: int
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    prefills: int = 0
    longest_context_tokens: int = 0


class StepTime(Protocol):
    """Says how long steps of one service take."""

    def step_ms(self, batch: Batch) -> float:
        """Return the duration of one step [ms], the engine's host time included."""
        ...
