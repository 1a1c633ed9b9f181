"""What every predictor is: fitted on a dataset, it tells the latencies of a model on GPU profiles under load.

A predictor is a behaviour of the configuration (`predictor=pilot`). Fitting gives a `Fitted`, which knows
only the dataset it was given; evaluation relies on that to leave one LLM out.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pandas as pd

from llmpilot.config import Facts, Gpu, Model
from llmpilot.dataset import Dataset
from llmpilot.predict.decision import Choice, Need, Rule, choose
from llmpilot.predict.prediction import Prediction, Query


class Fitted(ABC):
    """A predictor that has seen a dataset."""

    def predict(
        self,
        model: Model,
        profiles: Sequence[Gpu],
        users: Sequence[int],
        measured: pd.DataFrame | None = None,
    ) -> Prediction:
        """Return the answer to a `Query` of these."""
        return self.answer(Query(model, tuple(profiles), tuple(users), measured))

    @abstractmethod
    def answer(self, query: Query) -> Prediction:
        """Return the latencies that were asked for."""

    def choose(self, prediction: Prediction, need: Need, risk: float | None = None) -> Choice | None:
        """Return the GPU profile and the number of pods to take; None: nothing will do.

        `risk` is the largest probability with which the promise may be broken; None weighs price against
        certainty.
        """
        return choose(prediction, need, risk)


class Predictor(Facts, ABC):
    """How to learn from a dataset. `references` are the profiles of a new LLM that must be measured first,
    written `1xT4`."""

    name: str
    references: tuple[str, ...] = ()

    @abstractmethod
    def fit(self, data: Dataset, seed: int) -> Fitted:
        """Learn from all rows of `data`; every random choice follows from `seed`."""

    def rule(self, risk: float | None = None) -> Rule:
        """Return by which rule its fitted ones choose at this risk."""
        return Rule.at(risk)

    def fit_knowing(self, data: Dataset, own: Dataset, seed: int) -> Fitted:
        """Learn for an LLM of which the rows `own` were measured, and which is not in `data`.

        `predict` is given those rows too. By default they are not learned from.
        """
        return self.fit(data, seed)
