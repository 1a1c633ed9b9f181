"""A service without a GPU: how long steps take, who is in the batch, and a clock that jumps."""

from llmpilot.simulator.batching import BatchingRule, Outcome
from llmpilot.simulator.service import VirtualService
from llmpilot.simulator.steptime import StepTimes
from llmpilot.simulator.virtual import RequestSource, SimulatedRequests, simulate_closed, simulate_open

__all__ = [
    "BatchingRule",
    "Outcome",
    "RequestSource",
    "SimulatedRequests",
    "StepTimes",
    "VirtualService",
    "simulate_closed",
    "simulate_open",
]
