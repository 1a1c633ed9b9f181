"""Everything written to or read from MLflow; every name is a constant here.

A run lives in a RunFolder first. The tracker mirrors it to MLflow as it grows; when the server cannot be
reached, measuring goes on and `upload` sends the whole folder later, as often as it takes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from llmpilot import interrupts
from llmpilot.config import DEFAULT_TRACKING_URI, LATENCIES, STATISTICS, Tracking
from llmpilot.console import note
from llmpilot.errors import TrackingError
from llmpilot.files import to_json, write_text
from llmpilot.metrics import RATES, Level, shows
from llmpilot.runfolder import RunFolder
from llmpilot.secrets import redact
from llmpilot.tracking_left import adopted_experiment, adopted_run, deleted_experiment
from llmpilot.tracking_store import check_reachable, connect

CHARACTERIZE = "characterize"
TUNE = "tune"
TAG_TASK = "llmpilot.task"
TAG_MEASUREMENT = "llmpilot.measurement"
TAG_HARDWARE = "llmpilot.hardware"
TAG_OUTCOME = "llmpilot.outcome"
TAG_REASON = "llmpilot.reason"
TAG_CONFIG_HASH = "llmpilot.config_hash"
TAG_VERSION = "llmpilot.version"
TAG_CLIENT_BOTTLENECK = "llmpilot.client_bottleneck"
TAG_WINDOW_TOO_SHORT = "llmpilot.window_too_short"
TAG_STREAM_PROBLEM = "llmpilot.stream_problem"
TAG_OTHER_LENGTHS = "llmpilot.other_lengths"
TAG_LEVEL_MAX_IS = "llmpilot.level_max_is"
"""Whether the most that the service takes is known: see `Boundary.meaning`."""
TAG_SERVER_METRICS = "llmpilot.server_metrics"
TAG_WIRE = "llmpilot.wire"
TAG_GPU_METRICS = "llmpilot.gpu_metrics"
TAG_STEP = "llmpilot.step"
TAG_RUN_NAME = "mlflow.runName"
TAG_PARENT = "mlflow.parentRunId"
RESULT_FILE = "result.json"
SERVER_SAMPLES_FILE = "server_samples.csv"
SERVER_METRICS = {
    "server.running.mean": ("running", "mean"),
    "server.waiting.mean": ("waiting", "mean"),
    "server.kv_usage.mean": ("kv_usage", "mean"),
    "server.kv_usage.max": ("kv_usage", "max"),
    "server.gpu_power_w.mean": ("gpu_power_w", "mean"),
    "server.gpu_memory_gb.max": ("gpu_memory_gb", "max"),
}
"""What the server said of itself in the steady window, where it did: MLflow's names, and ours in a level."""
METRIC_PREEMPTIONS = "server.preemptions"
ANSWER_METRICS = {
    "output_tokens.mean": ("fidelity", "output_tokens_received"),
    "ended_early_share": ("fidelity", "ended_early_share"),
    "longer_share": ("fidelity", "longer_share"),
    "one_piece_share": ("streams", "one_piece_share"),
    "short_gap_share": ("streams", "short_gap_share"),
    "hidden_tokens_share": ("hidden_tokens", "share"),
}
"""How the answers of a real service came: MLflow's names, and ours in a level."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment on its runs and charts, not on the pages for chat traces."""

MAX_PARAM_LENGTH = 6000
ENDING_S = 5.0
"""How long, at the most, ending a run may take once MLflow has failed."""
T = TypeVar("T")


