"""The training table as the paper orders it: features, targets and weights; and predictions from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmpilot.config import Model
from llmpilot.dataset import Dataset, DatasetError
from llmpilot.predict.evaluation import rows_of
from llmpilot.predict.paper.features import describe
from llmpilot.predict.prediction import Floats, Prediction, Query
from llmpilot.simulator.recordings import CATALOGUE

TARGETS = ("nttft_ms", "itl_ms")
PAPER_NAMES = {ours: theirs for theirs, ours in CATALOGUE.items()}


@dataclass(frozen=True, eq=False)
class Cells:
    """Rows of a data set: `keys` (model, gpu, count, users), features, latencies [n, (nTTFT, ITL)] in ms."""

    keys: pd.DataFrame
    features: pd.DataFrame
    latencies: Floats

    @property
    def llms(self) -> list[str]:
        """The LLMs, in order of appearance."""
        return list(dict.fromkeys(self.keys["model"]))

    def where(self, mask: NDArray[np.bool_]) -> "Cells":
        """Return the rows where the mask is true."""
        return Cells(self.keys[mask], self.features[mask], self.latencies[mask])

    def leave_one_out(self) -> Iterator[tuple["Cells", "Cells"]]:
        """Yield (all other rows, its rows) for each LLM."""
        for llm in self.llms:
            held_out = (self.keys["model"] == llm).to_numpy()
            yield self.where(~held_out), self.where(held_out)


def in_papers_order(table: pd.DataFrame, models: dict[str, Model]) -> pd.DataFrame:
    """Return the rows sorted by LLM, GPU profile and users as the paper sorts them: as its own texts.

    The order matters: it decides between equals and is what a random number generator sees.
    """
    llm = table["model"].map(lambda key: PAPER_NAMES.get(models[key].name, models[key].hf_id))
    profile = table["count"].astype(str) + " x " + table["gpu"]
    order = pd.DataFrame({"llm": llm, "profile": profile, "users": table["users"]})
    return table.loc[order.sort_values(["llm", "profile", "users"], kind="stable").index].reset_index(
        drop=True
    )


def cells_of(data: Dataset) -> Cells:
    """Return the data set's rows with their features.

    Raises:
        DatasetError: fewer than two LLMs: nothing could be left out to choose hyperparameters.
    """
    table = in_papers_order(data.table, data.models)
    keys = table[["model", "gpu", "count", "users"]]
    profiles = {
        (gpu, count): data.gpus[gpu].model_copy(update={"count": count})
        for gpu, count in zip(keys["gpu"], keys["count"], strict=True)
    }
    cells = Cells(
        keys,
        describe(
            [
                (data.models[model], profiles[gpu, count], int(users))
                for model, gpu, count, users in keys.itertuples(index=False)
            ]
        ),
        table[list(TARGETS)].to_numpy(dtype=np.float64),
    )
    if len(cells.llms) < 2:
        raise DatasetError(
            "the paper's methods learn from at least two LLMs",
            given=f"measurements of {', '.join(cells.llms) or 'none'}",
            cure="train on a data set with more LLMs, such as the published one",
        )
    return cells


def sample_weights(cells: Cells, nttft_ms: float, itl_ms: float) -> Floats:
    """Return the weight of each row: the nearer its latencies are to the two limits, the heavier.

    Per LLM, GPU profile and metric: 1 - distance / largest distance, normalised to a sum of 1; then the mean
    of both metrics.
    """
    profile = cells.keys.groupby(["model", "gpu", "count"], sort=False).ngroup().to_numpy()
    weights = []
    for column, limit in enumerate((nttft_ms, itl_ms)):
        distance = pd.Series(np.abs(cells.latencies[:, column] - limit))
        nearness = 1 - distance / distance.groupby(profile).transform("max")
        total = nearness.groupby(profile).transform("sum")
        # Where all rows of a profile are equally far, such as a single one, they weigh the same.
        equal = 1 / nearness.groupby(profile).transform("size")
        weights.append((nearness / total).where(total > 0, equal).to_numpy())
    return np.asarray(np.mean(weights, axis=0), dtype=np.float64)


def all_cells(query: Query) -> pd.DataFrame:
    """Return the features of the model on each profile with each user count, profile by profile."""
    return describe([(query.model, gpu, level) for gpu in query.profiles for level in query.users])


def as_prediction(query: Query, latencies: Floats) -> Prediction:
    """Return latencies of `all_cells`, [n, (nTTFT, ITL)] in ms, as a prediction."""
    values = np.asarray(latencies, dtype=np.float64).reshape(len(query.profiles), len(query.users), 2)
    return Prediction(query.model, query.profiles, query.users, values[:, :, 0], values[:, :, 1])


def believe_measured(
    prediction: Prediction, measured: pd.DataFrame | None, references: Sequence[str]
) -> Prediction:
    """Return the prediction with what the reference profiles measured in its place, as in the paper."""
    nttft_ms, itl_ms = prediction.nttft_ms.copy(), prediction.itl_ms.copy()
    profiles = [(profile.name, profile.count) for profile in prediction.profiles]
    for row in rows_of(measured, references).to_dict("records") if measured is not None else ():
        profile = row["gpu"], row["count"]
        if profile in profiles and row["users"] in prediction.users:
            cell = profiles.index(profile), prediction.users.index(row["users"])
            nttft_ms[cell], itl_ms[cell] = row["nttft_ms"], row["itl_ms"]
    return replace(prediction, nttft_ms=nttft_ms, itl_ms=itl_ms)
