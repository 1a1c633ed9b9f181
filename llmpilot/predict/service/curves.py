"""What one pod of a service does as its load rises, and how much of it an SLA allows.

A curve is simulated once, at the step times that are expected. Step times that are k times as long need no
other simulation: at 1/k of the request rate everything is the same, k times slower. So a curve says all
there is to know under every draw of how fast the service really is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Limit
from llmpilot.simulator.lanes import (
    GAP_SHARES,
    TAIL,
    WARM_UP,
    ClosedLanes,
    LaneFigures,
    LaneService,
    OpenLanes,
    run_lanes,
)
from llmpilot.simulator.service_model import REQUEST_OVERHEAD_MS
from llmpilot.workload import Requests, WorkloadModel, concatenate

Numbers = NDArray[np.float64]
Ints = NDArray[np.int64]

FULL, MOST_USERS = 1.1, 1024
"""A service is full with so many times the users that run at once, and with MOST_USERS at most."""
SCOUTS = (1 / 36, 1 / 6, 1.0)
"""Parts of the users that fill a service, which are tried first to learn how many requests are in flight."""
SCOUT_REQUESTS = 150
LEAST_RATE = 1e-6
"""Of requests/s: that of a service which delivers none at all."""
BEYOND = 1.3
"""A closed curve's last point has so many times the users that run at once when the service is full."""
JUMP = 1.25
"""Percentiles of the gaps between tokens that differ by more between two points have others in between."""
BETWEEN = 4
TIE = 1e-9
"""Equal gaps are told apart by so little, for the share below each to rise."""
OVERSAMPLED = 16
"""Each request and each gap stands for so many of a larger sample that are alike: less is left to chance."""
STRATA = 24
"""Parts by output of the larger sample, each of which is in the order of inputs."""


@dataclass(frozen=True)
class Effort:
    """How much is simulated for a curve.

    `shares` of what the service delivers when it is full are the loads of an open curve's points; a closed
    curve has as many. A lane has `requests` under a light load, warm-up and tail included; under a heavy one
    `turnovers` times as many as are in flight, `most_requests` at most.
    """

    shares: tuple[float, ...] = (0.03, 0.15, 0.35, 0.55, 0.72, 0.85, 0.93, 0.98)
    requests: int = 500
    turnovers: int = 12
    most_requests: int = 3000


THOROUGH = Effort()
QUICK = Effort((0.05, 0.22, 0.42, 0.65, 0.86, 0.97), 240, 6, 1000)
"""For answers at once: half of the time, and what a limit allows is the same to a tenth."""


@dataclass(frozen=True)
class Speeds:
    """Joint draws of what may be true of one service, factors [draws] on what is expected: of its step times,
    and, beside them, of its time to the first token."""

    steps: Numbers
    first_token: Numbers


