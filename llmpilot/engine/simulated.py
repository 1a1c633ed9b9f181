"""The simulated engine: TGIS-like continuous batching on step times derived from datasheet facts."""

from typing import ClassVar

from pydantic import PositiveInt

from llmpilot.config import Facts, Gpu, Model, NonNegative, Share
from llmpilot.simulator import BatchingRule, Efficiency, VirtualService, step_times_from_facts
from llmpilot.sizing import MemoryPlan, plan_memory


class SimulatedEngine(Facts):
    """Turns (model, GPU profile, max batch weight) into a service that runs in virtual time."""

    name: ClassVar[str] = "simulated"
    measurement: ClassVar[str] = "simulated"

    memory_utilization: Share = 0.95
    reserve_gb_per_gpu: NonNegative = 0.5
    max_batch_size: PositiveInt | None = None
    max_waiting_steps: int = 3
    overtake_ms: NonNegative = 1000.0
    request_overhead_ms: NonNegative = 5.0
    efficiency: Efficiency = Efficiency()

    def memory(self, model: Model, gpu: Gpu) -> MemoryPlan:
        """Return where the profile's memory goes under this engine."""
        return plan_memory(
            model,
            gpu,
            memory_utilization=self.memory_utilization,
            reserve_gb_per_gpu=self.reserve_gb_per_gpu,
        )

    def default_max_batch_weight(self, model: Model, gpu: Gpu) -> int:
        """Return the cap the engine takes when none is given: all the KV cache there is."""
        return max(1, self.memory(model, gpu).kv_capacity_tokens)

    def service(self, model: Model, gpu: Gpu, max_batch_weight: int) -> VirtualService:
        """Return the service as the simulator needs it."""
        rule = BatchingRule(
            max_batch_weight=max_batch_weight,
            max_batch_size=self.max_batch_size,
            max_waiting_steps=self.max_waiting_steps,
            overtake_ms=self.overtake_ms,
            padded=not model.flash_attention,
        )
        return VirtualService(
            step_times=step_times_from_facts(model, gpu, self.efficiency),
            rule=rule,
            kv_capacity_tokens=self.memory(model, gpu).kv_capacity_tokens,
            request_overhead_ms=self.request_overhead_ms,
        )
