"""One trial: a service under one max batch weight, put through the corner cases, then measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmpilot import metrics
from llmpilot.config import Sla
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.external import ServiceError
from llmpilot.deploy.place import Endpoint
from llmpilot.errors import DoesNotFitError
from llmpilot.loadtest import Records, Traffic, run_level
from llmpilot.schema import at_level
from llmpilot.simulator import VirtualService
from llmpilot.tune.corners import corner_cases
from llmpilot.tune.live import Services
from llmpilot.tune.plan import FEASIBLE, REPEAT, Question
from llmpilot.tune.settings import COST, GOODPUT, Tuner

Limit = Callable[[int], float | None]
"""Users -> the cost beyond which a trial has no hope of being the best; None: go on."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to. An infeasible one has a reason, and no value where nothing was measured.

    `value` is the objective's, in its own unit, None also where no level of a feasible trial keeps the SLA.
    `whole` tells whether all of the measurement was done, `pruned` that it was given up as hopeless.
    `reports` are the values on the way: (seconds of the window, or for the cost users; value). `seconds` is
    the time that the service was in use: of the clock for a real one, its start included, else virtual.
    """

    feasible: bool
    reason: str | None
    value: float | None
    levels: tuple[metrics.Level, ...]
    failure_rate: float | None
    whole: bool = True
    pruned: bool = False
    reports: tuple[tuple[int, float], ...] = ()
    deployments: int = 1
    seconds: float = 0.0

    @property
    def figures(self) -> dict[str, Any]:
        """Median end-to-end latency [ms], output tokens/s, and the share of failed requests, at `users`."""
        level = self.levels[-1] if self.levels else None
        return {
            "users": level["level"] if level else None,
            "e2e_ms_p50": level["e2e_ms"]["p50"] if level else None,
            "throughput_tok_s": level["throughput_tok_s"] if level else None,
            "failure_rate": self.failure_rate,
            "whole": self.whole,
            "pruned": self.pruned,
            "deployments": self.deployments,
            "seconds": round(self.seconds, 3),
        }


def measure(
    services: Services,
    traffic: Traffic,
    settings: Tuner,
    weight: int,
    *,
    sla: Sla,
    cost_per_hour: float | None,
    seed: int,
    question: Question,
    limit: Limit = lambda _: None,
    of_the_weight: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Have a service under `weight`; find out whether it survives, and how good it is, as far as is asked.

    `feasible` asks for the corner cases and the first part of the measurement, `best` for all of it, `repeat`
    for all of it without the corner cases: they have been passed. A ladder of users (for the cost) ends where
    `limit` shows that it is hopeless. Out of memory, a refusal at start and failures are outcomes. `seed`
    decides the requests. `of_the_weight` is asked of a service that did not come up for a reason other than
    memory: whether that says anything of its weight.

    Raises:
        ServiceError: the service did not come up, and it would not have under another weight either.
    """
    trial = _Trial(traffic, settings, sla, cost_per_hour, seed)
    begun_s, before = time.monotonic(), services.deployments
    try:
        with services.under(weight) as endpoint:
            outcome = trial.run(endpoint, weight, question, limit)
    except (DoesNotFitError, ServiceError) as error:
        if isinstance(error, ServiceError) and not of_the_weight():
            raise
        outcome = Outcome(False, error.wrong, None, (), None)
    if not outcome.feasible:
        services.discard()
    seconds = trial.virtual_s or time.monotonic() - begun_s
    return replace(outcome, deployments=services.deployments - before, seconds=seconds)