@dataclass(frozen=True)
class Curve:
    """One pod under rising load, points [n].

    `latencies` maps (latency, statistic) to [n] ms, as `lanes.LaneFigures` has them; `overhead_ms` comes on
    top of TTFT and E2E, whatever the speed. `rate_per_s` are the requests that end a second.

    Between points everything is a straight line in logarithms. Below the first one latencies are as there,
    and the load is in proportion; behind the last one the pod takes no more. More load never is faster: of
    each latency the largest value counts that there was at any smaller load.
    """

    rate_per_s: Numbers
    output_tokens_per_s: Numbers
    latencies: Mapping[tuple[str, str], Numbers]
    failures: Numbers
    overhead_ms: float
    mean_input_tokens: float

    def capacity(
        self,
        limits: Sequence[Limit],
        max_failure_rate: float,
        speeds: Speeds,
        think_time_s: float | None = None,
    ) -> Numbers:
        """Return the largest load within all limits under each draw [draws]; 0 where none is.

        Loads are requests/s, or with `think_time_s` the users of a closed loop, who think so long between
        two requests.
        """
        loads = self._loads(speeds, think_time_s)
        failing = np.maximum.accumulate(self.failures) > max_failure_rate
        served = int(failing.argmax()) if failing.any() else len(failing)
        if not served:
            return np.zeros(len(loads))
        place = np.full(len(loads), served - 1.0)
        for limit in limits:
            values = self._latency_ms(limit, speeds)
            place = np.minimum(place, _place(np.log(values), np.full(len(loads), np.log(limit.limit_ms))))
        return np.where(place < 0, 0.0, np.exp(_at(np.log(loads), np.maximum(place, 0.0))))

    def figure(self, limit: Limit, load: float, speeds: Speeds, think_time_s: float | None = None) -> Numbers:
        """Return the latency that a limit is about under each draw [draws] ms at a load as in `capacity`.

        It is infinite where the pod does not take so much.
        """
        loads = self._loads(speeds, think_time_s)
        values = self._latency_ms(limit, speeds)
        place = np.maximum(_place(np.log(loads), np.full(len(loads), np.log(load))), 0.0)
        found = np.exp(_at(np.log(values), place))
        return np.where(load > loads[:, -1] * (1 + 1e-9), inf, found)

    def rate_at(self, load: float, think_time_s: float | None = None) -> float:
        """Return the requests/s that a pod answers at a load as in `capacity`, at the speed expected."""
        if think_time_s is None:
            return load
        users = self._loads(Speeds(np.ones(1), np.ones(1)), think_time_s)
        rates = np.maximum.accumulate(self.rate_per_s)[None]
        place = _place(np.log(users), np.log(np.array([load])))
        share = min(load / float(users[0, 0]), 1.0)
        return share * float(np.exp(_at(np.log(rates), np.maximum(place, 0.0)))[0])

    def _loads(self, speeds: Speeds, think_time_s: float | None) -> Numbers:
        """Return the load at each point [draws, n] in the unit of `capacity`."""
        rates = np.maximum.accumulate(self.rate_per_s) / speeds.steps[:, None]
        if think_time_s is None:
            return np.asarray(rates)
        users = rates * (think_time_s + self._e2e_ms("mean", speeds) / 1e3)
        return np.asarray(np.maximum.accumulate(users, axis=1))

    def _latency_ms(self, limit: Limit, speeds: Speeds) -> Numbers:
        """Return a latency at each point [draws, n], which never falls from one to the next."""
        name, statistic = limit.latency, limit.statistic
        if name == "e2e_ms":
            return np.asarray(np.maximum.accumulate(self._e2e_ms(statistic, speeds), axis=1))
        # Of values that rise together the largest so far is the same before and after.
        values = speeds.steps[:, None] * np.maximum.accumulate(self.latencies[name, statistic])
        if name in ("ttft_ms", "nttft_ms"):
            per = self.mean_input_tokens if name == "nttft_ms" else 1.0
            values = self.overhead_ms / per + speeds.first_token[:, None] * values
        return np.asarray(values)

    def _e2e_ms(self, statistic: str, speeds: Speeds) -> Numbers:
        later = (speeds.first_token[:, None] - 1.0) * self.latencies["ttft_ms", "mean"]
        within = self.latencies["e2e_ms", statistic] + later
        return np.asarray(self.overhead_ms + speeds.steps[:, None] * within)


def _place(rising: Numbers, value: Numbers) -> Numbers:
    """Return where each row [rows, n] reaches a value [rows]: 1.5 is half way from point 1 to point 2.

    Of points that are equal, the last one; -1 where the first one is larger already.
    """
    n = rising.shape[1]
    below = (rising <= value[:, None]).sum(axis=1) - 1
    rows, low = np.arange(len(rising)), np.maximum(below, 0)
    high = np.minimum(low + 1, n - 1)
    start = rising[rows, low]
    with np.errstate(invalid="ignore"):
        gap = rising[rows, high] - start
    share = np.divide(value - start, gap, out=np.zeros(len(rising)), where=gap > 0)
    inside = (below >= 0) & (below < n - 1)
    return np.where(below < 0, -1.0, np.where(inside, low + share, n - 1.0))


