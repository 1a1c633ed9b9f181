"""PerfNet and PerfNetV2 (Wang et al., 2020 and 2021): feed-forward networks on the paper's features."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from llmpilot.dataset import Dataset
from llmpilot.predict.paper import networks
from llmpilot.predict.paper.encoding import OneHot, learn_one_hot
from llmpilot.predict.paper.networks import Network, torch_or_cure
from llmpilot.predict.paper.table import all_cells, as_prediction, cells_of
from llmpilot.predict.prediction import Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor

DROPOUT = 0.3
RATES = ((0, 0.1), (401, 0.05), (801, 0.025))
"""Learning rates of the published code, which counts steps and not epochs."""


class PerfNet(Predictor):
    """Four dense layers and a relative error of logarithms (1); convolutions before, a squared one (2)."""

    version: Literal[1, 2]
    epochs: PositiveInt
    batch_size: PositiveInt

    def fit(self, data: Dataset, seed: int) -> "FittedNetworks":
        """Learn one network for each metric from all rows of `data`.

        Raises:
            ConfigError: PyTorch is not installed.
        """
        network = Network(
            layers=dense if self.version == 1 else convolutional,
            loss=networks.relative_log_error if self.version == 1 else networks.squared_log_error,
            optimizer="Adam",
            rates=RATES,
            batch_size=self.batch_size,
            epochs=self.epochs,
        )
        torch_or_cure()
        cells = cells_of(data)
        encoding = learn_one_hot(cells.features)
        x = encoding.transform(cells.features)
        return FittedNetworks(encoding, tuple(networks.train(network, x, y, seed) for y in cells.latencies.T))


@dataclass(frozen=True)
class FittedNetworks(Fitted):
    """Trained layers for each metric, and the encoding of their inputs."""

    encoding: OneHot
    layers: tuple[Any, ...]

    def answer(self, query: Query) -> Prediction:
        """Return the latencies; `measured` changes nothing: the method knows no use for it."""
        x = self.encoding.transform(all_cells(query))
        latencies = np.column_stack([networks.answer(layers, x) for layers in self.layers])
        return as_prediction(query, latencies)


def dense(inputs: int) -> Any:
    """Return PerfNet's layers."""
    nn = torch_or_cure().nn
    layers: list[Any] = []
    for width in (32, 64, 128, 256):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Dropout(DROPOUT), nn.Linear(inputs, 1, bias=False), nn.ReLU())


def convolutional(inputs: int) -> Any:
    """Return PerfNetV2's layers: two convolutions over the row of features, then PerfNet's."""
    nn = torch_or_cure().nn
    return nn.Sequential(
        nn.Unflatten(1, (1, inputs)),
        nn.Conv1d(1, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv1d(32, 128, kernel_size=2),
        nn.ReLU(),
        nn.Flatten(),
        *dense(128 * (inputs - 3)),
    )
