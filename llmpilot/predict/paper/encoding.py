"""Categories as numbers: target encoding for the tree methods, one column a category for the neural ones.

The target encoding is scikit-learn's (`TargetEncoder`, smooth="auto", after Micci-Barreca 2001), written out
because its arguments change between the versions that we support.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmpilot.predict.paper.features import CATEGORICAL, paper_categories
from llmpilot.predict.paper.table import Cells
from llmpilot.predict.prediction import Floats

FOLDS = 5
USERS = "num_users"


@dataclass(frozen=True)
class TargetEncoding:
    """For each category of each column the mean targets of its rows, shrunk towards the mean of all rows.

    `codes` is column -> category -> [2 targets]; `overall` [2] stands for a category never seen.
    """

    codes: Mapping[str, Mapping[str, Floats]]
    overall: Floats

    def transform(self, features: pd.DataFrame) -> Floats:
        """Return [n, features]: all categories by the first target, then by the second, then the numbers."""
        coded = [
            np.array([self.codes[name].get(value, self.overall) for value in features[name]]).reshape(-1, 2)
            for name in CATEGORICAL
        ]
        by_target = [column[:, [target]] for target in range(2) for column in coded]
        return np.hstack([*by_target, features[numbers(features)].to_numpy(dtype=np.float64)])


def numbers(features: pd.DataFrame) -> list[str]:
    """Return the names of the columns that are numbers, in order."""
    return [name for name in features.columns if name not in CATEGORICAL]


def names(features: pd.DataFrame) -> list[str]:
    """Return the names of the encoded columns, in order."""
    return [f"{name}_{target}" for target in range(2) for name in CATEGORICAL] + numbers(features)


def learn(features: pd.DataFrame, latencies: Floats) -> TargetEncoding:
    """Return the encoding of these rows, `latencies` [n, 2].

    A category's mean weighs n s^2 / (n s^2 + v) against the mean of all rows: n its rows, v its variance, s^2
    that of all rows.
    """
    overall, variance = latencies.mean(axis=0), latencies.var(axis=0)
    codes: dict[str, dict[str, Floats]] = {}
    for column in CATEGORICAL:
        codes[column] = {}
        for category, rows in features.groupby(column).indices.items():
            own = latencies[rows]
            signal = len(own) * variance
            noise = own.var(axis=0)
            weight = np.divide(signal, signal + noise, out=np.zeros(2), where=signal + noise > 0)
            codes[column][str(category)] = weight * own.mean(axis=0) + (1 - weight) * overall
    return TargetEncoding(codes, overall)


def encode_training(cells: Cells) -> Floats:
    """Return the training rows encoded, each fifth by the other four: no row sees its own latencies."""
    n = len(cells.keys)
    encoded: list[Floats] = []
    for rows in np.array_split(np.arange(n), FOLDS):
        others = np.setdiff1d(np.arange(n), rows)
        encoding = learn(cells.features.iloc[others], cells.latencies[others])
        encoded.append(encoding.transform(cells.features.iloc[rows]))
    return np.vstack(encoded)


@dataclass(frozen=True)
class OneHot:
    """One column a known category, none for others; every column standardised as in training."""

    categories: Mapping[str, Sequence[str]]
    mean: Floats
    scale: Floats

    def transform(self, features: pd.DataFrame) -> Floats:
        """Return [n, columns]."""
        return (_columns(features, self.categories) - self.mean) / self.scale


def learn_one_hot(features: pd.DataFrame) -> OneHot:
    """Return the encoding of these rows.

    Every category of the paper's LLMs has its column, also where no row is of it: its networks had 46 inputs
    whichever LLM was left out.
    """
    categories = {name: sorted({*features[name], *paper_categories()[name]}) for name in CATEGORICAL}
    columns = _columns(features, categories)
    scale = columns.std(axis=0)
    return OneHot(categories, columns.mean(axis=0), np.where(scale > 0, scale, 1.0))


def _columns(features: pd.DataFrame, categories: Mapping[str, Sequence[str]]) -> Floats:
    hot = [
        (features[name] == category).to_numpy(dtype=np.float64)
        for name in CATEGORICAL
        for category in categories[name]
    ]
    return np.column_stack([features[numbers(features)].to_numpy(dtype=np.float64), *hot])
