"""Many services under many loads at once, in arrays: a hundred pods are simulated in a second.

The same step times and the same rules as the simulation of one service (virtual.py, schedulers/), told in
numbers a lane and not in objects a request. A lane is one service under one load; all lanes go forward
together, each from event to event on its own clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes
from llmpilot.workload import Requests

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LaneService:
    """One pod: its settings and model (in `step_model`), its step times, what its KV cache holds [tokens]."""

    step_model: StepModel
    times: OperatorStepTimes
    kv_capacity_tokens: int


@dataclass(frozen=True)
class ClosedLanes:
    """Closed loops: `users` [lanes] clients, each of which thinks for an exponential time of mean
    `think_time_ms` between the end of a request and the next one."""

    users: NDArray[np.int64]
    think_time_ms: float = 0.0


@dataclass(frozen=True)
class OpenLanes:
    """Open loops: requests arrive at `arrivals_ms` [lanes, n requests], rising along the second axis."""

    arrivals_ms: Numbers


@dataclass(frozen=True)
class LaneFigures:
    """What clients saw in each lane's steady part.

    `latencies` maps (latency, statistic), as `config.Limit` names them, to [lanes] ms (nTTFT: ms per
    input token), without the overhead of a request before the engine's queue. `rate_per_s` [lanes] is how
    many requests end a second, `output_tokens_per_s` their tokens, `running` how many requests run on
    average, `failures` the share that can never be served.
    """

    latencies: Mapping[tuple[str, str], Numbers]
    rate_per_s: Numbers
    output_tokens_per_s: Numbers
    running: Numbers
    failures: Numbers


def run_lanes(
    services: Sequence[LaneService],
    lane_service: NDArray[np.int64],
    load: ClosedLanes | OpenLanes,
    requests: Requests,
    seed: int,
) -> LaneFigures:
    """Return the figures of each lane: service `lane_service[i]` under the i-th load.

    Every lane is sent the same `requests` in order, each of its `batch_size` sequences counted.
    """
    raise NotImplementedError
