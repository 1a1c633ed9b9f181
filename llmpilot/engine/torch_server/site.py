"""The model on the network: what it does not serve, and the way of tokens from its thread to the clients.

Everything here runs in one event loop; the model's thread comes in through `call_soon_threadsafe` only.
"""

import asyncio
import sys
import traceback
from dataclasses import dataclass

from llmpilot.emulator.answer import Answer, Stream
from llmpilot.emulator.api import ApiError, Generation
from llmpilot.emulator.connection import Connection
from llmpilot.emulator.listening import listen
from llmpilot.emulator.service import EmulatedService
from llmpilot.emulator.site import OpenAISite
from llmpilot.engine.torch_server.answer import TokenAnswer, TokenStream
from llmpilot.engine.torch_server.batching import Batch, Job
from llmpilot.engine.torch_server.loop import Loop, Runner
from llmpilot.simulator import BatchingRule, VirtualService
from llmpilot.simulator.steptime import StepTimes

NO_TIMES = StepTimes(0.0, 0.0, 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""A real model takes its own time."""


@dataclass(frozen=True)
class Served:
    """What is served under which limits: see `batching.Batch`; a request holds `max_request_tokens`."""

    model_id: str
    vocabulary_size: int
    max_request_tokens: int
    max_batch_weight: int
    max_requests: int
    max_prefill_tokens: int


class Site(OpenAISite):
    """A model on the network. `start` it in an event loop, await `ended`, `stop` it there."""

    product = "llm-pilot-transformers"

    def __init__(self, served: Served, runner: Runner) -> None:
        super().__init__(_described(served))
        batch = Batch(served.max_batch_weight, served.max_requests, served.max_prefill_tokens)
        self._model = Loop(
            batch,
            runner,
            deliver=lambda tokens: self._from_model(self._push, tokens),
            give_up=lambda job, why: self._from_model(self._give_up, job, why),
            died=lambda error: self._from_model(self._died, error),
        )
        self._loop: asyncio.AbstractEventLoop
        self.ended: asyncio.Future[BaseException | None]

    async def start(self, host: str, port: int) -> None:
        """Listen; `url` is set then, and `ended` is done once the model has died, with its error.

        Raises:
            PilotError: the address is taken or cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        await self.open(listen(host, port))
        self._model.start()

    async def stop(self) -> None:
        """Close every connection and stop the model."""
        await super().stop()
        await asyncio.to_thread(self._model.close)

    def _begin(self, wanted: Generation, connection: Connection, arrived_ns: int) -> Answer:
        if wanted.n > 1:
            raise ApiError(400, "n must be 1: send the prompt as often as you want it answered", param="n")
        answer = self._new_answer(TokenAnswer, wanted, connection, arrived_ns)
        for prompt, input_tokens in enumerate(wanted.prompt_tokens):
            # Random weights know no end of text: every answer is as long as it may be.
            room = self.service.max_model_tokens - input_tokens
            stream = answer.add(prompt, *wanted.output_tokens(room, room))
            stream.ticket = Job(wanted.prompt_ids(prompt), stream.total, owner=stream)
            self._model.submit(stream.ticket)
        return answer

    def _cancel(self, stream: Stream) -> None:
        self._model.cancel(stream.ticket)

    def _gauges(self) -> tuple[int, int, float]:
        return self._model.gauges()

    def _card(self) -> dict[str, object]:
        return super()._card() | {"meta": {"n_vocab": self.service.vocabulary_size}}

    def _from_model(self, call: object, *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)  # type: ignore[arg-type]
        except RuntimeError:  # the event loop has ended: nobody is left to be told
            return

    def _push(self, tokens: list[tuple[Job, int]]) -> None:
        for job, token in tokens:
            stream: TokenStream = job.owner
            stream.push(token)

    def _give_up(self, job: Job, why: str) -> None:
        job.owner.answer.fail(500, why, "out_of_memory")

    def _died(self, error: BaseException) -> None:
        traceback.print_exception(error, file=sys.stderr)
        if not self.ended.done():
            self.ended.set_result(error)


def _described(served: Served) -> EmulatedService:
    """Return what the checks of the API want to know."""
    rule = BatchingRule(max_batch_weight=served.max_batch_weight)
    return EmulatedService(
        model_id=served.model_id,
        aliases=(),
        profile="",
        service=VirtualService(NO_TIMES, rule, served.max_batch_weight),
        vocabulary_size=served.vocabulary_size,
        max_model_tokens=min(served.max_request_tokens, served.max_batch_weight),
        output_lengths=(),
    )
