"""The nested evaluation: leave one LLM out, fit on the others, recommend for it, judge by what was measured.

Nothing that is fitted or chosen for an LLM sees its rows, but those of the profiles that count as measured:
the predictor's own references, or the few-shot profiles that the caller names.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any

import numpy as np
import pandas as pd

from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError, PilotError
from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.prediction import Prediction
from llmpilot.predict.predictor import Predictor
from llmpilot.predict.scores import Outcome, Truth, judge, truth_of

Map = Callable[..., Iterator[Any]]


class WorkerDiedError(PilotError):
    """One of the processes that evaluate was killed."""

    exit_code = 1


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
    run: Map = map,
) -> Iterator[Fold]:
    """Yield a fold per seed and LLM, in order.

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
    fold = partial(_fold, predictor, data, tuple(needs), tuple(measured))
    yield from run(fold, [(seed, name) for seed in seeds for name in names])


@contextmanager
def workers(count: int) -> Iterator[Map]:
    """Yield a `map` that runs on `count` processes, in order, one thread each."""
    if count == 1:
        yield map
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, when the libraries of the new processes load
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            try:
                yield partial(_deaf_to_ctrl_c, pool.map)
            except BaseException as error:
                # What they are at is of no more use, and takes long. Futures are not cancelled: the pool's
                # own thread would stumble over them, and the interpreter wait for it for ever.
                for process in active_children():
                    process.terminate()
                if isinstance(error, BrokenProcessPool):
                    raise WorkerDiedError(
                        "a process of the evaluation was killed, for want of memory perhaps",
                        given=f"evaluate.workers={count}",
                        cure="evaluate.workers=1",
                    ) from None
                raise
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _deaf_to_ctrl_c(run: Map, *arguments: Any) -> Iterator[Any]:
    """Call what starts processes, so that a terminal's Ctrl-C reaches this process alone, which ends them.

    A process inherits which signals are held back. One of ours waits until they are let through again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return run(*arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _fold(
    predictor: Predictor,
    data: Dataset,
    needs: tuple[Need, ...],
    measured: tuple[str, ...],
    case: tuple[int, str],
) -> Fold:
    seed, name = case
    others, own = data.without(name), data.only(name)
    own = own.select(on_profiles(own.table, (*predictor.references, *measured)))
    fitted = predictor.fit_knowing(others, own, seed) if len(own) else predictor.fit(others, seed)
    truth, shown = truth_of(data, name), own.table
    prediction = fitted.predict(truth.model, truth.profiles, truth.users, shown if len(shown) else None)
    choices = tuple(fitted.choose(prediction, need) for need in needs)
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
