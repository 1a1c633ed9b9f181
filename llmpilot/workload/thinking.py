"""How long closed-loop users think before their next request. Does not send it."""

import numpy as np

from llmpilot.workload.seeds import random_words

STREAM = 0x7417
_BLOCK = 4_096


class ThinkTimes:
    """Exponential pauses with a mean [s]: pause `number` is the same whoever asks for it, and when.

    Exponential, as in the textbook's model of users at terminals (Lazowska et al., Quantitative System
    Performance, 1984).
    """

    def __init__(self, mean_s: float, seed: int) -> None:
        self._mean_s = mean_s
        self._words = random_words(seed, STREAM)
        self._drawn: list[float] = []

    def pause_s(self, number: int) -> float:
        """Return pause `number`, in whole microseconds [s]."""
        while number >= len(self._drawn):
            uniform = (self._words.random_raw(_BLOCK) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            self._drawn += (np.floor(-np.log1p(-uniform) * self._mean_s * 1e6 + 0.5) / 1e6).tolist()
        return self._drawn[number]
