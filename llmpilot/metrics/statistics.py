"""Percentiles and means, the same floats on every machine."""

from math import fsum

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import STATISTICS

PERCENTILES = (50, 90, 95, 99)
Statistics = dict[str, float | None]


def statistics(values: NDArray[np.float64]) -> Statistics:
    """Return percentiles (linear interpolation) and mean of the values; all null when there are none."""
    if not len(values):
        return dict.fromkeys(STATISTICS)
    percentiles = np.percentile(values, PERCENTILES)
    # fsum: the mean of the same values is the same float on every machine, whatever its vector units.
    mean = fsum(values.tolist()) / len(values)
    figures = [*percentiles.tolist(), mean]
    return {name: round(figure, 6) for name, figure in zip(STATISTICS, figures, strict=True)}


def statistics_us(values_us: NDArray[np.int64]) -> Statistics:
    """Return the statistics in ms of times in whole microseconds; their mean needs no floating-point sum."""
    if not len(values_us):
        return dict.fromkeys(STATISTICS)
    figures_us = [*np.percentile(values_us, PERCENTILES).tolist(), int(values_us.sum()) / len(values_us)]
    return {name: round(figure / 1e3, 6) for name, figure in zip(STATISTICS, figures_us, strict=True)}
