"""The parameters of LLM requests, as columns. Knows nothing of where they come from or are sent to."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PARAMETERS = ("input_tokens", "output_tokens", "batch_size", "greedy", "temperature", "top_k", "top_p")
"""Names of the request parameters, in the order of every matrix and file of this package."""

DTYPES: dict[str, type] = {
    "input_tokens": np.int64,
    "output_tokens": np.int64,
    "batch_size": np.int64,
    "greedy": np.bool_,
    "temperature": np.float64,
    "top_k": np.int64,
    "top_p": np.float64,
}

NEUTRAL: dict[str, float] = {"batch_size": 1, "greedy": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""What a parameter is when nobody said: one greedily decoded sequence, the sampling knobs without effect."""

STEPS_PER_UNIT: dict[str, int] = {"temperature": 10_000, "top_p": 10_000}
"""Real-valued parameters live on a grid of 1/10,000, so that all arithmetic on them is on integers."""


@dataclass(frozen=True, eq=False)
class Requests:
    """Equal-length columns, one row a request; `batch_size` counts the sequences in one request,
    `greedy` is the decoding method, `top_k` 0 and `top_p` 1 mean no limit."""

    input_tokens: Ints
    output_tokens: Ints
    batch_size: Ints
    greedy: Bools
    temperature: Floats
    top_k: Ints
    top_p: Floats

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in PARAMETERS}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of Requests differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.input_tokens)

    def take(self, indices: Ints | Bools | slice) -> "Requests":
        """Return the rows at `indices`: positions, a mask, or a slice."""
        return Requests(**{name: getattr(self, name)[indices] for name in PARAMETERS})

    @property
    def weights(self) -> Ints:
        """Batch weight of each request when it starts [tokens]: batch_size x (input + output tokens)."""
        return self.batch_size * (self.input_tokens + self.output_tokens)


def concatenate(parts: Iterable[Requests]) -> Requests:
    """Return the rows of all `parts` in order; of no parts, an empty Requests."""
    listed = list(parts)
    empty: dict[str, np.ndarray] = {name: np.empty(0, DTYPES[name]) for name in PARAMETERS}
    return Requests(
        **{name: np.concatenate([empty[name], *(getattr(p, name) for p in listed)]) for name in PARAMETERS}
    )


def from_lengths(input_tokens: Iterable[int] | Ints, output_tokens: Iterable[int] | Ints) -> Requests:
    """Return requests with these token counts and neutral decoding (see NEUTRAL)."""
    columns: dict[str, Any] = {"input_tokens": _ints(input_tokens), "output_tokens": _ints(output_tokens)}
    n = len(columns["input_tokens"])
    columns |= {name: np.full(n, value, DTYPES[name]) for name, value in NEUTRAL.items()}
    return Requests(**columns)


def _ints(values: Iterable[int] | Ints) -> Ints:
    return np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.int64)


def encode(requests: Requests) -> list[Ints]:
    """Return the columns as integers, in the order of PARAMETERS: reals in steps of 1/10,000."""
    columns: list[Ints] = []
    for name in PARAMETERS:
        values = getattr(requests, name)
        if name in STEPS_PER_UNIT:
            values = np.rint(values * STEPS_PER_UNIT[name])
        columns.append(values.astype(np.int64))
    return columns


def decode(columns: list[Ints]) -> Requests:
    """Return the requests of integer columns: the inverse of `encode`, exact on the grid."""
    values: dict[str, np.ndarray] = {}
    for name, column in zip(PARAMETERS, columns, strict=True):
        steps = STEPS_PER_UNIT.get(name)
        values[name] = column / steps if steps else column.astype(DTYPES[name])
    return Requests(**values)
