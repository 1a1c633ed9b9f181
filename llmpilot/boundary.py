"""How far a service goes within its SLA: the last level that keeps it, and the first that breaks it.

What it takes lies between the two. A ladder whose top keeps the SLA has shown a least number, not the most;
so has one that came to a level whose streams do not show what the SLA limits.
"""

from dataclasses import dataclass
from math import fsum, inf, log
from typing import Any

from llmpilot.config import Sla
from llmpilot.metrics import Level, breaks_sla, meets_sla

EXACT, BETWEEN, AT_LEAST, BELOW, UNSEEN = "exact", "between", "at_least", "below", "unseen"


@dataclass(frozen=True)
class Boundary:
    """The last level within the SLA, going up, and the first that breaks it; None where there is none.

    `unseen` is the first that is not known to do either, where the ladder came to it before one that breaks.
    """

    kept: float | None
    broken: float | None
    unseen: float | None = None

    def meaning(self, *, whole: bool) -> str:
        """Return what `kept` says of the most that the service takes; `whole` numbers leave no room between.

        exact: it is the most; between: the most lies from there to below `broken`; at_least: nothing that was
        tried breaks the SLA; below: everything that was tried does; unseen: at least that, if anything.
        """
        if self.unseen is not None:
            return UNSEEN
        if self.kept is None:
            return BELOW
        if self.broken is None:
            return AT_LEAST
        return EXACT if whole and self.broken - self.kept <= 1 else BETWEEN

    def stated(self, *, whole: bool) -> dict[str, Any]:
        """Return it as the result has it."""
        return {
            "level_max_is": self.meaning(whole=whole),
            "level_broken": self.broken,
            "level_unseen": self.unseen,
        }


def of_ladder(levels: list[Level], sla: Sla) -> Boundary:
    """Return the boundary that a ladder shows whose levels were measured once each."""
    kept = None
    for level in sorted(levels, key=lambda item: float(item["level"])):
        if breaks_sla(level, sla):
            return Boundary(kept, level["level"])
        if not meets_sla(level, sla):
            return Boundary(kept, None, level["level"])
        kept = level["level"]
    return Boundary(kept, None)


MOST_MARGIN = log(8)


def margin(level: Level, sla: Sla) -> float:
    """Return how far a level is from breaking the SLA: ln(limit / figure), of the limit that is nearest.

    Of latencies and of the failure rate, from -ln 8 to ln 8; at least 0 exactly where the SLA is kept.
    """
    figures = [(one.limit_ms, level[one.latency][one.statistic]) for one in sla.limits]
    figures.append((sla.max_failure_rate, level["failure_rate"]))
    ratios = [limit / figure for limit, figure in figures if figure]
    nearest = min(MOST_MARGIN, max(-MOST_MARGIN, log(max(min(ratios, default=inf), 1e-9))))
    kept = meets_sla(level, sla)
    if kept == (nearest >= 0):
        return nearest
    return 0.0 if kept else -MOST_MARGIN


def representative(measured: list[Level]) -> Level:
    """Return the measurement that stands for a level that was measured several times, one or more.

    The one nearest to their mean margin (`sla_margin`, weighted by how long each was measured) of those that
    judge the SLA as the mean does.
    """
    if len(measured) == 1:
        return measured[0]
    seconds = [one["duration_s"] for one in measured]
    mean = fsum(one["sla_margin"] * s for one, s in zip(measured, seconds, strict=True)) / fsum(seconds)
    alike = [one for one in measured if (one["sla_margin"] >= 0) == (mean >= 0)]
    return min(alike or measured, key=lambda one: abs(one["sla_margin"] - mean))
