"""Measurements in one table: the published ones, the project's own runs, and the facts of all they name.

Knows nothing of prediction. `task=dataset` puts a table together and versions it in MLflow.
"""

from llmpilot.dataset.published import published
from llmpilot.dataset.runs import from_runs
from llmpilot.dataset.store import load, save
from llmpilot.dataset.table import COLUMNS, Dataset, DatasetError, merge

__all__ = ["COLUMNS", "Dataset", "DatasetError", "from_runs", "load", "merge", "published", "save"]
