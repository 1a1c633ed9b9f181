"""How the price of the answer moves with the load and with each limit of the SLA, nothing simulated anew."""

from dataclasses import dataclass
from typing import Any

from llmpilot.config import Sla
from llmpilot.recommendation.answer import Option
from llmpilot.recommendation.forecast import Simulated, judged
from llmpilot.recommendation.question import Choosing

LOADS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0)
LIMITS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Multiples of what was asked."""


@dataclass(frozen=True)
class Point:
    """What is recommended where one figure of the question is `value`; `option` None: nothing will do."""

    value: float
    option: Option | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        one = self.option
        return {
            "value": self.value,
            "cost_per_hour": None if one is None else one.cost_per_hour,
            "gpu": None if one is None else one.profile.name,
            "count": None if one is None else one.profile.count,
            "precision": None if one is None else one.precision,
            "engine": None if one is None else one.engine,
            "pods": None if one is None else one.pods,
            "p_sla": None if one is None else round(one.p_sla, 4),
        }


@dataclass(frozen=True)
class PriceCurve:
    """The recommendation over one figure of the question: the load, or a limit; `asked` is its own value."""

    figure: str
    asked: float
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "figure": self.figure,
            "asked": self.asked,
            "points": [point.to_dict() for point in self.points],
        }


def what_if(simulated: Simulated, sla: Sla, load: float, choosing: Choosing) -> tuple[PriceCurve, ...]:
    """Return the recommendation as the load moves, and as each limit does, the others as they are."""
    unit = "requests/s" if simulated.think_time_s is None else "users"
    loads = sorted({_rounded(load * share, unit) for share in LOADS})
    curves = [
        PriceCurve(unit, load, tuple(Point(one, _best(simulated, sla, one, choosing)) for one in loads))
    ]
    for limit in sla.limits:
        points = []
        for share in LIMITS:
            value = float(f"{limit.limit_ms * share:.4g}")
            moved = limit.model_copy(update={"limit_ms": value})
            points.append(Point(value, _best(simulated, sla.with_limit(moved), load, choosing)))
        name = limit.label.partition(" <= ")[0]
        curves.append(PriceCurve(f"{name} [ms]", limit.limit_ms, tuple(points)))
    return tuple(curves)


def _rounded(load: float, unit: str) -> float:
    return max(1.0, round(load)) if unit == "users" else float(f"{load:.3g}")


def _best(simulated: Simulated, sla: Sla, load: float, choosing: Choosing) -> Option | None:
    found = judged(simulated, sla, load, choosing)
    return found.options[0] if found.recommended is not None else None
