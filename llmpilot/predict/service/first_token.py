"""What a client sees of the time to the first token beside queue and prefill, by source and engine.

Sources measure it differently, and engines hand the first tokens over late: after so many milliseconds, and
after so many further tokens where a stream is sent in pieces. Three numbers for each pair of a client and an
engine are fitted to the rows of that pair; and again for each GPU architecture, about those of the pair.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmpilot.predict.service.curves import Curve
from llmpilot.simulator.first_token import MEDIANS, FirstToken, Key
from llmpilot.simulator.step_model import Numbers

SPREADS = (1.5, 1.0, 1.5)
"""Of the three numbers' logarithms, before any row of their pair was seen."""
NEAR = (0.5, 0.3, 0.5)
"""The same on one GPU architecture, about those of all."""
ERROR = 0.25
"""Spread of a row's error (log units)."""
TEMPER = 0.5


def fit_first_token(
    simulated_ttft_ms: Numbers, tpot_ms: Numbers, stated_ms: Numbers, about: FirstToken | None = None
) -> FirstToken:
    """Return the three numbers of one client and engine, given rows [n] of theirs; near `about`, if given."""
    from scipy.optimize import least_squares  # slow to import, and only fits need it

    middle, spreads = np.log(MEDIANS), np.array(SPREADS)
    if about is not None:
        middle, spreads = np.log([about.offset_ms, about.scale, about.lag_tokens]), np.array(NEAR)
    root = np.sqrt(TEMPER) / ERROR

    def residuals(logs: Numbers) -> Numbers:
        offset, scale, lag = np.exp(logs)
        error = np.log(offset + scale * simulated_ttft_ms + lag * tpot_ms) - np.log(stated_ms)
        soft = np.sign(error) * ERROR * np.sqrt(2 * (np.sqrt(1 + (error / ERROR) ** 2) - 1))
        return np.concatenate([root * soft, (logs - middle) / spreads])

    # The three can stand in for one another: the best of several starts.
    starts = [middle + np.log([1.0, 1.0, lag]) for lag in (0.3, 3.0, 20.0)]
    best = min((least_squares(residuals, start) for start in starts), key=lambda found: float(found.cost))
    offset, scale, lag = np.exp(best.x).tolist()
    return FirstToken(offset, scale, lag)


def fit_all(
    keys: Sequence[Key], simulated_ttft_ms: Numbers, tpot_ms: Numbers, stated_ms: Numbers
) -> dict[Key, FirstToken]:
    """Return the numbers of every key whose rows state a TTFT [n]; with an empty architecture, of any."""
    stated = np.isfinite(stated_ms) & (stated_ms > 0) & np.isfinite(simulated_ttft_ms)
    found: dict[Key, FirstToken] = {}
    for client, engine in dict.fromkeys(key[:2] for key in keys):
        pair = stated & np.array([key[:2] == (client, engine) for key in keys])
        if not pair.any():
            continue
        common = fit_first_token(simulated_ttft_ms[pair], tpot_ms[pair], stated_ms[pair])
        found[client, engine, ""] = common
        for key in dict.fromkeys(key for key, ok in zip(keys, pair, strict=True) if ok):
            rows = pair & np.array([one == key for one in keys])
            found[key] = fit_first_token(simulated_ttft_ms[rows], tpot_ms[rows], stated_ms[rows], common)
    return found


def as_seen(curve: Curve, overhead: FirstToken) -> Curve:
    """Return a curve's latencies as clients state them: first tokens later, and with them the end.

    The milliseconds before the queue stay the same whatever the speed, tokens that a stream lags take longer
    the slower the service is.
    """
    latencies = dict(curve.latencies)
    tpot_ms, ttft_ms = latencies["tpot_ms", "mean"], latencies["ttft_ms", "mean"]
    with np.errstate(invalid="ignore"):  # of a service that answers nothing
        later_ms = overhead.later_ms(ttft_ms, tpot_ms)
    for (latency, statistic), values in curve.latencies.items():
        if latency == "ttft_ms":
            seen = overhead.scale * values + overhead.lag_tokens * tpot_ms
        elif latency == "nttft_ms":
            seen = overhead.scale * values + overhead.lag_tokens * tpot_ms / curve.mean_input_tokens
        elif latency == "e2e_ms":
            seen = values + later_ms
        else:
            continue
        latencies[latency, statistic] = seen
    return replace(curve, latencies=latencies, overhead_ms=overhead.offset_ms)
