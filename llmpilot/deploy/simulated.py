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
        self, engine: SimulatedEngine, model: Model, gpu: Gpu, max_batch_weight: int
    ) -> Iterator[VirtualService]:
        """Yield the service as an endpoint for the load test."""
        yield engine.service(model, gpu, max_batch_weight)
