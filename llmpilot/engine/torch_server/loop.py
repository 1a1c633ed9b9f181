"""The thread of the model: prefill those who fit, decode all who run, hand their tokens out, again.

Prefill goes before decoding whenever somebody fits. Where memory runs out the newest request is given up
and the step tried again: the server lives on. Knows neither PyTorch nor HTTP.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from llmpilot.engine.torch_server.batching import Batch, Job


class OutOfMemoryError(Exception):
    """The device's memory does not suffice for a step."""


class Runner(Protocol):
    """What computes. A step that raises OutOfMemoryError can be tried again without some of its requests."""

    def prefill(self, jobs: list[Job]) -> list[int]:
        """Process the prompts; return the first token of each.

        Raises:
            OutOfMemoryError: memory does not suffice for all of them.
        """
        ...

    def decode(self, jobs: list[Job]) -> list[int]:
        """Return the next token of each.

        Raises:
            OutOfMemoryError: memory does not suffice for all of them.
        """
        ...

    def release(self, job: Job) -> None:
        """Forget a request: its place in the cache is free."""
        ...


class Loop:
    """Runs a batch on a runner in a thread of its own. `submit`, `cancel` and `close` are for other threads.

    `deliver` gets the tokens of a step, `give_up` a request that ran out of memory and why, `died` an error
    that cannot be survived; all three are called in the loop's thread and must return at once.
    """

    def __init__(
        self,
        batch: Batch,
        runner: Runner,
        *,
        deliver: Callable[[list[tuple[Job, int]]], None],
        give_up: Callable[[Job, str], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self.batch, self._runner = batch, runner
        self._deliver, self._give_up, self._died = deliver, give_up, died
        self._inbox: deque[tuple[bool, Job]] = deque()  # (whether it comes or goes, request)
        self._news = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._live, name="model", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a request into the queue; it must not be heavier than the batch may become."""
        self._tell(True, job)

    def cancel(self, job: Job) -> None:
        """Forget a request, wherever it is; tokens of the step under way may still be delivered."""
        self._tell(False, job)

    def close(self) -> None:
        """Stop after the step under way, and wait for that."""
        with self._news:
            self._closing = True
            self._news.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def gauges(self) -> tuple[int, int, float]:
        """Return requests running and waiting, and the share of the batch weight that is taken."""
        batch = self.batch
        return len(batch.running), len(batch.waiting), batch.weight / batch.max_batch_weight

    def _tell(self, comes: bool, job: Job) -> None:
        with self._news:
            self._inbox.append((comes, job))
            self._news.notify()

    def _live(self) -> None:
        try:
            while self._read_news():
                if admitted := self.batch.admit():
                    self._step(self._runner.prefill, admitted)
                if self.batch.running:
                    self._step(self._runner.decode, list(self.batch.running))
        except BaseException as error:
            self._died(error)

    def _read_news(self) -> bool:
        """Take in what was submitted and cancelled, waiting for it where there is no work; False: stop."""
        batch = self.batch
        with self._news:
            while not (self._inbox or self._closing or batch.running or batch.waiting):
                self._news.wait()
            while self._inbox:
                comes, job = self._inbox.popleft()
                if comes:
                    batch.waiting.append(job)
                else:
                    self._drop(job)
            return not self._closing

    def _step(self, compute: Callable[[list[Job]], list[int]], jobs: list[Job]) -> None:
        while jobs:
            try:
                tokens = compute(jobs)
            except OutOfMemoryError as error:
                newest = jobs.pop()
                self._drop(newest)
                self._give_up(newest, str(error))
                continue
            self._hand_out(jobs, tokens)
            return

    def _hand_out(self, jobs: list[Job], tokens: list[int]) -> None:
        for job, token in zip(jobs, tokens, strict=True):
            job.made += 1
            job.last_token = token
            if job.made == job.output_tokens:
                self._drop(job)
        self._deliver(list(zip(jobs, tokens, strict=True)))

    def _drop(self, job: Job) -> None:
        if self.batch.leave(job):
            self._runner.release(job)
