"""Measured curves as options to choose from, and how much load each takes within limits.

An option is a measured curve: one service (LLM, engine and its version, GPU type, GPUs, parallel sizes,
precision) under one pair of lengths, with its measured levels of concurrency. What is chosen, and how good
that is, belongs to `recommended`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.dataset.measurements import Measurements
from llmpilot.predict.service.levels import Level
from llmpilot.predict.service.validation import PREFERRED

Numbers = NDArray[np.float64]

SERVICE = (
    "model",
    "engine",
    "engine_version",
    "gpu",
    "n_gpus",
    "tp",
    "pp",
    "dp",
    "ep",
    "moe_tp",
    "precision",
)
LENGTHS = ("input_tokens", "output_tokens")


@dataclass(frozen=True)
class Limits:
    """What TPOT and TTFT may be at most [ms]; infinite: no limit."""

    tpot_ms: float = inf
    ttft_ms: float = inf


@dataclass(frozen=True)
class Points:
    """What a curve's levels show [n]: latencies, and output tokens a second."""

    tpot_ms: Numbers
    ttft_ms: Numbers
    output_tokens_per_s: Numbers


@dataclass(frozen=True)
class MeasuredCurve:
    """One service under one pair of lengths, levels [n] by rising concurrency.

    `lengths` are the nominal ones [tokens], `mean_output_tokens` what a request has on average. `rows` are,
    for each level, the rows of the table that measured it: of several, the geometric mean counts.
    """

    model: str
    family: str
    service: tuple[Any, ...]
    gpu: str
    n_gpus: int
    lengths: tuple[float, float]
    mean_output_tokens: float
    concurrency: Numbers
    rows: tuple[tuple[int, ...], ...]
    measured: Points

    @property
    def label(self) -> str:
        """`vllm 0.11 on 4 x h100, fp8`: how tables call the service."""
        said = dict(zip(SERVICE, self.service, strict=True))
        engine = " ".join(str(said[name]) for name in ("engine", "engine_version") if said[name] is not None)
        return f"{engine} on {self.n_gpus} x {self.gpu}, {said['precision']}"

    @property
    def all_rows(self) -> list[int]:
        """The rows of all levels."""
        return [row for rows in self.rows for row in rows]

    def at_levels(self, values: Numbers) -> Numbers:
        """Return the geometric mean over the rows of each level [n] of a figure of all rows of the table."""
        return np.array([np.exp(np.log(values[list(rows)]).mean()) for rows in self.rows])

    def output_tokens_per_s(self, tpot_ms: Numbers, ttft_ms: Numbers) -> Numbers:
        """Return what users who send one request after the other get, by Little's law."""
        e2e_ms = ttft_ms + tpot_ms * (self.mean_output_tokens - 1.0)
        return np.asarray(1e3 * self.concurrency * self.mean_output_tokens / e2e_ms)

    def largest_load(self, limits: Limits) -> float:
        """Return the most output tokens/s that were measured within the limits; 0 for none.

        Between two levels latencies and throughput are interpolated, their logarithms in the logarithm of
        the concurrency; beyond the first and last level there is nothing.
        """
        points = self.measured
        load = np.log(points.output_tokens_per_s)
        within = [
            (np.log(points.tpot_ms), np.log(limits.tpot_ms)),
            (np.log(points.ttft_ms), np.log(limits.ttft_ms)),
        ]
        if len(load) == 1:
            return float(np.exp(load[0])) if all(logs[0] <= limit for logs, limit in within) else 0.0
        # Every latency confines a segment's allowed part, from 0 to 1, from below or from above.
        begin, end = np.zeros(len(load) - 1), np.ones(len(load) - 1)
        for logs, limit in within:
            left, slope = logs[:-1], np.diff(logs)
            with np.errstate(divide="ignore", invalid="ignore"):
                crossing = (limit - left) / slope
            end = np.where(slope > 0, np.minimum(end, crossing), end)
            begin = np.where(slope < 0, np.maximum(begin, crossing), begin)
            end = np.where((slope == 0) & (left > limit), -1.0, end)
        best = np.maximum(*(load[:-1] + part * np.diff(load) for part in (begin, end)))
        return float(np.exp(np.where(begin <= end, best, -inf).max()))


def measured_curves(measurements: Measurements, levels: Sequence[Level]) -> list[MeasuredCurve]:
    """Return the curves of a table, in its order; `levels` are its rows in a closed loop.

    Rows that lack TPOT or TTFT are left out.
    """
    tpot, ttft = latencies_ms(measurements)
    stated = measurements.table["throughput_out_tok_s"].to_numpy(np.float64)
    names = [*SERVICE, *LENGTHS]
    keys = measurements.table[names].astype(object).where(measurements.table[names].notna(), None)
    grouped: dict[tuple[Any, ...], list[Level]] = {}
    for level in levels:
        if level.users is not None and tpot[level.row] > 0 and ttft[level.row] > 0:
            grouped.setdefault(tuple(keys.iloc[level.row]), []).append(level)
    return [_curve(key, some, tpot, ttft, stated) for key, some in grouped.items()]


def latencies_ms(measurements: Measurements) -> tuple[Numbers, Numbers]:
    """Return TPOT and TTFT of every row [n rows], in the statistic that is judged; NaN for none."""
    names = ("tpot_ms", "ttft_ms")
    tpot, ttft = (measurements.figure(name, PREFERRED).to_numpy(np.float64) for name in names)
    return tpot, ttft


def _curve(
    key: tuple[Any, ...], levels: Sequence[Level], tpot: Numbers, ttft: Numbers, stated: Numbers
) -> MeasuredCurve:
    rows: dict[float, list[int]] = {}
    for level in sorted(levels, key=lambda one: (one.users or 0.0, one.row)):
        rows.setdefault(level.users or 0.0, []).append(level.row)
    one = levels[0]
    said = dict(zip([*SERVICE, *LENGTHS], key, strict=True))
    blank = Points(np.empty(0), np.empty(0), np.empty(0))
    curve = MeasuredCurve(
        model=str(said["model"]),
        family=one.family,
        service=key[: len(SERVICE)],
        gpu=str(said["gpu"]),
        n_gpus=one.service.gpu.count,
        lengths=(float(said["input_tokens"]), float(said["output_tokens"])),
        mean_output_tokens=one.output_tokens,
        concurrency=np.array(list(rows)),
        rows=tuple(map(tuple, rows.values())),
        measured=blank,
    )
    tpot_ms, ttft_ms = curve.at_levels(tpot), curve.at_levels(ttft)
    throughput = curve.at_levels(stated)
    by_latency = curve.output_tokens_per_s(tpot_ms, ttft_ms)
    measured = Points(tpot_ms, ttft_ms, np.where(np.isfinite(throughput), throughput, by_latency))
    return replace(curve, measured=measured)
