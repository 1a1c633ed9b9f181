"""Characterize one service: climb the ladder of load, keep every level, find u_max and its price."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

import llmpilot
from llmpilot import interrupts, metrics, report, tracking
from llmpilot.config import Tracking, parse, plain
from llmpilot.console import note, say
from llmpilot.deploy.endpoint import HttpEndpoint, ServerOutOfMemoryError
from llmpilot.deploy.place import Endpoint
from llmpilot.files import to_json, write_text
from llmpilot.loadtest import run_level
from llmpilot.loadtest.server_samples import write_csv
from llmpilot.progress import Progress
from llmpilot.report.result_fields import RESULT
from llmpilot.runfolder import RunFolder
from llmpilot.schema import exactly
from llmpilot.secrets import redact, redact_tree
from llmpilot.simulator import VirtualService
from llmpilot.tasks import client_check, weight
from llmpilot.tasks.cell import Cell, compose, service_name
from llmpilot.tasks.characterize_show import announce, show
from llmpilot.tasks.climb import next_step, of_the_search, outcome, summary_of, traffic_of
from llmpilot.tracking import Tracker


def run(cfg: DictConfig, *, parent_run_id: str | None = None, in_sweep: bool = False) -> dict[str, Any]:
    """Measure the cell that `cfg` describes and return its result, as `result_file` holds it.

    Its max batch weight is tuned first where none is given. In a sweep, a cell that MLflow already has as
    FINISHED is neither tuned nor measured again unless `resume` is false.

    Raises:
        ConfigError, DoesNotFitError: the cell is impossible.
        TrackingError: measured, but MLflow could not be reached; carries the result.
    """
    cell = weight.intended(cfg, compose(cfg))
    tracker = Tracker(parse(Tracking, cfg.tracking, "tracking"))
    announce(cell, tracker.tracking)

    if in_sweep and cfg.resume and (known := _already_finished(cell, tracker)):
        return known
    with _infeasible_is_logged(cell, tracker, in_sweep):
        cell, origin = weight.settle(cfg, cell)
        return _measure(cfg, cell, origin, tracker, parent_run_id, in_sweep=in_sweep)


def _measure(
    cfg: DictConfig,
    cell: Cell,
    origin: weight.Origin,
    tracker: Tracker,
    parent_run_id: str | None,
    *,
    in_sweep: bool,
) -> dict[str, Any]:
    """Start the service, climb the ladder, and keep what it shows."""
    resume = bool(cfg.resume)
    with (
        cell.start() as endpoint,
        closing(
            RunFolder.claim(
                cell.config_hash(), _identity(cell, endpoint, origin, tracker.tracking), resume=resume
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
                if isinstance(endpoint, HttpEndpoint) and (log := endpoint.log()) is not None:
                    write_text(folder.artifacts / "server.log", log)
            verdict = client_check.judge(endpoint, levels) if isinstance(endpoint, HttpEndpoint) else None
            result = conclude(cell, endpoint, folder, levels, verdict)
            interrupts.check()
            folder.save(status="FINISHED")
            tracker.finish(folder)
        except BaseException as error:
            _give_up(folder, tracker, error)
            raise
        result["run_id"] = folder.state["run_id"]
        show(result, folder, tracker, brief=in_sweep)
        if tracker.problem is not None:
            raise tracking.not_uploaded(folder, tracker, result)
        folder.remove()
    return result


@contextmanager
def _infeasible_is_logged(cell: Cell, tracker: Tracker, in_sweep: bool) -> Iterator[None]:
    """Leave a run that says so when the service cannot start or survive; a sweep logs its own."""
    try:
        yield
    except (ServerOutOfMemoryError, weight.NothingFeasibleError) as error:
        if not in_sweep:
            tracker.log_infeasible(tracking.CHARACTERIZE, cell.name, str(error), None)
        raise


def climb(cell: Cell, endpoint: Endpoint, folder: RunFolder, tracker: Tracker) -> list[metrics.Level]:
    """Measure every level that the folder does not have yet, keeping each as soon as it is there."""
    if known := folder.levels():
        of = "" if cell.load.search else f" of {len(cell.load.levels)}"
        note(f"going on with an interrupted run: {len(known)}{of} levels are there")
    way = "search" if cell.load.search else "ladder"
    with Progress(cell.load, len(known), cell.traffic.unit) as progress:
        while (step := next_step(cell, endpoint, folder)) is not None:
            interrupts.check()
            progress.begin(step)
            records = run_level(endpoint, traffic_of(cell, step), step.level)
            out_of_memory = _out_of_memory(endpoint)
            summary = metrics.summarize(records, cell.sla, cell.traffic.unit)
            summary |= of_the_search(cell, step, summary)
            if isinstance(endpoint, HttpEndpoint):
                summary["client"] = client_check.notes_of(records)
            if records.server is not None:
                samples = folder.artifacts / tracking.SERVER_SAMPLES_FILE
                write_csv(samples, step.level, records.window_us, records.server, repeat=step.repeat)
            folder.add_level(summary, records.to_table())
            tracker.log_level(folder, summary)
            progress.end(summary)
            if isinstance(endpoint, HttpEndpoint):
                client_check.warn(summary)
            if out_of_memory is not None:
                note(f"{out_of_memory}\n  the {way} ends here", style="yellow")
                folder.save(out_of_memory=str(out_of_memory))
            elif summary["failure_rate"] > cell.load.stop_above_failure_rate:
                then = "the ladder ends here" if not cell.load.search else "the search climbs no further"
                note(f"{summary['failure_rate']:.0%} of the requests failed: {then}", style="yellow")
    return folder.levels()


def _out_of_memory(endpoint: Endpoint) -> ServerOutOfMemoryError | None:
    """Return how the server that we started ran out of memory, where it did: an outcome.

    Raises:
        ServerDiedError: it died of anything else; what it showed of the level until then is no measurement.
    """
    if isinstance(endpoint, HttpEndpoint):
        try:
            endpoint.raise_if_ended()
        except ServerOutOfMemoryError as error:
            return error
    return None


def conclude(
    cell: Cell,
    endpoint: Endpoint,
    folder: RunFolder,
    levels: list[metrics.Level],
    verdict: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the result, and leave it with the plots and the report among the folder's artifacts."""
    best, limits = outcome(cell, endpoint, folder)
    price = metrics.cost_per_million_output_tokens(best, cell.cost_per_hour)
    closed = cell.load.arrival == "closed"
    largest = best["level"] if best else 0
    result = {
        "schema": RESULT,
        "model": _model_name(cell, endpoint),
        "gpu": cell.gpu.name if cell.gpu else None,
        "count": cell.gpu.count if cell.gpu else None,
        "engine": cell.engine.name,
        "deployment": cell.deployment.name,
        "measurement": folder.state["tags"][tracking.TAG_MEASUREMENT],
        "max_batch_weight": cell.max_batch_weight,
        **folder.state.get("origin", {}),
        "workload": cell.workload_name,
        "run_id": folder.state["run_id"],
        "users_max": int(largest) if closed else None,
        "level_max": largest,
        **limits,
        "level_unit": cell.traffic.unit,
        "cost_per_hour": cell.cost_per_hour,
        "cost_per_million_output_tokens": price,
        "price_source": cell.price_source,
        "sla": cell.sla.model_dump(),
        "levels": levels,
    }
    summary = {
        "users_max" if closed else "level_max": largest,
        "cost_per_hour": cell.cost_per_hour,
        "cost_per_million_output_tokens": price,
    } | summary_of(limits, closed=closed)
    tags = folder.state["tags"] | {tracking.TAG_OUTCOME: "sla_met" if best else "sla_missed"}
    short = [exactly(level["level"]) for level in levels if level.get("window_problem")]
    tags |= {tracking.TAG_WINDOW_TOO_SHORT: ", ".join(short) or "no"}
    tags |= {tracking.TAG_LEVEL_MAX_IS: limits["level_max_is"]}
    unclear = [exactly(level["level"]) for level in levels if level.get("stream_problem")]
    tags |= {tracking.TAG_STREAM_PROBLEM: ", ".join(unclear) or "no"}
    differing = [exactly(level["level"]) for level in levels if level.get("fidelity", {}).get("problem")]
    tags |= {tracking.TAG_OTHER_LENGTHS: ", ".join(differing) or "no"}
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


