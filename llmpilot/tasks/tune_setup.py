"""What a study is of, and between which weights it searches."""

from dataclasses import dataclass, replace

from llmpilot.errors import ConfigError
from llmpilot.sizing import plan_memory
from llmpilot.tasks.cell import Cell
from llmpilot.tune import Bounds, Tuner, TuningStudy
from llmpilot.tune.tracked import StudyTracker


@dataclass(frozen=True)
class Tuning:
    """All that one worker of a study works with."""

    cell: Cell
    settings: Tuner
    bounds: Bounds
    study: TuningStudy
    tracker: StudyTracker
    tags: dict[str, str]


def untunable(cell: Cell) -> str | None:
    """Return why the max batch weight of this cell's service cannot be tuned; None where it can."""
    if not cell.deployment.starts_services:
        return "it belongs to a service that is already running"
    if setting := cell.engine.weight_is_set_by():
        return f"{setting} sets it"
    if cell.load.arrival == "replay":
        return "a replayed trace ends, and the tuner's users do not"
    least, most, step = _range(cell)
    if most < least + step:
        return f"there is only one: {least:,} tokens"
    return None


def with_closed_loop(cell: Cell, settings: Tuner) -> Cell:
    """Return the cell under the load that tuning puts on it: users of the same workload, in a closed loop."""
    if cell.load.arrival == "closed":
        return cell
    changes = {"arrival": "closed", "users": [settings.users], "rates_per_s": None}
    load = cell.load.model_copy(update=changes)
    return replace(cell, load=load, traffic=replace(cell.traffic, load=load))


def bounds_of(cell: Cell, settings: Tuner) -> Bounds:
    """Return between which weights to search: the given ones, or the heaviest request's weight and what all
    memory beside the weights could hold, without any reserve.

    Raises:
        ConfigError: the load is no closed loop, the cap cannot be set, or the bounds are empty.
    """
    if cell.load.arrival != "closed":
        raise ConfigError("task tune needs a closed loop", given=cell.load.arrival, cure="load=closed_loop")
    if not cell.deployment.starts_services:
        raise ConfigError(
            "the max batch weight of a service that is already running cannot be tuned",
            cure="use a deployment that starts the service, e.g. deployment=simulated",
        )
    if why := untunable(cell):
        raise ConfigError(f"there is no max batch weight to tune: {why}", cure="leave that out")
    least, most, step = _range(cell)
    lower = least if settings.lower is None else settings.lower
    upper = most if settings.upper is None else settings.upper
    if lower < least:
        raise ConfigError(
            f"tuner.lower={lower} is below the workload's heaviest request: it could never be served",
            cure=f"set tuner.lower to {least} or more, or leave it out",
        )
    if upper > most:
        raise ConfigError(
            f"tuner.upper={upper} is more than this service could ever hold",
            cure=f"set tuner.upper to {most} or less, or leave it out",
        )
    if lower >= upper:
        raise ConfigError(
            f"there is nothing between tuner.lower={lower} and tuner.upper={upper}",
            cure="leave them out, or set tuner.upper above tuner.lower",
        )
    bounds = Bounds(lower, upper, step)
    return replace(bounds, upper=bounds.snap(upper))


def _range(cell: Cell) -> tuple[int, int, int]:
    """Return the least and the largest max batch weight that may make sense, and between two the step."""
    heaviest = cell.traffic.heaviest_request_tokens
    most = plan_memory(*cell.facts_known, memory_utilization=1.0, reserve_gb_per_gpu=0.0).kv_capacity_tokens
    return heaviest, cell.engine.largest_weight(most, heaviest), cell.engine.weight_step(heaviest)


def study_name(cell: Cell, settings: Tuner, config_hash: str) -> str:
    """Return `starcoder on 1 x A100-40GB, simulated, paper, e2e_ms.p50, 0123456789ab`."""
    return f"{cell.name}, {cell.engine.name}, {cell.workload_name}, {settings.objective}, {config_hash[:12]}"
