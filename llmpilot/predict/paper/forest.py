"""Random forests on the paper's features: RF, and PARIS, which adds an LLM's reference measurements."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt
from sklearn.ensemble import RandomForestRegressor

from llmpilot.config import Ladder
from llmpilot.dataset import Dataset
from llmpilot.predict.paper import search
from llmpilot.predict.paper.encoding import TargetEncoding, encode_training, learn
from llmpilot.predict.paper.fingerprint import Fingerprints
from llmpilot.predict.paper.search import Settings, Split
from llmpilot.predict.paper.table import Cells, all_cells, as_prediction, believe_measured, cells_of
from llmpilot.predict.prediction import Floats, Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor

Criterion = Literal["absolute_error", "squared_error", "poisson"]


class Forest(Predictor):
    """RF: a random forest on both latencies, its grid of hyperparameters searched by leaving LLMs out."""

    n_estimators: Ladder[PositiveInt]
    max_depth: Ladder[PositiveInt]
    bootstrap: Ladder[bool]
    criterion: Ladder[Criterion]

    def fit(self, data: Dataset, seed: int) -> "FittedForest":
        """Choose the hyperparameters by leaving LLMs out of `data`, and learn from all of it with them."""
        return self.fit_cells(cells_of(data), seed)

    def fit_cells(self, cells: Cells, seed: int) -> "FittedForest":
        """Do so with rows whose features are ready."""
        settings = self.choose_settings(cells, seed)
        forest = _grow(encode_training(cells), cells.latencies, settings, seed)
        return FittedForest(forest, learn(cells.features, cells.latencies), settings)

    def choose_settings(self, cells: Cells, seed: int) -> Settings:
        """Return the best settings of the grid.

        One forest, the largest and deepest, stands for all sizes and depths: its first trees, cut off at a
        depth, are the smaller forest, but for the order in which equal splits were tried.
        """
        grid = ("n_estimators", "max_depth", "bootstrap", "criterion")
        every = search.settings_of({name: getattr(self, name) for name in grid})
        errors = [self._errors(search.split(*parts), every, seed) for parts in cells.leave_one_out()]
        return search.best(every, errors)

    def _errors(self, split: Split, every: list[Settings], seed: int) -> list[float]:
        """Return the error of every setting on the LLM that was left out."""
        depths = sorted(set(self.max_depth))
        trees: dict[tuple[Any, ...], Floats] = {}
        errors = []
        for settings in every:
            key = settings["bootstrap"], settings["criterion"]
            if key not in trees:
                largest = settings | {"n_estimators": max(self.n_estimators), "max_depth": depths[-1]}
                grown = _grow(split.x, split.y, largest, seed).estimators_
                trees[key] = np.array([cut_predictions(one.tree_, split.x_left_out, depths) for one in grown])
            cut = trees[key][: settings["n_estimators"], depths.index(settings["max_depth"])]
            errors.append(search.mape(cut.mean(axis=0), split.y_left_out))
        return errors


class Paris(Forest):
    """PARIS (Yadwadkar et al., SoCC 2017): RF with what the LLM's reference profiles measured as features.

    `nttft_ms` and `itl_ms` are the limits of the features that count the users within them.
    """

    nttft_ms: PositiveFloat
    itl_ms: PositiveFloat

    def fit(self, data: Dataset, seed: int) -> "FittedForest":
        """Choose the hyperparameters by leaving LLMs out of `data`, and learn from all of it with them."""
        cells = cells_of(data)
        users = tuple(sorted(int(users) for users in data.table["users"].unique()))
        prints = Fingerprints(self.references, users, self.nttft_ms, self.itl_ms)
        of = {llm: prints.of(data.table[data.table["model"] == llm]) for llm in cells.llms}
        features = prints.join(cells.features, [of[llm] for llm in cells.keys["model"]])
        return replace(self.fit_cells(replace(cells, features=features), seed), prints=prints)


@dataclass(frozen=True)
class FittedForest(Fitted):
    """A forest and the encoding of its categories; with `prints`, it reads the LLM's measurements too."""

    forest: RandomForestRegressor
    encoding: TargetEncoding
    settings: Settings
    prints: Fingerprints | None = None

    def answer(self, query: Query) -> Prediction:
        """Return the latencies; PARIS knows an LLM by its rows of `measured` on the reference profiles."""
        features = all_cells(query)
        if self.prints is not None:
            features = self.prints.join(features, [self.prints.of(query.measured)] * len(features))
        latencies = self.forest.predict(self.encoding.transform(features))
        prediction = as_prediction(query, latencies)
        return (
            prediction
            if self.prints is None
            else believe_measured(prediction, query.measured, self.prints.references)
        )


def cut_predictions(tree: Any, x: Floats, depths: Sequence[int]) -> Floats:
    """Return what a tree predicts when cut off at each of the rising depths, [depth, n, targets]."""
    x = x.astype(np.float32)  # as scikit-learn compares
    rows, node = np.arange(len(x)), np.zeros(len(x), dtype=np.intp)
    predicted = []
    for depth in range(depths[-1] + 1):
        if depth in depths:
            predicted.append(tree.value[node, :, 0])
        left = tree.children_left[node]
        goes_left = x[rows, tree.feature[node]] <= tree.threshold[node]
        # A leaf has no children: who is there stays there.
        node = np.where(left < 0, node, np.where(goes_left, left, tree.children_right[node]))
    return np.array(predicted)


def _grow(x: Floats, y: Floats, settings: Settings, seed: int) -> RandomForestRegressor:
    forest = RandomForestRegressor(**settings, random_state=seed, n_jobs=search.threads()).fit(x, y)
    # Threads that predict add up the trees in whatever order they end, so the last digit would vary.
    forest.n_jobs = 1
    return forest
