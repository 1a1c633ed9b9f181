"""What the server said of itself during a level, sample by sample. No statistics."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmpilot.files import replacing
from llmpilot.schema import exactly


class Sample(NamedTuple):
    """One look at the server; `asked_ns` is the clock's time, NaN stands for what it does not say.

    How long its answer took [ms], requests running and waiting, share of the KV cache in use, preemptions and
    output tokens since the server's start, and of this machine's GPUs power [W] and memory in use [GB].
    """

    asked_ns: int
    answer_ms: float
    running: float
    waiting: float
    kv_usage: float
    preemptions: float
    tokens: float
    gpu_power_w: float
    gpu_memory_gb: float


FIGURES = Sample._fields[1:]


@dataclass(frozen=True)
class ServerSamples:
    """Columns by name (`FIGURES`), one value for each of `time_us` (from the level's start).

    `missed` counts the looks that found no readable page of metrics.
    """

    time_us: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    missed: int = 0

    def inside(self, window_us: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which samples were asked for and answered within the window."""
        answered_us = self.time_us + np.nan_to_num(self.columns["answer_ms"]) * 1e3
        return np.asarray((self.time_us >= window_us[0]) & (answered_us < window_us[1]))


def as_columns(samples: list[Sample], missed: int, start_ns: int) -> ServerSamples:
    """Return the samples as columns."""
    time_us = np.array([(sample.asked_ns - start_ns) // 1000 for sample in samples], dtype=np.int64)
    columns = {
        name: np.array([getattr(sample, name) for sample in samples], dtype=np.float64) for name in FIGURES
    }
    return ServerSamples(time_us, columns, missed)


def write_csv(
    path: Path, level: float, window_us: tuple[int, int], samples: ServerSamples, *, repeat: int = 0
) -> None:
    """Put a level's samples into a CSV of all levels' samples; those that it has of this level are replaced.

    Columns: level, repeat (of a level that is measured several times), time_s (from the level's start),
    in_window, and FIGURES, empty where unknown.
    """
    rows: list[list[Any]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                row for row in list(csv.reader(file))[1:] if (float(row[0]), int(row[1])) != (level, repeat)
            ]
    inside = samples.inside(window_us)
    for i, time_us in enumerate(samples.time_us.tolist()):
        figures = (float(samples.columns[name][i]) for name in FIGURES)
        cells = ["" if np.isnan(figure) else f"{round(figure, 6):.12g}" for figure in figures]
        rows.append([exactly(level), repeat, f"{time_us / 1e6:.3f}", int(inside[i]), *cells])
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["level", "repeat", "time_s", "in_window", *FIGURES], *rows])
