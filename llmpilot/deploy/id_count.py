"""Whether a server takes token ids for what they are: some read them as text, or drop them silently."""

import json
from collections.abc import Callable
from typing import NamedTuple

from llmpilot.console import counted
from llmpilot.deploy.exchange import Answer
from llmpilot.deploy.probe import PROBE, Settled
from llmpilot.deploy.word_count import FEW, MANY

MOST_BESIDE = 2
"""Tokens that a server may put before any prompt, such as that of its beginning."""
TOLERATED = 0.1


class Misread(NamedTuple):
    """What a server counts in prompts of FEW and MANY token ids, where that is not one token each."""

    few: int
    many: int

    def __str__(self) -> str:
        return (
            f"{counted(self.few, 'token')} in a prompt of {FEW} token ids and {self.many:,} in one of {MANY}"
        )


def misread_ids(post: Callable[[str, bytes], Answer], settled: Settled, model: str) -> Misread | None:
    """Return how the server miscounts prompts of token ids; None: it counts one each, or does not say.

    A prompt of constant length before each, as some servers put there, is no miscount.
    """
    in_probe = settled.input_tokens
    if in_probe is None or PROBE.input_tokens <= in_probe <= PROBE.input_tokens + MOST_BESIDE:
        return None
    found = []
    for size in (FEW, MANY):
        ids = json.dumps([100 + i % 100 for i in range(size)]).encode()
        asked = PROBE._replace(input_tokens=size)
        body = settled.way.engine.body(asked, [ids], model, settled.dialect, settled.fields)
        reading = post(settled.way.path, body).reading(PROBE.output_tokens)
        if reading.failure or not reading.input_tokens:
            return None
        found.append(reading.input_tokens)
    misread = Misread(*found)
    each = (misread.many - misread.few) / (MANY - FEW)
    return None if abs(each - 1) <= TOLERATED else misread
