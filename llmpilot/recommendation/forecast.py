"""From a question of today's services to options: simulated once, then judged under any SLA and load.

Each service is simulated by itself, and judged by its own draws: what is said of it does not depend on which
others are asked. Knows nothing of how the options are shown.
"""

from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Limit, Sla
from llmpilot.predict.decision import Deployments, decide
from llmpilot.predict.service.curves import Curve, Speeds
from llmpilot.recommendation.answer import INTERVAL, Forecast, Option
from llmpilot.recommendation.offers import Unfit
from llmpilot.recommendation.question import Choosing, Offered

Floats = NDArray[np.float64]

IDLE = 1e-9
"""A load of hardly any request."""


@dataclass(frozen=True)
class Simulated:
    """Services that hold the model, each with its curve and the draws of how fast it really is.

    `think_time_s` is None where the load is in requests/s; `answer_tokens` is the mean output of a request.
    """

    offered: tuple[Offered, ...]
    curves: tuple[Curve, ...]
    speeds: tuple[Speeds, ...]
    unfit: tuple[Unfit, ...]
    think_time_s: float | None
    answer_tokens: float

    def capacity(self, sla: Sla) -> Floats:
        """Return what one pod of each service takes within the SLA in each draw [draws, services]."""
        columns = [
            curve.capacity(sla.limits, sla.max_failure_rate, speeds, self.think_time_s)
            for curve, speeds in zip(self.curves, self.speeds, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((1, 0))

    @property
    def prices(self) -> Floats:
        """Price of a pod of each service [$ per hour]."""
        return np.array([one.profile.cost_per_hour for one in self.offered])


@dataclass(frozen=True)
class Judged:
    """The options of a question, best first, and what they were judged by."""

    options: tuple[Option, ...]
    recommended: int | None
    """Index of the service to take, among the simulated ones."""
    capacity: Floats
    deployments: Deployments
    first: int | None
    """Index of the service that comes first, whether it is to be taken or not."""


def judged(simulated: Simulated, sla: Sla, load: float, choosing: Choosing) -> Judged:
    """Return every option for carrying a load (in the unit of the curves) within the SLA."""
    capacity = simulated.capacity(sla)
    most_pods = choosing.most_pods(one.profile for one in simulated.offered)
    found = decide(capacity, simulated.prices, load, choosing.risk, most_pods)
    best = found.best
    order = found.order.tolist()
    middle = np.quantile(capacity, [0.5, *INTERVAL], axis=0)
    promise = (sla.limits, sla.max_failure_rate, load)
    options = {at: _option(simulated, at, promise, found, middle[:, at]) for at in order}
    order.sort(key=lambda at: _nearness(options[at], load))
    first = None if best is None else options[best]
    ranked = [options[at] for at in order]
    explained = [one if one is first else one.because(first, choosing) for one in ranked]
    unfit = [
        Option(
            engine=offered.engine.name,
            precision=offered.model.precision,
            profile=offered.profile,
            feasible=False,
            p_sla=0.0,
            unit=_unit(simulated),
            reason=why,
        )
        for offered, why in simulated.unfit
    ]
    return Judged((*explained, *unfit), best, capacity, found, order[0] if order else None)


def _nearness(option: Option, load: float) -> tuple[bool, bool, bool, float, float]:
    """Return what options are sorted by: feasible ones as they are, the others by how little they miss."""
    if option.feasible:
        return (False, False, False, 0.0, 0.0)
    gpus = ceil(load / option.capacity) * option.profile.count if option.capacity > 0 else inf
    return (True, bool(option.reason), option.headroom > 1, gpus, option.headroom)


def _unit(simulated: Simulated) -> str:
    return "requests/s" if simulated.think_time_s is None else "users"


def _option(
    simulated: Simulated,
    at: int,
    promise: tuple[tuple[Limit, ...], float, float],
    found: Deployments,
    middle: Floats,
) -> Option:
    limits, most_failures, load = promise
    offered, curve = simulated.offered[at], simulated.curves[at]
    pods = int(found.pods[at])
    per_pod = load / pods if pods else IDLE
    tokens = None
    if pods:
        rate = curve.rate_at(per_pod, simulated.think_time_s)
        tokens = pods * rate * simulated.answer_tokens
    return Option(
        engine=offered.engine.name,
        precision=offered.model.precision,
        profile=offered.profile,
        feasible=pods > 0,
        p_sla=float(found.probability[at]),
        unit=_unit(simulated),
        pods=pods or None,
        load_per_pod=per_pod if pods else None,
        capacity=float(middle[0]),
        capacity_interval=(float(middle[1]), float(middle[2])),
        tokens_per_s=tokens,
        forecasts=tuple(forecast_of(simulated, at, limit, per_pod) for limit in limits),
        score=float(found.score[at]),
        reason=_too_long(curve, most_failures),
    )


def _too_long(curve: Curve, most_failures: float) -> str:
    """Return why the service breaks the SLA at any load: too many requests do not fit; else nothing."""
    lost = float(curve.failures[0])
    if lost <= most_failures:
        return ""
    return (
        f"too long: {lost:.1%} of the requests are longer than it can serve, and {most_failures:.0%} may fail"
    )


def forecast_of(simulated: Simulated, at: int, limit: Limit, load: float) -> Forecast:
    """Return the latency that a limit is about, of one pod of a service under a load."""
    drawn = simulated.curves[at].figure(limit, load, simulated.speeds[at], simulated.think_time_s)
    # As np.quantile with method="nearest", which takes ten times as long for so few draws.
    middle = np.sort(drawn)[np.rint(np.array([0.5, *INTERVAL]) * (len(drawn) - 1)).astype(int)]
    return Forecast(
        limit,
        float(middle[0]),
        (float(middle[1]), float(middle[2])),
        float((drawn <= limit.limit_ms).mean()),
    )
