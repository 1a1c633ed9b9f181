"""The largest rate of requests that a service sustains in open loop, by simulation.

What arrives at a rate beyond it piles up: ever more requests are in flight, and each takes longer than those
before it (by Little's law the two are one). Below it both settle. Arrivals are even: the largest rate is the
same as of random ones, and shows without their noise.
"""

import numpy as np

from llmpilot.predict.service.levels import Level
from llmpilot.predict.service.simulated import SEED, Lengths, service_of
from llmpilot.simulator.scheduling import Outcome
from llmpilot.simulator.step_model import Numbers
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.simulator.virtual import simulate_open

SETTLED = 1.05
"""Requests of the last third that take at most so many times as long as those of the third before."""
LEAST_REQUESTS = 600
TURNOVERS = 10
"""Requests of a simulation, as a multiple of how many run at once: with ten, a rate 1.5% too high makes those
of the last third 5% slower."""
PRECISION = 0.02
ABOVE = 1.1
"""The search begins at what an overloaded service delivers, and goes so far above and below it at first."""


def sustained_rate_per_s(level: Level, times: OperatorStepTimes) -> float:
    """Return the largest rate [requests/s] at which the requests in flight do not pile up, to 2%.

    Of the level, the service and the lengths count, not its load.
    """
    middle = delivered_rate_per_s(level, times)
    low, high = middle / ABOVE, middle * ABOVE
    while not sustains(level, times, low):
        low, high = low / ABOVE, low
    while sustains(level, times, high):
        low, high = high, high * ABOVE
    while high / low > 1.0 + PRECISION:
        half = (low * high) ** 0.5
        if sustains(level, times, half):
            low = half
        else:
            high = half
    return low


def sustains(level: Level, times: OperatorStepTimes, rate_per_s: float) -> bool:
    """Whether the level's service goes on at a rate: its requests do not take longer and longer."""
    n = _requests(level)
    sent_ms, done_ms = _open(level, times, np.arange(n, dtype=np.float64) * 1e3 / rate_per_s)
    taken_ms, third = done_ms - sent_ms, len(sent_ms) // 3
    return bool(taken_ms[-third:].mean() <= SETTLED * taken_ms[-2 * third : -third].mean())


def delivered_rate_per_s(level: Level, times: OperatorStepTimes) -> float:
    """Return what the service delivers [requests/s] where all requests wait from the start.

    Over the middle half of the requests that end: before, the service fills, and after, it drains.
    """
    _, done_ms = _open(level, times, np.zeros(_requests(level)))
    first, last = np.percentile(done_ms, [25, 75])
    return 0.5e3 * len(done_ms) / float(last - first)


def _requests(level: Level) -> int:
    return max(LEAST_REQUESTS, round(TURNOVERS * level.capacity))


def _open(level: Level, times: OperatorStepTimes, arrivals_ms: Numbers) -> tuple[Numbers, Numbers]:
    """Return when requests were sent and ended [n] ms, those that ended, in the order of sending."""
    found = simulate_open(service_of(level, times), Lengths(level, SEED), arrivals_ms, gaps=False)
    ended = found.outcome == Outcome.OK
    return found.sent_us[ended] / 1e3, found.done_us[ended] / 1e3
