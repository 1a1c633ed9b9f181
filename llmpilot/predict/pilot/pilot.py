"""The default predictor: two views of physics, trees on each, the spread that leaving LLMs out shows.

Each view is a set of physics whose predictions the trees see beside the facts: the closed form, or closed
form and simulator. Nothing that an LLM's rows are predicted from in training has seen that LLM. The draws of
a prediction come from all views in equal parts, which keeps their disagreement; its median is that of the
view that missed least of LLMs it had not seen.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError
from llmpilot.predict.pilot.cells import Known, Rows, cells_of, dataset_rows, known_of
from llmpilot.predict.pilot.features import features_of
from llmpilot.predict.pilot.fitted import FittedPilot, FittedView, load_pilot
from llmpilot.predict.pilot.measured import ITL, METRICS, NTTFT
from llmpilot.predict.pilot.physics import Physics, fit_physics, weights_of
from llmpilot.predict.pilot.residuals import Cluster, fit_residuals
from llmpilot.predict.pilot.simulated import SimulatorPhysics, fit_simulator
from llmpilot.predict.pilot.trees import grow, to_booster
from llmpilot.predict.prediction import Floats
from llmpilot.predict.predictor import Predictor

View = list[Literal["closed_form", "simulator"]]


class Pilot(Predictor):
    """Trees over physics with a Gaussian process on what they miss.

    `trees` grow in each forest of the answer, `fold_trees` in those that only show the spread; `draws` is how
    many joint samples a prediction has.
    """

    views: Annotated[list[View], Field(min_length=1)]
    trees: PositiveInt = 150
    fold_trees: PositiveInt = 60
    draws: Annotated[int, Field(ge=10, le=100_000)] = 500

    def fit(self, data: Dataset, seed: int) -> FittedPilot:
        """Learn from all rows; needs two LLMs or more.

        Raises:
            ConfigError: the data set holds too few LLMs.
        """
        names = data.table["model"].to_numpy()
        if len(set(names)) < 2:
            raise ConfigError(
                "the pilot predictor learns its spread by leaving LLMs out: it needs two or more",
                given=f"{len(set(names))} in the data set",
                cure="merge it with the published measurements (task=dataset)",
            )
        folds = _Folds(data)
        learned = [self._learn(view, folds, seed + 7919 * number) for number, view in enumerate(self.views)]
        missed = np.mean([missed for _, missed in learned], axis=0)
        keys = data.table[["model", "gpu", "count", "users"]]
        return FittedPilot(
            known=folds.known,
            closed_form=folds.closed_form(None),
            simulator=folds.simulator(None),
            views=tuple(view for view, _ in learned),
            draws=self.draws,
            seed=seed,
            out_of_fold=keys.assign(nttft=missed[:, NTTFT], itl=missed[:, ITL]),
        )

    def load(self, folder: Path) -> FittedPilot:
        """Return what a fitted pilot's `save` wrote."""
        return load_pilot(folder)

    def _learn(self, view: View, folds: "_Folds", seed: int) -> tuple[FittedView, Floats]:
        """Return one view, and what predictions without the row's LLM missed [rows, 2]."""
        features = features_of(cells_of(folds.rows, folds.known), folds.out_of_fold(view))
        forests = tuple(
            to_booster(grow(features, folds.truth[:, metric], folds.weights, self.trees, seed))
            for metric in (NTTFT, ITL)
        )
        predicted = np.empty_like(folds.truth)
        for name in folds.llms:
            out = folds.names == name
            for metric in (NTTFT, ITL):
                forest = grow(
                    features[~out], folds.truth[~out, metric], folds.weights[~out], self.fold_trees, seed
                )
                predicted[out, metric] = forest.predict(features[out])
        missed = folds.truth - predicted
        residuals = tuple(fit_residuals(folds.clusters(missed[:, metric])) for metric in (NTTFT, ITL))
        trust = tuple((1 / np.mean(missed**2, axis=0)).tolist())
        return FittedView(tuple(view), forests, residuals, trust), missed


class _Folds:
    """The training rows, and physics fitted without each of their LLMs."""

    def __init__(self, data: Dataset) -> None:
        self.names = data.table["model"].to_numpy(dtype=object)
        self.llms = sorted(set(self.names))
        self.rows: Rows = dataset_rows(data)
        self.known: Known = known_of(data)
        self.truth: Floats = np.log(data.table[list(METRICS)].to_numpy(float))
        self.weights = weights_of(self.names)
        self._cells = cells_of(self.rows, self.known)
        self._closed_forms: dict[str | None, Physics] = {}  # several views ask for the same

    def closed_form(self, without: str | None) -> Physics:
        if without not in self._closed_forms:
            kept = self.names != without
            self._closed_forms[without] = fit_physics(
                self._cells.select(kept), self.truth[kept], self.weights[kept], self.known
            )
        return self._closed_forms[without]

    def simulator(self, without: str | None) -> SimulatorPhysics:
        kept = set(self.rows.pair[self.names != without].tolist())
        return fit_simulator(self.rows.pairs[at] for at in sorted(kept))

    def out_of_fold(self, view: View) -> list[Floats]:
        """Return the latencies of each of the view's physics for every row, fitted without the row's LLM."""
        columns = [np.empty_like(self.truth) for _ in view]
        for name in self.llms:
            out = self.names == name
            for column, physics in zip(columns, view, strict=True):
                if physics == "closed_form":
                    column[out] = self.closed_form(name).predict(self._cells.select(out))
                else:
                    column[out] = self.simulator(name).predict(self.rows.select(out))
        return columns

    def clusters(self, missed: Floats) -> list[Cluster]:
        doublings = np.log2(self.rows.users)
        return [
            Cluster(self.rows.pair[out], doublings[out], missed[out])
            for out in (self.names == name for name in self.llms)
        ]
