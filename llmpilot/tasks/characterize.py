"""Characterize one service: climb the ladder of load, keep every level, find u_max and its price."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

import llmpilot
from llmpilot import interrupts, metrics, report, tracking
from llmpilot.config import Tracking, parse, plain
from llmpilot.console import note, say
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.external import ExternalDeployment
from llmpilot.deploy.hardware import local_hardware
from llmpilot.deploy.process import ProcessEndpoint, ServerOutOfMemoryError
from llmpilot.deploy.simulated import SimulatedDeployment
from llmpilot.files import to_json, write_text
from llmpilot.loadtest import run_level
from llmpilot.progress import Progress
from llmpilot.runfolder import RunFolder
from llmpilot.secrets import redact, redact_tree
from llmpilot.simulator import VirtualService
from llmpilot.tasks import client_check
from llmpilot.tasks.cell import Cell, Endpoint, compose
from llmpilot.tracking import Tracker

REAL_SERVICE = "engine=openai deployment=external deployment.url=http://HOST:PORT"


def run(cfg: DictConfig, *, parent_run_id: str | None = None, in_sweep: bool = False) -> dict[str, Any]:
    """Measure the cell that `cfg` describes and return its result, as `result_file` holds it.

    In a sweep, a cell that MLflow already has as FINISHED is not measured again unless `resume` is false.

    Raises:
        ConfigError, DoesNotFitError: the cell is impossible.
        TrackingError: measured, but MLflow could not be reached; carries the result.
    """
    cell = compose(cfg)
    tracker = Tracker(parse(Tracking, cfg.tracking, "tracking"))
    announce(cell, tracker.tracking)

    if in_sweep and cfg.resume and (known := _already_finished(cell, tracker)):
        return known
    with (
        _infeasible_is_logged(cell, tracker, in_sweep),
        cell.start() as endpoint,
        closing(
            RunFolder.claim(
                cell.config_hash(), _identity(cell, endpoint, tracker.tracking), resume=bool(cfg.resume)
            )
        ) as folder,
    ):
        write_text(
            folder.artifacts / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redact_tree(plain(cfg))))
        )
        if isinstance(endpoint, HttpEndpoint) and endpoint.simulated:
            say("SIMULATED all the same: LLM-Pilot's own emulator answers there", style="bold yellow")
        try:
            tracker.start(folder, parent_run_id)
            try:
                levels = climb(cell, endpoint, folder, tracker)
            finally:
                if isinstance(endpoint, ProcessEndpoint) and endpoint.server is not None:
                    write_text(folder.artifacts / "server.log", endpoint.server.log())
            verdict = client_check.judge(endpoint, levels) if isinstance(endpoint, HttpEndpoint) else None
            result = conclude(cell, folder, levels, verdict)
            interrupts.check()
            folder.save(status="FINISHED")
            tracker.finish(folder)
        except BaseException as error:
            _give_up(folder, tracker, error)
            raise
        result["run_id"] = folder.state["run_id"]
        show(result, folder, tracker, brief=in_sweep)
        if tracker.problem is not None:
            raise tracking.not_uploaded(folder, tracker.problem, tracker.tracking, result)
        folder.remove()
    return result


@contextmanager
def _infeasible_is_logged(cell: Cell, tracker: Tracker, in_sweep: bool) -> Iterator[None]:
    """Leave a run that says so when the server's memory does not suffice to start; a sweep logs its own."""
    try:
        yield
    except ServerOutOfMemoryError as error:
        if not in_sweep:
            tracker.log_infeasible(tracking.CHARACTERIZE, cell.name, str(error), None)
        raise


def announce(cell: Cell, settings: Tracking) -> None:
    """Say first what is simulated, then what will happen and where the results go."""
    if isinstance(cell.deployment, SimulatedDeployment):
        say(
            f"SIMULATED: {cell.name}, no GPU and no engine is used. "
            f"To measure a real service, add: {REAL_SERVICE}",
            style="bold yellow",
        )
        note(f"step times: {cell.facts()['calibration']['source']}")
    else:
        where = (
            f"the service at {cell.deployment.url}"
            if isinstance(cell.deployment, ExternalDeployment)
            else f"{cell.engine.name} on this machine, whatever its hardware; the GPU profile is a label"
        )
        say(f"MEASURED: {cell.name}, by {where}", style="bold")
    ladder = ", ".join(f"{level:g}" for level in cell.load.levels)
    note(
        f"{cell.load.unit}: {ladder}; "
        f"{cell.load.duration_s:g} s each after {cell.load.warmup_s:g} s warm-up; "
        f"workload {cell.workload_name}; max batch weight {_tokens(cell.max_batch_weight)}; "
        f"tracked in {settings.uri}"
    )


def climb(cell: Cell, endpoint: Endpoint, folder: RunFolder, tracker: Tracker) -> list[metrics.Level]:
    """Measure every level that the folder does not have yet, keeping each as soon as it is there."""
    done = {level["level"] for level in folder.levels()}
    if done:
        note(f"going on with an interrupted run: {len(done)} of {len(cell.load.levels)} levels are there")
    failing = any(level["failure_rate"] > cell.load.stop_above_failure_rate for level in folder.levels())
    with Progress(cell.load, done) as progress:
        for level in cell.load.levels if not failing else []:
            if level in done:
                continue
            interrupts.check()
            progress.begin(level)
            records = run_level(endpoint, cell.traffic, level)
            summary = metrics.summarize(records, cell.sla, cell.load.unit)
            if isinstance(endpoint, HttpEndpoint):
                summary["client"] = client_check.notes_of(records)
            folder.add_level(summary, records.to_table())
            tracker.log_level(folder, summary)
            progress.end(summary)
            if isinstance(endpoint, HttpEndpoint):
                client_check.warn(summary)
            if isinstance(endpoint, ProcessEndpoint):
                try:
                    endpoint.raise_if_ended()
                except ServerOutOfMemoryError as error:
                    note(f"{error}\n  the ladder ends here", style="yellow")
                    folder.save(out_of_memory=str(error))
                    break
            if summary["failure_rate"] > cell.load.stop_above_failure_rate:
                note(
                    f"{summary['failure_rate']:.0%} of the requests failed: the ladder ends here",
                    style="yellow",
                )
                break
    return folder.levels()


