"""GPU types and counts that no measurement knows: their draws are spread as wide as errors were on such.

A predictor's own uncertainty is that of a new LLM on profiles it has seen. How far it strays when the profile
is new as well was measured by leaving GPU types and counts out (experiments/12).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmpilot.predict.prediction import Draws, Floats, Prediction
from llmpilot.recommendation.trust import Evidence, left_out

NORMAL_MEDIAN = 0.6745
"""Median of |x| for a standard normal x."""
SEED = 11


def widen_unseen(prediction: Prediction, evidence: Evidence, measured_on: Sequence[str] = ()) -> Prediction:
    """Return the prediction with wider draws on profiles unlike any in the data; the medians stay.

    What is added is shared by the profiles of one GPU type, as their errors are. Profiles of a type that this
    very model was `measured_on` (`1 x H100`) keep their draws.
    """
    if prediction.draws is None:
        return prediction
    known = {gpu.name for gpu in evidence.gpus.values()}
    known |= {profile.partition(" x ")[2] for profile in measured_on}
    nttft, itl = np.log(prediction.draws.nttft_ms), np.log(prediction.draws.itl_ms)
    rng = np.random.default_rng(SEED)
    types = sorted({gpu.name for gpu in prediction.profiles})
    shocks = {name: rng.standard_normal((2, len(nttft), 1)) for name in types}
    for p, gpu in enumerate(prediction.profiles):
        keys = [] if gpu.name in known else ["gpu_types"]
        keys += ["most_gpus"] if gpu.count > max(evidence.counts) and gpu.profile not in measured_on else []
        for key in keys:
            nttft[:, p] += _missing_spread(nttft[:, p], left_out()[key]["nttft"]) * shocks[gpu.name][0]
            itl[:, p] += _missing_spread(itl[:, p], left_out()[key]["itl"]) * shocks[gpu.name][1]
    return replace(prediction, draws=Draws(np.exp(nttft), np.exp(itl)))


def _missing_spread(logs: Floats, median_error: float) -> float:
    """Return the standard deviation to add to `logs` [draw, users] for errors of this median size."""
    wanted = np.log1p(median_error) / NORMAL_MEDIAN
    return float(np.sqrt(max(0.0, wanted**2 - logs.var(axis=0).mean())))
