"""A simulated service: the facts of one model on one GPU profile under one engine's rule."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmpilot.simulator.batch import StepTime
from llmpilot.simulator.batching import BatchingRule
from llmpilot.simulator.scheduling import Core, Scheduler, SteppedCore
from llmpilot.simulator.steptime import StepTimes
from llmpilot.simulator.tgis import TgisCore

if TYPE_CHECKING:
    from llmpilot.simulator.first_token import FirstToken  # it knows operators: slow to import


class VirtualService:
    """All that the simulator must know of a service.

    `kv_capacity_tokens` is what the memory really holds. `request_overhead_ms` passes between a client's
    sending and the engine's queue (connection, parsing, tokenization). With `first_token`, clients see
    the tokens of an answer later than the engine makes them (`FirstToken.later_ms`); its `offset_ms` is the
    `request_overhead_ms` then.
    """

    kv_capacity_tokens: int
    request_overhead_ms: float
    first_token: "FirstToken | None" = None

    def core(self) -> Core:
        """Return the service's engine, with nothing to do."""
        raise NotImplementedError

    def longest_request_tokens(self, copies: int) -> int:
        """Return how long, input and output together, each of a request's `copies` sequences may be.

        0: so many sequences are never taken.
        """
        raise NotImplementedError


class SchedulingRule(Protocol):
    """An engine's settings that decide who is in a step."""

    def scheduler(self, kv_capacity_tokens: int) -> Scheduler:
        """Return a scheduler with nothing to do."""
        ...

    def longest_request_tokens(self, kv_capacity_tokens: int, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may become; 0 for more than fit."""
        ...


@dataclass(frozen=True)
class SteppedService(VirtualService):
    """A service of one of today's engines: a rule of scheduling (schedulers/) and times of its steps."""

    step_times: StepTime
    rule: SchedulingRule
    kv_capacity_tokens: int
    request_overhead_ms: float = 0.0
    first_token: "FirstToken | None" = None

    def core(self) -> Core:
        """Return the service's engine, with nothing to do."""
        return SteppedCore(self.rule.scheduler(self.kv_capacity_tokens), self.step_times)

    def longest_request_tokens(self, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may be; see VirtualService."""
        return self.rule.longest_request_tokens(self.kv_capacity_tokens, copies)


@dataclass(frozen=True)
class TgisService(VirtualService):
    """A service of TGIS. A `rule.max_batch_weight` above `kv_capacity_tokens` can run out of memory, as on a
    real GPU."""

    step_times: StepTimes
    rule: BatchingRule
    kv_capacity_tokens: int
    request_overhead_ms: float = 0.0

    def core(self) -> TgisCore:
        """Return the service's engine, with nothing to do."""
        return TgisCore(self.rule, self.step_times, self.kv_capacity_tokens)

    def longest_request_tokens(self, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may be; see VirtualService."""
        rule = self.rule
        if copies > (rule.max_batch_size or copies):
            return 0
        longest = rule.max_batch_weight // copies
        return min(longest, rule.max_positions or longest)
