"""What a predictor says: latencies of one model on GPU profiles under load, and how sure it is."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmpilot.config import Gpu, Model

Floats = NDArray[np.float64]
FAILURES_ALLOWED = 0.01
"""The share of requests that may fail, where failures count."""

Metric = Literal["nttft_ms", "itl_ms"]


class Draws:
    """Joint samples of what may be true, [draw, profile, users], in the units of the prediction.

    Kept as logs: predictors draw these, errors add up in them, and to compare with a limit needs no more.
    """

    def __init__(self, nttft_ms: Floats, itl_ms: Floats) -> None:
        self._logs = {"nttft_ms": np.log(nttft_ms), "itl_ms": np.log(itl_ms)}

    @classmethod
    def of_logs(cls, nttft: Floats, itl: Floats) -> "Draws":
        """Return draws from the natural logs of latencies in ms, which are taken as they are."""
        draws = cls.__new__(cls)
        draws._logs = {"nttft_ms": nttft, "itl_ms": itl}
        return draws

    def logs(self, metric: Metric) -> Floats:
        """Return the logs of one metric, [draw, profile, users]; not a copy."""
        return self._logs[metric]

    @property
    def nttft_ms(self) -> Floats:
        """The nTTFT [ms per input token], computed anew each time."""
        return np.asarray(np.exp(self._logs["nttft_ms"]))

    @property
    def itl_ms(self) -> Floats:
        """The ITL [ms], computed anew each time."""
        return np.asarray(np.exp(self._logs["itl_ms"]))


@dataclass(frozen=True)
class Query:
    """What a predictor is asked: the latencies of one model on each profile for each user count (rising).

    `measured` holds rows of a dataset's table that were measured of this very model, if any.
    """

    model: Model
    profiles: tuple[Gpu, ...]
    users: tuple[int, ...]
    measured: pd.DataFrame | None = None


@dataclass(frozen=True)
class Prediction:
    """Median latencies of one model: [profile, users], in ms (nTTFT: ms per input token).

    `failing` is the probability that a service there loses more than FAILURES_ALLOWED of its requests; None
    where the predictor says nothing of failures. `draws` are None for a predictor without uncertainty.
    """

    model: Model
    profiles: tuple[Gpu, ...]
    users: tuple[int, ...]
    nttft_ms: Floats
    itl_ms: Floats
    failing: Floats | None = None
    draws: Draws | None = None
