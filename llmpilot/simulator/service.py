"""A simulated service: the facts of one model on one GPU profile under one max batch weight."""

from dataclasses import dataclass

from llmpilot.simulator.batching import BatchingRule
from llmpilot.simulator.steptime import StepTimes


@dataclass(frozen=True)
class VirtualService:
    """All that the simulator must know of a service.

    `kv_capacity_tokens` is what the memory really holds; a `rule.max_batch_weight` above it can run out
    of memory, as on a real GPU. `request_overhead_ms` passes between a client's sending and the engine's
    queue (connection, parsing, tokenization).
    """

    step_times: StepTimes
    rule: BatchingRule
    kv_capacity_tokens: int
    request_overhead_ms: float = 0.0