def _identity(cell: Cell, endpoint: Endpoint, origin: weight.Origin, settings: Tracking) -> dict[str, Any]:
    # Our own emulator answers like a real server, but nothing of it is a measurement of an engine.
    simulated = isinstance(endpoint, VirtualService) or endpoint.simulated
    model = _model_name(cell, endpoint)
    return {
        "task": tracking.CHARACTERIZE,
        "run_name": service_name(model, cell.gpu),
        "tracking_uri": redact(settings.uri),
        "unit": cell.traffic.unit,
        "config_hash": cell.config_hash(),
        "params": {"model.name": model} | cell.params(),
        "max_batch_weight": cell.max_batch_weight,
        "origin": origin,
        "metrics": {},
        "tags": {
            tracking.TAG_TASK: tracking.CHARACTERIZE,
            tracking.TAG_MEASUREMENT: "simulated" if simulated else "measured",
            tracking.TAG_CONFIG_HASH: cell.config_hash(),
            tracking.TAG_VERSION: llmpilot.__version__,
            tracking.TAG_STEP: tracking.step_meaning(cell.traffic.unit),
        }
        | weight.tags_of(origin)
        | _known_of_the_server(endpoint),
    }


def _model_name(cell: Cell, endpoint: Endpoint) -> str:
    """Return the LLM's name; of one whose facts are not known, what the server calls it."""
    if cell.model is not None:
        return cell.model.name
    assert isinstance(endpoint, HttpEndpoint)
    return endpoint.model


def _known_of_the_server(endpoint: Endpoint) -> dict[str, str]:
    """Return as tags what a real server runs on, how it is asked, and which figures of its own it shows."""
    if not isinstance(endpoint, HttpEndpoint):
        return {}
    shown = endpoint.metrics
    tags = {tracking.TAG_SERVER_METRICS: f"{shown.path}, {shown.running} ..." if shown else "none"}
    tags |= {tracking.TAG_WIRE: endpoint.wire}
    if endpoint.hardware is not None:
        tags |= {tracking.TAG_HARDWARE: endpoint.hardware, tracking.TAG_GPU_METRICS: endpoint.gpus_known}
    return tags


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
