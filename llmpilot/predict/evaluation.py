"""The nested evaluation: leave one LLM out, fit on the others, recommend for it, judge by what was measured.

Nothing that is fitted or chosen for an LLM sees its rows, but those of the profiles that count as measured:
the predictor's own references, or the few-shot profiles that the caller names.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.prediction import Prediction
from llmpilot.predict.predictor import Predictor
from llmpilot.predict.scores import Outcome, Truth, judge, truth_of
from llmpilot.processes import Map


@dataclass(frozen=True)
class Fold:
    """One LLM left out under one seed: what was predicted and chosen without it, and what became of that.

    `choices` and `outcomes` are in the order of the needs; `scored` are the rows that were not given away as
    measured, [profile, users].
    """

    seed: int
    model: str
    truth: Truth
    prediction: Prediction
    scored: np.ndarray
    choices: tuple[Choice | None, ...]
    outcomes: tuple[Outcome, ...]

    def errors(self) -> dict[str, np.ndarray]:
        """Return the relative errors |predicted / measured - 1| of the scored rows, by metric."""
        both = {
            "nttft": (self.prediction.nttft_ms, self.truth.nttft_ms),
            "itl": (self.prediction.itl_ms, self.truth.itl_ms),
        }
        return {
            name: np.abs(said[self.scored] / measured[self.scored] - 1)
            for name, (said, measured) in both.items()
        }


def evaluate(
    predictor: Predictor,
    data: Dataset,
    needs: Sequence[Need],
    seeds: Iterable[int],
    *,
    measured: Sequence[str] = (),
    risk: float | None = None,
    run: Map = map,
) -> Iterator[Fold]:
    """Yield a fold per seed and LLM, in order; choices are made at this `risk` (see `decide`).

    Raises:
        ConfigError: fewer than two LLMs are left to learn from.
    """
    names = sorted(data.models)
    if len(names) < 3:
        raise ConfigError(
            "leaving one LLM out needs at least three in the data set",
            given=f"{len(names)}: {', '.join(names)}",
            cure="merge it with the published measurements (task=dataset), or measure more LLMs",
        )
    fold = partial(_fold, _Asked(predictor, data, tuple(needs), tuple(measured), risk))
    yield from run(fold, [(seed, name) for seed in seeds for name in names])


def profile_key(gpu: str, count: int) -> str:
    """Return `1xT4`: how configurations name a profile."""
    return f"{count}x{gpu}"


def profile_names(table: pd.DataFrame) -> list[set[str]]:
    """Return how the profile of each row may be named, in lower case; A100 is one for A100-40GB."""
    return [
        {profile_key(name, count).lower() for name in (gpu, gpu.removesuffix("-40GB"))}
        for gpu, count in zip(table["gpu"], table["count"], strict=True)
    ]


def on_profiles(table: pd.DataFrame, profiles: Sequence[str]) -> np.ndarray:
    """Return which rows are on the named profiles [n, boolean]: `1xH100`, whatever the case."""
    wanted = {name.lower().replace(" ", "") for name in profiles}
    return np.array([bool(names & wanted) for names in profile_names(table)], dtype=bool)


def rows_of(table: pd.DataFrame, profiles: Sequence[str]) -> pd.DataFrame:
    """Return the rows on the named profiles."""
    return table[on_profiles(table, profiles)]


@dataclass(frozen=True)
class _Asked:
    """What all folds have in common."""

    predictor: Predictor
    data: Dataset
    needs: tuple[Need, ...]
    measured: tuple[str, ...]
    risk: float | None


def _fold(asked: _Asked, case: tuple[int, str]) -> Fold:
    seed, name = case
    predictor, data, needs = asked.predictor, asked.data, asked.needs
    others, own = data.without(name), data.only(name)
    own = own.select(on_profiles(own.table, (*predictor.references, *asked.measured)))
    fitted = predictor.fit_knowing(others, own, seed) if len(own) else predictor.fit(others, seed)
    truth, shown = truth_of(data, name), own.table
    prediction = fitted.predict(truth.model, truth.profiles, truth.users, shown if len(shown) else None)
    choices = tuple(fitted.choose(prediction, need, asked.risk) for need in needs)
    given = {(data.gpus[gpu].name, count) for gpu, count in zip(shown["gpu"], shown["count"], strict=True)}
    hidden = np.array([(gpu.name, gpu.count) not in given for gpu in truth.profiles])
    return Fold(
        seed=seed,
        model=name,
        truth=truth,
        prediction=prediction,
        scored=hidden[:, None] & np.isfinite(truth.nttft_ms),
        choices=choices,
        outcomes=tuple(judge(choice, truth, need) for choice, need in zip(choices, needs, strict=True)),
    )
