"""What is answered: the service to take and how many of it, what it costs, how sure that is, and what else.

Plain facts and their form as JSON. Who asked what world does not show here: the paper's services and
today's are answered alike.
"""

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

from llmpilot.config import Gpu, Limit
from llmpilot.recommendation.question import Choosing

TrustLevel = Literal["high", "medium", "low"]
Interval = tuple[float, float]
INTERVAL = (0.1, 0.9)
"""Quantiles of the intervals that are stated: 8 of 10 services should lie within."""
FREE_LIMIT = "throughput"
"""What binds where no limit does: beyond it requests pile up."""


@dataclass(frozen=True)
class Forecast:
    """A latency that the SLA limits, at the load that a pod gets: median and 80% interval [ms], and the
    probability that the limit is kept."""

    limit: Limit
    expected_ms: float
    interval_ms: Interval | None
    kept: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "latency": self.limit.latency,
            "statistic": self.limit.statistic,
            "limit_ms": self.limit.limit_ms,
            "expected_ms": _number(self.expected_ms),
            "interval_ms": None if self.interval_ms is None else [_number(one) for one in self.interval_ms],
            "kept": round(self.kept, 4),
        }


@dataclass(frozen=True)
class Option:
    """What one service on one GPU profile comes to.

    Feasible: `pods` pods of it carry the load, and keep the SLA with the probability `p_sla`. `capacity` is
    what one pod is expected to take within the SLA, in the demand's unit, with its 80% interval. Not
    feasible: `pods` is None, `forecasts` are those of a nearly idle pod, none where the model does not fit.
    `reason` says why it is not the one to take. Tokens are output tokens.
    """

    engine: str
    precision: str
    profile: Gpu
    feasible: bool
    p_sla: float
    unit: str
    pods: int | None = None
    load_per_pod: float | None = None
    capacity: float = 0.0
    capacity_interval: Interval | None = None
    tokens_per_s: float | None = None
    forecasts: tuple[Forecast, ...] = ()
    score: float = float("inf")
    reason: str = ""

    @property
    def gpus(self) -> int | None:
        """GPUs of all pods."""
        return None if self.pods is None else self.pods * self.profile.count

    @property
    def cost_per_hour(self) -> float | None:
        """Price of all pods [$ per hour]; None where no number of pods will do."""
        return None if self.pods is None else self.pods * self.profile.cost_per_hour

    @property
    def cost_per_million_tokens(self) -> float | None:
        """Price of a million output tokens while the load is on [$]."""
        if self.cost_per_hour is None or not self.tokens_per_s:
            return None
        return self.cost_per_hour / (self.tokens_per_s * 3600) * 1e6

    @property
    def binding(self) -> str | None:
        """What runs out first under more load: the limit nearest to its latency; None where nothing runs."""
        if not self.forecasts:
            return None
        nearest = max(self.forecasts, key=lambda one: one.expected_ms / one.limit.limit_ms)
        near = nearest.expected_ms / nearest.limit.limit_ms
        return nearest.limit.label if near > 0.5 or not self.feasible else FREE_LIMIT

    @property
    def headroom(self) -> float:
        """The largest share of a limit that a latency is expected to take."""
        return max((one.expected_ms / one.limit.limit_ms for one in self.forecasts), default=0.0)

    def because(self, best: "Option | None", choosing: Choosing) -> "Option":
        """Return the option with the reason why it is not the one to take; one that it has stays."""
        return replace(self, reason=self.reason or self._why_not(best, choosing))

    def _why_not(self, best: "Option | None", choosing: Choosing) -> str:
        if self.feasible and best is not None and self.cost_per_hour and best.cost_per_hour:
            more = self.cost_per_hour / best.cost_per_hour - 1
            if more >= 9:
                return f"costs {more + 1:,.0f} times as much"
            if more > 0.005:
                return f"costs {more:.0%} more"
            if more < -0.005:
                return f"costs {-more:.0%} less, but keeps the SLA with only {self.p_sla:.0%}"
            return f"costs as much, and keeps the SLA with {self.p_sla:.0%}"
        missed = [one for one in self.forecasts if one.expected_ms > one.limit.limit_ms]
        if missed:
            worst = max(missed, key=lambda one: one.expected_ms / one.limit.limit_ms)
            expected = f"{worst.expected_ms:,.4g} ms"
            slow = f"too slow: {expected} is expected of a nearly idle pod, and {worst.limit.label}"
            over = self.profile.count > 1 and self.profile.link.startswith("pcie")
            return slow + (f"; its {self.profile.count} GPUs exchange over PCIe" if over else "")
        if self.capacity > 0 and choosing.max_gpus is not None:
            return f"needs more than max_gpus={choosing.max_gpus}"
        if self.forecasts:
            surest = min(one.kept for one in self.forecasts)
            return f"not sure enough: a nearly idle pod keeps the SLA with {surest:.0%}"
        return "it can serve none of these requests"

    def to_dict(self, hours_per_month: float) -> dict[str, Any]:
        """Return it as plain values; `users_per_pod` and `requests_per_s_per_pod` by the demand's unit."""
        cost = self.cost_per_hour
        users = self.unit == "users"
        facts: dict[str, Any] = {
            "gpu": self.profile.name,
            "count": self.profile.count,
            "engine": self.engine,
            "precision": self.precision,
            "pods": self.pods,
            "gpus": self.gpus,
            "cost_per_hour": cost,
            "cost_per_month": None if cost is None else cost * hours_per_month,
            "cost_per_million_output_tokens": self.cost_per_million_tokens,
            "users_per_pod": self.load_per_pod if users else None,
            "requests_per_s_per_pod": None if users else self.load_per_pod,
            "capacity_per_pod": _number(self.capacity),
            "capacity_per_pod_interval": None
            if self.capacity_interval is None
            else [_number(one) for one in self.capacity_interval],
            "output_tokens_per_s": self.tokens_per_s,
            "p_sla": round(self.p_sla, 4),
            "latencies": [one.to_dict() for one in self.forecasts],
            "binding": self.binding,
            "feasible": self.feasible,
            "reason": self.reason,
        }
        # The strictest limit of each latency by its own name: what most readers look for.
        for one in sorted(self.forecasts, key=lambda one: -one.limit.limit_ms):
            name = one.limit.latency
            said = one.to_dict()
            facts |= {name: said["expected_ms"], f"{name}_interval": said["interval_ms"]}
        return facts