def level_metrics(level: Level) -> dict[str, float]:
    """Return a level's figures under their MLflow names (`ttft_ms.p50`, `failures.out_of_memory`).

    Latencies that its streams do not show are left out: in a chart they would be the best of all.
    """
    named = {
        f"{latency}.{stat}": level[latency][stat]
        for latency in LATENCIES
        for stat in STATISTICS
        if shows(level, latency, stat)
    }
    named |= {rate: level[rate] for rate in RATES}
    named |= {"requests_ok": level["requests_ok"], "requests_failed": level["requests_failed"]}
    named |= {f"failures.{kind}": count for kind, count in level["failures"].items()}
    if "client" in level:
        named["client.busy_share"] = level["client"]["client"]["busy_share"]
        named |= {name: level.get(part, {}).get(key) for name, (part, key) in ANSWER_METRICS.items()}
    if "ttfa_ms" in level:
        named |= {f"ttfa_ms.{stat}": level["ttfa_ms"][stat] for stat in STATISTICS}
    named["cached_share"] = level.get("cached_share")
    named |= {f"ttft_ms.turn_{turn['turn']}.p50": turn["ttft_ms"]["p50"] for turn in level.get("turns", ())}
    server = level.get("server", {})
    named |= {name: server.get(gauge, {}).get(stat) for name, (gauge, stat) in SERVER_METRICS.items()}
    named[METRIC_PREEMPTIONS] = server.get("preemptions")
    return {name: float(value) for name, value in named.items() if value is not None}


def step_of(level: float, unit: str) -> int:
    """Return the MLflow step of a level: whole, so rates and speed-ups count in thousandths."""
    return int(level) if unit == "users" else round(level * 1000)


def step_meaning(unit: str) -> str:
    """Return what a step means, for the run's tag."""
    return unit if unit == "users" else f"{unit} / 1000"


