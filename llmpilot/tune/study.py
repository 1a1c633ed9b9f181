"""The Optuna study: where it is kept, what it means, and the way of a trial through it."""

import logging
import os
import socket
import time
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from llmpilot.config import Tracking
from llmpilot.errors import ConfigError
from llmpilot.tracking_store import sqlite_file
from llmpilot.tune.database import explained, opened
from llmpilot.tune.identity import Identity, differences
from llmpilot.tune.plan import Bounds, Question, Seen, Step, boundary
from llmpilot.tune.settings import Tuner
from llmpilot.tune.trial import Outcome

WEIGHT = "max_batch_weight"
DEFAULT_FILE = "optuna.db"
CONFIG_HASH, CONFIG_KEYS, PARENT_RUN = "llmpilot.config_hash", "llmpilot.config", "mlflow.run_id"
QUESTION, SEED, WORKER, RUN_ID = "question", "seed", "worker", "mlflow.run_id"
FEASIBLE, REASON, FIGURES, LOST = "feasible", "reason", "figures", "lost"
PATIENCE_S = 0.5  # between two looks at what other workers have done


def storage_url(tracking: Tracking, settings: Tuner) -> str:
    """Return where the study is kept: `tuner.storage`, or optuna.db beside MLflow's own SQLite file.

    Not MLflow's database itself: both keep their schema's version in a table named alembic_version, and
    each refuses a database that has the other's.

    Raises:
        ConfigError: it is MLflow's own database.
    """
    url = settings.storage or beside(tracking.uri)
    file = sqlite_file(url)
    if url == tracking.uri or (file is not None and file == sqlite_file(tracking.uri)):
        raise ConfigError(
            "tuner.storage is MLflow's own database: both keep a table named alembic_version",
            given=f"tuner.storage={url}",
            cure="give Optuna a database of its own, e.g. tuner.storage=sqlite:///studies.db",
        )
    return url


def beside(tracking_uri: str) -> str:
    """Return the URL of the studies' database where none is named: beside MLflow's, or in this directory."""
    if sqlite_file(tracking_uri) is None:
        return f"sqlite:///{DEFAULT_FILE}"
    path = tracking_uri.partition(":///")[2].partition("?")[0]
    return f"sqlite:///{PurePosixPath(path).with_name(DEFAULT_FILE)}"


