"""What makes a cell hard to predict: how long requests wait there, and whether other LLMs are batched alike.

Step times of an idle service are predicted to some 10%, latencies of one whose KV cache is full to 30 or 40%.
"""

import numpy as np
from numpy.typing import NDArray

from llmpilot.predict.prediction import Floats

FEW_KIN = 1
"""LLMs of the same kind of batching in the data, at most, with which one counts as without kin."""


def kin_of(kinds: NDArray[np.int64]) -> tuple[int, int, int]:
    """Return how many LLMs there are of each kind (FLASH, ENCODER_DECODER, PADDED), from one kind an LLM."""
    flash, encoder_decoder, padded = np.bincount(kinds, minlength=3).tolist()
    return flash, encoder_decoder, padded


def traits_of(queue: Floats, kin: Floats) -> Floats:
    """Return the traits [n, 3] of cells.

    `queue` [n] is the log of the first token's latency under the load over that of a single user, as the
    simulator has it; `kin` [n] how many other LLMs of its kind were learned from.
    """
    waiting = queue / 3 - 0.5  # from one user to a full queue: from -0.5 to about 1
    return np.column_stack([waiting, waiting**2 - 0.3, kin <= FEW_KIN]).astype(float)
