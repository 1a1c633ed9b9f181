"""The paper's own method: XGBoost on both latencies, monotone in users, rows near the limits heavier."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from pydantic import PositiveFloat, PositiveInt

from llmpilot.config import Ladder, Share
from llmpilot.dataset import Dataset
from llmpilot.predict.paper import search
from llmpilot.predict.paper.encoding import USERS, TargetEncoding, encode_training, learn, names
from llmpilot.predict.paper.search import Settings, Split
from llmpilot.predict.paper.table import Cells, all_cells, as_prediction, cells_of, sample_weights
from llmpilot.predict.prediction import Floats, Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor


class LlmPilot(Predictor):
    """The grid of hyperparameters, and the limits [ms] that training rows are weighed by."""

    nttft_ms: PositiveFloat
    itl_ms: PositiveFloat
    n_estimators: Ladder[PositiveInt]
    max_depth: Ladder[PositiveInt]
    learning_rate: Ladder[PositiveFloat]
    subsample: Ladder[Share]
    colsample_bytree: Ladder[Share]
    max_bin: PositiveInt

    def fit(self, data: Dataset, seed: int) -> "FittedLlmPilot":
        """Choose the hyperparameters by leaving LLMs out of `data`, and learn from all of it with them."""
        cells = cells_of(data)
        settings = self.choose_settings(cells, seed)
        train = self._matrix(cells, encode_training(cells))
        booster = _train(train, settings, settings["n_estimators"], seed)
        return FittedLlmPilot(booster, learn(cells.features, cells.latencies), settings)

    def choose_settings(self, cells: Cells, seed: int) -> Settings:
        """Return the best settings of the grid.

        A run of 5 rounds is the beginning of one of 50, so every other setting is trained once, to the most
        rounds.
        """
        names_of_grid = ("max_depth", "learning_rate", "subsample", "colsample_bytree", "n_estimators")
        every = search.settings_of({name: getattr(self, name) for name in names_of_grid})

        def errors_without(parts: tuple[Cells, Cells]) -> list[float]:
            return self._errors(search.split(*parts), every, seed)

        return search.best(every, search.in_threads(errors_without, list(cells.leave_one_out())))

    def _errors(self, split: Split, every: list[Settings], seed: int) -> list[float]:
        """Return the error of every setting on the LLM that was left out."""
        train, test = self._matrix(split.rows, split.x), xgb.DMatrix(split.x_left_out, nthread=1)
        boosters: dict[tuple[Any, ...], xgb.Booster] = {}
        errors = []
        for settings in every:
            key = tuple(value for name, value in settings.items() if name != "n_estimators")
            if key not in boosters:
                boosters[key] = _train(train, settings, max(self.n_estimators), seed)
            predicted = boosters[key].predict(test, iteration_range=(0, settings["n_estimators"]))
            errors.append(search.mape(predicted, split.y_left_out))
        return errors

    def _matrix(self, rows: Cells, x: Floats) -> "Matrix":
        weights = sample_weights(rows, self.nttft_ms, self.itl_ms)
        monotone = tuple(int(name == USERS) for name in names(rows.features))
        data = xgb.QuantileDMatrix(x, label=rows.latencies, weight=weights, max_bin=self.max_bin, nthread=1)
        start = float(np.average(rows.latencies, axis=0, weights=weights).mean())
        return Matrix(data, monotone, start, self.max_bin)


@dataclass(frozen=True)
class Matrix:
    """Binned training rows. `monotone` marks the columns in which latencies may only rise.

    `start` is where boosting begins, for both metrics: the mean of their weighted means. XGBoost 2.0, which
    the paper used, did that by itself; later ones begin at each metric's own mean, and predict otherwise.
    """

    data: xgb.QuantileDMatrix
    monotone: tuple[int, ...]
    start: float
    max_bin: int


def _train(train: Matrix, settings: Settings, rounds: int, seed: int) -> xgb.Booster:
    grown = {name: value for name, value in settings.items() if name != "n_estimators"}
    fixed = {
        "objective": "reg:squarederror",
        "tree_method": "hist",
        "max_bin": train.max_bin,
        "monotone_constraints": train.monotone,
        "base_score": train.start,
        "seed": seed,
        "nthread": 1,
    }
    return xgb.train(grown | fixed, train.data, num_boost_round=rounds)


@dataclass(frozen=True)
class FittedLlmPilot(Fitted):
    """Boosted trees and the encoding of their categories; `settings` were chosen without any LLM to come."""

    booster: xgb.Booster
    encoding: TargetEncoding
    settings: Settings

    def answer(self, query: Query) -> Prediction:
        """Return the latencies; `measured` changes nothing: the method knows no use for it."""
        x = self.encoding.transform(all_cells(query))
        return as_prediction(query, self.booster.predict(xgb.DMatrix(x, nthread=1)))