class TuningStudy:
    """One study in one database, shared with whatever workers have opened it under the same name."""

    def __init__(self, url: str, name: str, identity: Identity, settings: Tuner, *, timeout_s: float) -> None:
        """Open the study, or create it.

        Raises:
            PilotError: the database cannot be used, or the study of this name is of another configuration.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.url, self.name, self._settings = url, name, settings
        self._worker = f"{socket.gethostname()}/{os.getpid()}"
        with explained(self.url):
            self._study = optuna.create_study(
                storage=opened(url, timeout_s),
                study_name=name,
                direction="maximize" if settings.maximize else "minimize",
                load_if_exists=True,
            )
            known, keys = (self._study.user_attrs.get(attribute) for attribute in (CONFIG_HASH, CONFIG_KEYS))
            if known is None and not self._study.get_trials(deepcopy=False):
                self._study.set_user_attr(CONFIG_HASH, identity.hash)
                known = identity.hash
            if known == identity.hash and keys is None:
                self._study.set_user_attr(CONFIG_KEYS, identity.keys)
        if known != identity.hash:
            hashes = f"its configuration is {str(known)[:12]}, this one {identity.hash[:12]}"
            raise ConfigError(
                f"the study {name!r} is of another configuration",
                given=differences(identity.keys, keys or identity.keys) or hashes,
                cure="leave tuner.study out, or give it another name",
            )

    @property
    def parent_run_id(self) -> str | None:
        """The MLflow run of the whole study, once a worker has made it."""
        with explained(self.url):
            run_id = self._study.user_attrs.get(PARENT_RUN)
        return None if run_id is None else str(run_id)

    @parent_run_id.setter
    def parent_run_id(self, run_id: str) -> None:
        with explained(self.url):
            self._study.set_user_attr(PARENT_RUN, run_id)

    @property
    def optuna(self) -> Any:
        """The study itself, for Optuna's own plots."""
        return self._study

    def seen(self) -> list[Seen]:
        """Return all trials but the lost ones."""
        return [
            _seen(trial)
            for trial in self._trials()
            if WEIGHT in trial.params and QUESTION in trial.user_attrs
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Return the finished trials as the result file holds them."""
        return [_row(trial) for trial in self._trials() if FEASIBLE in trial.user_attrs]

    def release_lost(self, mine: int | None = None) -> list[int]:
        """Tell Optuna that trials of dead workers (not `mine`) will never end; return their numbers.

        A failed trial counts for Optuna as deleted, which is what it is: nothing of it was measured.
        """
        from optuna.trial import TrialState

        lost = []
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and trial.number != mine and self._is_dead(trial):
                with explained(self.url):
                    # Another worker may have been quicker.
                    self._study._storage.set_trial_user_attr(trial._trial_id, LOST, "its worker ended")
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                lost.append(trial.number)
        return lost

    def ask(self, step: Step, bounds: Bounds, seed: int) -> tuple[Any, int] | None:
        """Begin the trial that `step` asks for; None when another worker was quicker to begin the same.

        Returns the Optuna trial and its weight.
        """
        from llmpilot.tune.samplers import Planned, Proposed

        with explained(self.url):
            if step.weight is not None:
                self._study.sampler = Planned(step.weight)
            else:
                seen = self.seen()
                held, _ = boundary(seen)
                seed += len(self._study.get_trials(deepcopy=False))
                had = {bounds.snap(s.weight) for s in seen if s.settles}
                self._study.sampler = Proposed(bounds, held or bounds.upper, had, seed)
            trial = self._study.ask()
            trial.set_user_attr(WORKER, self._worker)
            weight = trial.suggest_int(WEIGHT, bounds.lower, bounds.upper, log=True)
            trial.set_user_attr(SEED, step.seed)
            # Last: from now on the others count this trial.
            trial.set_user_attr(QUESTION, step.question)
        same = [
            s.number
            for s in self.seen()
            if s.weight == weight and s.seed == step.seed and s.question == step.question
        ]
        if step.weight is not None and min(same) < trial.number:
            self.abandon(trial, "another worker was quicker")
            return None
        return trial, weight

    def tell(self, trial: Any, outcome: Outcome, run_id: str | None) -> None:
        """End a trial: COMPLETE with its value, or PRUNED (with the values on its way) and never FAIL."""
        from optuna.trial import TrialState

        with explained(self.url):
            if run_id is not None:
                trial.set_user_attr(RUN_ID, run_id)
            trial.set_user_attr(REASON, outcome.reason)
            trial.set_user_attr(FIGURES, outcome.figures | {"value": outcome.value})
            trial.set_user_attr(FEASIBLE, outcome.feasible)
            on_the_way = () if outcome.value is None else ((0, outcome.value),)
            for step, value in outcome.reports or on_the_way:
                trial.report(value, step=step)
            if outcome.feasible and outcome.value is not None and not outcome.pruned:
                self._study.tell(trial, outcome.value)
            else:
                self._study.tell(trial, state=TrialState.PRUNED)

    def abandon(self, trial: Any, why: str) -> None:
        """End a trial that was not measured to its end."""
        from optuna.trial import TrialState

        with explained(self.url):
            trial.set_user_attr(LOST, why)
            self._study.tell(trial, state=TrialState.FAIL)

    def pause(self) -> None:
        """Give other workers time."""
        time.sleep(PATIENCE_S)

    def _trials(self) -> list[Any]:
        from optuna.trial import TrialState

        with explained(self.url):
            trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.FAIL]

    def _is_dead(self, trial: Any) -> bool:
        host, _, process = str(trial.user_attrs.get(WORKER, "")).partition("/")
        if host == socket.gethostname() and process.isdecimal():
            # A worker runs one trial at a time, so one that bears our own name is not ours.
            return int(process) == os.getpid() or not _alive(int(process))
        age = datetime.now() - (trial.datetime_start or datetime.now())
        return age > timedelta(seconds=self._settings.stale_after_s)


def _seen(trial: Any) -> Seen:
    attributes = trial.user_attrs
    question: Question = attributes[QUESTION]
    finished = trial.state.is_finished()
    return Seen(
        number=trial.number,
        question=question,
        weight=int(trial.params[WEIGHT]),
        seed=int(attributes[SEED]),
        feasible=attributes[FEASIBLE] if finished else None,
        reason=attributes.get(REASON),
        value=attributes.get(FIGURES, {}).get("value"),
        whole=attributes.get(FIGURES, {}).get("whole", True),
        ladder=trial.intermediate_values,
    )


def _row(trial: Any) -> dict[str, Any]:
    attributes = trial.user_attrs
    return {
        "number": trial.number,
        WEIGHT: int(trial.params[WEIGHT]),
        "feasible": attributes[FEASIBLE],
        "reason": attributes[REASON],
        **{key: value for key, value in attributes[FIGURES].items() if key != "value"},
        "value": attributes[FIGURES]["value"],
        "question": attributes[QUESTION],
        "seed": attributes[SEED],
        "run_id": attributes.get(RUN_ID),
    }


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
