"""Prompts of token ids as JSON, of exact lengths, at the cost of copying bytes. No tokenizer.

A prompt of token ids begins with its own number, so no prefix cache helps, and goes on with a slice of a
pool of random ids, all of the same number of digits, so that a slice needs no rendering.
"""

import numpy as np

from llmpilot.engine.words import SCATTER

SAFE_IDS = (1000, 9999)
"""Ids that the vocabulary of every LLM in use has, and that are no special tokens."""

_POOL_IDS = 1 << 17


def id_range(vocabulary_size: int | None) -> tuple[int, int]:
    """Return the first and last id of random prompts: one number of digits, clear of special tokens.

    Special tokens sit at either end of a vocabulary: the lowest ids are avoided, and its last tenth.
    """
    if vocabulary_size is None:
        return SAFE_IDS
    top = max(1, vocabulary_size * 9 // 10 - 1)
    ranges = [(10**d, min(10 ** (d + 1) - 1, top)) for d in range(5)]
    return max(ranges, key=lambda r: r[1] - r[0])


class TokenIdPrompts:
    """Random prompts of token ids. The same seed, number and length give the same prompt in every process."""

    def __init__(self, seed: int, vocabulary_size: int | None) -> None:
        self._low, high = id_range(vocabulary_size)
        self._base = high - self._low + 1
        # Numbers below 2^64 must fit, or prompts would repeat.
        self._digits = max(1, -(-64 // max(1, self._base.bit_length() - 1)))
        ids = np.random.default_rng([seed, 0x1D5]).integers(self._low, high + 1, _POOL_IDS)
        text = ",".join(map(str, ids.tolist())).encode()
        self._width = len(str(self._low)) + 1
        self._pool = memoryview(text + b"," + text)

    def prompt(self, number: int, tokens: int) -> bytes:
        """Return prompt `number` as JSON: a list of `tokens` ids."""
        own = self._number_as_ids(number)[:tokens]
        rest = tokens - len(own)
        parts = [b",".join(own)]
        start = number * SCATTER % _POOL_IDS
        while rest > 0:
            count = min(rest, _POOL_IDS)
            at = start * self._width
            parts.append(self._pool[at : at + count * self._width - 1])  # type: ignore[arg-type]
            rest -= count
        return b"[" + b",".join(parts) + b"]"

    def _number_as_ids(self, number: int) -> list[bytes]:
        digits = []
        for _ in range(self._digits):
            number, digit = divmod(number, self._base)
            digits.append(b"%d" % (self._low + digit))
        return digits
