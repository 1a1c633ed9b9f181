"""Prompts of words, for servers that refuse token ids or put a template around them. No tokenizer."""

from dataclasses import dataclass

import numpy as np

_WORDS = 1 << 15
SCATTER = 2_654_435_761  # odd, so that consecutive numbers begin far from each other in the pool


@dataclass(frozen=True)
class WordCount:
    """How a server counts our words: `tokens_per_word` each, and `extra_tokens` for its template.

    `measured`: the server has said so; else each word is taken for a token.
    """

    tokens_per_word: float = 1.0
    extra_tokens: float = 0.0
    measured: bool = False

    def words_for(self, tokens: int) -> int:
        """Return how many words the server counts as that many tokens, as closely as words can meet them."""
        return max(1, round((tokens - self.extra_tokens) / self.tokens_per_word))


class TextPrompts:
    """Random prompts of short common words, about one token each."""

    _COMMON = (
        *("the", "of", "and", "to", "in", "is", "that", "it", "for", "was", "on", "are", "as", "with"),
        *("his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by", "not", "what"),
        *("all", "were", "we", "when", "your", "can", "said", "there", "use", "an", "each", "which"),
    )

    def __init__(self, seed: int, count: WordCount = WordCount()) -> None:
        words = np.random.default_rng([seed, 0x7E7]).integers(0, len(self._COMMON), _WORDS)
        self._pool = [self._COMMON[i] for i in words.tolist()] * 2
        self._count = count

    def prompt(self, number: int, tokens: int) -> bytes:
        """Return prompt `number` as JSON: a string that the server counts as about `tokens` tokens."""
        return self.of_words(number, self._count.words_for(tokens))

    def of_words(self, number: int, words: int) -> bytes:
        """Return prompt `number` as JSON: a string of so many words."""
        own: list[str] = []
        left = number
        while left and len(own) < words:
            left, digit = divmod(left, len(self._COMMON))
            own.append(self._COMMON[digit])
        rest, start = words - len(own), number * SCATTER % _WORDS
        while rest > 0:
            own += self._pool[start : start + min(rest, _WORDS)]
            rest -= _WORDS
        return b'"' + " ".join(own).encode() + b'"'