class Tracker:
    """Writes runs to one tracking server. After a first failure (`problem`) it does no more than end runs."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        self.problem: str | None = None
        self.cure = ""
        self._client: Any = None
        self._experiments: dict[str, str] = {}

    def start(self, folder: RunFolder, parent_run_id: str | None = None) -> None:
        """Create the folder's run, or go on with the one it has, and log its params, tags and levels."""
        self._attempt(lambda: self._start(folder, parent_run_id))

    def log_level(self, folder: RunFolder, level: Level) -> None:
        """Log a level's metrics at its step."""
        self._attempt(lambda: self._log_level(folder, level))

    def finish(self, folder: RunFolder) -> None:
        """Log summary metrics, tags and artifacts and set the run's final status.

        A run that lacks something ends FAILED: nothing may take it for a whole one.
        """
        if folder.state["run_id"] is None:
            return  # it could not be created, or was interrupted before
        self._attempt(lambda: self._finish(folder))
        if self.problem is not None:
            status = folder.state["status"]
            self._end_in_time(folder.state["run_id"], "FAILED" if status == "FINISHED" else status)

    def find_finished(self, task: str, config_hash: str) -> Any | None:
        """Return the latest FINISHED run of exactly this configuration, or None."""
        return self._attempt(lambda: self._find_finished(task, config_hash))

    def read_result(self, run_id: str) -> dict[str, Any] | None:
        """Return the result that a finished run has kept among its artifacts."""

        def read() -> dict[str, Any]:
            path = self._connect().download_artifacts(run_id, RESULT_FILE)
            result: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            return result

        return self._attempt(read)

    def start_parent(self, task: str, name: str, tags: dict[str, str]) -> str | None:
        """Create the parent run of a sweep (or adopt the one `mlflow run` made); return its id."""

        def start() -> str:
            client = self._connect()
            adopted = adopted_run(client, self.tracking)
            run_id = adopted or client.create_run(self._experiment(task), run_name=name).info.run_id
            with self._ended_if_it_fails(run_id):
                for key, value in {TAG_TASK: task, TAG_RUN_NAME: name, **tags}.items():
                    client.set_tag(run_id, key, value)
            return str(run_id)

        return self._attempt(start)

    def log_infeasible(self, task: str, name: str, reason: str, parent_run_id: str | None) -> None:
        """Log a cell that cannot be measured as a finished run whose outcome says why."""

        def log() -> None:
            client = self._connect()
            known = hashlib.sha256(f"{name}\n{reason}".encode()).hexdigest()
            if self._find_finished(task, known):
                return
            run_id = client.create_run(self._experiment(task), run_name=name).info.run_id
            tags = {TAG_TASK: task, TAG_OUTCOME: "infeasible", TAG_REASON: reason, TAG_CONFIG_HASH: known}
            tags |= {TAG_PARENT: parent_run_id} if parent_run_id else {}
            with self._ended_if_it_fails(run_id):
                for key, value in tags.items():
                    client.set_tag(run_id, key, value)
                client.set_terminated(run_id, "FINISHED")

        self._attempt(log)

    def end(self, run_id: str | None, status: str) -> None:
        """Set a run's final status; where MLflow has failed, try to all the same, for a few seconds."""
        if run_id is None:
            return
        self._attempt(lambda: self._connect().set_terminated(run_id, status))
        if self.problem is not None:
            self._end_in_time(run_id, status)

    @contextmanager
    def _ended_if_it_fails(self, run_id: str) -> Iterator[None]:
        """End a run that nobody else knows of when what is done with it here fails."""
        try:
            yield
        except BaseException as error:
            self._end_in_time(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def _end_in_time(self, run_id: str, status: str) -> None:
        """Try to set a run's final status; what comes of it is not waited for longer than it is worth."""
        if self._client is None:
            return  # none was begun from here

        def end() -> None:
            with suppress(Exception):  # what went wrong first has been said
                check_reachable(self.tracking)
                self._client.set_terminated(run_id, status)

        # MLflow and the databases below it have timeouts of their own, of minutes.
        ending = Thread(target=end, daemon=True)
        ending.start()
        ending.join(min(self.tracking.timeout_s, ENDING_S))

    @property
    def when(self) -> str:
        """What has to be done before what failed may be tried again: how the cure of a task begins."""
        return f"{self.cure}; then" if self.cure else "once MLflow answers,"

    # What follows talks to MLflow and may raise whatever it raises.

    def _start(self, folder: RunFolder, parent_run_id: str | None) -> None:
        from mlflow.entities import Param, RunTag

        if parent_run_id is not None:
            folder.save(parent_run_id=parent_run_id)
        client, state = self._connect(), folder.state
        # The run that `mlflow run` made wins over the one of an earlier try: it waits for these figures.
        run_id = adopted_run(client, self.tracking) or self._reopen(state["run_id"])
        if run_id is None:
            run_id = client.create_run(
                self._experiment(state["task"]), run_name=state["run_name"]
            ).info.run_id
        folder.save(run_id=run_id)
        _complete_result(folder.artifacts / RESULT_FILE, run_id)
        tags = state["tags"] | {TAG_RUN_NAME: state["run_name"]}
        tags |= {TAG_PARENT: parent_run_id} if parent_run_id else {}
        client.log_batch(
            run_id,
            params=[Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in state["params"].items()],
            tags=[RunTag(key, str(value)) for key, value in tags.items()],
        )
        for level in folder.levels():
            self._log_level(folder, level)

    def _reopen(self, run_id: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        client = self._connect()
        try:
            client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
                return None
            raise
        return run_id

    def _log_level(self, folder: RunFolder, level: Level) -> None:
        from mlflow.entities import Metric

        time_ms = folder.state["level_times_ms"][str(level["level"])]
        step = step_of(level["level"], folder.state["unit"])
        metrics = [Metric(name, value, time_ms, step) for name, value in level_metrics(level).items()]
        self._connect().log_batch(folder.state["run_id"], metrics=metrics)

    def _finish(self, folder: RunFolder) -> None:
        from mlflow.entities import Metric, RunTag

        client, state = self._connect(), folder.state
        time_ms = max(state["level_times_ms"].values(), default=0)
        client.log_batch(
            state["run_id"],
            metrics=[Metric(k, float(v), time_ms, 0) for k, v in state["metrics"].items() if v is not None],
            tags=[RunTag(key, str(value)) for key, value in state["tags"].items()],
        )
        client.log_artifacts(state["run_id"], str(folder.artifacts))
        client.set_terminated(state["run_id"], state["status"])

    def _find_finished(self, task: str, config_hash: str) -> Any | None:
        runs = self._connect().search_runs(
            [self._experiment(task)],
            f"tags.`{TAG_CONFIG_HASH}` = '{config_hash}' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return runs[0] if runs else None

    def _experiment(self, task: str) -> str:
        name = f"{self.tracking.experiment_prefix}/{task}"
        if name not in self._experiments:
            client = self._connect()
            adopted = adopted_experiment(client, self.tracking, name)
            found = None if adopted else client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise deleted_experiment(found, self.tracking)
            found_id = adopted or (found and found.experiment_id)
            self._experiments[name] = found_id or self._create_experiment(name)
        return self._experiments[name]

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        client = self._connect()
        try:
            return str(client.create_experiment(name, tags=KIND))
        except MlflowException:
            # Another process may have been quicker.
            if found := client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def _connect(self) -> Any:
        if self._client is None:
            self._client = connect(self.tracking)
        return self._client

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """Do something with MLflow; on failure remember why, say so once, and do nothing from then on."""
        if self.problem is not None:
            return None
        try:
            result = action()
            interrupts.check()
            return result
        except Exception as error:
            # MLflow raises its own, requests', SQLAlchemy's and the operating system's errors alike, and
            # none of them may cost a measurement.
            interrupts.check()  # a library may have turned a Ctrl-C into an error of its own
            self.problem = redact(f"{type(error).__name__}: {error}".strip().splitlines()[0])
            if isinstance(error, TrackingError):
                self.problem, self.cure = error.wrong, error.cure
            note(f"MLflow at {self.tracking.uri} cannot be used: {self.problem}", style="yellow")
            if self.cure:
                note(f"  to mend it: {self.cure}", style="yellow")
            return None


def upload(folder: RunFolder, tracking: Tracking) -> str:
    """Send a run folder to MLflow and return the run's id; a finished run's folder is then removed.

    Raises:
        TrackingError: MLflow still cannot be used; the folder is kept.
    """
    if folder.state["status"] == "RUNNING":  # its process was killed: nobody else holds the lock
        folder.save(status="KILLED")
        folder.collect_artifacts()
    tracker = Tracker(tracking)
    tracker.start(folder, folder.state.get("parent_run_id"))
    tracker.finish(folder)
    if tracker.problem is not None:
        raise not_uploaded(folder, tracker)
    run_id = str(folder.state["run_id"])
    if folder.state["status"] == "FINISHED":
        folder.remove()
    return run_id


def not_uploaded(folder: RunFolder, tracker: Tracker, result: dict[str, Any] | None = None) -> TrackingError:
    """Return the error that says where the results are and how to upload them; it carries the result."""
    tracking = tracker.tracking
    uri = redact(tracking.uri)
    # A password is the user's to fill in.
    where = f"MLFLOW_TRACKING_URI='{uri}' " if uri != tracking.uri else ""
    option = "" if where or uri == DEFAULT_TRACKING_URI else f" tracking.uri={uri}"
    if tracking.experiment_prefix != Tracking.model_fields["experiment_prefix"].default:
        option += f" tracking.experiment_prefix={tracking.experiment_prefix}"
    return TrackingError(
        f"measured, but not tracked: {tracker.problem}",
        given=f"tracking.uri={uri}",
        cure=f"the results are kept in {folder.path}; {tracker.when} run\n"
        f"    {where}python -m llmpilot task=upload 'folders=[{folder.path}]'{option}",
        result=result,
    )


def _complete_result(path: Path, run_id: str) -> None:
    """Put the run's id into a result that was written before there was one."""
    if path.is_file():
        write_text(path, to_json(json.loads(path.read_text(encoding="utf-8")) | {"run_id": run_id}))
