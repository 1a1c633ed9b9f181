"""Nowhere: the service exists in virtual time only, so there is nothing to start, await or stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from llmpilot.config import Facts, Gpu, Model
from llmpilot.deploy.endpoint import ServerOutOfMemoryError
from llmpilot.engine.inference import SimulatedAs
from llmpilot.simulator import VirtualService
from llmpilot.sizing import MemoryPlan

REAL_SERVICE = "engine=openai deployment=external deployment.url=http://HOST:PORT"


class SimulatedDeployment(Facts):
    """The deployment of engines that are simulated."""

    name: ClassVar[str] = "simulated"
    measurement: ClassVar[Literal["measured", "simulated"]] = "simulated"
    starts_services: ClassVar[bool] = True

    @property
    def service_name(self) -> None:
        """Nothing: the facts of the LLM are always known."""
        return

    def memory(self, engine: SimulatedAs, model: Model, gpu: Gpu) -> MemoryPlan:
        """Return where the profile's memory goes under the engine."""
        return engine.memory(model, gpu)

    def facts(self, engine: SimulatedAs, model: Model, gpu: Gpu) -> dict[str, Any]:
        """Return what the engine's simulation follows."""
        return engine.simulated_facts(model, gpu)

    def headline(self, engine: SimulatedAs, model: Model, gpu: Gpu) -> str:
        """Return what is simulated, from which data, and how a real service is measured instead."""
        return (
            f"{engine.simulated_from(model, gpu)}; no GPU and no engine is used. "
            f"To measure a real service, add: {REAL_SERVICE}"
        )

    @contextmanager
    def start(
        self,
        engine: SimulatedAs,
        model: Model,
        gpu: Gpu,
        max_batch_weight: int | None,
        *,
        heaviest_request_tokens: int = 0,
    ) -> Iterator[VirtualService]:
        """Yield the service as an endpoint for the load test; without a cap, under the engine's default.

        Raises:
            ServerOutOfMemoryError: the engine allocates its memory at start, and there is less than the cap.
        """
        yield engine.service(model, gpu, weight_that_fits(engine, model, gpu, max_batch_weight))


def weight_that_fits(engine: SimulatedAs, model: Model, gpu: Gpu, max_batch_weight: int | None) -> int:
    """Return the max batch weight that a simulated service starts under; None: the engine's default.

    Raises:
        ServerOutOfMemoryError: the engine allocates its memory at start, and there is less.
    """
    memory = engine.memory(model, gpu)
    if max_batch_weight is None:
        max_batch_weight = engine.default_max_batch_weight(model, gpu) or memory.kv_capacity_tokens
    if engine.memory_is_allocated_at_start and max_batch_weight > memory.kv_capacity_tokens:
        raise ServerOutOfMemoryError(
            f"{engine.name} (simulated) has no room for a KV cache of {max_batch_weight:,} tokens",
            given=memory.arithmetic(),
            cure=f"max_batch_weight={memory.kv_capacity_tokens} or less, or a larger GPU profile",
        )
    return max_batch_weight
