"""Nowhere: the service exists in virtual time only, so there is nothing to start, await or stop."""

from collections.abc import Iterator
from contextlib import contextmanager

from llmpilot.config import Facts, Gpu, Model
from llmpilot.engine.simulated import SimulatedEngine
from llmpilot.simulator import VirtualService


class SimulatedDeployment(Facts):
    """The deployment of the simulated engine."""

    name: str = "simulated"

    @contextmanager
    def start(
        self, engine: SimulatedEngine, model: Model, gpu: Gpu, max_batch_weight: int | None
    ) -> Iterator[VirtualService]:
        """Yield the service as an endpoint for the load test; without a cap, under the engine's default."""
        if max_batch_weight is None:
            max_batch_weight = engine.default_max_batch_weight(model, gpu)
        yield engine.service(model, gpu, max_batch_weight)
