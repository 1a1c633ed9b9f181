"""One trial: a service under one max batch weight, put through the corner cases, then measured."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from llmpilot import metrics
from llmpilot.config import Sla
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.external import ServiceError
from llmpilot.errors import DoesNotFitError
from llmpilot.loadtest import Traffic, run_level
from llmpilot.simulator import VirtualService
from llmpilot.tune.corners import corner_cases
from llmpilot.tune.settings import COST, Tuner

Endpoint = VirtualService | HttpEndpoint
Start = Callable[[int], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Outcome:
    """What a trial came to. An infeasible one has a reason, and no value where nothing was measured.

    `value` is the objective's, in its own unit, None also where no level of a feasible trial keeps the SLA.
    """

    feasible: bool
    reason: str | None
    value: float | None
    levels: tuple[metrics.Level, ...]
    failure_rate: float | None

    @property
    def figures(self) -> dict[str, float | None]:
        """Median end-to-end latency [ms], output tokens/s, and the share of failed requests, at `users`."""
        level = self.levels[-1] if self.levels else None
        return {
            "users": level["level"] if level else None,
            "e2e_ms_p50": level["e2e_ms"]["p50"] if level else None,
            "throughput_tok_s": level["throughput_tok_s"] if level else None,
            "failure_rate": self.failure_rate,
        }


def measure(
    start: Start,
    traffic: Traffic,
    settings: Tuner,
    weight: int,
    *,
    sla: Sla,
    cost_per_hour: float,
    seed: int,
    corners: bool,
) -> Outcome:
    """Deploy the service under `weight` once and find out whether it survives, and how good it is.

    Out of memory, a refusal at start and failures are outcomes. `seed` decides the requests; `corners` false
    leaves out the corner cases, for a weight that has passed them.
    """
    levels: list[metrics.Level] = []
    try:
        with start(weight) as endpoint:
            for corner in corner_cases(traffic, weight, settings.corner_users) if corners else ():
                level = _level(endpoint, corner.traffic, corner.users, sla)
                if reason := _failure(level, sla, corner.name):
                    return Outcome(False, reason, None, (), level["failure_rate"])
            for users in traffic.load.levels if settings.objective == COST else [settings.users]:
                level = _level(endpoint, replace(traffic, seed=seed), users, sla)
                levels.append(level)
                if reason := _failure(level, sla, f"{users:g} users of the workload"):
                    value = _value(levels, settings, sla, cost_per_hour)
                    return Outcome(False, reason, value, tuple(levels), level["failure_rate"])
                if settings.objective == COST and not metrics.meets_sla(level, sla):
                    break  # u_max is known: more load cannot change it
    except (DoesNotFitError, ServiceError) as error:
        return Outcome(False, error.wrong, None, (), None)
    value = _value(levels, settings, sla, cost_per_hour)
    reason = None if value is not None else "no level keeps the SLA"
    return Outcome(True, reason, value, tuple(levels), levels[-1]["failure_rate"])


def _level(endpoint: Endpoint, traffic: Traffic, users: float, sla: Sla) -> dict[str, Any]:
    return metrics.summarize(run_level(endpoint, traffic, users), sla, traffic.load.unit)


def _failure(level: metrics.Level, sla: Sla, under: str) -> str | None:
    if level["failure_rate"] <= sla.max_failure_rate and "out_of_memory" not in level["failures"]:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(level["failures"].items()))
    return f"{under}: {level['failure_rate']:.1%} of the requests failed ({kinds})"


def _value(levels: list[metrics.Level], settings: Tuner, sla: Sla, cost_per_hour: float) -> float | None:
    if settings.objective == COST:
        return metrics.cost_per_million_output_tokens(metrics.last_within_sla(levels, sla), cost_per_hour)
    name, _, statistic = settings.objective.partition(".")
    figure = levels[-1][name]
    value = figure[statistic] if statistic else figure
    return None if value is None else float(value)