@dataclass(frozen=True)
class Trust:
    """How far to trust the answer: a level, one sentence with a number, and what else bears on it."""

    level: TrustLevel
    sentence: str
    reasons: tuple[str, ...] = ()


UNFIT = Trust("high", "that it does not fit is arithmetic, not a prediction")
"""Where the model fits nowhere."""


@dataclass(frozen=True)
class NextMeasurement:
    """The one measurement that would settle most, or `profile` None and why there is none.

    `gain` is what it is expected to save [$ per hour], `cost` its price [$].
    """

    reason: str
    profile: Gpu | None = None
    gain: float = 0.0
    cost: float = 0.0
    command: str | None = None


@dataclass(frozen=True)
class Answer:
    """The whole answer; `options` are in order, the best first."""

    question: dict[str, Any]
    """What was asked, as plain values: model, load, workload with its mean lengths, SLA, risk, prices."""
    options: tuple[Option, ...]
    recommended: Option | None
    reason: str
    """Why nothing is recommended, where that is so."""
    trust: Trust
    measurement: NextMeasurement
    rule: dict[str, Any]
    hours_per_month: float
    serve: str | None = None
    why_not_served: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the reader should know: assumptions, and what the answer does not know."""

    @property
    def alternatives(self) -> tuple[Option, ...]:
        """Feasible options that no other beats in price and in headroom, the cheapest first."""
        feasible = sorted(
            (one for one in self.options if one.feasible), key=lambda one: (one.cost_per_hour, one.headroom)
        )
        front: list[Option] = []
        for one in feasible:
            if one is self.recommended:
                continue
            others = [*front] + ([self.recommended] if self.recommended is not None else [])
            if not any(_beats(other, one) for other in others):
                front.append(one)
        return tuple(front)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, JSON's."""
        found = self.measurement
        best = self.recommended
        return {
            **self.question,
            "recommended": None if best is None else best.to_dict(self.hours_per_month),
            "reason": self.reason or None,
            "alternatives": [one.to_dict(self.hours_per_month) for one in self.alternatives],
            "ranking": [one.to_dict(self.hours_per_month) for one in self.options],
            "rule": self.rule,
            "trust": {
                "level": self.trust.level,
                "sentence": self.trust.sentence,
                "reasons": list(self.trust.reasons),
            },
            "next_measurement": {
                "gpu": None if found.profile is None else found.profile.name,
                "count": None if found.profile is None else found.profile.count,
                "gain": found.gain,
                "cost": found.cost,
                "reason": found.reason,
                "command": found.command,
            },
            "measured": self.measured,
            "serve": self.serve,
            "notes": list(self.notes),
        }


def _beats(one: Option, other: Option) -> bool:
    """Whether an option is no dearer, no nearer to its limits and no less sure than another."""
    assert one.cost_per_hour is not None
    assert other.cost_per_hour is not None
    return (
        one.cost_per_hour <= other.cost_per_hour
        and one.headroom <= other.headroom * 1.02
        and one.p_sla >= other.p_sla - 0.02
    )


def _number(value: float) -> float | None:
    """Return a figure for JSON, which knows no infinity."""
    return float(f"{value:.6g}") if isfinite(value) else None
