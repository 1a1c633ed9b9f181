"""Replay a recorded level on a simulated service, and read it with the eyes of those who recorded it."""

import numpy as np

from llmpilot.simulator.recordings import Recording, Summary, summarize
from llmpilot.simulator.scheduling import Outcome
from llmpilot.simulator.service import VirtualService
from llmpilot.simulator.virtual import SimulatedRequests, simulate_closed
from llmpilot.workload import Requests, from_lengths

PATIENCE_S = 30.0
"""The recording clients gave up this long after the window (k6's graceful stop)."""


def replay(service: VirtualService, recording: Recording) -> Summary:
    """Return what the recording's clients would have measured on `service`.

    The requests are the recorded ones in their order of sending, begun again where the simulated service
    is faster. Users start at once, send for the window, and abandon what is open `PATIENCE_S` later. As in
    the recordings, time is read in whole ms, TTFT starts when the stream opens, and a first token without
    text is not seen.
    """
    result = simulate_closed(
        service,
        _Loop(recording),
        recording.users,
        recording.window_s * 1e3,
        PATIENCE_S * 1e3,
        keep_load=False,
    )
    return _observe(result, recording, service.request_overhead_ms)


class _Loop:
    """The recorded requests, over and over."""

    def __init__(self, recording: Recording) -> None:
        self._inputs, self._outputs, self._next = recording.input_tokens, recording.output_tokens, 0

    def take(self, n: int) -> Requests:
        rows = (np.arange(self._next, self._next + n)) % len(self._inputs)
        self._next += n
        return from_lengths(self._inputs[rows], self._outputs[rows])


def _observe(result: SimulatedRequests, recording: Recording, overhead_ms: float) -> Summary:
    rows = np.arange(len(result.outcome)) % len(recording.input_tokens)
    ok = (result.outcome == Outcome.OK) & ~recording.unanswered[rows]
    gap_counts = np.diff(result.gap_offsets)
    token_us = _token_times_us(result)
    token_ms = token_us // 1000
    first_ms = result.first_token_us // 1000
    starts = result.gap_offsets[:-1]
    silent = recording.silent_first[rows] & (gap_counts > 0)
    heard_ms = np.where(
        silent, token_ms[np.minimum(starts, len(token_ms) - 1)] if len(token_ms) else 0, first_ms
    )
    opened_ms = (result.sent_us + round(overhead_ms * 1000)) // 1000
    ttft_ms = heard_ms - opened_ms

    previous_ms = np.empty_like(token_ms)
    previous_ms[1:] = token_ms[:-1]
    owner = np.repeat(np.arange(len(rows)), gap_counts)
    first_gap = starts[gap_counts > 0]
    previous_ms[first_gap] = first_ms[gap_counts > 0]
    wanted = ok[owner]
    wanted[first_gap] &= ~silent[gap_counts > 0]
    return summarize(
        ttft_ms[ok],
        (token_ms - previous_ms)[wanted],
        recording.input_tokens[rows][ok],
        recording.output_tokens[rows][ok],
        recording.window_s,
    )


def _token_times_us(result: SimulatedRequests) -> np.ndarray:
    """Return when every token after a request's first arrived, request by request."""
    total = np.cumsum(result.gap_us)
    starts = result.gap_offsets[:-1]
    counts = np.diff(result.gap_offsets)
    before = (
        np.where(starts > 0, total[np.maximum(starts, 1) - 1], 0)
        if len(total)
        else np.zeros(len(starts), int)
    )
    return total + np.repeat(result.first_token_us - before, counts)
