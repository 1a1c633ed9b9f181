"""A service without a GPU: how long steps take, who is in the batch, and a clock that jumps."""

from llmpilot.simulator.batch import Batch, StepTime
from llmpilot.simulator.batching import BatchingRule
from llmpilot.simulator.schedulers import SglangRule, TrtllmRule, VllmRule
from llmpilot.simulator.scheduling import Outcome
from llmpilot.simulator.service import SteppedService, TgisService, VirtualService
from llmpilot.simulator.steptime import StepTimes
from llmpilot.simulator.turns import converse_closed, converse_open
from llmpilot.simulator.virtual import (
    RequestSource,
    SimulatedRequests,
    simulate_closed,
    simulate_finite,
    simulate_open,
)

__all__ = [
    "Batch",
    "BatchingRule",
    "Outcome",
    "RequestSource",
    "SglangRule",
    "SimulatedRequests",
    "StepTime",
    "StepTimes",
    "SteppedService",
    "TgisService",
    "TrtllmRule",
    "VirtualService",
    "VllmRule",
    "converse_closed",
    "converse_open",
    "simulate_closed",
    "simulate_finite",
    "simulate_open",
]
