"""When requests arrive in an open loop: Poisson, gamma, or a trace's own timestamps. Does not send them.

All times are seconds from the start, sorted, on whole microseconds: a seed gives the same arrivals on
machines whose mathematical libraries differ in the last bit.
"""

from collections.abc import Callable

import numpy as np

from llmpilot.errors import ConfigError, TraceError
from llmpilot.workload.requests import Floats
from llmpilot.workload.seeds import random_words

MAX_ARRIVALS = 50_000_000
MAX_DURATION_S = 2_000_000.0
_BLOCK = 4_096


def poisson(rate_per_s: float, duration_s: float, seed: int) -> Floats:
    """Return arrival times in [0, duration_s) with independent exponential gaps, `rate_per_s` on average."""
    return _renewal(lambda u: -np.log1p(-u), rate_per_s, duration_s, seed)


def gamma(rate_per_s: float, burstiness: float, duration_s: float, seed: int) -> Floats:
    """Return arrival times in [0, duration_s) with gamma gaps of shape `burstiness` and mean 1 / rate_per_s.

    As `--burstiness` of vLLM's benchmark: 1 is Poisson, less is burstier, more is more even. The gaps'
    coefficient of variation is 1 / sqrt(burstiness).
    """
    _positive("load.burstiness", burstiness)
    if burstiness == 1:
        return poisson(rate_per_s, duration_s, seed)
    from scipy.special import gammaincinv

    return _renewal(lambda u: gammaincinv(burstiness, u) / burstiness, rate_per_s, duration_s, seed)


def replay(timestamps_s: Floats, speedup: float, duration_s: float) -> Floats:
    """Return the timestamps, counted from the first and divided by `speedup`, as far as below duration_s.

    Raises:
        TraceError: there are no timestamps, or they go backwards or are not finite.
    """
    _positive("speedup", speedup)
    _positive("load.duration_s", duration_s)
    times = np.asarray(timestamps_s, dtype=np.float64)
    if len(times) == 0:
        raise TraceError(
            "a replay needs timestamps, and the trace has none",
            cure="name their column: load.trace.columns.timestamp=<column>",
        )
    gaps = np.diff(times)
    good = np.append(True, gaps >= 0) & np.isfinite(times)
    if not good.all():
        raise TraceError(
            "the timestamps go backwards or are not finite",
            given=f"{times[np.argmin(good)]} in row {int(np.argmin(good)) + 1}",
            cure="sort the trace by its timestamps",
        )
    micros = np.floor((times - times[0]) / speedup * 1e6 + 0.5)
    kept: Floats = micros[micros < duration_s * 1e6] / 1e6
    return kept


def _renewal(gap_of: Callable[[Floats], Floats], rate_per_s: float, duration_s: float, seed: int) -> Floats:
    """Return the arrival times of a renewal process; `gap_of` maps uniform [0, 1) to gaps of mean 1."""
    _positive("the request rate", rate_per_s)
    _positive("load.duration_s", duration_s)
    if rate_per_s * duration_s > MAX_ARRIVALS:
        raise ConfigError(
            "so many requests do not fit into one run",
            given=f"{rate_per_s:g} per second x {duration_s:g} s",
            cure="lower load.levels or load.duration_s",
        )
    if duration_s > MAX_DURATION_S:
        raise ConfigError(
            "load.duration_s is not possible",
            given=duration_s,
            cure=f"set it to at most {MAX_DURATION_S:.0f} (23 days)",
        )
    bits = random_words(seed)
    end_ns = round(duration_s * 1e9)
    now_ns, parts = 0, []
    while now_ns < end_ns:
        uniform = (bits.random_raw(_BLOCK) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        # Whole nanoseconds are summed exactly. A gap beyond the end is cut there: no sum overflows.
        gaps = np.floor(gap_of(uniform) * (1e9 / rate_per_s) + 0.5)
        gaps = np.minimum(gaps, float(end_ns)).astype(np.int64)
        times = now_ns + np.cumsum(gaps)
        parts.append(times[times < end_ns] // 1000)
        now_ns = int(times[-1])
    return np.concatenate(parts) / 1e6


def _positive(key: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ConfigError(f"{key} is not possible", given=value, cure="give a number above 0")
