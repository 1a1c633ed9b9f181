"""The HTTP side: routes, checks, metrics, and the way of tokens from the model's thread to the clients.

Everything here runs in one event loop; the model's thread comes in through `call_soon_threadsafe` only.
"""

import asyncio
import sys
import time
import traceback
from dataclasses import dataclass
from time import monotonic_ns

import numpy as np

import llmpilot
from llmpilot.emulator import metrics, wire
from llmpilot.emulator.answer import Answer
from llmpilot.emulator.api import ApiError, Generation, read_chat, read_completion, read_json
from llmpilot.emulator.connection import Connection
from llmpilot.emulator.http import Request
from llmpilot.emulator.options import Limits
from llmpilot.emulator.service import EmulatedService
from llmpilot.engine.torch_server.answer import OWNER, TokenAnswer, TokenStream
from llmpilot.engine.torch_server.batching import Batch, Job
from llmpilot.engine.torch_server.loop import Loop, Runner
from llmpilot.simulator import BatchingRule, VirtualService
from llmpilot.simulator.steptime import StepTimes

NO_TIMES = StepTimes(0.0, 0.0, 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""A real model takes its own time."""
SWEEP_S = 0.5


@dataclass(frozen=True)
class Served:
    """What is served under which limits: see `batching.Batch`; a request holds `max_request_tokens`."""

    model_id: str
    vocabulary_size: int
    max_request_tokens: int
    max_batch_weight: int
    max_requests: int
    max_prefill_tokens: int


class Site:
    """A model on the network. `start` it in an event loop, await `ended`, `stop` it there."""

    def __init__(self, served: Served, runner: Runner) -> None:
        self.limits, self.connections = Limits(), set[Connection]()
        self.metrics = metrics.Metrics(served.model_id, served.max_batch_weight)
        self.served, self._created, self._number = served, int(time.time()), 0
        self._service = EmulatedService(  # what the checks of the API want to know
            model_id=served.model_id,
            aliases=(),
            profile="",
            service=VirtualService(
                NO_TIMES, BatchingRule(max_batch_weight=served.max_batch_weight), served.max_batch_weight
            ),
            vocabulary_size=served.vocabulary_size,
            max_model_tokens=min(served.max_request_tokens, served.max_batch_weight),
            output_lengths=(),
        )
        self._answers = set[Answer]()
        batch = Batch(served.max_batch_weight, served.max_requests, served.max_prefill_tokens)
        self._model = Loop(
            batch,
            runner,
            deliver=lambda tokens: self._from_model(self._push, tokens),
            give_up=lambda job, why: self._from_model(self._give_up, job, why),
            died=lambda error: self._from_model(self._died, error),
        )
        self._loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server
        self._sweeper: asyncio.Task[None]
        self.ended: asyncio.Future[BaseException | None]

    async def start(self, host: str, port: int) -> str:
        """Listen, and return the URL; `ended` is done once the model has died, with its error."""
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        self._server = await self._loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        self._sweeper = self._loop.create_task(self._sweep())
        self._model.start()
        return f"http://{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close every connection and stop the model."""
        self._sweeper.cancel()
        self._server.close()
        for connection in list(self.connections):
            connection.close()
        for answer in list(self._answers):
            answer.abandon("stopped")
        await asyncio.sleep(0)
        await asyncio.to_thread(self._model.close)

    def handle(self, request: Request, connection: Connection, arrived_ns: int) -> Answer | None:
        """Route one request; every refusal is an OpenAI error."""
        try:
            return self._route(request, connection, arrived_ns)
        except ApiError as error:
            body = wire.error_body(error.message, error.kind, error.param, error.code)
            connection.write_json(error.status, body)
            return None

    def _route(self, request: Request, connection: Connection, arrived_ns: int) -> Answer | None:
        readers = {"/v1/completions": read_completion, "/v1/chat/completions": read_chat}
        method = "GET" if request.method == "HEAD" else request.method
        if (read := readers.get(request.path)) and method == "POST":
            return self._generate(read(read_json(request.body), self._service), connection, arrived_ns)
        if method == "GET" and request.path == "/health":
            connection.write_body(200, "text/plain; charset=utf-8", b"")
        elif method == "GET" and request.path == "/v1/models":
            connection.write_json(200, {"object": "list", "data": [self._card()]})
        elif method == "GET" and request.path == "/version":
            connection.write_json(200, {"version": llmpilot.__version__, "engine": OWNER})
        elif method == "GET" and request.path == "/metrics":
            connection.write_body(200, metrics.CONTENT_TYPE, self._metrics().encode())
        else:
            raise ApiError(404, f"{request.method[:20]} {request.path[:200]!r} is not answered here")
        return None

    def _generate(self, wanted: Generation, connection: Connection, arrived_ns: int) -> Answer:
        if wanted.n > 1:
            raise ApiError(400, "n must be 1: send the prompt as often as you want it answered", param="n")
        self._number += 1
        answer = TokenAnswer(
            wanted,
            number=self._number,
            response_id=f"{'chatcmpl' if wanted.chat else 'cmpl'}-{self._number}",
            created=int(time.time()),
            arrived_ns=arrived_ns,
            connection=connection,
            on_end=self._answered,
        )
        self._answers.add(answer)
        for prompt, input_tokens in enumerate(wanted.prompt_tokens):
            # Random weights know no end of text: every answer is as long as it may be.
            room = self._service.max_model_tokens - input_tokens
            stream = answer.add(prompt, *wanted.output_tokens(room, room))
            stream.ticket = Job(wanted.prompt_ids(prompt), stream.total, owner=stream)
            self._model.submit(stream.ticket)
        return answer

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

    def _answered(self, answer: Answer, outcome: str) -> None:
        """An answer has ended: free its places, count it, and go on with its connection."""
        self._answers.discard(answer)
        counted = self.metrics
        reason = {"ok": "length", "disconnected": "abort", "stopped": "abort"}.get(outcome, "error")
        for stream in answer.streams:
            if stream.made < stream.total:
                self._model.cancel(stream.ticket)
            counted.prompt_tokens += stream.input_tokens
            counted.generation_tokens += stream.made
            counted.finished[reason] += 1
            times_s = np.frombuffer(stream.due_ns, np.int64) / 1e9
            if len(times_s):
                counted.ttft.observe(float(times_s[0]) - answer.arrived_ns / 1e9)
                counted.itl.observe_all(np.diff(times_s).tolist())
            if outcome == "ok":
                counted.e2e.observe((monotonic_ns() - answer.arrived_ns) / 1e9)
                counted.inputs.observe(stream.input_tokens)
                counted.outputs.observe(stream.total)
        answer.connection.answered()

    def _metrics(self) -> str:
        generating = sum(stream.made for answer in self._answers for stream in answer.streams)
        page = self.metrics.render(*self._model.gauges(), generating, 0)
        return "".join(line for line in page.splitlines(True) if "llmpilot_emulator" not in line)

    def _card(self) -> dict[str, object]:
        return {
            "id": self.served.model_id,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "root": self.served.model_id,
            "parent": None,
            "max_model_len": self._service.max_model_tokens,
            "meta": {"n_vocab": self.served.vocabulary_size},
        }

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.check(now)
