"""A data set in MLflow: a run with the table as its artifact and as its data set input, by content hash."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llmpilot
from llmpilot import tracking
from llmpilot.dataset.measurements import Measurements
from llmpilot.dataset.table import Dataset
from llmpilot.files import to_json
from llmpilot.tracking import Tracker

DATASET = "dataset"
NAME = "llm-pilot-characterizations"
NAME_OF_MEASUREMENTS = "llm-pilot-measurements"
TAG_CONTENT_HASH = "llmpilot.content_hash"
DIGEST_LENGTH = 36  # the longest that MLflow takes; the whole hash is the run's tag
SUMMARY_FILE = "dataset.json"


class DatasetTracker(Tracker):
    """The tracker of data sets; like its base, after a first failure it does no more than end runs."""

    def log_dataset(
        self, dataset: Dataset, files: Sequence[Path], params: dict[str, Any], summary: dict[str, Any]
    ) -> str | None:
        """Log the data set, saved as the first of `files`, as a finished run with all of them.

        Returns the run's id; None: MLflow failed.
        """
        content_hash = dataset.content_hash
        kinds = sorted(summary["by_measurement"])
        tags = {
            TAG_CONTENT_HASH: content_hash,
            tracking.TAG_MEASUREMENT: "+".join(kinds),
            tracking.TAG_VERSION: llmpilot.__version__,
        }
        run_id = self.start_parent(DATASET, f"{len(dataset)} rows, {content_hash[:8]}", tags)
        if run_id is not None:
            self._attempt(lambda: self._log(run_id, dataset, files, params, summary))
        return run_id if self.problem is None else None

    def _log(
        self,
        run_id: str,
        dataset: Dataset,
        files: Sequence[Path],
        params: dict[str, Any],
        summary: dict[str, Any],
    ) -> None:
        from mlflow.entities import Metric, Param

        client = self._connect()
        with self._ended_if_it_fails(run_id):
            counts = {name: summary[name] for name in ("rows", "models", "profiles")}
            counts |= {f"rows.{kind}": rows for kind, rows in summary["by_measurement"].items()}
            now_ms = time.time_ns() // 1_000_000
            client.log_batch(
                run_id,
                params=[Param(key, str(value)) for key, value in params.items()],
                metrics=[Metric(name, float(count), now_ms, 0) for name, count in counts.items()],
            )
            for file in files:
                client.log_artifact(run_id, str(file))
            client.log_text(run_id, to_json(summary), SUMMARY_FILE)
            client.log_inputs(run_id, datasets=[mlflow_input(dataset, f"runs:/{run_id}/{files[0].name}")])
        client.set_terminated(run_id, "FINISHED")


def mlflow_input(dataset: Dataset | Measurements, kept_at: str) -> Any:
    """Return the rows as what MLflow logs with the runs that use them.

    `kept_at` says where it is: a path, or `runs:/RUN_ID/FILE` for `mlflow.artifacts.download_artifacts`.
    """
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.pandas_dataset import from_pandas
    from mlflow.entities import DatasetInput

    # MLflow's other kinds of source refuse the artifacts of a tracking server.
    source = CodeDatasetSource({"mlflow.source.name": kept_at})
    table = dataset.table
    # MLflow takes whole numbers for ones that may not be missing, and warns of them.
    floats = table.astype(dict.fromkeys(table.select_dtypes("number").columns, "float64"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = NAME if isinstance(dataset, Dataset) else NAME_OF_MEASUREMENTS
        named = from_pandas(floats, source=source, name=name, digest=dataset.content_hash[:DIGEST_LENGTH])
        return DatasetInput(named._to_mlflow_entity(), [])
