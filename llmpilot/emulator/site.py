"""A server of OpenAI's API, whatever makes its tokens: it listens, routes, refuses and counts."""

import asyncio
import contextlib
import hmac
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic_ns
from typing import TypeVar

import numpy as np

import llmpilot
from llmpilot.emulator import metrics, wire
from llmpilot.emulator.answer import Answer, Stream
from llmpilot.emulator.api import ApiError, Generation, read_chat, read_completion, read_json
from llmpilot.emulator.connection import Connection
from llmpilot.emulator.http import Request
from llmpilot.emulator.options import Limits
from llmpilot.emulator.service import EmulatedService

SWEEP_S = 0.5
Handler = Callable[[Request, Connection, int], Answer | None]
Made = TypeVar("Made", bound=Answer)


class OpenAISite(ABC):
    """One model behind OpenAI's API; `product` is what the server calls itself.

    A subclass makes the tokens: `_begin` starts an answer, `_cancel` gives one of its streams up, `_gauges`
    says how much is under way. All of it runs in one event loop.
    """

    product: str

    def __init__(
        self, service: EmulatedService, limits: Limits | None = None, api_key: bytes | None = None
    ) -> None:
        self.service, self.limits = service, limits or Limits()
        self.connections: set[Connection] = set()
        self.url = ""
        self.metrics = metrics.Metrics(service.model_id, service.service.kv_capacity_tokens)
        self._api_key = api_key
        self._run_id = secrets.token_hex(4)
        self._number = 0
        self._answers: set[Answer] = set()
        self._created = int(time.time())
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._models},
            "/health": {"GET": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._metrics},
        }
        self._server: asyncio.Server
        self._sweeper: asyncio.Task[None]

    async def open(self, sock: socket.socket) -> None:
        """Answer whoever connects to a listening socket; `url` is set then."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=sock, backlog=1024)
        self._sweeper = loop.create_task(self._sweep())
        host, port = sock.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close every connection, and give up what is under way."""
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        self._server.close()
        for connection in list(self.connections):
            connection.close()
        for answer in list(self._answers):
            answer.abandon("stopped")
        await asyncio.sleep(0)

    @property
    def slips(self) -> int | None:
        """How often the machine was too slow for the pace that it should keep; None: it keeps none."""
        return None

    @property
    def preemptions(self) -> int:
        """How often a sequence lost its place and was computed anew."""
        return 0

    def handle(self, request: Request, connection: Connection, arrived_ns: int) -> Answer | None:
        """Route one request; every refusal is an OpenAI error."""
        try:
            return self._route(request)(request, connection, arrived_ns)
        except ApiError as error:
            body = wire.error_body(error.message, error.kind, error.param, error.code)
            extra = {"x-request-id": f"req-{self._run_id}-{secrets.token_hex(4)}"}
            if error.status == 401:
                extra["www-authenticate"] = "Bearer"
            if error.status == 405:
                extra["allow"] = ", ".join(sorted(self._methods(request.path)))
            connection.write_json(error.status, body, extra)
            return None

    @abstractmethod
    def _begin(self, wanted: Generation, connection: Connection, arrived_ns: int) -> Answer:
        """Return a `_new_answer` whose tokens are being made.

        Raises:
            ApiError: this is not served, or not now.
        """

    @abstractmethod
    def _cancel(self, stream: Stream) -> None:
        """Make no more tokens of a stream: its client has gone, or another of its answer's has failed."""

    @abstractmethod
    def _gauges(self) -> tuple[int, int, float]:
        """Return sequences running and waiting, and the share of the KV cache in use."""

    def _require_ready(self) -> None:
        """Refuse while the model is not there yet; here it is there from the start."""
        return

    def _new_answer(
        self, made: type[Made], wanted: Generation, connection: Connection, arrived_ns: int
    ) -> Made:
        self._number += 1
        answer = made(
            wanted,
            number=self._number,
            response_id=f"{'chatcmpl' if wanted.chat else 'cmpl'}-{self._run_id}-{self._number}",
            created=int(time.time()),
            arrived_ns=arrived_ns,
            connection=connection,
            on_end=self._ended,
        )
        self._answers.add(answer)
        return answer

    def _ended(self, answer: Answer, outcome: str) -> None:
        """An answer has ended: free its places, count it, and go on with its connection."""
        self._answers.discard(answer)
        for stream in answer.streams:
            if stream.made < stream.total:
                self._cancel(stream)
            self._count(stream, answer.arrived_ns, outcome)
        answer.connection.answered()

    def _count(self, stream: Stream, arrived_ns: int, outcome: str) -> None:
        counted = self.metrics
        counted.prompt_tokens += stream.input_tokens
        counted.generation_tokens += stream.copies * stream.made
        times_s = np.frombuffer(stream.due_ns, np.int64) / 1e9
        if len(times_s):
            counted.ttft.observe(float(times_s[0]) - arrived_ns / 1e9)
            counted.itl.observe_all(np.diff(times_s).tolist())
        if outcome == "ok":
            counted.e2e.observe((monotonic_ns() - arrived_ns) / 1e9)
            counted.inputs.observe(stream.input_tokens)
            counted.outputs.observe(stream.copies * stream.total)
        reason = {"ok": stream.reason, "disconnected": "abort", "stopped": "abort"}.get(outcome, "error")
        counted.finished[reason] += stream.copies

    def _route(self, request: Request) -> Handler:
        path = request.path
        if path.startswith("/v1/"):
            self._authorize(request)
        methods = self._methods(path)
        if not methods:
            hint = ": see /openapi.json" if "/openapi.json" in self._routes else ""
            raise ApiError(404, f"Unknown path {path[:200]!r}{hint}", code="unknown_url")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise ApiError(
                405, f"Method {request.method[:20]} is not allowed here", code="method_not_allowed"
            )
        return handler

    def _methods(self, path: str) -> dict[str, Handler]:
        if path.startswith("/v1/models/") and len(path) > len("/v1/models/"):
            return {"GET": self._one_model}
        return self._routes.get(path, {})

    def _authorize(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        matches = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._api_key)
        if scheme.lower() != "bearer" or not matches:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    def _completions(self, request: Request, connection: Connection, arrived_ns: int) -> Answer:
        _require_json(request)
        return self._begin(read_completion(read_json(request.body), self.service), connection, arrived_ns)

    def _chat(self, request: Request, connection: Connection, arrived_ns: int) -> Answer:
        _require_json(request)
        return self._begin(read_chat(read_json(request.body), self.service), connection, arrived_ns)

    def _models(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        self._require_ready()
        connection.write_json(200, {"object": "list", "data": [self._card()]})

    def _one_model(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        name = request.path.removeprefix("/v1/models/")
        if name not in (self.service.model_id, *self.service.aliases):
            raise ApiError(
                404, f"The model `{name[:200]}` does not exist", param="model", code="model_not_found"
            )
        self._require_ready()
        connection.write_json(200, self._card())

    def _card(self) -> dict[str, object]:
        service = self.service
        return {
            "id": service.model_id,
            "object": "model",
            "created": self._created,
            "owned_by": self.product,
            "root": service.model_id,
            "parent": None,
            "max_model_len": service.max_model_tokens,
        }

    def _health(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        self._require_ready()
        connection.write_body(200, "text/plain; charset=utf-8", b"")

    def _version(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        connection.write_json(200, {"version": llmpilot.__version__, "engine": self.product})

    def _metrics(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        generating = sum(stream.made * stream.copies for answer in self._answers for stream in answer.streams)
        text = self.metrics.render(
            *self._gauges(), generating, preemptions=self.preemptions, slips=self.slips
        )
        connection.write_body(200, metrics.CONTENT_TYPE, text.encode())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.check(now)


def _require_json(request: Request) -> None:
    content_type = request.headers.get("content-type", wire.JSON).partition(";")[0].strip().lower()
    if content_type != wire.JSON:
        raise ApiError(415, "the Content-Type must be application/json")
