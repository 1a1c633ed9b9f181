"""Recommenders in MLflow: a run of the experiment `predictor` with the model, its versions and aliases."""

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import llmpilot
from llmpilot import catalog
from llmpilot.config import Tracking
from llmpilot.dataset import Measurements
from llmpilot.dataset.tracked import TAG_CONTENT_HASH, mlflow_input
from llmpilot.errors import ConfigError, PilotError
from llmpilot.serving.bundle import ROWS_FILE, Rows, load_rows
from llmpilot.serving.model import ARTIFACT
from llmpilot.serving.rows import COLUMNS
from llmpilot.serving.signature import input_example, signature
from llmpilot.tracking import MAX_PARAM_LENGTH, Tracker
from llmpilot.tracking_store import absolute_uri

PREDICTOR = "predictor"
ROWS = "rows"
"""The folder of a run that holds what its model was fitted to."""
CHALLENGER, CHAMPION = "challenger", "champion"
TAG_SCORE = "llmpilot.today_so_score"
SCRIPT = Path(__file__).parent / "model_script.py"
REQUIREMENTS = (
    "mlflow",
    "hydra-core",
    "numpy",
    "omegaconf",
    "pandas",
    "pyarrow",
    "pydantic",
    "PyYAML",
    "rich",
    "scipy",
    "threadpoolctl",
)
"""What answering needs."""
EXAMPLE = "llama_3_1_8b"


@dataclass(frozen=True)
class Champion:
    """The version that is champion now, and its scores by the terms on which they were made."""

    version: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """A recommender on disk: the folders of the bundle, of the rows it was fitted to, and of its evaluation,
    as they go into the run."""

    bundle: Path
    rows: Path
    evaluation: Path


class Registry(Tracker):
    """The tracker of recommenders; like its base, after a first failure it does no more than end runs."""

    def log(self, run_id: str, trained: Trained, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
        """Log params, metrics and the evaluation's files."""
        self._attempt(lambda: self._log(run_id, trained, facts, scores))

    def register(
        self, name: str, run_id: str, trained: Trained, data: Measurements, tags: Mapping[str, str]
    ) -> str | None:
        """Log the model, register it as challenger and return its version; the run is then finished."""
        return self._attempt(lambda: self._register(name, run_id, trained, data, tags))

    def champion(self, name: str) -> Champion | None:
        """Return the champion of today; None where there is none."""
        return self._attempt(lambda: self._champion(name))

    def rows_of(self, name: str, version: str) -> Rows | PilotError | None:
        """Return what a version was fitted to, or why that cannot be read; None: MLflow failed."""
        return self._attempt(lambda: self._rows_of(name, version))

    def add_score(self, name: str, version: str, terms: str, score: float) -> None:
        """Remember what a version scored on these terms."""
        tag = f"{TAG_SCORE}.{terms}"
        self._attempt(lambda: self._connect().set_model_version_tag(name, version, tag, repr(score)))

    def crown(self, name: str, version: str) -> None:
        """Make a version the champion."""
        self._attempt(lambda: self._connect().set_registered_model_alias(name, CHAMPION, version))

    def aliases(self, name: str, version: str) -> list[str]:
        """Return a version's aliases."""
        found = self._attempt(lambda: list(self._connect().get_model_version(name, version).aliases))
        return sorted(found or [])

    def all_aliases(self, name: str) -> dict[str, str] | None:
        """Return which version each alias means."""
        return self._attempt(lambda: self._aliases(name))

    def withdraw(self, name: str, run_id: str, aliases: Mapping[str, str]) -> None:
        """Take back what an interrupted run has registered, and let aliases mean what they did before."""
        self._attempt(lambda: self._withdraw(name, run_id, aliases))

    # What follows talks to MLflow and may raise whatever it raises.

    def _log(
        self, run_id: str, trained: Trained, facts: Mapping[str, Any], scores: Mapping[str, Any]
    ) -> None:
        from mlflow.entities import Metric, Param

        now_ms = time.time_ns() // 1_000_000
        client = self._connect()
        client.log_batch(
            run_id,
            params=[Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in _flat(facts).items()],
            metrics=[
                Metric(key, float(value), now_ms, 0)
                for key, value in _flat(scores).items()
                if isinstance(value, int | float)
            ],
        )
        client.log_artifacts(run_id, str(trained.evaluation), "evaluation")

    def _register(
        self, name: str, run_id: str, trained: Trained, data: Measurements, tags: Mapping[str, str]
    ) -> str:
        import mlflow

        client = self._connect()
        with _quiet(), _spoken_to(self.tracking), mlflow.start_run(run_id=run_id):
            client.log_artifacts(run_id, str(trained.rows), ROWS)
            client.log_inputs(run_id, datasets=[mlflow_input(data, f"runs:/{run_id}/{ROWS}/{ROWS_FILE}")])
            info = mlflow.pyfunc.log_model(
                name="recommender",
                python_model=str(SCRIPT),
                artifacts={ARTIFACT: str(trained.bundle)},
                code_paths=_code(),
                pip_requirements=_requirements(),
                signature=signature(),
                input_example=input_example(EXAMPLE),
                registered_model_name=name,
                metadata={TAG_CONTENT_HASH: data.content_hash, "columns": COLUMNS},
            )
        version = str(info.registered_model_version)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        client.set_registered_model_alias(name, CHALLENGER, version)
        return version

    def _aliases(self, name: str) -> dict[str, str]:
        models = self._connect().search_registered_models(f"name = '{name}'")
        return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}

    def _withdraw(self, name: str, run_id: str, aliases: Mapping[str, str]) -> None:
        client = self._connect()
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            client.delete_model_version(name, version.version)
        now = self._aliases(name)
        for alias, before in aliases.items():
            if now.get(alias) != before:
                client.set_registered_model_alias(name, alias, before)
        experiment = client.get_run(run_id).info.experiment_id
        for model in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
            client.delete_logged_model(model.model_id)

    def _champion(self, name: str) -> Champion | None:
        client = self._connect()
        version = self._aliases(name).get(CHAMPION)
        if version is None:
            return None
        tags = client.get_model_version(name, version).tags
        prefix = f"{TAG_SCORE}."
        scores = {key.removeprefix(prefix): float(tags[key]) for key in tags if key.startswith(prefix)}
        return Champion(str(version), scores)

    def _rows_of(self, name: str, version: str) -> Rows | PilotError:
        import mlflow

        run_id = self._connect().get_model_version(name, version).run_id
        with _spoken_to(self.tracking), tempfile.TemporaryDirectory(prefix="llmpilot-") as folder:
            files = self._connect().list_artifacts(run_id, ROWS)
            if not files:
                return ConfigError(f"its run {run_id} does not hold what it was fitted to")
            place = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=ROWS, dst_path=folder)
            try:
                return load_rows(Path(place))
            except PilotError as error:
                return error


def _code() -> list[str]:
    """Return our own code, which the model takes along: later versions may not read this one's files."""
    package = Path(llmpilot.__file__).resolve().parent
    conf = catalog.conf_dir()
    return [str(package)] if conf.is_relative_to(package) else [str(package), str(conf)]


def _requirements() -> list[str]:
    """Return the packages that answering needs, as they are installed here."""
    return [f"{name}=={metadata.version(name)}" for name in REQUIREMENTS]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextmanager
def _spoken_to(tracking: Tracking) -> Iterator[None]:
    """Let MLflow's own functions speak to this server, which they leave in the environment."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(absolute_uri(tracking.uri))
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's remarks on its own doings off the terminal; what goes wrong is an exception anyway."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
