"""Matrix factorisation with biases by stochastic gradient descent, many problems of one shape at once.

Rating of row i in column j: mean + b_i + c_j + p_i . q_j ("SVD" of the recommender literature: Koren, Bell
and Volinsky 2009). Order of updates and initial values are those of Surprise's SVD, which the paper used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmpilot.predict.prediction import Floats


@dataclass(frozen=True)
class Problems:
    """Ratings of the same cells in many problems: rows[k] and columns[k] of rating k, `values` [k, problem].

    A NaN is a cell that this problem does not know.
    """

    rows: Sequence[int]
    columns: Sequence[int]
    values: Floats


@dataclass(frozen=True)
class Settings:
    """How to descend; the learning rate, the penalty and the spread of initial factors differ by problem."""

    factors: int
    epochs: int
    learning_rate: Floats
    penalty: Floats
    spread: Floats
    seed: int


@dataclass(frozen=True)
class Factors:
    """What descent arrived at: [problem], [row, problem], [column, problem], [.., problem, factor]."""

    mean: Floats
    row_bias: Floats
    column_bias: Floats
    row_factors: Floats
    column_factors: Floats
    row_known: NDArray[np.bool_]
    column_known: NDArray[np.bool_]
    largest: Floats

    def estimate(self, row: int | None, column: int | None) -> Floats:
        """Return one cell's rating in every problem, between 0 and the largest known; None is unknown to all.

        A row or column without ratings is taken for an average one. Where descent diverged, the estimate is
        the largest.
        """
        value = self.mean.copy()
        row_known = self.row_known[row] if row is not None else np.zeros(len(value), dtype=bool)
        column_known = self.column_known[column] if column is not None else np.zeros(len(value), dtype=bool)
        with np.errstate(invalid="ignore", over="ignore"):
            if row is not None:
                value += np.where(row_known, self.row_bias[row], 0.0)
            if column is not None:
                value += np.where(column_known, self.column_bias[column], 0.0)
            if row is not None and column is not None:
                product = np.einsum("bf,bf->b", self.row_factors[row], self.column_factors[column])
                value += np.where(row_known & column_known, product, 0.0)
            return np.where(np.isnan(value), self.largest, np.clip(value, 0.0, self.largest))


def factorize(problems: Problems, settings: Settings) -> Factors:
    """Return the factors of every problem, visiting the ratings in their order in every epoch."""
    values = problems.values
    known = np.isfinite(values)
    n_rows, n_columns, n = max(problems.rows) + 1, max(problems.columns) + 1, values.shape[1]
    random = np.random.RandomState(settings.seed)  # the legacy generator: the published predictions' own
    spread = settings.spread[None, :, None]
    p = random.normal(size=(n_rows, 1, settings.factors)) * spread
    q = random.normal(size=(n_columns, 1, settings.factors)) * spread
    b, c = np.zeros((n_rows, n)), np.zeros((n_columns, n))
    mean = np.array(
        [column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in values.T]
    )
    centred = np.where(known, values - mean, 0.0)
    rate = settings.learning_rate * known  # an unknown cell teaches nothing
    shrink = 1 - rate * settings.penalty
    cells = list(zip(problems.rows, problems.columns, centred, rate, shrink, strict=True))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(settings.epochs):
            for i, j, rating, step, keep in cells:
                p_i, q_j, b_i, c_j = p[i], q[j], b[i], c[j]
                error = rating - b_i - c_j - np.einsum("bf,bf->b", p_i, q_j)
                error *= step
                b_i *= keep
                b_i += error
                c_j *= keep
                c_j += error
                before = p_i * error[:, None]
                p_i *= keep[:, None]
                p_i += q_j * error[:, None]
                q_j *= keep[:, None]
                q_j += before
    return Factors(
        mean=mean,
        row_bias=b,
        column_bias=c,
        row_factors=p,
        column_factors=q,
        row_known=_any_known(problems.rows, known, n_rows),
        column_known=_any_known(problems.columns, known, n_columns),
        largest=np.where(known, values, 0.0).max(axis=0),
    )


def _any_known(of_rating: Sequence[int], known: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Return [row, problem]: whether any of the row's ratings is known."""
    found = np.zeros((size, known.shape[1]), dtype=bool)
    np.logical_or.at(found, np.asarray(of_rating), known)
    return found
