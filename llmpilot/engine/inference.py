"""What every engine says of itself: where it runs, and what its max batch weight can be.

An engine in a new file derives from `InferenceEngine`, says in `places` where it runs, and has what is asked
of it there: `SimulatedAs` (deployment=simulated), `server.ServerEngine` (deployment=process). Nothing else in
the package knows its name.
"""

from typing import Any, ClassVar, Protocol, Self

from llmpilot.config import Facts, Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.simulator import VirtualService
from llmpilot.sizing import MemoryPlan


class InferenceEngine(Facts):
    """Base of all engines; the defaults are those of a server that allocates a pool of tokens at start."""

    name: ClassVar[str]
    places: ClassVar[tuple[str, ...]]
    """The deployments that it can run in, the usual one first."""
    live_weight: ClassVar[bool] = False
    """Whether a running service takes another max batch weight (`reweighted`)."""

    memory_settings: ClassVar[tuple[str, ...]] = ()
    """Its settings that say how much of the memory it takes."""

    @property
    def finds_prefixes(self) -> bool:
        """Whether its simulation finds in a prefix cache what earlier requests had in common with one."""
        return False

    def with_usual_memory(self) -> Self:
        """Return the engine as it would be with its own defaults of `memory_settings`."""
        fields = type(self).model_fields
        return self.model_copy(update={key: fields[key].default for key in self.memory_settings})

    def with_cached_share(self, share: float | None) -> Self:
        """Return the engine as it is simulated when it has this share of every prompt in its cache.

        None: as its own settings say.

        Raises:
            ConfigError: its simulation knows no such cache, or its settings say otherwise.
        """
        if share:
            raise ConfigError(
                f"engine={self.name} is simulated without a prefix cache",
                given=f"workload.cached_share={share:g}",
                cure="leave it out, or take an engine with one: engine=vllm",
            )
        return self

    def default_max_batch_weight(self, model: Model, gpu: Gpu) -> int | None:
        """Return the cap when none is given [tokens]; None: what the memory leaves."""
        return None

    def weight_is_set_by(self) -> str | None:
        """Return the setting that decides the max batch weight already, e.g. `engine.slots=4`; None: none."""
        return None

    def weight_step(self, heaviest_request_tokens: int) -> int:
        """Return by how many tokens two max batch weights must differ to be served differently."""
        return 1

    def largest_weight(self, kv_tokens: int, heaviest_request_tokens: int) -> int:
        """Return the largest max batch weight that makes a difference where memory holds `kv_tokens`."""
        return kv_tokens

    def step_choices(self, gpu: Gpu, users: int) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        """Return which values its settings of a step may take for so many users, and which they have now.

        Those are the tokens of a step and the requests that run at once; nothing where it cannot be told.
        """
        return {}, {}


class SimulatedAs(Protocol):
    """An engine that deployment=simulated can serve."""

    name: ClassVar[str]
    live_weight: ClassVar[bool]
    memory_is_allocated_at_start: ClassVar[bool]
    """Whether a max batch weight beyond the memory fails at start, and not when the batch grows to it."""

    def default_max_batch_weight(self, model: Model, gpu: Gpu) -> int | None:
        """Return the cap when none is given [tokens]; None: what the memory leaves."""

    def memory(self, model: Model, gpu: Gpu) -> MemoryPlan:
        """Return where the profile's memory goes under this engine."""

    def service(self, model: Model, gpu: Gpu, max_batch_weight: int) -> VirtualService:
        """Return the service as the simulator needs it."""

    def reweighted(self, service: VirtualService, max_batch_weight: int) -> VirtualService:
        """Return a running service under another max batch weight; asked of engines with `live_weight`."""

    def simulated_facts(self, model: Model, gpu: Gpu) -> dict[str, Any]:
        """Return what decides a simulation beside the engine's settings, as nested plain values."""

    def simulated_from(self, model: Model, gpu: Gpu) -> str:
        """Return in words what is simulated, from which data, and how far off it is to be expected."""