def conclude(
    cell: Cell, folder: RunFolder, levels: list[metrics.Level], verdict: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the result, and leave it with the plots and the report among the folder's artifacts."""
    best = metrics.last_within_sla(levels, cell.sla)
    price = metrics.cost_per_million_output_tokens(best, cell.gpu.cost_per_hour)
    closed = cell.load.arrival == "closed"
    largest = best["level"] if best else 0
    result = {
        "model": cell.model.name,
        "gpu": cell.gpu.name,
        "count": cell.gpu.count,
        "engine": cell.engine.name,
        "deployment": cell.deployment.name,
        "measurement": folder.state["tags"][tracking.TAG_MEASUREMENT],
        "max_batch_weight": cell.max_batch_weight,
        "workload": cell.workload_name,
        "run_id": folder.state["run_id"],
        "users_max": int(largest) if closed else None,
        "level_max": largest,
        "level_unit": cell.load.unit,
        "cost_per_hour": cell.gpu.cost_per_hour,
        "cost_per_million_output_tokens": price,
        "sla": cell.sla.model_dump(),
        "levels": levels,
    }
    summary = {
        "users_max" if closed else "level_max": largest,
        "cost_per_hour": cell.gpu.cost_per_hour,
        "cost_per_million_output_tokens": price,
    }
    tags = folder.state["tags"] | {tracking.TAG_OUTCOME: "sla_met" if best else "sla_missed"}
    if reason := folder.state.get("out_of_memory"):
        tags |= {tracking.TAG_OUTCOME: ServerOutOfMemoryError.outcome, tracking.TAG_REASON: reason}
    if verdict is not None:
        result["client"] = verdict
        summary |= client_check.summary_of(verdict)
        tags |= {tracking.TAG_CLIENT_BOTTLENECK: ", ".join(verdict["bottleneck"]) or "no"}
    folder.save(metrics=summary, tags=tags)
    folder.collect_artifacts()
    write_text(folder.artifacts / tracking.RESULT_FILE, to_json(result))
    report.write(result, folder.artifacts)
    return result


def show(result: dict[str, Any], folder: RunFolder, tracker: Tracker, *, brief: bool) -> None:
    """Print the table, the conclusion and where to look further; in a sweep the conclusion only."""
    if not brief:
        report.print_table(result)
    say(report.conclusion(result), style="bold")
    if "client" in result:
        client_check.show(result)
    if tracker.problem is None and not brief:
        say(f"run {folder.state['run_id']}; look and compare: {_how_to_look(tracker.tracking)}")


def _identity(cell: Cell, endpoint: Endpoint, settings: Tracking) -> dict[str, Any]:
    # Our own emulator answers like a real server, but nothing of it is a measurement of an engine.
    simulated = isinstance(endpoint, VirtualService) or endpoint.simulated
    return {
        "task": tracking.CHARACTERIZE,
        "run_name": cell.name,
        "tracking_uri": redact(settings.uri),
        "unit": cell.load.unit,
        "config_hash": cell.config_hash(),
        "params": cell.params(),
        "metrics": {},
        "tags": {
            tracking.TAG_TASK: tracking.CHARACTERIZE,
            tracking.TAG_MEASUREMENT: "simulated" if simulated else "measured",
            tracking.TAG_CONFIG_HASH: cell.config_hash(),
            tracking.TAG_VERSION: llmpilot.__version__,
            tracking.TAG_STEP: tracking.step_meaning(cell.load.unit),
        }
        | ({tracking.TAG_HARDWARE: local_hardware()} if isinstance(endpoint, ProcessEndpoint) else {}),
    }


def _tokens(weight: int | None) -> str:
    return "the server's own" if weight is None else f"{weight:,} tokens"


def _already_finished(cell: Cell, tracker: Tracker) -> dict[str, Any] | None:
    found = tracker.find_finished(tracking.CHARACTERIZE, cell.config_hash())
    result = tracker.read_result(found.info.run_id) if found else None
    if found is not None and result is not None:
        result["run_id"] = found.info.run_id
        say(f"already measured: run {found.info.run_id}; resume=false measures it again")
    return result


def _give_up(folder: RunFolder, tracker: Tracker, error: BaseException) -> None:
    """Keep what was measured, and mark the run: KILLED when interrupted, FAILED when we failed."""
    interrupts.acknowledge()
    interrupted = isinstance(error, KeyboardInterrupt)
    with suppress(OSError):  # a full disk must not hide what went wrong first
        folder.save(status="KILLED" if interrupted else "FAILED")
        folder.collect_artifacts()
    tracker.finish(folder)
    if interrupted:
        note(
            f"interrupted: {len(folder.levels())} levels are kept in {folder.path}; "
            "the same command goes on there",
            style="yellow",
        )


def _how_to_look(settings: Tracking) -> str:
    if settings.uri.startswith(("http://", "https://")):
        return settings.uri
    return f"mlflow ui --backend-store-uri {settings.uri}"
