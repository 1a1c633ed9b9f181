"""Requests of which only mean lengths and their spread are known: a model of them, computed, not fitted.

A length is one token and a gamma-distributed rest, so that it is never nothing; mean and standard deviation
are met to two hundredths. Where the deviation is small beside the mean that is nearly the normal
distribution of other load generators (AIPerf's --synthetic-input-tokens-mean and -stddev, GuideLLM's
prompt_tokens and prompt_tokens_stdev), which they cut off at one token. Data sets of conversations have a
standard deviation of about their mean. Input and output are independent, as in those generators.
"""

from dataclasses import dataclass, replace

import numpy as np

from llmpilot.workload.joint import WorkloadModel, fit
from llmpilot.workload.requests import Floats, Ints, from_lengths

QUANTILES = 1_000
"""How many lengths, equally likely, stand for the distribution: the longest is the longest of a thousand."""

NO_SPREAD_TOKENS = 0.01
"""Below it all lengths are the mean, once they are whole tokens."""


@dataclass(frozen=True)
class Spread:
    """A length's mean and standard deviation [tokens]."""

    mean_tokens: int
    stdev_tokens: float


def model_of_lengths(inputs: Spread, outputs: Spread) -> WorkloadModel:
    """Return the model of requests with these lengths, one sequence each, decoded greedily."""
    both = from_lengths(_quantiles(inputs), _quantiles(outputs))
    model = fit(lambda: [both])
    long, short = model.marginal("input_tokens"), model.marginal("output_tokens")
    cells = np.zeros((len(model.bins), len(long) * len(short)), dtype=np.int32)
    cells[0], cells[1] = (
        np.repeat(np.arange(len(long)), len(short)),
        np.tile(np.arange(len(short)), len(long)),
    )
    return replace(model, cells=cells, weights=np.outer(long, short).ravel())


def _quantiles(spread: Spread) -> Ints:
    """Return lengths that are equally likely, rising, with the mean that is asked for."""
    if spread.stdev_tokens < NO_SPREAD_TOKENS:
        return np.full(QUANTILES, spread.mean_tokens)
    tokens: Ints = np.rint(1 + gamma_quantiles(spread.mean_tokens - 1, spread.stdev_tokens)).astype(np.int64)
    return tokens


def gamma_quantiles(mean: float, stdev: float) -> Floats:
    """Return QUANTILES values of a gamma distribution, equally likely and rising, with exactly this mean."""
    from scipy.special import gammaincinv  # slow to import

    shape = (mean / stdev) ** 2
    values = gammaincinv(shape, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    scaled: Floats = mean * values / values.mean()
    return scaled
