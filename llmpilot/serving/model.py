"""The MLflow side of a recommender: an artifact folder in, rows of a request in, rows of answers out."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from pandas.api.types import is_scalar

from llmpilot.errors import ConfigError, PilotError
from llmpilot.serving.bundle import load_bundle
from llmpilot.serving.recommender import Recommender
from llmpilot.serving.signature import answers_as_table

ARTIFACT = "bundle"
_log = logging.getLogger(__name__)


class RecommenderModel(PythonModel):  # type: ignore[misc, unused-ignore]
    """Answers `predict` with the recommender that was logged."""

    def load_context(self, context: Any) -> None:
        """Read the artifact."""
        self.recommender = Recommender(load_bundle(Path(context.artifacts[ARTIFACT])))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return an answer for each row.

        Raises:
            MlflowException: a row that cannot be answered, as INVALID_PARAMETER_VALUE: HTTP 400.
        """
        task = str((params or {}).get("task") or "auto")
        try:
            answers = self.recommender.answer(self.recommender.known.read(_table(model_input), task))
        except PilotError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception:
            _log.exception("a bug of LLM-Pilot: this request could not be answered")
            raise MlflowException(
                "the recommender failed; the server's log says why", error_code=INTERNAL_ERROR
            ) from None
        return answers_as_table(answers)


def _table(given: Any) -> pd.DataFrame:
    """Return the rows of a request: a table, rows, columns, or the columns of a single row."""
    if isinstance(given, pd.DataFrame):
        return given
    one_row = isinstance(given, Mapping) and all(map(is_scalar, given.values()))
    try:
        return pd.DataFrame([given] if one_row else given)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"the request is no table: {error}",
            cure='send {"dataframe_records": [{"model": "llama_3_1_8b", "requests_per_s": 20}]}, or CSV',
        ) from None
