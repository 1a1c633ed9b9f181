"""Selecta (Klimovic et al., USENIX ATC 2018): latencies as a matrix of LLMs and GPU profiles, completed.

One matrix for each user count and metric. A new LLM is a row in which only the reference profiles are known;
no feature of it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from pydantic import PositiveFloat, PositiveInt

from llmpilot.config import Ladder
from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError
from llmpilot.predict.evaluation import profile_key, rows_of
from llmpilot.predict.paper.factorize import Problems, Settings, factorize
from llmpilot.predict.paper.table import TARGETS, as_prediction, believe_measured, cells_of, in_papers_order
from llmpilot.predict.prediction import Floats, Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor


@dataclass(frozen=True)
class Choice:
    """One point of the grid."""

    n_factors: int
    n_epochs: int
    init_std_dev: float
    learning_rate: float
    penalty: float


@dataclass(frozen=True)
class Rating:
    """What is known of an LLM on a GPU profile: nTTFT for each user count, then ITL [ms]; NaN is unknown."""

    llm: str
    profile: str
    values: Floats


class Selecta(Predictor):
    """The grid of hyperparameters; of equals the first."""

    n_factors: Ladder[PositiveInt]
    n_epochs: PositiveInt
    init_std_dev: Ladder[PositiveFloat]
    learning_rate: Ladder[PositiveFloat]
    penalty: Ladder[PositiveFloat]

    def fit(self, data: Dataset, seed: int) -> "FittedSelecta":
        """Choose the hyperparameters by leaving LLMs out; the matrix is completed when predicting."""
        llms = cells_of(data).llms
        users = tuple(sorted(int(level) for level in data.table["users"].unique()))
        table = in_papers_order(data.table, data.models)
        ratings = ratings_of(table, users)
        grid = [
            Choice(factors, self.n_epochs, spread, rate, penalty)
            for factors, spread, rate, penalty in product(
                self.n_factors, self.init_std_dev, self.learning_rate, self.penalty
            )
        ]
        errors = []
        for llm in llms:
            own = [rating for rating in ratings if rating.llm == llm]
            shown = ratings_of(rows_of(table[table["model"] == llm], self.references), users)
            others = [rating for rating in ratings if rating.llm != llm]
            profiles = [rating.profile for rating in own]
            said = complete([*others, *shown], llm, profiles, grid, seed)
            error = np.abs(said / np.array([rating.values for rating in own]) - 1)
            error[:, np.isin(profiles, [rating.profile for rating in shown])] = 0.0
            # The mean of the matrices' errors; a cell that was not measured says nothing.
            errors.append(np.nanmean(np.nanmean(error, axis=1), axis=1))
        chosen = grid[int(np.argmin(np.mean(errors, axis=0)))]
        return FittedSelecta(tuple(ratings), users, self.references, chosen, seed)


@dataclass(frozen=True)
class FittedSelecta(Fitted):
    """The ratings of the training LLMs, and how to complete them."""

    ratings: tuple[Rating, ...]
    users: tuple[int, ...]
    references: tuple[str, ...]
    chosen: Choice
    seed: int

    def answer(self, query: Query) -> Prediction:
        """Return the latencies: of an average LLM, but for what `measured` says on the reference profiles.

        Raises:
            ConfigError: a user count that the training data does not have.
        """
        if unknown := sorted(set(query.users) - set(self.users)):
            raise ConfigError(
                "selecta knows nothing between the user counts that it was trained on",
                given=f"users {', '.join(map(str, unknown))}",
                cure=f"ask for some of {', '.join(map(str, self.users))}, or take another predictor",
            )
        new = f"{query.model.name} (new)"
        shown = (
            [] if query.measured is None else ratings_of(rows_of(query.measured, self.references), self.users)
        )
        known = [*self.ratings, *(Rating(new, rating.profile, rating.values) for rating in shown)]
        wanted = [profile_key(profile.name, profile.count) for profile in query.profiles]
        values = complete(known, new, wanted, [self.chosen], self.seed)[0]
        both = values.reshape(len(query.profiles), len(TARGETS), len(self.users))
        latencies = both[:, :, [self.users.index(level) for level in query.users]].transpose(0, 2, 1)
        prediction = as_prediction(query, latencies)
        return believe_measured(prediction, query.measured, self.references)


def ratings_of(table: pd.DataFrame, users: Sequence[int]) -> list[Rating]:
    """Return the rows as ratings, in order of appearance; of a cell measured more than once, the mean."""
    ratings = []
    for _, rows in table.groupby(["model", "gpu", "count"], sort=False):
        levels = rows.groupby("users")[list(TARGETS)].mean().reindex(list(users))
        llm, gpu, count = rows[["model", "gpu", "count"]].iloc[0]
        ratings.append(Rating(llm, profile_key(gpu, count), levels.to_numpy(dtype=np.float64).T.ravel()))
    return ratings


def complete(
    known: Sequence[Rating], llm: str, profiles: Sequence[str], grid: Sequence[Choice], seed: int
) -> Floats:
    """Return what every choice of the grid says of one LLM, [choice, profile, values of a rating]."""
    llms = list(dict.fromkeys(rating.llm for rating in known))
    columns = list(dict.fromkeys(rating.profile for rating in known))
    values = np.array([rating.values for rating in known])
    n = values.shape[1]
    said = np.empty((len(grid), len(profiles), n))
    for factors in dict.fromkeys(choice.n_factors for choice in grid):
        at = [index for index, choice in enumerate(grid) if choice.n_factors == factors]
        found = factorize(
            Problems(
                [llms.index(rating.llm) for rating in known],
                [columns.index(rating.profile) for rating in known],
                np.tile(values, (1, len(at))),
            ),
            Settings(
                factors=factors,
                epochs=grid[at[0]].n_epochs,
                learning_rate=np.repeat([grid[index].learning_rate for index in at], n),
                penalty=np.repeat([grid[index].penalty for index in at], n),
                spread=np.repeat([grid[index].init_std_dev for index in at], n),
                seed=seed,
            ),
        )
        for column, profile in enumerate(profiles):
            estimate = found.estimate(
                llms.index(llm) if llm in llms else None,
                columns.index(profile) if profile in columns else None,
            )
            said[at, column] = estimate.reshape(len(at), n)
    return said