def _at(values: Numbers, place: Numbers) -> Numbers:
    """Return the value of each row [rows, n] at a place as `_place` has it."""
    n = values.shape[1]
    rows, low = np.arange(len(values)), np.clip(place.astype(np.int64), 0, n - 1)
    share, start = place - low, values[rows, low]
    with np.errstate(invalid="ignore"):
        step = (values[rows, np.minimum(low + 1, n - 1)] - start) * share
    return np.where(share > 0, start + step, start)


@dataclass(frozen=True)
class Traffic:
    """What is sent: requests, and when.

    `requests` are drawn from a workload model, or are those of a table, in random order. They come at random
    (Poisson); with `burstiness` in bursts (gaps are gamma of this shape, as in `workload.gamma`); with
    `timestamps_s` as in a trace; or with `think_time_s` from users of whom each sends the next one so long
    after the answer, exponential on average (0: at once).

    A trace is what all pods get together: one gets a share of it, requests at random, and its load is that
    share of the trace's mean rate. A share above 1 is as if there were more such traces at once, each begun
    elsewhere. Of a trace that is longer than needed the busiest stretch counts. Which lengths come when is
    not kept.
    """

    requests: WorkloadModel | Requests
    burstiness: float = 1.0
    timestamps_s: Numbers | None = None
    think_time_s: float | None = None

    def table(self, n: int, seed: int) -> Requests:
        """Return `n` requests: those of an open lane's warm-up, of its figures and of its tail have each
        lengths that are spread as evenly as those of many more."""
        warm_up, tail = int(np.ceil(WARM_UP * n)), n - int(np.floor((1 - TAIL) * n))
        parts = [warm_up, max(0, n - warm_up - tail), min(tail, n - warm_up)]
        return concatenate(self._spread(part, seed + at) for at, part in enumerate(parts) if part)

    def _spread(self, n: int, seed: int) -> Requests:
        many = OVERSAMPLED * n
        if isinstance(self.requests, WorkloadModel):
            drawn = self.requests.spread(many, seed)
        else:
            drawn = self.requests.take(np.arange(many) * len(self.requests) // many)
        prompts, answers = drawn.batch_size * drawn.input_tokens, drawn.batch_size * drawn.output_tokens
        by_answer = np.argsort(answers, kind="stable")
        strata = np.array_split(by_answer, min(STRATA, n))
        ordered = np.concatenate([part[np.argsort(prompts[part], kind="stable")] for part in strata])
        tokens = np.stack([prompts, answers], axis=1) / [prompts.mean(), answers.mean()]
        chosen = _standing_for(tokens[ordered].reshape(n, OVERSAMPLED, 2))
        drawn = drawn.take(ordered.reshape(n, OVERSAMPLED)[np.arange(n), chosen])
        return drawn.take(np.random.default_rng(seed).permutation(n))

    def arrivals_ms(self, rates_per_s: Numbers, counts: Ints, seed: int) -> Numbers:
        """Return when requests come [lanes, n], at each rate so many; infinity behind them."""
        most = int(counts.max())
        random = np.random.default_rng(seed)
        if self.timestamps_s is not None:
            trace = _Trace(self.timestamps_s, random.random(len(self.timestamps_s)))
            rows = [
                trace.thinned(rate, n) for rate, n in zip(rates_per_s.tolist(), counts.tolist(), strict=True)
            ]
            return np.stack([np.append(row, np.full(most - len(row), inf)) for row in rows]) * 1e3
        rows = []
        known: dict[int, Numbers] = {}
        for rate, n in zip(rates_per_s.tolist(), counts.tolist(), strict=True):
            if n not in known:
                own = np.random.default_rng([seed, n])
                gaps = np.sort(own.standard_gamma(self.burstiness, OVERSAMPLED * n))
                gaps = gaps.reshape(n, OVERSAMPLED).mean(axis=1)
                known[n] = np.cumsum(own.permutation(gaps / gaps.mean()))
            rows.append(np.append(known[n] * (1e3 / rate), np.full(most - n, inf)))
        return np.stack(rows)


def _standing_for(groups: Numbers) -> Ints:
    """Return which member of each group [groups, members, 2] stands for it: near its mean, and such that what
    one is off by is made up for by the next."""
    owed = np.zeros(2)
    chosen = np.zeros(len(groups), dtype=np.int64)
    for at, (members, mean) in enumerate(zip(groups, groups.mean(axis=1), strict=True)):
        wanted = mean + owed
        best = int(np.square(members - wanted).sum(axis=1).argmin())
        chosen[at], owed = best, wanted - members[best]
    return chosen


class _Trace:
    """A trace's timestamps, of which pods get shares."""

    def __init__(self, timestamps_s: Numbers, luck: Numbers) -> None:
        self.times_s = timestamps_s - timestamps_s[0]
        self.luck = luck
        n = len(self.times_s)
        self.lasts_s = float(self.times_s[-1]) * n / max(n - 1, 1) or 1.0

    @cached_property
    def rate_per_s(self) -> float:
        """Mean rate of the whole trace."""
        return len(self.times_s) / self.lasts_s

    def thinned(self, rate_per_s: float, n: int) -> Numbers:
        """Return `n` arrivals [n] s at most at a share of the trace that has this rate on average."""
        share = rate_per_s / self.rate_per_s
        parts = []
        for copy in range(int(np.ceil(share))):
            luck = (self.luck + 0.618033988749895 * copy) % 1.0
            kept = self.times_s[luck < share - copy]
            parts.append((kept + self.lasts_s * ((0.618033988749895 * copy) % 1.0)) % self.lasts_s)
        times = np.sort(np.concatenate(parts))
        if not len(times):
            times = np.zeros(1)
        if len(times) < n:  # again from the start
            rounds = -(-n // len(times))
            times = (times + self.lasts_s * np.arange(rounds)[:, None]).ravel()
            return np.asarray(times[:n])
        first = int(np.argmin(times[n - 1 :] - times[: len(times) - n + 1]))
        return np.asarray(times[first : first + n] - times[first])


def curves(
    services: Sequence[LaneService],
    traffic: Traffic,
    seed: int,
    overhead_ms: float = REQUEST_OVERHEAD_MS,
    effort: Effort = THOROUGH,
) -> list[Curve]:
    """Return the curve of each service under the traffic, all simulated together.

    The loads of a service's points depend on nothing but it and the traffic: they are shares of what it
    delivers when it is full, from nearly none to all of it, denser where latencies bend; in closed loops of
    users who do not think in even ratios from one to BEYOND times as many as run at once. Of users who think
    there are as many as make these shares, and a last point beyond what fills the service. Where that takes
    more than MOST_USERS, most of whom think, they are simulated as what they then are: requests that come at
    random.
    """
    requests = traffic.table(effort.requests, seed)
    sent = _Sent(traffic, requests, seed, overhead_ms)
    full = np.array([_full(service, requests) for service in services])
    each = np.arange(len(services))
    if traffic.think_time_s == 0:
        ladders = [np.geomspace(1, BEYOND * most, len(effort.shares)) for most in full.tolist()]
        found = _closed_curves(services, each, ladders, sent)
    else:
        scouting = traffic.table(min(SCOUT_REQUESTS, effort.requests), seed)
        delivered, running = _scouted(services, full, scouting, effort.shares, seed)
        thinking = delivered * (traffic.think_time_s or 0.0)
        many = (thinking > full) & (full + thinking > MOST_USERS) | (traffic.think_time_s is None)
        users = np.hstack([running + np.outer(thinking, effort.shares), BEYOND * (full + thinking)[:, None]])
        closed = each[~many]
        found = _open_curves(services, each[many], (delivered[many], running[many]), sent, effort)
        found |= _closed_curves(services, closed, [users[at] for at in closed], sent)
    return [found[at] for at in each.tolist()]


@dataclass(frozen=True)
class _Sent:
    """What every service of `curves` is sent, and what comes on top of its latencies."""

    traffic: Traffic
    requests: Requests
    seed: int
    overhead_ms: float

    def curves(
        self, chosen: Ints, figures: LaneFigures, lane_service: Ints, rates_per_s: Numbers
    ) -> dict[int, "Curve"]:
        """Return the curves of the services `chosen`, by number, from the lanes of each."""
        mean_input = float(self.requests.input_tokens.mean())
        return {
            at: _curve(figures, np.flatnonzero(lane_service == at), rates_per_s, self.overhead_ms, mean_input)
            for at in chosen.tolist()
        }


def _closed_curves(
    services: Sequence[LaneService], chosen: Ints, ladders: Sequence[Numbers], sent: _Sent
) -> dict[int, Curve]:
    """Return the curves of the services `chosen` in closed loops of so many users each."""
    if not len(chosen):
        return {}
    whole = [np.unique(np.rint(np.maximum(ladder, 1.0))).astype(np.int64) for ladder in ladders]
    lane_service = np.repeat(chosen, [len(ladder) for ladder in whole])
    load = ClosedLanes(np.concatenate(whole), 1e3 * (sent.traffic.think_time_s or 0.0))
    figures = run_lanes(services, lane_service, load, sent.requests, sent.seed)
    return sent.curves(chosen, figures, lane_service, figures.rate_per_s)


def _open_curves(
    services: Sequence[LaneService],
    chosen: Ints,
    scouted: tuple[Numbers, Numbers],
    sent: _Sent,
    effort: Effort,
) -> dict[int, Curve]:
    """Return the curves of the services `chosen` in open loops, by what `_scouted` says of them."""
    if not len(chosen):
        return {}
    delivered, running = scouted
    lane_service = np.repeat(chosen, len(effort.shares))
    rates = np.maximum(np.outer(delivered, effort.shares).ravel(), LEAST_RATE)
    counts = np.ceil(effort.turnovers * running.ravel()).astype(np.int64)
    counts = np.clip(counts, effort.requests, max(effort.requests, effort.most_requests))
    begun = running.astype(np.int64).ravel()
    arrivals_ms = sent.traffic.arrivals_ms(rates, counts, sent.seed)
    figures = run_lanes(
        services, lane_service, OpenLanes(_behind(begun, arrivals_ms), begun), sent.requests, sent.seed
    )
    return sent.curves(chosen, figures, lane_service, rates)


def _scouted(
    services: Sequence[LaneService], full: Ints, requests: Requests, shares: Sequence[float], seed: int
) -> tuple[Numbers, Numbers]:
    """Return what each service delivers when it is full [requests/s], and about how many requests are in
    flight at each of the shares of that [services, shares]."""
    n = len(services)
    users = np.maximum(np.ceil(np.outer(full, SCOUTS)), 1).astype(np.int64)
    lane_service = np.repeat(np.arange(n), len(SCOUTS))
    rates = run_lanes(services, lane_service, ClosedLanes(users.ravel()), requests, seed).rate_per_s
    rates = np.maximum(np.maximum.accumulate(rates.reshape(users.shape), axis=1), LEAST_RATE)
    running = []
    for rate, user in zip(rates, users, strict=True):
        # A request takes longer in proportion to how many others there are: 1 / rate is linear in 1 / users.
        wanted = np.multiply(shares, rate[-1])
        inverse = np.interp(-1 / wanted, -1 / rate, 1 / user)
        running.append(
            np.minimum(1 / inverse, wanted * user[0] / rate[0] * np.where(wanted < rate[0], 1, inf))
        )
    return rates[:, -1], np.array(running)


def _behind(begun: Ints, arrivals_ms: Numbers) -> Numbers:
    """Return arrivals [lanes, n] behind so many others each, which are there at the start."""
    n = arrivals_ms.shape[1]
    all_ms = np.full((len(begun), n + int(begun.max())), inf)
    for row, count, times_ms in zip(all_ms, begun.tolist(), arrivals_ms, strict=True):
        row[:count], row[count : count + n] = 0.0, times_ms
    return all_ms


def _full(service: LaneService, requests: Requests) -> int:
    """Return how many users fill the service: some more than run at once."""
    settings = service.step_model.settings
    share = 1.0 if settings.engine == "trtllm" else 0.6
    held = requests.batch_size * (requests.input_tokens + share * requests.output_tokens)
    seats = service.rule.max_num_seqs / float(requests.batch_size.mean())
    return int(np.clip(FULL * min(seats, service.kv_capacity_tokens / float(held.mean())), 2, MOST_USERS))


def _curve(
    figures: LaneFigures, lanes: Ints, rates: Numbers, overhead_ms: float, mean_input_tokens: float
) -> Curve:
    """Return the curve of some lanes, as far as the service keeps up."""
    kept = np.isfinite(np.stack([values[lanes] for values in figures.latencies.values()])).all(axis=0)
    lanes = lanes[: max(1, int(np.append(kept, False).argmin()))]
    curve = Curve(
        rate_per_s=rates[lanes],
        output_tokens_per_s=figures.output_tokens_per_s[lanes],
        latencies={key: values[lanes] for key, values in figures.latencies.items()},
        failures=figures.failures[lanes],
        overhead_ms=overhead_ms,
        mean_input_tokens=mean_input_tokens,
    )
    return _with_points_where_gaps_jump(curve, figures.gap_ms[lanes])


def _with_points_where_gaps_jump(curve: Curve, gap_ms: Numbers) -> Curve:
    """Return the curve with points between those whose gaps between tokens differ much.

    A percentile of the gaps jumps where the share of steps with prompts passes it, and is no straight line.
    There the gaps are those of both neighbours, in parts that are in proportion to the load; all else is as
    the curve has it between its points. `gap_ms` [points, shares] is what GAP_SHARES of the gaps are shorter
    than.
    """
    percentiles = {name: float(name[1:]) / 100 for _, name in curve.latencies if name != "mean"}
    itl = np.stack([curve.latencies["itl_ms", name] for name in percentiles])
    with np.errstate(invalid="ignore"):
        jumps = (itl[:, 1:] > JUMP * itl[:, :-1]).any(axis=0) & np.isfinite(gap_ms[1:]).all(axis=1)
    if not jumps.any() or not np.isfinite(gap_ms).all():
        return curve
    shares = np.arange(1, BETWEEN + 1) / (BETWEEN + 1)
    at = np.arange(len(curve.rate_per_s), dtype=np.float64)
    place = np.sort(np.concatenate([at, (np.flatnonzero(jumps)[:, None] + shares).ravel()]))
    latencies = {key: _between(values, place) for key, values in curve.latencies.items()}
    rates = _between(curve.rate_per_s, place)
    low = np.minimum(place.astype(np.int64), len(at) - 2)
    apart = curve.rate_per_s[low + 1] - curve.rate_per_s[low]
    weights = np.divide(rates - curve.rate_per_s[low], apart, out=np.zeros(len(place)), where=apart > 0)
    for row in np.flatnonzero(place != np.rint(place)).tolist():
        mixed = _mixed_quantiles(gap_ms[low[row]], gap_ms[low[row] + 1], weights[row], percentiles)
        for name, value in mixed.items():
            latencies["itl_ms", name][row] = value
    return Curve(
        rate_per_s=rates,
        output_tokens_per_s=_between(curve.output_tokens_per_s, place),
        latencies=latencies,
        failures=np.interp(place, at, curve.failures),
        overhead_ms=curve.overhead_ms,
        mean_input_tokens=curve.mean_input_tokens,
    )


def _between(values: Numbers, place: Numbers) -> Numbers:
    """Return positive values at places between their own, straight lines in logarithms."""
    return np.asarray(np.exp(np.interp(place, np.arange(len(values)), np.log(values))))


def _mixed_quantiles(
    one: Numbers, other: Numbers, weight: float, percentiles: Mapping[str, float]
) -> dict[str, float]:
    """Return percentiles of two distributions together, of which the other has this weight; each [shares] is
    what GAP_SHARES of it are less than."""
    both = [np.log(quantiles) + TIE * GAP_SHARES for quantiles in (one, other)]
    logs = np.sort(np.concatenate(both))
    few, many = (np.interp(logs, quantiles, GAP_SHARES, left=0.0, right=1.0) for quantiles in both)
    below = (1 - weight) * few + weight * many
    return {name: float(np.exp(np.interp(share, below, logs))) for name, share in percentiles.items()}