class _Trial:
    """A trial's way over its levels, and what has been seen on it so far."""

    def __init__(
        self, traffic: Traffic, settings: Tuner, sla: Sla, cost_per_hour: float | None, seed: int
    ) -> None:
        self._traffic, self._settings, self._sla = traffic, settings, sla
        self._workload = traffic.reseeded(seed)
        self._cost_per_hour = cost_per_hour
        self._levels: list[metrics.Level] = []
        self._reports: list[tuple[int, float]] = []
        self.virtual_s = 0.0

    def run(self, endpoint: Endpoint, weight: int, question: Question, limit: Limit) -> Outcome:
        settings, load = self._settings, self._traffic.load
        for corner in (
            corner_cases(self._traffic, weight, settings.corner_users) if question != REPEAT else ()
        ):
            level = self._level(endpoint, corner.traffic, corner.users)
            if reason := self._failure(endpoint, level, corner.name):
                return Outcome(False, reason, None, (), level["failure_rate"], whole=False)

        part_s = load.duration_s * settings.first_part
        short = replace(self._workload, load=load.model_copy(update={"duration_s": part_s}))
        if question == FEASIBLE:
            users = max(load.levels) if settings.objective == COST else settings.users
            whole = settings.first_part == 1 and settings.objective != COST
            return self._measured(endpoint, short, [users], whole=whole)
        if settings.objective == COST:
            return self._measured(endpoint, self._workload, load.levels, limit=limit)
        return self._measured(endpoint, self._workload, [settings.users])

    def _measured(
        self,
        endpoint: Endpoint,
        traffic: Traffic,
        ladder: list[float] | list[int],
        *,
        whole: bool = True,
        limit: Limit = lambda _: None,
    ) -> Outcome:
        """Climb a ladder of users until it fails, breaks the SLA (for the cost), or is hopeless."""
        cost = self._settings.objective == COST
        reason, feasible, pruned = None, True, False
        for users in ladder:
            level = self._level(endpoint, traffic, users)
            self._levels.append(level)
            if reason := self._failure(endpoint, level, f"{at_level(users, 'users')} of the workload"):
                feasible = False
                break
            if cost and not metrics.meets_sla(level, self._sla):
                break  # u_max is known: more load cannot change it
            step = round(users) if cost else round(traffic.load.duration_s)
            value = self._value(whole)
            if value is None:
                continue
            self._reports.append((step, value))
            beyond = limit(step)
            if beyond is not None and value > beyond:
                after = at_level(users, "users")
                reason = f"hopeless after {after}: {value:,.4g}, and {beyond:,.4g} would be too bad"
                pruned = True
                break
        value = self._value(whole)
        if value is None and reason is None and whole:
            reason = "no level keeps the SLA"
        return Outcome(
            feasible,
            reason,
            value,
            tuple(self._levels),
            self._levels[-1]["failure_rate"],
            whole=whole and feasible and not pruned,
            pruned=pruned,
            reports=tuple(self._reports),
        )

    def _level(self, endpoint: Endpoint, traffic: Traffic, users: float) -> dict[str, Any]:
        records = run_level(endpoint, traffic, users)
        if isinstance(endpoint, VirtualService):
            self.virtual_s += _lasted_s(records)
        return metrics.summarize(records, self._sla, traffic.load.unit)

    def _failure(self, endpoint: Endpoint, level: metrics.Level, under: str) -> str | None:
        if level["failure_rate"] <= self._sla.max_failure_rate and "out_of_memory" not in level["failures"]:
            return None
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(level["failures"].items()))
        reason = f"{under}: {level['failure_rate']:.1%} of the requests failed ({kinds})"
        if isinstance(endpoint, HttpEndpoint):
            try:
                endpoint.raise_if_ended()
            except (DoesNotFitError, ServiceError) as error:
                return f"{reason}; {error.wrong}"
        return reason

    def _value(self, whole: bool) -> float | None:
        if self._settings.objective == COST:
            if not whole:
                return None  # it takes the ladder
            best = metrics.last_within_sla(self._levels, self._sla)
            return metrics.cost_per_million_output_tokens(best, self._cost_per_hour)
        if self._settings.objective == GOODPUT and not metrics.meets_sla(self._levels[-1], self._sla):
            # Requests are judged by their mean gap each; what the SLA says of a percentile, by all of them.
            return 0.0
        name, _, statistic = self._settings.objective.partition(".")
        figure = self._levels[-1][name]
        value = figure[statistic] if statistic else figure
        return None if value is None else float(value)


def _lasted_s(records: Records) -> float:
    return max(records.window_us[1], int(records.done_us.max(initial=0))) / 1e6
