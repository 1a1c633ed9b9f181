"""Who waits and who runs: continuous batching under a max batch weight. Knows neither tensors nor threads."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class Job:
    """One sequence: its prompt, how many tokens it gets, and how many it has by now.

    `owner` is whoever waits for the tokens; `row` and `blocks` are the cache's note of where its KV lies.
    """

    prompt: list[int]
    output_tokens: int
    owner: Any = None
    made: int = 0
    last_token: int = 0
    row: int = -1
    blocks: list[int] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """Tokens that it may come to hold: its input and all of its output."""
        return len(self.prompt) + self.output_tokens

    @property
    def context(self) -> int:
        """Tokens whose keys and values are in the cache, once it was prefilled."""
        return len(self.prompt) + self.made - 1


class Batch:
    """The running batch and its queue. Its weight never exceeds `max_batch_weight` [tokens].

    First come, first served: what does not fit waits, and so does everything behind it. One prefill takes
    prompts of `max_prefill_tokens` together, or a single longer one.
    """

    def __init__(self, max_batch_weight: int, max_requests: int, max_prefill_tokens: int) -> None:
        self.max_batch_weight, self.max_requests = max_batch_weight, max_requests
        self.max_prefill_tokens = max_prefill_tokens
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.weight = 0

    def admit(self) -> list[Job]:
        """Move the requests that fit from the queue into the batch, and return them: prefill these now."""
        admitted: list[Job] = []
        prefill_tokens = 0
        while self.waiting and len(self.running) < self.max_requests:
            job = self.waiting[0]
            prefill_tokens += len(job.prompt)
            if self.weight + job.weight > self.max_batch_weight:
                break
            if admitted and prefill_tokens > self.max_prefill_tokens:
                break
            self.waiting.popleft()
            self.running.append(job)
            self.weight += job.weight
            admitted.append(job)
        return admitted

    def leave(self, job: Job) -> bool:
        """Take a request out; return whether it was running."""
        if job in self.running:
            self.running.remove(job)
            self.weight -= job.weight
            return True
        if job in self.waiting:
            self.waiting.remove(job)
        return False
