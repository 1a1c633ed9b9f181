"""Which levels of load a characterization measures, one after the other, and what they have come to."""

from dataclasses import replace
from typing import Any

from llmpilot import boundary, metrics, search
from llmpilot.boundary import margin
from llmpilot.deploy.place import Endpoint
from llmpilot.loadtest import Traffic
from llmpilot.metrics import Level
from llmpilot.runfolder import RunFolder
from llmpilot.search import Step
from llmpilot.simulator import VirtualService
from llmpilot.tasks.cell import Cell


def next_step(cell: Cell, endpoint: Endpoint, folder: RunFolder) -> Step | None:
    """Return what to measure next: the ladder's next level or a search's; None when nothing is left.

    It follows from what the folder has: an interrupted run goes on where it was.
    """
    measured = folder.measurements()
    if folder.state.get("out_of_memory"):
        return None  # the server is gone
    if cell.load.search:
        if _unseen(cell, measured):
            return None  # no level tells more than this one
        return search.next_step(search.seen_in(measured, cell.load.duration_s), _range(cell, endpoint))
    if any(level["failure_rate"] > cell.load.stop_above_failure_rate for level in measured):
        return None
    done = {level["level"] for level in measured}
    return next((Step(level) for level in cell.load.levels if level not in done), None)


def traffic_of(cell: Cell, step: Step) -> Traffic:
    """Return what is sent: a level that is measured again has other requests of the same workload."""
    if not cell.load.search:
        return cell.traffic
    load = cell.load.model_copy(update={"duration_s": _duration_s(cell, step)})
    return replace(cell.traffic.reseeded(cell.seed + step.repeat), load=load)


def of_the_search(cell: Cell, step: Step, summary: Level) -> dict[str, Any]:
    """Return what a search notes of a measurement; nothing of a ladder's."""
    if not cell.load.search:
        return {}
    return {
        "repeat": step.repeat,
        "duration_s": _duration_s(cell, step),
        "sla_margin": round(margin(summary, cell.sla), 9),
    }


def outcome(cell: Cell, endpoint: Endpoint, folder: RunFolder) -> tuple[Level | None, dict[str, Any]]:
    """Return the last level within the SLA, None for none, and what the result says of the boundary."""
    levels, whole = folder.levels(), cell.load.arrival == "closed"
    measured = folder.measurements()
    if not cell.load.search or not measured or _unseen(cell, measured):
        best = metrics.last_within_sla(levels, cell.sla)
        return best, boundary.of_ladder(levels, cell.sla).stated(whole=whole)
    within = _range(cell, endpoint)
    seen = search.seen_in(measured, cell.load.duration_s)
    found = search.conclude(seen, within)
    best = next((level for level in levels if level["level"] == found.boundary.kept), None)
    return best, found.boundary.stated(whole=whole) | {"search": search.stated(found, seen, within)}


def summary_of(limits: dict[str, Any], *, closed: bool) -> dict[str, float | None]:
    """Return the boundary as MLflow metrics; of a search also its interval and what it took."""
    figures: dict[str, float | None] = {"level_broken": limits["level_broken"]}
    if (searched := limits.get("search")) is not None:
        name = "users_max" if closed else "level_max"
        figures |= dict(zip((f"{name}.low", f"{name}.high"), searched["interval"], strict=True))
        figures |= {f"search.{name}": searched[name] for name in ("levels", "windows")}
    return figures


def _unseen(cell: Cell, measured: list[Level]) -> bool:
    """Whether streams did not show what the SLA limits, so that nothing is known of it."""
    return any(
        not (metrics.meets_sla(one, cell.sla) or metrics.breaks_sla(one, cell.sla)) for one in measured
    )


def _range(cell: Cell, endpoint: Endpoint) -> search.Range:
    # A replayed trace has no other requests, and the simulator answers the same ones the same.
    alike = cell.load.arrival == "replay" and isinstance(endpoint, VirtualService)
    return search.range_of(cell.load, repeats=not alike)


def _duration_s(cell: Cell, step: Step) -> float:
    return cell.load.duration_s * step.windows
