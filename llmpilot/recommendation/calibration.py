"""How sure a recommendation may be: draws as wide as recommendations for LLMs left out have borne out.

A predictor's draws must cover the few LLMs that are hard to predict. They are then too wide for the others:
what was promised at 90% held in 98% of the cases, and cost three times the least price in the median. By
experiments/10_predictor/calibration.py SPREAD was chosen; it also says what becomes of the intervals.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmpilot.predict.prediction import Draws, Metric, Prediction
from llmpilot.recommendation.trust import Evidence
from llmpilot.recommendation.unseen import METRICS, widen_unseen

SPREAD = 0.7
"""How far draws lie from the median, over how far the predictor put them (log units)."""


def calibrated(prediction: Prediction, evidence: Evidence, measured_on: Sequence[str] = ()) -> Prediction:
    """Return the prediction as sure as it may be: drawn in, and wider on profiles unlike any in the data.

    `measured_on` are profiles (`1 x H100`) that this very model was measured on.
    """
    return widen_unseen(drawn_in(prediction, SPREAD), evidence, measured_on)


def drawn_in(prediction: Prediction, spread: float) -> Prediction:
    """Return the prediction with its draws at `spread` times their distance from the median."""
    if prediction.draws is None:
        return prediction

    def pulled(metric: Metric) -> np.ndarray:
        assert prediction.draws is not None
        logs = prediction.draws.logs(metric) * spread
        logs += (1 - spread) * np.log(getattr(prediction, metric))  # in place: copies are megabytes
        return np.asarray(logs)

    return replace(prediction, draws=Draws.of_logs(*(pulled(metric) for metric in METRICS)))
