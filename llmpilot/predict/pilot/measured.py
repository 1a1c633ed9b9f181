"""Cells of the LLM in question that were measured after all, laid beside those that are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.predict.pilot.cells import Rows
from llmpilot.predict.prediction import Floats

METRICS = ("nttft_ms", "itl_ms")
NTTFT, ITL = 0, 1
"""The order of all last axes of two."""


@dataclass(frozen=True)
class Measured:
    """n cells: `profile` [n] are indices of the profiles asked for, or beyond them; `truth` [n, 2] the logs
    of what was measured, `failure_rate` [n] the share of requests that failed, NaN where it is not known."""

    rows: Rows
    profile: NDArray[np.int64]
    truth: Floats
    failure_rate: Floats

    def split(self, profiles: Sequence[tuple[str, int]]) -> "tuple[Measured | None, Measured | None]":
        """Return the cells on some profiles (GPU type, count), and the others; None for none."""
        wanted = set(profiles)
        there = np.array([(gpu.name, gpu.count) in wanted for _, gpu in self.rows.pairs])[self.rows.pair]
        return self._select(there), self._select(~there)

    def _select(self, mask: NDArray[np.bool_]) -> "Measured | None":
        if not mask.any():
            return None
        return Measured(self.rows.select(mask), self.profile[mask], self.truth[mask], self.failure_rate[mask])

    def on_grid(self, values: Floats, profiles: int, users: Sequence[int]) -> Floats:
        """Return one value a cell [n] as [profile, users], NaN elsewhere."""
        grid = np.full((profiles, len(users)), np.nan)
        for profile, load, value in zip(self.profile, self.rows.users, values, strict=True):
            if profile < profiles and load in users:
                grid[profile, list(users).index(int(load))] = value
        return grid


def measured_of(model: Model, profiles: Sequence[Gpu], table: pd.DataFrame | None) -> Measured | None:
    """Return the cells in a data set's `table`; of one measured more than once, the mean of the logs.

    Rows on GPU types that neither the profiles nor the catalogue know tell nothing and are passed over.
    """
    if table is None:
        return None
    logs = {name: np.log(table[name].astype(float)) for name in METRICS}
    rates = table["failure_rate"].astype(float)
    by_cell = table.assign(**logs, failure_rate=rates).groupby(["gpu", "count", "users"], as_index=False)
    cells = by_cell[[*METRICS, "failure_rate"]].mean().dropna(subset=list(METRICS))
    types = {gpu.name: gpu for gpu in (*catalog.gpus().values(), *profiles)}
    cells = cells[cells["gpu"].isin(types)]
    if not len(cells):
        return None
    places = {(gpu.name, gpu.count): at for at, gpu in enumerate(profiles)}
    keys = [(gpu, int(count)) for gpu, count in zip(cells["gpu"], cells["count"], strict=True)]
    for key in keys:
        places.setdefault(key, len(places))
    pairs = tuple((model, types[gpu].model_copy(update={"count": count})) for gpu, count in places)
    profile = np.array([places[key] for key in keys], dtype=np.int64)
    rows = Rows(pairs, profile, cells["users"].to_numpy(float))
    truth, lost = cells[list(METRICS)].to_numpy(float), cells["failure_rate"].to_numpy(float)
    return Measured(rows, profile, truth, lost)
