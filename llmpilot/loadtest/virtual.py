"""Load on a simulated service, in virtual time: a level of minutes takes milliseconds.

Times are those that clients see: of today's engines, first tokens come as late as published ones do beside
queue and prefill (`simulator.first_token`), and answers end as much later.
"""

import numpy as np

from llmpilot.loadtest.records import Records
from llmpilot.loadtest.traffic import Traffic
from llmpilot.simulator import (
    Outcome,
    SimulatedRequests,
    VirtualService,
    converse_closed,
    converse_open,
    simulate_closed,
    simulate_open,
)

FAILURES = np.array(["" if outcome is Outcome.OK else outcome.name.lower() for outcome in Outcome])


def run_level(service: VirtualService, traffic: Traffic, level: float) -> Records:
    """Simulate one level of the ladder: warm-up, steady window, and the drain behind it."""
    load, talks = traffic.load, traffic.conversations
    window_s = (load.warmup_s, load.warmup_s + load.duration_s)
    stop_ms, drain_ms = window_s[1] * 1e3, load.drain_s * 1e3
    if load.arrival != "closed":
        # Arrivals go on behind the window: what is measured ends under the load it began under.
        arrivals_ms = traffic.arrivals_s(level, window_s[1] + load.drain_s) * 1e3
    if talks is not None and load.arrival == "closed":
        result = converse_closed(service, talks, int(level), stop_ms, drain_ms)
    elif talks is not None:
        result = converse_open(service, talks, arrivals_ms, stop_ms, drain_ms)
    elif load.arrival == "closed":
        result = simulate_closed(
            service, traffic.requests(), int(level), stop_ms, drain_ms, thinking=traffic.think_times()
        )
    else:
        result = simulate_open(service, traffic.requests(), arrivals_ms, stop_ms, drain_ms)
    return _records(result, level, (round(window_s[0] * 1e6), round(window_s[1] * 1e6)))


def _records(result: SimulatedRequests, level: float, window_us: tuple[int, int]) -> Records:
    return Records(
        level=level,
        window_us=window_us,
        requests=result.requests,
        sent_us=result.sent_us,
        first_token_us=result.first_token_us,
        done_us=result.done_us,
        failure=FAILURES[result.outcome],
        gap_us=result.gap_us,
        gap_offsets=result.gap_offsets,
        cached_tokens=result.cached_tokens,
        conversation=result.conversation,
        turn=result.turn,
    )
