"""GPU types and counts that no measurement knows: their draws are spread as wide as errors were on such.

A predictor's own uncertainty is that of a new LLM on profiles it has seen. How far it strays when the profile
is new as well was measured by leaving GPU types and counts out (experiments/12).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from llmpilot.predict.prediction import Draws, Floats, Metric, Prediction
from llmpilot.recommendation.trust import Evidence, left_out

METRICS: dict[Metric, str] = {"nttft_ms": "nttft", "itl_ms": "itl"}
"""The metrics, and their names among the errors on what was left out."""
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
    profiles, most = prediction.profiles, max(evidence.counts)
    unlike = {
        "gpu_types": [at for at, gpu in enumerate(profiles) if gpu.name not in known],
        "most_gpus": [
            at for at, gpu in enumerate(profiles) if gpu.count > most and gpu.label not in measured_on
        ],
    }
    widened = []
    for number, (metric, error) in enumerate(METRICS.items()):
        logs = prediction.draws.logs(metric)
        shocks = _shocks(tuple(gpu.name for gpu in profiles), len(logs))[number]
        added = np.zeros_like(shocks)
        for key, which in unlike.items():
            at = slice(None) if len(which) == len(profiles) else which
            there = logs[:, at] + added[:, at, None] if added.any() else logs[:, at]
            added[:, at] += _missing_spread(there, left_out()[key][error]) * shocks[:, at]
        widened.append(logs + added[..., None])
    return replace(prediction, draws=Draws.of_logs(*widened))


@lru_cache(maxsize=8)
def _shocks(names: tuple[str, ...], draws: int) -> Floats:
    """Return standard normal errors [metric, draw, profile], one and the same for profiles of one name."""
    rng = np.random.default_rng(SEED)
    types = sorted(set(names))
    drawn = np.stack([rng.standard_normal((len(METRICS), draws)) for _ in types], axis=-1)
    return np.asarray(drawn[..., [types.index(name) for name in names]])


def _missing_spread(logs: Floats, median_error: float) -> Floats:
    """Return the standard deviations [profile] to add to `logs` [draw, profile, users] for errors of this
    median size."""
    wanted = np.log1p(median_error) / NORMAL_MEDIAN
    # The mean of the squares takes no copy of megabytes, as ndarray.var does.
    variance = np.einsum("dpu,dpu->pu", logs, logs) / len(logs) - logs.mean(axis=0) ** 2
    return np.asarray(np.sqrt(np.maximum(0.0, wanted**2 - variance.mean(axis=1))))
