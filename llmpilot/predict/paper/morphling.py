"""Morphling (Wang et al., SoCC 2021): a network pre-trained on other LLMs, adapted to what was measured."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import PositiveFloat, PositiveInt

from llmpilot.config import Facts
from llmpilot.dataset import Dataset
from llmpilot.predict.evaluation import rows_of
from llmpilot.predict.paper import networks
from llmpilot.predict.paper.encoding import OneHot, learn_one_hot
from llmpilot.predict.paper.features import describe
from llmpilot.predict.paper.networks import Network, torch_or_cure
from llmpilot.predict.paper.table import TARGETS, all_cells, as_prediction, believe_measured, cells_of
from llmpilot.predict.prediction import Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor

ADAPTATION_BATCH = 8


class Descent(Facts):
    """How one metric's network is trained: `rate` before, `adaptation_rate` in the epoch of adaptation."""

    epochs: PositiveInt
    batch_size: PositiveInt
    rate: PositiveFloat
    adaptation_rate: PositiveFloat


class Morphling(Predictor):
    """Two dense layers for each metric, trained to the least percentage error.

    The published code states hyperparameters for each LLM that was left out, without their search; ours are
    the most frequent of them, the same whichever LLM is left out.
    """

    nttft: Descent
    itl: Descent

    def fit(self, data: Dataset, seed: int) -> "FittedMorphling":
        """Learn one network for each metric from all rows of `data`.

        Raises:
            ConfigError: PyTorch is not installed.
        """
        torch_or_cure()
        cells = cells_of(data)
        encoding = learn_one_hot(cells.features)
        x = encoding.transform(cells.features)
        stages = (network_of(self.nttft), network_of(self.itl))
        layers = tuple(
            networks.train(stage, x, y, seed) for stage, y in zip(stages, cells.latencies.T, strict=True)
        )
        adaptation = tuple(
            replace(stage, batch_size=ADAPTATION_BATCH, epochs=1, rates=((0, metric.adaptation_rate),))
            for stage, metric in zip(stages, (self.nttft, self.itl), strict=True)
        )
        return FittedMorphling(encoding, layers, adaptation, self.references, seed)


@dataclass(frozen=True)
class FittedMorphling(Fitted):
    """Pre-trained layers for each metric, and how to adapt them."""

    encoding: OneHot
    layers: tuple[Any, ...]
    adaptation: tuple[Network, ...]
    references: tuple[str, ...]
    seed: int

    def answer(self, query: Query) -> Prediction:
        """Return the latencies, after an epoch on the rows of `measured` on those reference profiles that are
        among `profiles`; without any, as pre-trained.
        """
        layers = self.layers
        by_name = {(profile.name, profile.count): profile for profile in query.profiles}
        if query.measured is not None:
            shown = rows_of(query.measured, self.references)
            here = [key in by_name for key in zip(shown["gpu"], shown["count"], strict=True)]
            # The smaller profile first, and rising users: the last to be seen weighs the most.
            rows = shown[np.array(here, dtype=bool)].sort_values(["count", "gpu", "users"], kind="stable")
            if len(rows):
                keys = rows[["gpu", "count", "users"]].itertuples(index=False)
                cells = [(query.model, by_name[gpu, count], int(level)) for gpu, count, level in keys]
                layers = self._adapted(describe(cells), rows)
        x = self.encoding.transform(all_cells(query))
        latencies = np.column_stack([networks.answer(one, x) for one in layers])
        return believe_measured(as_prediction(query, latencies), query.measured, self.references)

    def _adapted(self, features: pd.DataFrame, rows: pd.DataFrame) -> tuple[Any, ...]:
        layers = deepcopy(self.layers)
        x = self.encoding.transform(features)
        with networks.own_randomness(self.seed):
            for one, stage, target in zip(layers, self.adaptation, TARGETS, strict=True):
                networks.descend(stage, one, x, rows[target].to_numpy(dtype=np.float64), shuffle=False)
        return layers


def network_of(descent: Descent) -> Network:
    """Return the network of one metric, to be pre-trained."""
    return Network(
        layers=two_layers,
        loss=networks.percentage_error,
        optimizer="SGD",
        rates=((0, descent.rate),),
        batch_size=descent.batch_size,
        epochs=descent.epochs,
    )


def two_layers(inputs: int) -> Any:
    """Return Morphling's layers."""
    nn = torch_or_cure().nn
    return nn.Sequential(
        nn.Linear(inputs, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 1, bias=False),
        nn.ReLU(),
    )
