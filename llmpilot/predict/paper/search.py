"""Hyperparameters as the paper chooses them: the least error on LLMs left out of the training, one by one."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from sklearn.model_selection import ParameterGrid

from llmpilot.predict.paper.encoding import encode_training, learn
from llmpilot.predict.paper.table import Cells
from llmpilot.predict.prediction import Floats

Grid = Mapping[str, Sequence[Any]]
Settings = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Split:
    """Encoded training rows `x` with latencies `y`, and those of the LLM that was left out."""

    x: Floats
    y: Floats
    rows: Cells
    x_left_out: Floats
    y_left_out: Floats


def threads() -> int:
    """Return how many threads to use: OMP_NUM_THREADS where set, as in evaluation's workers; else all."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) > 0 else os.cpu_count() or 1


def in_threads(work: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
    """Return the results of `work`, which should spend its time outside Python, in order."""
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(work, jobs))


def settings_of(grid: Grid) -> list[Settings]:
    """Return every combination, in the order that decides between equals: names sorted, the last fastest."""
    return [dict(settings) for settings in ParameterGrid(dict(grid))]


def split(train: Cells, left_out: Cells) -> Split:
    """Return both parts target-encoded by the first."""
    encoding = learn(train.features, train.latencies)
    return Split(
        encode_training(train),
        train.latencies,
        train,
        encoding.transform(left_out.features),
        left_out.latencies,
    )


def mape(predicted: Floats, measured: Floats) -> float:
    """Return the mean of |predicted / measured - 1| over all rows and both metrics, as a fraction."""
    return float(np.mean(np.abs(predicted - measured) / np.abs(measured)))


def best(all_settings: Sequence[Settings], errors: Sequence[Sequence[float]]) -> Settings:
    """Return the settings with the least mean error over the LLMs left out; `errors` is [LLM][settings]."""
    return dict(all_settings[int(np.argmin(np.mean(errors, axis=0)))])
