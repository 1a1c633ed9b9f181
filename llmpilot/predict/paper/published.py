"""The predictions that the paper published, read from their files as predictions of ours.

The files are expected_*.csv of IBM/LLM-performance-prediction (Apache-2.0); they are not part of LLM-Pilot.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from llmpilot.config import Gpu
from llmpilot.dataset import Dataset, DatasetError
from llmpilot.dataset.published import GPU_NAMES
from llmpilot.predict.paper.table import PAPER_NAMES
from llmpilot.predict.prediction import Floats, Prediction

FILES = {
    "llm_pilot": "LLM-Pilot",
    "rf": "RF",
    "paris": "PARIS",
    "selecta": "Selecta",
    "perfnet": "PerfNet",
    "perfnet_v2": "PerfNetV2",
    "morphling": "Morphling",
}
"""Our predictors, and what the paper's files call them."""
MEASURED_FIRST = ("paris", "selecta", "morphling")
REFERENCES = ("1 x T4", "4 x H100")
"""On these profiles the paper scores what was measured, for the methods that measure first."""
METRICS = ("median_nttft", "median_itl")
COLUMNS = ("model", "gpu", "num_users", *METRICS, *(f"prediction_{metric}" for metric in METRICS))


def published_predictions(folder: Path, predictor: str, data: Dataset) -> dict[str, Prediction]:
    """Return a method's published prediction for each LLM of `data`, whose names, facts and prices are used.

    `predictor` is one of FILES. Profiles are in the order of the file.

    Raises:
        DatasetError: no such file in the folder, other columns, or an LLM or GPU type that one of both lacks.
    """
    path = folder / f"expected_predictions_{FILES[predictor]}.csv"
    if not path.is_file():
        raise DatasetError("there is no such file", given=path, cure="name the folder of the published files")
    table = pd.read_csv(path)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise DatasetError(f"columns are missing: {', '.join(missing)}", given=path)
    references = REFERENCES if predictor in MEASURED_FIRST else ()
    predictions = {}
    for key, model in data.models.items():
        rows = table[table["model"] == PAPER_NAMES.get(model.name, model.hf_id)]
        if rows.empty:
            raise DatasetError("the file predicts nothing of an LLM", given=f"{model.name}, {path}")
        written = list(dict.fromkeys(rows["gpu"]))
        users = tuple(sorted({int(level) for level in rows["num_users"]}))
        values = np.array(
            [_latencies(rows[rows["gpu"] == text], users, measured=text in references) for text in written]
        )
        profiles = tuple(_profile(text, data) for text in written)
        predictions[key] = Prediction(model, profiles, users, values[:, :, 0], values[:, :, 1])
    return predictions


def _latencies(rows: pd.DataFrame, users: tuple[int, ...], *, measured: bool) -> Floats:
    """Return [users, (nTTFT, ITL)] in ms of one profile: as predicted, or as measured."""
    names = [metric if measured else f"prediction_{metric}" for metric in METRICS]
    return rows.set_index("num_users")[names].reindex(list(users)).to_numpy(dtype=np.float64)


def _profile(written: str, data: Dataset) -> Gpu:
    """Return the profile that the paper writes as `2 x A100`."""
    count, name = written.split(" x ")
    ours = GPU_NAMES.get(name, name)
    if ours not in data.gpus:
        raise DatasetError("the data set does not know a GPU type of the file", given=written)
    return data.gpus[ours].model_copy(update={"count": int(count)})
