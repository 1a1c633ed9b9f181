"""Offline batches in closed form, and the factors of 2024's engines, fitted to them.

A synchronous batch prefills all of its prompts, in steps of their own, and then decodes together to the last
token. What steps cost is linear in the context, so that one decode step at the mean context stands for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.predict.service.fitting import Posterior, Rows, most_probable
from llmpilot.predict.service.levels import Level
from llmpilot.simulator.factors import FACTORS, design
from llmpilot.simulator.step_model import BatchArrays, Numbers, StepModel


@dataclass(frozen=True)
class Batches:
    """Offline batches [n rows] that run at once: what all their prefill and decode steps cost, part by part
    [n, parts] ms before factors, and which factors act on their services [n, factors, parts + 1]."""

    levels: Sequence[Level]
    prefill: Numbers
    decode: Numbers
    designs: Numbers
    families: NDArray[Any]

    def e2e_ms(self, logs: Numbers, rows: Rows | None = None) -> Numbers:
        """Return the time of each batch [n] ms under factors given as logarithms [factors]."""
        chosen = np.arange(len(self.levels)) if rows is None else rows
        multipliers = np.exp(np.tensordot(self.designs[chosen], logs, ([1], [0])))
        weights, prefill = multipliers[:, :-1], multipliers[:, -1]
        return np.asarray(
            (weights * self.decode[chosen]).sum(1) + prefill * (weights * self.prefill[chosen]).sum(1)
        )


def at_once(level: Level) -> bool:
    """Whether a level is a batch that the memory holds whole."""
    return level.at_once is not None and level.at_once <= level.capacity and level.least_share == 1.0


def tabulated_batches(levels: Sequence[Level]) -> Batches:
    """Return batches, each `at_once`, with what their steps are made of."""
    services: dict[int, StepModel] = {id(level.service): level.service for level in levels}
    owner = np.array([id(level.service) for level in levels], dtype=np.int64)
    count = np.array([float(level.at_once or 1) for level in levels])
    inputs = np.array([level.input_tokens for level in levels])
    outputs = np.array([level.output_tokens for level in levels])
    room = np.array([float(level.settings.max_num_batched_tokens) for level in levels])
    together = np.minimum(count, np.maximum(1.0, room // inputs))
    found: dict[str, list[Any]] = {"prefill": [None] * len(levels), "decode": [None] * len(levels)}
    designs: list[Any] = [None] * len(levels)
    for key, service in services.items():
        rows = np.flatnonzero(owner == key)
        n, k, given, out = count[rows], together[rows], inputs[rows], outputs[rows]
        none = np.zeros_like(n)
        one = service.parts(BatchArrays(none, none, k * given, k * given**2 / 2, k))
        decode = service.parts(BatchArrays(n, n * (given + out / 2), none, none, none))
        acting = design(service)
        for at, row in enumerate(rows.tolist()):
            found["prefill"][row] = one[:, at] * n[at] / k[at]
            found["decode"][row] = decode[:, at] * (out[at] - 1.0)
            designs[row] = acting
    return Batches(
        levels,
        np.array(found["prefill"]),
        np.array(found["decode"]),
        np.array(designs),
        np.array([level.family for level in levels]),
    )


def fit_batches(batches: Batches, measured_e2e_ms: Numbers, rows: Rows, known: Posterior) -> Posterior:
    """Return the posterior with the factors of 2024's engines after the given rows [m] of the batches.

    The other factors stay as they are known: such rows say nothing of today's engines.
    """
    free = np.array([factor.of_2024 for factor in FACTORS])
    return most_probable(
        lambda logs: batches.e2e_ms(logs, rows), measured_e2e_ms[rows], batches.families[rows], free, known
    )
