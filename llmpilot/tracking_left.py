"""What earlier work has left in MLflow's way: variables of a shell, and experiments that were deleted."""

import os
import shlex
from typing import Any

from llmpilot.config import Tracking
from llmpilot.console import note
from llmpilot.errors import TrackingError
from llmpilot.secrets import redact
from llmpilot.tracking_store import absolute_uri

RUN_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
OPEN = ("RUNNING", "SCHEDULED")


def adopted_run(client: Any, tracking: Tracking) -> str | None:
    """Return the run that `mlflow run` made for this process, once; None where there is none to go on with.

    A run that has ended, was deleted or is in another store was left in the environment by something else:
    to write into it would spoil its figures or fail.
    """
    from mlflow.exceptions import MlflowException

    run_id = os.environ.pop(RUN_VARIABLE, None)
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        wrong = f"is no run of {redact(tracking.uri)}"
    else:
        if run.info.lifecycle_stage == "active" and run.info.status in OPEN:
            return run_id
        ended = f"has ended ({run.info.status})"
        wrong = ended if run.info.lifecycle_stage == "active" else "was deleted"
    _left_over(RUN_VARIABLE, run_id, wrong, "a run of its own is made")
    return None


def adopted_experiment(client: Any, tracking: Tracking, name: str) -> str | None:
    """Return the experiment that the environment names, or None: then `name` is where runs go."""
    from mlflow.exceptions import MlflowException

    experiment_id = os.environ.get(EXPERIMENT_VARIABLE)
    if not experiment_id:
        return None
    try:
        found = client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        found = None
    if found is not None and found.lifecycle_stage == "active":
        return experiment_id
    wrong = f"is no experiment of {redact(tracking.uri)}" if found is None else "was deleted"
    _left_over(EXPERIMENT_VARIABLE, experiment_id, wrong, f"runs go to {name}")
    return None


def deleted_experiment(experiment: Any, tracking: Tracking) -> TrackingError:
    """Return the error for an experiment that was deleted and so takes no runs; its cure can be typed."""
    uri = shlex.quote(redact(absolute_uri(tracking.uri)))
    return TrackingError(
        f"the experiment {experiment.name} was deleted",
        given=f"tracking.uri={redact(tracking.uri)}",
        cure=f"restore it with `MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id "
        f"{experiment.experiment_id}` (or take another: tracking.experiment_prefix=NAME)",
    )


def _left_over(variable: str, value: str, wrong: str, instead: str) -> None:
    note(f"{variable}={value} {wrong}: {instead}. To mend it: unset {variable}", style="yellow")
