"""The MLflow side of a recommender: an artifact folder in, rows of a request in, rows of answers out."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from llmpilot.errors import PilotError
from llmpilot.serving.bundle import load_bundle
from llmpilot.serving.recommender import Recommender

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
            answers = self.recommender.answer(self.recommender.known.read(pd.DataFrame(model_input), task))
        except PilotError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception:
            _log.exception("a bug of LLM-Pilot: this request could not be answered")
            raise MlflowException(
                "the recommender failed; the server's log says why", error_code=INTERNAL_ERROR
            ) from None
        columns = list(dict.fromkeys(name for answer in answers for name in answer))
        rows = [[answer.get(name) for name in columns] for answer in answers]
        return pd.DataFrame(rows, columns=columns, dtype=object)
