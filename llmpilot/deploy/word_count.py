"""How a server counts the tokens of our words, asked of itself: from its usage for two prompts."""

import time
from collections.abc import Callable

from llmpilot.deploy.exchange import Answer
from llmpilot.deploy.probe import PROBE, Settled
from llmpilot.engine.words import TextPrompts, WordCount

FEW, MANY = 32, 256
MOST_TOKENS_PER_WORD = 16.0
_SEED = 0x3A5


def count_words(post: Callable[[str, bytes], Answer], settled: Settled, model: str) -> WordCount:
    """Return how the server counts words; where it does not say, each is taken for a token."""
    prompts = TextPrompts(_SEED)
    number = time.time_ns() >> 10 & 0xFFFFFFFF  # no prompt that it has seen before
    counted = []
    for words in (FEW, MANY):
        body = settled.way.engine.body(
            PROBE._replace(input_tokens=words),
            [prompts.of_words(number + words, words)],
            model,
            settled.dialect,
            settled.fields,
        )
        reading = post(settled.way.path, body).reading(PROBE.output_tokens)
        if reading.failure or not reading.input_tokens:
            return WordCount()
        counted.append(reading.input_tokens)
    each = (counted[1] - counted[0]) / (MANY - FEW)
    if not 1 / MOST_TOKENS_PER_WORD <= each <= MOST_TOKENS_PER_WORD:
        return WordCount()
    return WordCount(each, max(0.0, counted[0] - each * FEW), measured=True)
