"""Tune the max batch weight of one service: ask the study, measure, tell it, until it knows enough."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from llmpilot import console, interrupts, tracking
from llmpilot.config import Tracking, parse, plain
from llmpilot.console import note, say
from llmpilot.deploy.simulated import SimulatedDeployment
from llmpilot.errors import ConfigError, TrackingError
from llmpilot.files import to_json, write_text
from llmpilot.secrets import redact, redact_tree
from llmpilot.sizing import plan_memory
from llmpilot.tasks.cell import Cell, compose
from llmpilot.tune import Bounds, Tuner, TuningStudy, measure, storage_url
from llmpilot.tune.plan import FEASIBLE, REPEAT, Stop, Wait, answer, next_step
from llmpilot.tune.plots import write_plots
from llmpilot.tune.tracked import (
    METRIC_BEST,
    METRIC_NOISE,
    METRIC_VALUE,
    PARAM_QUESTION,
    PARAM_SEED,
    PARAM_WEIGHT,
    TAG_STOPPED,
    StudyTracker,
)
from llmpilot.tune.trial import Outcome

Result = dict[str, Any]


@dataclass(frozen=True)
class Tuning:
    """All that one worker of a study works with."""

    cell: Cell
    settings: Tuner
    bounds: Bounds
    study: TuningStudy
    tracker: StudyTracker
    tags: dict[str, str]


def run(cfg: DictConfig, *, parent_run_id: str | None = None, in_sweep: bool = False) -> Result:
    """Find the best max batch weight of the cell that `cfg` describes; return it with all trials.

    Several processes may run the same command at once: they share the study. The same command again goes on
    with it, or reports what it has found.

    Raises:
        ConfigError, DoesNotFitError: the cell or the bounds are impossible.
        PilotError: the study's database cannot be used.
        TrackingError: tuned, but MLflow could not be reached; carries the result.
    """
    tuning = prepare(cfg)
    study, tracker = tuning.study, tuning.tracker
    above = {tracking.TAG_PARENT: parent_run_id} if parent_run_id else {}
    run_id = tracker.start_study(study.name, study.parent_run_id, tuning.cell.params(), tuning.tags | above)
    if run_id is not None and run_id != study.parent_run_id:
        study.parent_run_id = run_id
    try:
        because = search(tuning, run_id)
        result = conclude(tuning, because) | {"run_id": run_id}
        _keep(cfg, tuning, result)
    except BaseException as error:
        interrupts.acknowledge()
        tracker.end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if isinstance(error, KeyboardInterrupt):
            note("interrupted: finished trials are kept; the same command goes on", style="yellow")
        raise
    _show(result, brief=in_sweep)
    if tracker.problem is not None:
        raise TrackingError(
            f"tuned, but not tracked: {tracker.problem}",
            given=f"tracking.uri={tracker.tracking.uri}",
            cure=f"the trials are in {redact(study.url)}; the same command reports them once MLflow answers",
            result=result,
        )
    return result


def prepare(cfg: DictConfig) -> Tuning:
    """Return the cell, its bounds and its opened study; say first what will happen."""
    cell = replace(compose(cfg), max_batch_weight=None)
    settings = parse(Tuner, cfg.tuner, "tuner")
    bounds = bounds_of(cell, settings)
    tracker = StudyTracker(parse(Tracking, cfg.tracking, "tracking"))
    config_hash = study_hash(cell, settings, bounds)
    name = settings.study or study_name(cell, settings, config_hash)
    if not cfg.resume:
        name += f", {datetime.now():%Y-%m-%d %H:%M:%S.%f}"
    url, timeout_s = storage_url(tracker.tracking, settings), tracker.tracking.timeout_s
    study = TuningStudy(url, name, config_hash, settings, timeout_s=timeout_s)
    _announce(cell, settings, bounds, study)
    tags = {tracking.TAG_MEASUREMENT: cell.engine.measurement, tracking.TAG_CONFIG_HASH: config_hash}
    return Tuning(cell, settings, bounds, study, tracker, tags)


def search(tuning: Tuning, run_id: str | None) -> str:
    """Run trials until the plan says stop; return why it did."""
    cell, settings, study = tuning.cell, tuning.settings, tuning.study
    while True:
        if lost := study.release_lost():
            note(f"{lost} trials of workers that have ended are measured again", style="yellow")
        step = next_step(study.seen(), settings, tuning.bounds, cell.seed)
        if isinstance(step, Stop):
            return step.because
        if isinstance(step, Wait):
            study.pause()
            continue
        begun = study.ask(step, tuning.bounds, cell.seed)
        if begun is None:
            continue
        trial, weight = begun
        try:
            outcome = measure(
                lambda cap: replace(cell, max_batch_weight=cap).start(),
                cell.traffic,
                settings,
                weight,
                sla=cell.sla,
                cost_per_hour=cell.gpu.cost_per_hour,
                seed=step.seed,
                corners=step.question != REPEAT,
            )
        except BaseException as error:
            interrupts.acknowledge()
            study.abandon(trial, f"{type(error).__name__} in the middle of it")
            raise
        params = {PARAM_WEIGHT: weight, PARAM_SEED: step.seed, PARAM_QUESTION: step.question}
        logged = tuning.tracker.log_trial(run_id, trial.number, params, outcome, tags=tuning.tags)
        study.tell(trial, outcome, logged)
        note(f"trial {trial.number} ({step.question}): {weight:,} tokens: {_in_words(outcome, settings)}")


def conclude(tuning: Tuning, because: str) -> Result:
    """Return the result as `result_file` holds it."""
    cell, settings, bounds, study = tuning.cell, tuning.settings, tuning.bounds, tuning.study
    found = answer(study.seen(), settings)
    rows = study.rows()
    return {
        "study": study.name,
        "best_max_batch_weight": found.weight,
        "objective": settings.objective,
        "value": found.value,
        "noise": found.noise,
        "stopped_because": because,
        "model": cell.model.name,
        "gpu": cell.gpu.name,
        "count": cell.gpu.count,
        "engine": cell.engine.name,
        "workload": cell.workload_name,
        "measurement": cell.engine.measurement,
        "users": settings.users,
        "lower": bounds.lower,
        "upper": bounds.upper,
        "deployments": len(rows),
        "deployments_for_feasibility": sum(row["question"] == FEASIBLE for row in rows),
        "storage": redact(study.url),
        "trials": rows,
    }


def bounds_of(cell: Cell, settings: Tuner) -> Bounds:
    """Return between which weights to search: the given ones, or the heaviest request's weight and what all
    memory beside the weights could hold, without any reserve.

    Raises:
        ConfigError: the load is no closed loop, the cap cannot be set, or the bounds are empty.
    """
    if cell.load.arrival != "closed":
        raise ConfigError("task tune needs a closed loop", given=cell.load.arrival, cure="load=closed_loop")
    if cell.deployment.name == "external":
        raise ConfigError(
            "the max batch weight of a service that is already running cannot be tuned",
            cure="use a deployment that starts the service, e.g. deployment=simulated",
        )
    heaviest = cell.traffic.heaviest_request_tokens
    most = plan_memory(cell.model, cell.gpu, memory_utilization=1.0, reserve_gb_per_gpu=0.0)
    lower = heaviest if settings.lower is None else settings.lower
    upper = most.kv_capacity_tokens if settings.upper is None else settings.upper
    if lower < heaviest:
        raise ConfigError(
            f"tuner.lower={lower} is below the workload's heaviest request: it could never be served",
            cure=f"set tuner.lower to {heaviest} or more, or leave it out",
        )
    if lower >= upper:
        raise ConfigError(
            f"there is nothing between tuner.lower={lower} and tuner.upper={upper}",
            cure="leave them out, or set tuner.upper above tuner.lower",
        )
    return Bounds(lower, upper)


def study_hash(cell: Cell, settings: Tuner, bounds: Bounds) -> str:
    """Return a hash that two studies share exactly when their trials mean the same."""
    facts = {
        "cell": cell.config_hash(),
        "tuner": settings.identity() | {"bounds": [bounds.lower, bounds.upper]},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def study_name(cell: Cell, settings: Tuner, config_hash: str) -> str:
    """Return `starcoder on 1 x A100-40GB, simulated, paper, e2e_ms.p50, 0123456789ab`."""
    return f"{cell.name}, {cell.engine.name}, {cell.workload_name}, {settings.objective}, {config_hash[:12]}"


def _keep(cfg: DictConfig, tuning: Tuning, result: Result) -> None:
    cell, best = tuning.cell, result["best_max_batch_weight"]
    with tempfile.TemporaryDirectory(prefix="llmpilot-") as name:
        folder = Path(name)
        write_plots(
            tuning.study.optuna,
            result["trials"],
            folder / "plots",
            title=f"{cell.name} ({result['measurement']}), workload {cell.workload_name}",
            users=tuning.settings.users,
            best=best,
        )
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redact_tree(plain(cfg)))))
        write_text(folder / tracking.RESULT_FILE, to_json(result))
        metrics = {METRIC_BEST: best, METRIC_VALUE: result["value"], METRIC_NOISE: result["noise"]}
        outcome = "infeasible" if best is None else "feasible"
        tags = {TAG_STOPPED: result["stopped_because"], tracking.TAG_OUTCOME: outcome}
        tuning.tracker.finish_study(result["run_id"], metrics, tags, folder)


def _announce(cell: Cell, settings: Tuner, bounds: Bounds, study: TuningStudy) -> None:
    if isinstance(cell.deployment, SimulatedDeployment):
        say(f"SIMULATED: tuning {cell.name}, no GPU and no engine is used", style="bold yellow")
    else:
        say(f"MEASURED: tuning {cell.name}", style="bold")
    note(
        f"max batch weight between {bounds.lower:,} and {bounds.upper:,} tokens, for {settings.objective} at "
        f"{settings.users} users; workload {cell.workload_name}; study {study.name!r} in {redact(study.url)}"
    )


def _in_words(outcome: Outcome, settings: Tuner) -> str:
    if not outcome.feasible:
        return f"infeasible, {outcome.reason}"
    return f"{settings.objective} {outcome.value:,.2f}" if outcome.value is not None else str(outcome.reason)


def _show(result: Result, *, brief: bool) -> None:
    if not brief:
        _print_trials(result)
    best = result["best_max_batch_weight"]
    if best is None:
        say(f"no max batch weight: {result['stopped_because']}", style="bold")
        return
    noise = "" if result["noise"] is None else f", noise {result['noise']:.2%}"
    value = "" if result["value"] is None else f": {result['objective']} {result['value']:,.2f}{noise}"
    say(f"max_batch_weight={best}{value}; {result['deployments']} deployments", style="bold")
    note(f"stopped because {result['stopped_because']}")


def _print_trials(result: Result) -> None:
    table = Table(header_style="bold")
    for name in ("trial", "max batch weight", "feasible", "E2E p50 [ms]", "tokens/s", "failed", "question"):
        table.add_column(name, justify="left" if name == "question" else "right", no_wrap=True)
    for row in sorted(result["trials"], key=lambda row: (row["max_batch_weight"], row["number"])):
        e2e, rate, failed = row["e2e_ms_p50"], row["throughput_tok_s"], row["failure_rate"]
        table.add_row(
            str(row["number"]),
            f"{row['max_batch_weight']:,}",
            "yes" if row["feasible"] else "no",
            "-" if e2e is None else f"{e2e:,.0f}",
            "-" if rate is None else f"{rate:,.0f}",
            "-" if failed is None else f"{failed:.1%}",
            row["question"],
            style=None if row["feasible"] else "dim",
        )
    console.out.print(table)
