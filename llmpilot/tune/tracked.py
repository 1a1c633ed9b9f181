"""A study in MLflow: one run for the study, one child run per trial."""

import os
import time
from pathlib import Path
from typing import Any

import llmpilot
from llmpilot import tracking
from llmpilot.tracking import TUNE, Tracker, level_metrics, step_of
from llmpilot.tune.trial import Outcome

TAG_STUDY = "llmpilot.study"
TAG_TRIAL = "llmpilot.trial"
TAG_STOPPED = "llmpilot.stopped_because"
TAG_WEIGHT_FROM = "llmpilot.max_batch_weight_from"
TAG_TUNING_RUN = "llmpilot.tuning_run_id"
PARAM_WEIGHT, PARAM_SEED, PARAM_QUESTION = "max_batch_weight", "seed", "question"
METRIC_BEST, METRIC_VALUE, METRIC_NOISE = "best_max_batch_weight", "best_value", "noise"
METRIC_TRIAL_VALUE = "value"
SETTLE_S = 0.5  # until another worker's run, begun at the same moment, can be seen


class StudyTracker(Tracker):
    """The tracker of tuning; like its base, after a first failure it does no more than end runs."""

    def start_study(
        self,
        name: str,
        run_id: str | None,
        params: dict[str, str],
        tags: dict[str, str],
        *,
        within: bool = False,
    ) -> str | None:
        """Go on with the study's run, or create it; return its id.

        `within` a characterization, the run that `mlflow run` made is not ours to take, and no worker begins
        at the same moment.
        """
        known = None if run_id is None else self._attempt(lambda: self._reopen(run_id))
        if known is not None:
            return known
        tags = {tracking.TAG_TASK: TUNE, TAG_STUDY: name} | tags
        if "MLFLOW_RUN_ID" in os.environ and not within:
            started = self.start_parent(TUNE, name, tags)
        else:
            started = self._attempt(lambda: self._elect(name, tags, 0.0 if within else SETTLE_S))
        if started is not None:
            self._attempt(lambda: self._log(started, params=params))
        return started

    def _elect(self, name: str, tags: dict[str, str], settle_s: float) -> str:
        """Create the study's run; where several workers do so at once, keep the earliest and return it."""
        experiment = self._experiment(TUNE)
        run = self._connect().create_run(experiment, run_name=name, tags=tags)
        created = str(run.info.run_id)
        time.sleep(settle_s)
        running = self._connect().search_runs(
            [experiment],
            f"tags.`{TAG_STUDY}` = '{name.replace(chr(39), chr(39) * 2)}' and attributes.status = 'RUNNING'",
        )
        runs = sorted(running, key=lambda run: (run.info.start_time, run.info.run_id))
        first = str(runs[0].info.run_id) if runs else created
        if first != created:
            self._connect().delete_run(created)
        return first

    def log_trial(
        self,
        study_run_id: str | None,
        number: int | str,
        params: dict[str, Any],
        outcome: Outcome,
        *,
        tags: dict[str, str],
    ) -> str | None:
        """Log a finished trial as a finished run; infeasible is its outcome. Return the run's id."""

        def log() -> str:
            said = {tracking.TAG_OUTCOME: "feasible" if outcome.feasible else "infeasible"}
            said |= {tracking.TAG_REASON: outcome.reason} if outcome.reason else {}
            run_id = self._trial(study_run_id, number, params, tags | said)
            with self._ended_if_it_fails(run_id):
                for level in outcome.levels:
                    self._log(run_id, metrics=level_metrics(level), step=step_of(level["level"], "users"))
                value = {} if outcome.value is None else {METRIC_TRIAL_VALUE: outcome.value}
                self._log(run_id, metrics=value)
                self._connect().set_terminated(run_id, "FINISHED")
            return run_id

        return self._attempt(log)

    def log_failed_trial(
        self,
        study_run_id: str | None,
        number: int,
        params: dict[str, Any],
        reason: str,
        *,
        tags: dict[str, str],
    ) -> None:
        """Log a trial whose service did not come up, which says nothing of its weight, as a failed run."""

        def log() -> None:
            run_id = self._trial(study_run_id, number, params, tags | {tracking.TAG_REASON: reason})
            self._connect().set_terminated(run_id, "FAILED")

        self._attempt(log)

    def end_lost(self, study_run_id: str | None, numbers: list[int]) -> None:
        """End as KILLED the runs that the killed workers of these trials have left: no study counts them."""

        def end() -> None:
            client, experiment = self._connect(), self._experiment(TUNE)
            of_study = f"tags.`{tracking.TAG_PARENT}` = '{study_run_id}'"
            for number in numbers:
                for run in client.search_runs(
                    [experiment], f"{of_study} and tags.`{TAG_TRIAL}` = '{number}'"
                ):
                    client.set_terminated(run.info.run_id, "KILLED")

        self._attempt(end)

    def _trial(
        self, study_run_id: str | None, number: int | str, params: dict[str, Any], tags: dict[str, str]
    ) -> str:
        """Create a trial's run below the study's, and return its id."""
        name = f"trial {number}: {params[PARAM_WEIGHT]:,} tokens"
        tags = tags | {tracking.TAG_TASK: TUNE, tracking.TAG_VERSION: llmpilot.__version__}
        tags |= {TAG_TRIAL: str(number)} | ({tracking.TAG_PARENT: study_run_id} if study_run_id else {})
        # With its tags from the first: by them it is found should we be killed now (`end_lost`).
        run = self._connect().create_run(self._experiment(TUNE), run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        with self._ended_if_it_fails(run_id):
            self._log(run_id, params={key: str(value) for key, value in params.items()})
        return run_id

    def finish_study(
        self, run_id: str | None, metrics: dict[str, float | None], tags: dict[str, str], folder: Path
    ) -> None:
        """Log the study's answer and artifacts and end its run."""
        if run_id is None:
            return

        def finish() -> None:
            numbers = {key: value for key, value in metrics.items() if value is not None}
            self._log(run_id, metrics=numbers, tags=tags)
            self._connect().log_artifacts(run_id, str(folder))
            self._connect().set_terminated(run_id, "FINISHED")

        self._attempt(finish)
        if self.problem is not None:
            self.end(run_id, "FAILED")

    def _log(
        self,
        run_id: str,
        *,
        params: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        tags: dict[str, str] | None = None,
        step: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now_ms = time.time_ns() // 1_000_000
        self._connect().log_batch(
            run_id,
            params=[Param(k, v[: tracking.MAX_PARAM_LENGTH]) for k, v in (params or {}).items()],
            metrics=[Metric(k, float(v), now_ms, step) for k, v in (metrics or {}).items()],
            tags=[RunTag(k, v) for k, v in (tags or {}).items()],
        )
