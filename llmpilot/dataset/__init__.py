"""Measurements in one table: the published ones, the project's own runs, and the facts of all they name.

Knows nothing of prediction. `task=dataset` puts a table together and versions it in MLflow.
"""

from llmpilot.dataset.measured_file import measurements_of, read_measurements, read_table, save_measurements
from llmpilot.dataset.measurements import Measurements, MeasurementsError, joined
from llmpilot.dataset.published import published
from llmpilot.dataset.runs import from_runs
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.dataset.store import load, save
from llmpilot.dataset.table import COLUMNS, Dataset, DatasetError, merge

__all__ = [
    "COLUMNS",
    "Dataset",
    "DatasetError",
    "Measurements",
    "MeasurementsError",
    "from_runs",
    "joined",
    "load",
    "measurements_of",
    "merge",
    "published",
    "read_measurements",
    "read_table",
    "save",
    "save_measurements",
    "shipped_measurements",
]
