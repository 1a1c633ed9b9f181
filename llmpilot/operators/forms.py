"""What the time of each operator is made of: a roofline with soft edges, and a correction for its shape.

A roofline sums a launch and what is slowest of moving bytes and multiplying, each at a share of the
datasheet's rate. What it misses (tiles that do not fill, kernels that change with the shape) is a correction
on a small grid over the logs of two or three sizes. Knows no constants: they are fitted (fit.py) and shipped.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from llmpilot.operators.rates import Numbers, Rates, bytes_of

Shares = Mapping[str, float]
"""The constants of a roofline by name."""
Constants = Mapping[str, Any]
"""Named constants of a roofline; `correction`: the grid's values, percent of the log of the time; `spread`:
standard deviation of the log of measured over predicted time where these constants are used."""


@dataclass(frozen=True)
class Form:
    """The form of one operator's time.

    `sizes` names the numbers that make up a shape, in the order in which `roofline` and `coordinates` take
    them. `constants` gives each constant's first guess and the bounds of its fit. `knots` are the grid's
    positions along each coordinate, as powers of two, `alone` those of further coordinates that are corrected
    for apart from the grid; `example` is the shape at given coordinates of the grid.
    """

    sizes: tuple[str, ...]
    roofline: Callable[..., Numbers]
    coordinates: Callable[..., tuple[Numbers, ...]]
    example: Callable[..., tuple[Numbers, ...]]
    constants: Mapping[str, tuple[float, float, float]]
    knots: tuple[tuple[float, ...], ...] = ()
    alone: tuple[tuple[float, ...], ...] = ()

    def time_ms(self, constants: Constants, rates: Rates, fmt: str, *shape: Numbers) -> Numbers:
        """Return the time of one call [ms]."""
        roofline = self.roofline(constants, rates, fmt, *shape)
        grid: Grid | None = constants.get("grid")
        return roofline if grid is None else roofline * _exp(grid.at(self.coordinates(*shape)))


class Grid:
    """Numbers on a grid over the logs of some sizes, linear in between and constant beyond.

    A size with knots in `alone` is not part of the grid: it has numbers of its own, which are added.
    """

    def __init__(
        self, knots: Sequence[Sequence[float]], alone: Sequence[Sequence[float]], values: Sequence[float]
    ) -> None:
        counts = [len(axis) for axis in knots]
        strides = [math.prod(counts[i + 1 :]) for i in range(len(counts))]
        first = math.prod(counts)
        axes = [(list(axis), np.array(axis, float), len(axis) - 2) for axis in knots]
        self._blocks = [(0, slice(0, len(knots)), list(zip(axes, strides, strict=True)))]
        for place, axis in enumerate(alone, len(knots)):
            one = (list(axis), np.array(axis, float), len(axis) - 2)
            self._blocks.append((first, slice(place, place + 1), [(one, 1)]))
            first += len(axis)
        self.size = first
        self._values, self._array = list(values), np.array(values)

    def at(self, coordinates: Sequence[Numbers]) -> Numbers:
        """Return the grid's value at these sizes."""
        if not any(isinstance(size, np.ndarray) for size in coordinates):
            return self._at_point(cast(Sequence[float], coordinates))
        total: Numbers = 0.0
        for at, weight in self._corners(coordinates):
            total = total + weight * (self._array[at] if isinstance(at, np.ndarray) else self._values[at])
        return total

    def _at_point(self, coordinates: Sequence[float]) -> float:
        """Return what `at` does for plain numbers, several times faster than with arrays."""
        total, values = 0.0, self._values
        for first, places, axes in self._blocks:
            corners = [(first, 1.0)]
            for size, ((axis, _, last), stride) in zip(coordinates[places], axes, strict=True):
                spot = math.log2(size) if size > 1e-9 else -30.0
                if spot <= axis[0]:
                    continue
                if spot >= axis[-1]:
                    corners = [(at + (last + 1) * stride, weight) for at, weight in corners]
                    continue
                cell = bisect_right(axis, spot) - 1
                share = (spot - axis[cell]) / (axis[cell + 1] - axis[cell])
                lower, rest = cell * stride, 1.0 - share
                corners = [(at + lower, weight * rest) for at, weight in corners] + [
                    (at + lower + stride, weight * share) for at, weight in corners
                ]
            for at, weight in corners:
                total += weight * values[at]
        return total

    def weights(self, coordinates: Sequence[Numbers]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the places of the numbers that `at` sums, and their weights; a row for each point."""
        points = len(np.broadcast_arrays(*coordinates)[0])
        corners = self._corners([size + np.zeros(points) for size in coordinates])
        places = np.stack([np.broadcast_to(at, points) for at, _ in corners], axis=1)
        return places, np.stack([np.broadcast_to(weight, points) for _, weight in corners], axis=1)

    def _corners(self, coordinates: Sequence[Numbers]) -> list[tuple[Any, Any]]:
        every: list[tuple[Any, Any]] = []
        for first, places, axes in self._blocks:
            corners: list[tuple[Any, Any]] = [(first, 1.0)]
            for size, (axis, stride) in zip(coordinates[places], axes, strict=True):
                cell, share = _locate(size, *axis)
                lower, rest = cell * stride, 1.0 - share
                corners = [(at + lower, weight * rest) for at, weight in corners] + [
                    (at + (lower + stride), weight * share) for at, weight in corners
                ]
            every += corners
        return every


def _locate(size: Numbers, axis: list[float], array: NDArray[np.float64], last: int) -> tuple[Any, Any]:
    if isinstance(size, np.ndarray):
        place = np.clip(np.log2(np.maximum(size, 1e-9)), axis[0], axis[-1])
        cell = np.clip(np.searchsorted(array, place, side="right") - 1, 0, last)
        return cell, (place - array[cell]) / (array[cell + 1] - array[cell])
    spot = min(max(math.log2(size if size > 1e-9 else 1e-9), axis[0]), axis[-1])
    at = min(bisect_right(axis, spot) - 1, last)
    return at, (spot - axis[at]) / (axis[at + 1] - axis[at])


def _gemm(c: Shares, rates: Rates, fmt: str, m: Numbers, n: Numbers, k: Numbers) -> Numbers:
    n, k = larger(n, 64.0), larger(k, 64.0)
    moved = (n * k + m * k) * bytes_of(fmt) + 2.0 * m * n
    return c["launch_us"] * 1e-3 + _edge(
        c["sharpness"],
        moved / (rates.bandwidth * c["bandwidth_share"]),
        2.0 * m * n * k / (rates.compute(fmt) * c["compute_share"]),
        c["per_k_ns"] * 1e-6 * k,
    )


def _decode_attention(
    c: Shares,
    rates: Rates,
    fmt: str,
    sequences: Numbers,
    context_tokens: Numbers,
    n_heads: Numbers,
    n_kv_heads: Numbers,
    width: Numbers,
) -> Numbers:
    moved = context_tokens * n_kv_heads * width * bytes_of(fmt)
    # Tensor units take at least 16 queries at a time, whatever the heads that share a key.
    operations = 2.0 * context_tokens * larger(n_heads, 16.0 * n_kv_heads) * width
    return (
        c["launch_us"] * 1e-3
        + _edge(
            c["sharpness"],
            moved / (rates.bandwidth * c["bandwidth_share"]),
            operations / (rates.compute("bf16") * c["compute_share"]),
        )
        + c["per_head_ns"] * 1e-6 * sequences * n_heads
    )


def _prefill_attention(
    c: Shares,
    rates: Rates,
    fmt: str,
    chunks: Numbers,
    tokens: Numbers,
    pairs: Numbers,
    n_heads: Numbers,
    n_kv_heads: Numbers,
    width: Numbers,
) -> Numbers:
    # A chunk of q tokens behind c that are cached has q (c + q / 2) pairs: its c + q positions follow.
    positions = pairs / larger(tokens, 1.0) * chunks + tokens / 2.0
    moved = tokens * n_heads * width * 2.0 + positions * n_kv_heads * width * bytes_of(fmt)
    return (
        c["launch_us"] * 1e-3
        + _edge(
            c["sharpness"],
            moved / (rates.bandwidth * c["bandwidth_share"]),
            2.0 * n_heads * width * pairs / (rates.compute("bf16") * c["compute_share"]),
        )
        + c["per_head_ns"] * 1e-6 * chunks * n_heads
    )


def _latent_decode(
    c: Shares,
    rates: Rates,
    fmt: str,
    sequences: Numbers,
    context_tokens: Numbers,
    n_heads: Numbers,
    kv_rank: Numbers,
    rope_dim: Numbers,
) -> Numbers:
    moved = context_tokens * (kv_rank + rope_dim) * bytes_of(fmt)
    operations = 2.0 * context_tokens * larger(n_heads, 16.0) * (2.0 * kv_rank + rope_dim)
    return c["launch_us"] * 1e-3 + _edge(
        4.0,
        moved / (rates.bandwidth * c["bandwidth_share"]),
        operations / (rates.compute("bf16") * c["compute_share"]),
    )


def _latent_prefill(
    c: Shares, rates: Rates, fmt: str, chunks: Numbers, pairs: Numbers, n_heads: Numbers, width: Numbers
) -> Numbers:
    operations = 2.0 * n_heads * width * pairs
    return c["launch_us"] * 1e-3 + operations / (rates.compute("bf16") * c["compute_share"]) + 0.0 * chunks


def _experts(
    c: Shares,
    rates: Rates,
    fmt: str,
    tokens: Numbers,
    d_model: Numbers,
    slice_width: Numbers,
    per_token: Numbers,
    n_experts: Numbers,
    expert_parallel: Numbers,
    matrices: Numbers,
) -> Numbers:
    weights = matrices * d_model * slice_width
    # Routing is skewed: so many experts are touched as if, after the first, only a share of the tokens chose.
    choices = 1.0 + c["choosing_share"] * (larger(tokens, 1.0) - 1.0)
    touched = n_experts / expert_parallel * (1.0 - (1.0 - per_token / n_experts) ** choices)
    # Of groups that share the experts out, the one that is sent most is waited for.
    rows = tokens * per_token / expert_parallel ** (1.0 - c["imbalance"])
    moved = touched * weights * bytes_of(fmt) + 4.0 * rows * (d_model + 2.0 * slice_width)
    operations = 2.0 * (rows + touched * c["tile_rows"]) * weights
    return (
        c["launch_us"] * 1e-3
        + _edge(
            c["sharpness"],
            moved / (rates.bandwidth * c["bandwidth_share"]),
            operations / (rates.compute(fmt) * c["compute_share"]),
        )
        + c["per_expert_us"] * 1e-3 * touched
    )


def _recurrent(
    c: Shares,
    rates: Rates,
    fmt: str,
    sequences: Numbers,
    prefill_tokens: Numbers,
    state_values: Numbers,
    state_bytes_per_value: Numbers,
    value_dim: Numbers,
) -> Numbers:
    moved = 2.0 * sequences * state_values * state_bytes_per_value
    # In chunks of 64 tokens: the state is read out, corrected and updated, and tokens attend to each other.
    operations = prefill_tokens * (6.0 * state_values + 4.0 * 64.0 * value_dim)
    return (
        c["launch_us"] * 1e-3
        + moved / (rates.bandwidth * c["bandwidth_share"])
        + operations / (rates.compute("bf16") * c["compute_share"])
    )


def _communication(trips: float) -> Callable[..., Numbers]:
    def roofline(c: Shares, rates: Rates, fmt: str, message_bytes: Numbers, gpus: Numbers) -> Numbers:
        start = c["launch_us"] * 1e-3 * gpus ** c["growth"]
        moved = trips * message_bytes * (gpus - 1.0) / gpus
        # Where every GPU hangs on one bus, they stand in each other's way.
        crowd = (gpus / 2.0) ** c["crowding"]
        return start + moved * crowd / (rates.link(gpus) * c["bandwidth_share"])

    return roofline


_WIDTHS = (7, 8, 8.585, 9)
_SHARE = (0.7, 0.02, 0.97)
_LAUNCH = (5.0, 0.5, 300.0)
_MESSAGES = {"launch_us": (5.0, 0.5, 300.0), "growth": (0.3, 0.0, 1.5), "bandwidth_share": (0.6, 0.02, 0.97)}


def _message_form(trips: float) -> Form:
    return Form(
        sizes=("message_bytes", "gpus"),
        roofline=_communication(trips),
        coordinates=lambda message_bytes, gpus: (message_bytes, gpus),
        example=lambda message_bytes, gpus: (message_bytes, gpus),
        constants=_MESSAGES | {"crowding": (0.01, 0.001, 2.0)},
        knots=((8, 12, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 28), (1, 2, 3)),
    )


FORMS: dict[str, Form] = {
    "gemm": Form(
        sizes=("m", "n", "k"),
        roofline=_gemm,
        coordinates=lambda m, n, k: (m, n, k),
        example=lambda m, n, k: (m, n, k),
        constants={
            "launch_us": (3.0, 0.5, 30.0),
            "bandwidth_share": _SHARE,
            "compute_share": _SHARE,
            "per_k_ns": (0.5, 0.01, 10.0),
            "sharpness": (2.0, 0.9, 6.0),
        },
        knots=(
            (0, 3, 5, 6, 7, 8, 9, 10, 11, 13),
            (7, 9, 10, 11, 12, 13, 14, 16),
            (7, 9, 10, 11, 12, 13, 14, 16),
        ),
    ),
    "decode_attention": Form(
        sizes=("sequences", "context_tokens", "n_heads", "n_kv_heads", "width"),
        roofline=_decode_attention,
        coordinates=lambda sequences, context_tokens, n_heads, n_kv_heads, width: (
            sequences * n_kv_heads,
            context_tokens / larger(sequences, 1e-9),
            n_heads / n_kv_heads,
            width,
        ),
        example=lambda lanes, context, group: (lanes, lanes * context, group, 1.0, 256.0),
        constants={
            "launch_us": _LAUNCH,
            "bandwidth_share": _SHARE,
            "compute_share": (0.8, 0.6, 2.0),
            "per_head_ns": (1.0, 0.01, 30.0),
            "sharpness": (2.0, 0.9, 6.0),
        },
        knots=((0, 2, 4, 6, 8, 10, 12), (5, 7, 9, 10, 11, 12, 13, 15, 17), (0, 1, 4, 6)),
        alone=(_WIDTHS,),
    ),
    "prefill_attention": Form(
        sizes=("chunks", "tokens", "pairs", "n_heads", "n_kv_heads", "width"),
        roofline=_prefill_attention,
        coordinates=lambda chunks, tokens, pairs, n_heads, n_kv_heads, width: (
            chunks * n_heads,
            tokens / larger(chunks, 1.0),
            # The share of its chunk that a token attends to: less than one half only within a window.
            pairs * larger(chunks, 1.0) / larger(tokens, 1.0) ** 2,
            width,
        ),
        example=lambda lanes, tokens, share: (
            lanes,
            lanes * tokens,
            lanes * tokens * tokens * share,
            1.0,
            0.125,
            256.0,
        ),
        constants={
            "launch_us": _LAUNCH,
            "bandwidth_share": _SHARE,
            "compute_share": _SHARE,
            "per_head_ns": (1.0, 0.01, 30.0),
            "sharpness": (1.5, 0.6, 6.0),
        },
        knots=((0, 2, 4, 6, 8, 10, 12), (4, 6, 7, 8, 9, 10, 11, 12, 13, 14), (-6, -3, -1)),
        alone=(_WIDTHS,),
    ),
    "latent_decode": Form(
        sizes=("sequences", "context_tokens", "n_heads", "kv_rank", "rope_dim"),
        roofline=_latent_decode,
        coordinates=lambda *sizes: (),
        example=lambda: (),
        constants={"launch_us": _LAUNCH, "bandwidth_share": _SHARE, "compute_share": _SHARE},
    ),
    "latent_prefill": Form(
        sizes=("chunks", "pairs", "n_heads", "width"),
        roofline=_latent_prefill,
        coordinates=lambda *sizes: (),
        example=lambda: (),
        constants={"launch_us": _LAUNCH, "compute_share": _SHARE},
    ),
    "experts": Form(
        sizes=("tokens", "d_model", "slice_width", "per_token", "n_experts", "expert_parallel", "matrices"),
        roofline=_experts,
        coordinates=lambda tokens, d_model, slice_width, per_token, n_experts, expert_parallel, matrices: (
            tokens * per_token / expert_parallel,
            n_experts / expert_parallel,
            d_model * slice_width,
        ),
        example=lambda rows, experts, size: (
            rows / smaller(experts, 8.0),
            2048.0,
            size / 2048.0,
            smaller(experts, 8.0),
            experts,
            1.0,
            3.0,
        ),
        constants={
            "launch_us": (40.0, 0.5, 300.0),
            "bandwidth_share": _SHARE,
            "compute_share": _SHARE,
            "per_expert_us": (0.01, 0.001, 2.0),
            "tile_rows": (1.0, 0.1, 64.0),
            "sharpness": (1.3, 0.9, 6.0),
            "choosing_share": (0.5, 0.2, 1.0),
            "imbalance": (0.2, 0.001, 0.6),
        },
        knots=(
            (0, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17),
            (0, 3, 5, 6, 7, 8, 9),
            (17, 19, 20, 21, 22, 23, 24, 26),
        ),
    ),
    "recurrent": Form(
        sizes=("sequences", "prefill_tokens", "state_values", "state_bytes_per_value", "value_dim"),
        roofline=_recurrent,
        coordinates=lambda *sizes: (),
        example=lambda: (),
        constants={"launch_us": _LAUNCH, "bandwidth_share": _SHARE, "compute_share": _SHARE},
    ),
    "all_reduce": _message_form(2.0),
    "all_gather": _message_form(1.0),
    "reduce_scatter": _message_form(1.0),
    "all_to_all": _message_form(1.0),
    "element": Form(
        sizes=("moved_bytes",),
        roofline=lambda c, rates, fmt, moved_bytes: moved_bytes / (rates.bandwidth * c["bandwidth_share"]),
        coordinates=lambda *sizes: (),
        example=lambda: (),
        constants={"bandwidth_share": _SHARE},
    ),
}


def with_grid(operator: str, constants: Constants) -> Constants:
    """Return these constants with the grid that their correction describes, if they have one."""
    if "correction" not in constants:
        return constants
    values = [percent / 100 for percent in constants["correction"]]
    return {**constants, "grid": Grid(FORMS[operator].knots, FORMS[operator].alone, values)}


def larger(one: Numbers, other: Numbers) -> Numbers:
    """Return the larger of two numbers, or of each pair in arrays."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.maximum(one, other)
    return one if one > other else other


def smaller(one: Numbers, other: Numbers) -> Numbers:
    """Return the smaller of two numbers, or of each pair in arrays."""
    return -larger(-one, -other)


def _edge(sharpness: float, *times: Numbers) -> Numbers:
    """Return the norm of several times: their largest for a great `sharpness`, their sum for 1."""
    total: Numbers = 0.0
    for time in times:
        total = total + time**sharpness
    return total ** (1.0 / sharpness)


def _exp(number: Numbers) -> Numbers:
    return np.exp(number) if isinstance(number, np.ndarray) else math.exp(number)
