"""What a task asks of a deployment, whichever it is. Each is one file here, named by conf/deployment."""

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol

from llmpilot.config import Gpu, Model
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.simulator import VirtualService
from llmpilot.sizing import MemoryPlan

Endpoint = VirtualService | HttpEndpoint


class Place(Protocol):
    """A deployment: where services of an engine run. The engine must name it in its `places`."""

    name: ClassVar[str]
    measurement: ClassVar[Literal["measured", "simulated"]]
    starts_services: ClassVar[bool]
    """Whether it starts the service, and so sets its max batch weight; else one is there already."""

    @property
    def service_name(self) -> str | None:
        """What the service is called where the facts of its LLM are not known."""

    def memory(self, engine: Any, model: Model, gpu: Gpu) -> MemoryPlan | None:
        """Return where the memory of a service goes; None: only the server itself will find out."""

    def facts(self, engine: Any, model: Model | None, gpu: Gpu | None) -> dict[str, Any]:
        """Return what decides a result here beside all settings, as nested plain values."""

    def headline(self, engine: Any, model: Model | None, gpu: Gpu | None) -> str:
        """Return in words what is about to answer, and how real that is."""

    def start(
        self,
        engine: Any,
        model: Model | None,
        gpu: Gpu | None,
        max_batch_weight: int | None,
        *,
        heaviest_request_tokens: int,
    ) -> AbstractContextManager[Endpoint]:
        """Yield the service as an endpoint for the load test; what was started ends with the block.

        Raises:
            ServerOutOfMemoryError: memory does not suffice: an outcome, not a failure.
        """

    def model_dump(self) -> dict[str, Any]:
        """Return its settings."""
