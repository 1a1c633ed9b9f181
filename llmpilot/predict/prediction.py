"""What a predictor says: latencies of one model on GPU profiles under load, and how sure it is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu, Model

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Joint samples of what may be true, [draw, profile, users], in the units of the prediction."""

    nttft_ms: Floats
    itl_ms: Floats


@dataclass(frozen=True)
class Prediction:
    """Median latencies of one model: [profile, users], in ms (nTTFT: ms per input token).

    `failing` is the probability that a service there loses more than 1% of its requests; None where the
    predictor says nothing of failures. `draws` are None for a predictor without uncertainty.
    """

    model: Model
    profiles: tuple[Gpu, ...]
    users: tuple[int, ...]
    nttft_ms: Floats
    itl_ms: Floats
    failing: Floats | None = None
    draws: Draws | None = None
