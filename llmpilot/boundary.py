"""How far a service goes within its SLA: the last level that keeps it, and the first that breaks it.

What it takes lies between the two. A ladder whose top keeps the SLA has shown a least number, not the most.
"""

from dataclasses import dataclass
from typing import Any

from llmpilot.config import Sla
from llmpilot.metrics import Level, meets_sla

EXACT, BETWEEN, AT_LEAST, BELOW = "exact", "between", "at_least", "below"


@dataclass(frozen=True)
class Boundary:
    """The last level within the SLA, going up, and the first that breaks it; None where there is none."""

    kept: float | None
    broken: float | None

    def meaning(self, *, whole: bool) -> str:
        """Return what `kept` says of the most that the service takes; `whole` numbers leave no room between.

        exact: it is the most; between: the most lies from there to below `broken`; at_least: nothing that was
        tried breaks the SLA; below: everything that was tried does.
        """
        if self.kept is None:
            return BELOW
        if self.broken is None:
            return AT_LEAST
        return EXACT if whole and self.broken - self.kept <= 1 else BETWEEN

    def stated(self, *, whole: bool) -> dict[str, Any]:
        """Return it as the result has it."""
        return {"level_max_is": self.meaning(whole=whole), "level_broken": self.broken}


def of_ladder(levels: list[Level], sla: Sla) -> Boundary:
    """Return the boundary that a ladder shows whose levels were measured once each."""
    kept = None
    for level in sorted(levels, key=lambda item: float(item["level"])):
        if not meets_sla(level, sla):
            return Boundary(kept, level["level"])
        kept = level["level"]
    return Boundary(kept, None)
