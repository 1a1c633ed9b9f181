"""Tune the max batch weight of one service: ask the study, measure, tell it, until it knows enough."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llmpilot import interrupts, tracking
from llmpilot.config import Gpu, Tracking, parse, plain
from llmpilot.console import note
from llmpilot.deploy.external import ServiceError
from llmpilot.errors import ConfigError, TrackingError
from llmpilot.files import to_json, write_text
from llmpilot.secrets import redact, redact_tree
from llmpilot.tasks import tune_steps
from llmpilot.tasks.cell import Cell, compose
from llmpilot.tasks.tune_setup import Tuning, bounds_of, study_name
from llmpilot.tasks.tune_show import announce, in_words, show
from llmpilot.tune import Bounds, Identity, Services, Tuner, TuningStudy, measure, storage_url
from llmpilot.tune.plan import (
    BEST,
    FEASIBLE,
    Stop,
    Wait,
    answer,
    is_of_the_weight,
    limit_of,
    lowest_running,
    next_step,
)
from llmpilot.tune.plots import write_plots
from llmpilot.tune.settings import COST
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

Result = dict[str, Any]


def run(cfg: DictConfig, *, parent_run_id: str | None = None, in_sweep: bool = False) -> Result:
    """Find the best max batch weight of the cell that `cfg` describes; return it with all trials.

    Several processes may run the same command at once: they share the study. The same command again goes on
    with it, or reports what it has found.

    Raises:
        ConfigError, DoesNotFitError: the cell or the bounds are impossible.
        PilotError: the study's database cannot be used.
        ServiceError: the service does not come up, whatever its weight; nothing of that is remembered.
        TrackingError: tuned, but MLflow could not be reached; carries the result.
    """
    cell, settings = compose(cfg), parse(Tuner, cfg.tuner, "tuner")
    if settings.question is None:
        raise ConfigError("task tune needs a tuner", given="tuner=none", cure="tuner=tpe or tuner=bisection")
    tuning = prepare(cfg, cell, settings)
    announce(cell, settings, tuning.bounds, tuning.study)
    result = find(cfg, tuning, parent_run_id)
    show(result, brief=in_sweep)
    tracker = tuning.tracker
    if tracker.problem is not None:
        raise TrackingError(
            f"tuned, but not tracked: {tracker.problem}",
            given=f"tracking.uri={tracker.tracking.uri}",
            cure=f"the trials are in {redact(tuning.study.url)}; {tracker.when} give the same command "
            "again: it reports them",
            result=result,
        )
    return result


def prepare(cfg: DictConfig, cell: Cell, settings: Tuner) -> Tuning:
    """Return the cell with its bounds and its opened study."""
    bounds = bounds_of(cell, settings)
    tracker = StudyTracker(parse(Tracking, cfg.tracking, "tracking"))
    identity = Identity(replace(cell, max_batch_weight=None).facts(), settings, bounds)
    name = settings.study or study_name(cell, settings, identity.hash)
    if not cfg.resume:
        name += f", {datetime.now():%Y-%m-%d %H:%M:%S.%f}"
    url, timeout_s = storage_url(tracker.tracking, settings), tracker.tracking.timeout_s
    study = TuningStudy(url, name, identity, settings, timeout_s=timeout_s)
    tags = {tracking.TAG_MEASUREMENT: cell.deployment.measurement, tracking.TAG_CONFIG_HASH: identity.hash}
    return Tuning(cell, settings, bounds, study, tracker, tags)


def find(
    cfg: DictConfig, tuning: Tuning, parent_run_id: str | None = None, *, within: bool = False
) -> Result:
    """Go on with the study to its end and return its result.

    `within` a characterization, which does not wait for Optuna's own plots: `task=tune` draws them any time.
    """
    study, tracker = tuning.study, tuning.tracker
    above = {tracking.TAG_PARENT: parent_run_id} if parent_run_id else {}
    params = replace(tuning.cell, max_batch_weight=None).params()
    tags = tuning.tags | above
    run_id = tracker.start_study(study.name, study.parent_run_id, params, tags, within=within)
    if run_id is not None and run_id != study.parent_run_id:
        study.parent_run_id = run_id
    try:
        because = search(tuning, run_id)
        result = conclude(tuning, because)
        if not within and tuning.settings.question == BEST:
            result |= tune_steps.find(tuning, result["best_max_batch_weight"], run_id)
        _keep(cfg, tuning, result, optuna_pages=not within)
    except BaseException as error:
        interrupts.acknowledge()
        tracker.end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if isinstance(error, KeyboardInterrupt):
            note("interrupted: finished trials are kept; the same command goes on", style="yellow")
        raise
    return result


def known(tuning: Tuning) -> Result | None:
    """Return the result of a study that has nothing left to do; None while it has."""
    step = next_step(tuning.study.seen(), tuning.settings, tuning.bounds, tuning.cell.seed)
    return conclude(tuning, step.because) if isinstance(step, Stop) else None


def search(tuning: Tuning, run_id: str | None) -> str:
    """Run trials until the plan says stop; return why it did."""
    cell, settings, study = tuning.cell, tuning.settings, tuning.study
    services = Services(
        lambda weight: replace(cell, max_batch_weight=weight).start(),
        cell.reweighted if cell.live_weight else None,
    )
    release = partial(release_lost, tuning, run_id)
    try:
        while True:
            release()
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
            params = {PARAM_WEIGHT: weight, PARAM_SEED: step.seed, PARAM_QUESTION: step.question}
            try:
                outcome = measure(
                    services,
                    cell.traffic,
                    settings,
                    weight,
                    sla=cell.sla,
                    cost_per_hour=_price(cell.facts_known[1], settings),
                    seed=step.seed,
                    question=step.question,
                    limit=limit_of(study.seen(), settings),
                    of_the_weight=partial(of_the_weight, study, release, tuning.bounds, trial.number, weight),
                )
            except BaseException as error:
                interrupts.acknowledge()
                study.abandon(trial, f"{type(error).__name__} in the middle of it")
                if isinstance(error, ServiceError):
                    tuning.tracker.log_failed_trial(
                        run_id, trial.number, params, str(error), tags=tuning.tags
                    )
                raise
            logged = tuning.tracker.log_trial(run_id, trial.number, params, outcome, tags=tuning.tags)
            study.tell(trial, outcome, logged)
            words = in_words(outcome, settings)
            note(f"trial {trial.number} ({step.question}): {weight:,} tokens: {words}")
    finally:
        services.discard()


def release_lost(tuning: Tuning, run_id: str | None, mine: int | None = None) -> None:
    """Give up the trials (not `mine`) of workers that were killed, in the study and in MLflow."""
    if lost := tuning.study.release_lost(mine):
        note(f"{len(lost)} trials of workers that have ended are measured again", style="yellow")
        tuning.tracker.end_lost(run_id, lost)


def of_the_weight(
    study: TuningStudy, release: Callable[[int], object], bounds: Bounds, number: int, weight: int
) -> bool:
    """Whether trial `number`, whose service did not come up, tells of its weight.

    Waits for another worker that tests the lowest weight now; `release` gives up all dead ones' trials but
    this.
    """
    while not is_of_the_weight(seen := study.seen(), weight):
        if weight == bounds.lower or not lowest_running(seen, bounds):
            return False
        study.pause()
        release(number)
    return True


def conclude(tuning: Tuning, because: str) -> Result:
    """Return the result as `result_file` holds it."""
    cell, settings, bounds, study = tuning.cell, tuning.settings, tuning.bounds, tuning.study
    model, gpu = cell.facts_known
    found = answer(study.seen(), settings)
    rows = study.rows()
    return {
        "study": study.name,
        "best_max_batch_weight": found.weight,
        "objective": settings.objective,
        "value": found.value,
        "noise": found.noise,
        "stopped_because": because,
        "model": model.name,
        "gpu": gpu.name,
        "count": gpu.count,
        "engine": cell.engine.name,
        "workload": cell.workload_name,
        "measurement": cell.deployment.measurement,
        "users": settings.users,
        "lower": bounds.lower,
        "upper": bounds.upper,
        "deployments": sum(row["deployments"] for row in rows),
        "deployments_for_feasibility": sum(row["deployments"] for row in rows if row["question"] == FEASIBLE),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "run_id": study.parent_run_id,
        "storage": redact(study.url),
        "trials": rows,
    }


def _keep(cfg: DictConfig, tuning: Tuning, result: Result, *, optuna_pages: bool) -> None:
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
            optuna_pages=optuna_pages,
        )
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redact_tree(plain(cfg)))))
        write_text(folder / tracking.RESULT_FILE, to_json(result))
        metrics = {METRIC_BEST: best, METRIC_VALUE: result["value"], METRIC_NOISE: result["noise"]}
        outcome = "infeasible" if best is None else "feasible"
        tags = {TAG_STOPPED: result["stopped_because"], tracking.TAG_OUTCOME: outcome}
        tuning.tracker.finish_study(result["run_id"], metrics, tags, folder)


def _price(gpu: Gpu, settings: Tuner) -> float | None:
    """Return the price of the profile; None where none is known and none is needed."""
    return gpu.cost_per_hour if gpu.priced or settings.objective == COST else None
