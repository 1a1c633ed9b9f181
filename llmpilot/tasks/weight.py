"""The max batch weight of a characterization: given, found by the tuner first, or the engine's default."""

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from llmpilot.config import parse
from llmpilot.console import note, say
from llmpilot.errors import DoesNotFitError
from llmpilot.runfolder import ROOT, RunFolder
from llmpilot.tasks import tune
from llmpilot.tasks.cell import Cell
from llmpilot.tasks.tune_setup import untunable, with_closed_loop
from llmpilot.tasks.tune_show import in_numbers
from llmpilot.tune import Tuner
from llmpilot.tune.tracked import TAG_STUDY, TAG_TUNING_RUN, TAG_WEIGHT_FROM

GIVEN, TUNED, DEFAULT = "given", "tuned", "engine default"
Origin = dict[str, str | None]
"""`max_batch_weight_from`, and of a tuned one `study` and `tuning_run_id`: as they are in the result."""


class NothingFeasibleError(DoesNotFitError):
    """The service survives under no max batch weight: an outcome, as for a model that does not fit."""


def intended(cfg: DictConfig, cell: Cell) -> Cell:
    """Return the cell, known by its tuner where its max batch weight is to be tuned.

    Where it cannot be, one note says why, and the engine's default stands.

    Raises:
        ConfigError: a setting of the tuner is impossible.
    """
    settings = parse(Tuner, cfg.tuner, "tuner")
    if cfg.max_batch_weight is not None or settings.question is None:
        return cell
    if why := untunable(cell):
        note(f"the max batch weight is not tuned: {why}")
        return cell
    return replace(cell, tuned_by=settings.decisive())


def settle(cfg: DictConfig, cell: Cell) -> tuple[Cell, Origin]:
    """Return the cell with its max batch weight, and where that is from.

    An interrupted run that will be gone on with keeps the one it had; a finished study is not repeated.

    Raises:
        NothingFeasibleError: the tuner found none.
        PilotError: the bounds are impossible, or the study's database cannot be used.
    """
    if cell.tuned_by is None:
        return cell, _origin(DEFAULT if cfg.max_batch_weight is None else GIVEN)
    if cfg.resume and (kept := _of_an_interrupted_run(cell)):
        return kept
    settings = parse(Tuner, cfg.tuner, "tuner")
    tuning = tune.prepare(cfg, with_closed_loop(cell, settings), settings)
    result = tune.known(tuning)
    if result is None:
        note(f"tuning the max batch weight first (tuner=none leaves it out): study {tuning.study.name!r}")
        result = tune.find(cfg, tuning, within=True)
        took = in_numbers(result)
    else:
        took = "found before"
    found = result["best_max_batch_weight"]
    if found is None:
        raise NothingFeasibleError(
            f"{cell.name} has no max batch weight that it survives; {result['stopped_because']}",
            given=f"study {result['study']!r}",
            cure="take a larger GPU profile; resume=false tries again; tuner=none tunes nothing",
        )
    say(f"max batch weight {found:,} tokens, tuned: {took}; {result['stopped_because']}")
    return replace(cell, max_batch_weight=found), _origin(TUNED, result["study"], result["run_id"])


def tags_of(origin: Origin) -> dict[str, str]:
    """Return the origin as the run's tags."""
    names = {"max_batch_weight_from": TAG_WEIGHT_FROM, "study": TAG_STUDY, "tuning_run_id": TAG_TUNING_RUN}
    return {names[key]: value for key, value in origin.items() if value is not None}


def _origin(source: str, study: str | None = None, tuning_run_id: str | None = None) -> Origin:
    return {"max_batch_weight_from": source, "study": study, "tuning_run_id": tuning_run_id}


def _of_an_interrupted_run(cell: Cell) -> tuple[Cell, Origin] | None:
    for path in sorted(ROOT.glob(f"{cell.config_hash()[:12]}-*")):
        state: dict[str, Any] = RunFolder.open(path).state
        if state["status"] != "FINISHED":
            return replace(cell, max_batch_weight=state["max_batch_weight"]), state["origin"]
    return None
