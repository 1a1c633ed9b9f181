"""A level of load simulated as its source's client put it: the figures that such a row states."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llmpilot.predict.service.levels import Level
from llmpilot.simulator.scheduling import Outcome
from llmpilot.simulator.service import VirtualService
from llmpilot.simulator.service_model import service_at
from llmpilot.simulator.step_model import Numbers
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.simulator.virtual import SimulatedRequests, simulate_finite, simulate_open
from llmpilot.workload import Requests

DATASET_SHAPE = 1.0
"""Lengths of a data set's requests: gamma of this shape, as wide as ShareGPT's (they vary by their mean)."""
SEED = 7


@dataclass(frozen=True)
class Run:
    """What a simulated level showed: arrays over the requests that ended [n], rates over the whole run."""

    ttft_ms: Numbers
    tpot_ms: Numbers
    e2e_ms: Numbers
    gap_ms: Numbers
    throughput_req_s: float
    throughput_out_tok_s: float
    throughput_total_tok_s: float
    failures: float

    @cached_property
    def latencies(self) -> dict[str, Numbers]:
        """The arrays by the names of latencies."""
        return {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms, "itl": self.gap_ms}

    def figure(self, latency: str, statistic: str) -> float:
        """Return a latency's mean (also for a statistic that is not named), or `p50`, `p90`, ..., [ms]."""
        values = self.latencies[latency]
        if not len(values):
            return float("nan")
        if statistic in ("mean", "unspec"):
            return float(values.mean())
        return float(np.percentile(values, float(statistic[1:])))


def simulated(level: Level, times: OperatorStepTimes, seed: int = SEED, *, gaps: bool = True) -> Run:
    """Return what the level's client would have seen of the service with these step times.

    Without `gaps` there are no gaps between tokens, which are most of what long outputs cost.
    """
    service = service_of(level, times)
    if level.users is None:
        return _run(_open(level, service, Lengths(level, seed), seed, gaps))
    users = max(1, round(level.users))
    if level.begins_at_once:
        return _run(simulate_finite(service, Lengths(level, seed), users, level.requests, gaps=gaps))
    found = simulate_finite(service, Lengths(level, seed, cut=users), users, level.requests, gaps=gaps)
    return _run(found, users, level.requests - users)


def service_of(level: Level, times: OperatorStepTimes) -> VirtualService:
    """Return the level's service with these step times."""
    described = replace(level.service, settings=level.settings)
    return service_at(described, times, level.kv_capacity_tokens)


def _open(
    level: Level, service: VirtualService, source: "Lengths", seed: int, gaps: bool
) -> SimulatedRequests:
    if level.rate_per_s is None:
        return simulate_open(service, source, np.zeros(level.requests), gaps=gaps)
    waits = np.random.default_rng(seed).exponential(1e3 / level.rate_per_s, level.requests)
    return simulate_open(service, source, np.cumsum(waits), gaps=gaps)


def _run(found: SimulatedRequests, first_request: int = 0, last_request: int | None = None) -> Run:
    """Return the figures over the requests from the first to before the last, in the order of sending."""
    judged = np.zeros(len(found.outcome), dtype=bool)
    judged[first_request:last_request] = True
    ended = judged & (found.outcome == Outcome.OK)
    sent, first, done = (times[ended] / 1e3 for times in (found.sent_us, found.first_token_us, found.done_us))
    inputs, outputs = found.requests.input_tokens[ended], found.requests.output_tokens[ended]
    lasted_s = (done.max() - sent.min()) / 1e3 if ended.any() else np.nan
    several = outputs > 1
    return Run(
        ttft_ms=first - sent,
        tpot_ms=(done - first)[several] / (outputs[several] - 1),
        e2e_ms=done - sent,
        gap_ms=found.gap_us[np.repeat(ended, np.diff(found.gap_offsets))] / 1e3,
        throughput_req_s=float(ended.sum() / lasted_s),
        throughput_out_tok_s=float(outputs.sum() / lasted_s),
        throughput_total_tok_s=float((inputs.sum() + outputs.sum()) / lasted_s),
        failures=float(1.0 - ended.sum() / judged.sum()) if judged.any() else 0.0,
    )


class Lengths:
    """A level's requests, without end: fixed lengths, uniform ones, or as wide as a data set's.

    Of the first `cut` ones, outputs end anywhere: as those that are under way when somebody comes in.
    """

    def __init__(self, level: Level, seed: int, cut: int = 0) -> None:
        self._level, self._random, self._cut = level, np.random.default_rng(seed), cut

    def take(self, n: int) -> Requests:
        """Return the next `n` requests."""
        level = self._level
        inputs, outputs = self._drawn(level.input_tokens, n), self._drawn(level.output_tokens, n)
        if self._cut:
            early = min(n, self._cut)
            outputs[:early] = np.ceil(outputs[:early] * self._random.random(early))
            outputs, self._cut = np.maximum(outputs, 1), self._cut - early
        one = np.ones(n)
        return Requests(
            input_tokens=inputs,
            output_tokens=outputs,
            batch_size=one.astype(np.int64),
            greedy=one.astype(np.bool_),
            temperature=one,
            top_k=np.zeros(n, dtype=np.int64),
            top_p=one,
        )

    def _drawn(self, mean: float, n: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        least = self._level.least_share
        if self._level.wide:
            values = self._random.gamma(DATASET_SHAPE, mean / DATASET_SHAPE, n)
        else:
            longest = mean / ((1.0 + least) / 2)
            values = longest * (least + (1.0 - least) * self._random.random(n))
        most = max(1.0, self._level.longest * mean)
        return np.clip(np.round(values), 1, most).astype(np.int64)
