"""The default predictor: views of physics, trees on each, the spread that leaving LLMs out shows.

Each view is a set of physics whose predictions the trees see beside the facts: closed form and simulator, or
the simulator alone. Nothing that an LLM's rows are predicted from in training has seen that LLM. A prediction
is the mean of what all views say. Half of its draws stray from it the further, the harder a cell is to
predict; half as if all cells were alike.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import xgboost
from pydantic import Field, PositiveInt
from sklearn.ensemble import ExtraTreesRegressor

from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError
from llmpilot.predict.pilot.fitted import FittedPilot, FittedView, load_pilot
from llmpilot.predict.pilot.lessons import OWN, Lessons, lessons_of, physics_of
from llmpilot.predict.pilot.measured import ITL, NTTFT
from llmpilot.predict.pilot.residuals import fit_widths
from llmpilot.predict.pilot.shipped import shipped_pilot
from llmpilot.predict.pilot.trees import grow, to_booster
from llmpilot.predict.prediction import Floats
from llmpilot.predict.predictor import Predictor

View = list[Literal["closed_form", "simulator"]]
SHOWN_WEIGHT = 3.0
"""How much a measured row of the LLM in question counts, over the usual: there are few of them."""


class Pilot(Predictor):
    """Trees over physics with a Student-t process on what they miss.

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
        return self._fit(data, None, seed)

    def fit_knowing(self, data: Dataset, own: Dataset, seed: int) -> FittedPilot:
        """Learn for an LLM of which the rows `own` were measured, on some profiles or more.

        Its rows are learned from like all others. And as every LLM in turn is left out but for its rows on
        the same profiles, the spread of what is then missed elsewhere is what such measurements leave open.
        """
        return self._fit(data, own, seed)

    def shipped(self, data: Dataset, seed: int) -> FittedPilot | None:
        """Return what `fit` would, from the package's files; None where that was not shipped."""
        return shipped_pilot(self.model_dump(mode="json"), data, seed)

    def load(self, folder: Path) -> FittedPilot:
        """Return what a fitted pilot's `save` wrote."""
        return load_pilot(folder)

    def _fit(self, data: Dataset, own: Dataset | None, seed: int) -> FittedPilot:
        names = set(data.table["model"])
        if len(names) < 2:
            raise ConfigError(
                "the pilot predictor learns its spread by leaving LLMs out: it needs two or more",
                given=f"{len(names)} in the data set",
                cure="merge it with the published measurements (task=dataset)",
            )
        lessons, physics = lessons_of(data, own), physics_of(data)
        learned = [self._learn(view, lessons, seed + 7919 * number) for number, view in enumerate(self.views)]
        missed = np.mean([missed for _, missed in learned], axis=0)
        residuals = tuple(fit_widths(lessons.clusters(missed[:, metric])) for metric in (NTTFT, ITL))
        keys = data.table[["model", "gpu", "count", "users"]]
        hidden = ~lessons.seen[: len(data)]
        return FittedPilot(
            known=lessons.known,
            closed_form=physics.closed_form,
            simulator=physics.simulator,
            views=tuple(view for view, _ in learned),
            residuals=residuals,
            kin=lessons.kin,
            failures=self._learn_failures(lessons, seed),
            seen_on=lessons.seen_on,
            draws=self.draws,
            seed=seed,
            out_of_fold=keys.assign(nttft=missed[: len(data), NTTFT], itl=missed[: len(data), ITL])[hidden],
        )

    def _learn(self, view: View, lessons: Lessons, seed: int) -> tuple[FittedView, Floats]:
        """Return one view, and what predictions without the row's LLM missed [rows, 2]: but for rows on the
        profiles seen, which nobody predicts."""
        features = lessons.seen_by(view)

        def forest(asked: str, metric: int, trees: int) -> ExtraTreesRegressor:
            """Grow without what is hidden of an LLM, for it to be predicted."""
            of = lessons.names == asked
            kept = ~of | lessons.seen
            weights = np.where(of, SHOWN_WEIGHT, lessons.weights)[kept]
            return grow(features[kept], lessons.truth[kept, metric], weights, trees, seed)

        forests = tuple(to_booster(forest(OWN, metric, self.trees)) for metric in (NTTFT, ITL))
        predicted = lessons.truth.copy()
        for name in lessons.llms:
            hidden = (lessons.names == name) & ~lessons.seen
            for metric in (NTTFT, ITL) if hidden.any() else ():
                left_out = forest(name, metric, self.fold_trees)
                predicted[hidden, metric] = left_out.predict(features[hidden])
        return FittedView(tuple(view), forests), lessons.truth - predicted

    def _learn_failures(self, lessons: Lessons, seed: int) -> xgboost.Booster | None:
        """Return how probable failures are, by what the view with most physics sees; None: never counted."""
        counted = np.isfinite(lessons.failing)
        if not counted.any():
            return None
        features = lessons.seen_by(max(self.views, key=len))[counted]
        weights = np.where(lessons.names == OWN, SHOWN_WEIGHT, lessons.weights)[counted]
        return to_booster(grow(features, lessons.failing[counted], weights, self.fold_trees, seed))
