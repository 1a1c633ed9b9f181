"""Replicas of vLLM's attention layers that share experts: each has its own requests, all step together."""

from collections.abc import Callable
from dataclasses import dataclass

from llmpilot.simulator import Batch, VirtualService, VllmRule
from llmpilot.simulator.schedulers.vllm import VllmScheduler
from llmpilot.simulator.scheduling import Action, Core, Ended, Gauges, Sequence, Step

WAITING_WEIGHS = 4
"""vLLM's balancer sends a request to the replica with the fewest running plus four times those waiting."""
IDLE = Batch(0, 0)


class ReplicatedCore:
    """Several vLLM schedulers in step with each other, as a clock sees them."""

    def __init__(self, schedulers: list[VllmScheduler], step_ms: Callable[[list[Batch]], float]) -> None:
        self.step = 0
        self._schedulers, self._step_ms = schedulers, step_ms
        self._steps: list[Step | None] = []

    def enqueue(self, sequence: Sequence) -> bool:
        """Give a request to the replica with the least to do."""
        loads = [WAITING_WEIGHS * s.gauges().waiting + s.gauges().running for s in self._schedulers]
        return self._schedulers[loads.index(min(loads))].enqueue(sequence)

    def begin(self, now_ms: float) -> Action | None:
        """Return what all replicas do next, or None when none has anything to do."""
        found = self._steps = [scheduler.next_step() for scheduler in self._schedulers]
        working = [step for step in found if step is not None]
        if not working:
            return None
        steps = min(step.steps for step in working)
        batches = [step.batch if step else IDLE for step in found]
        first_ms = last_ms = self._step_ms(batches)
        if steps > 1:
            steps = min(steps, 64)
            last = [
                b._replace(
                    decode_context_tokens=b.decode_context_tokens + (steps - 1) * b.decodes,
                    longest_context_tokens=b.longest_context_tokens + steps - 1,
                )
                for b in batches
            ]
            last_ms = self._step_ms(last)
        return Action(
            steps=steps,
            first_ms=first_ms,
            increment_ms=(last_ms - first_ms) / max(1, steps - 1),
            decodes=any(batch.decodes for batch in batches),
            waits_for_arrivals=True,
            starts=sum(step.starts for step in working),
            preempted=tuple(sequence for step in working for sequence in step.preempted),
        )

    def finish(self, action: Action, steps: int) -> Ended:
        """Count the first `steps` steps of an action as done by all."""
        ended = Ended([], [], [])
        self.step += steps if action.decodes else 0
        for scheduler, step in zip(self._schedulers, self._steps, strict=True):
            if action.decodes and not (step and step.batch.decodes):
                scheduler.decoding.step += steps  # nobody of its own decodes, and the others' count runs on
            if step:
                for mine, all_of_them in zip(scheduler.finish(steps), ended, strict=True):
                    all_of_them.extend(mine)
        return ended

    def leave(self, sequence: Sequence) -> None:
        """Nobody leaves a replay."""
        raise NotImplementedError

    def gauges(self) -> Gauges:
        """Return how much runs and waits, in all replicas."""
        running, waiting, kv_tokens = zip(*(s.gauges() for s in self._schedulers), strict=True)
        return Gauges(sum(running), sum(waiting), sum(kv_tokens))


@dataclass(frozen=True)
class ReplicatedService(VirtualService):
    """A vLLM service of several replicas, of which each has `kv_capacity_tokens`."""

    step_ms: Callable[[list[Batch]], float]
    rule: VllmRule
    replicas: int
    kv_capacity_tokens: int
    request_overhead_ms: float = 0.0

    def core(self) -> Core:
        """Return the replicas, with nothing to do."""
        schedulers = [self.rule.scheduler(self.kv_capacity_tokens) for _ in range(self.replicas)]
        return ReplicatedCore(schedulers, self.step_ms)

    def longest_request_tokens(self, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may be; see VirtualService."""
        return self.rule.longest_request_tokens(self.kv_capacity_tokens, copies)
