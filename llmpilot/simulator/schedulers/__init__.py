"""The schedulers of today's engines, one rule a file. None knows a clock or how long anything takes."""

from llmpilot.simulator.schedulers.sglang import SglangRule
from llmpilot.simulator.schedulers.trtllm import TrtllmRule
from llmpilot.simulator.schedulers.vllm import VllmRule

__all__ = ["SglangRule", "TrtllmRule", "VllmRule"]
