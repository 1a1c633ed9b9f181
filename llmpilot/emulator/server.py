"""The emulator itself: it listens, routes requests, starts answers, and counts what became of them."""

import asyncio
import contextlib
import hmac
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from time import monotonic_ns

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import llmpilot
from llmpilot.emulator import metrics, wire
from llmpilot.emulator.answer import Answer
from llmpilot.emulator.api import ApiError, Generation, read_chat, read_completion, read_json
from llmpilot.emulator.connection import Connection
from llmpilot.emulator.engines import BatchingEngine, Engine, FixedEngine
from llmpilot.emulator.http import Request
from llmpilot.emulator.openapi import document
from llmpilot.emulator.options import Limits, Options
from llmpilot.emulator.service import EmulatedService
from llmpilot.emulator.truth import SendLog
from llmpilot.errors import ConfigError, PilotError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
Handler = Callable[[Request, Connection, int], Answer | None]


class Emulator:
    """A running emulator; `start` it inside an event loop, and `stop` it there."""

    def __init__(self, service: EmulatedService, options: Options, limits: Limits | None = None) -> None:
        self.service, self.options, self.limits = service, options, limits or Limits()
        self.connections: set[Connection] = set()
        self.url = ""
        self.metrics = metrics.Metrics(service.model_id, service.service.kv_capacity_tokens)
        self._api_key = _api_key(options)
        self._run_id = secrets.token_hex(4)
        self._number = 0
        self._answers: set[Answer] = set()
        self._faults = random.Random(options.faults.seed)
        self._ready_ns = 0
        self._created = int(time.time())
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._models},
            "/health": {"GET": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
        }
        self._engine: Engine
        self._log: SendLog
        self._server: asyncio.Server
        self._sweeper: asyncio.Task[None]

    async def start(self) -> None:
        """Listen; `url` is set then.

        Raises:
            PilotError: the address is taken or cannot be used.
            ConfigError: the send log cannot be written.
        """
        options, loop = self.options, asyncio.get_running_loop()
        sock = _listen(options.host, options.port)
        try:
            self._log = SendLog(options.send_log)
        except BaseException:
            sock.close()
            raise
        if options.fixed.on:
            self._engine = FixedEngine(options.fixed, options.speed, loop)
        else:
            above = options.faults.out_of_memory_above_weight
            self._engine = BatchingEngine(self.service.service, options.speed, above, loop)
        self._server = await loop.create_server(lambda: Connection(self), sock=sock, backlog=1024)
        self._sweeper = loop.create_task(self._sweep())
        self._ready_ns = monotonic_ns() + int(options.faults.start_delay_s * 1e9)
        host, port = sock.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close every connection, and write the send log to its end.

        Raises:
            PilotError: the send log could not be written.
        """
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        self._server.close()
        for connection in list(self.connections):
            connection.close()
        for answer in list(self._answers):
            answer.abandon("stopped")
        await asyncio.sleep(0)
        self._engine.close()
        self._log.close()

    def truth(self) -> pa.Table:
        """Return the true send times of all requests that have ended (see `truth.Sent`), the latest 2
        million tokens of them."""
        return self._log.table()

    def lateness_ms(self) -> NDArray[np.float64]:
        """Return sent - due of every streamed token [ms]; how well the emulator itself keeps time."""
        return self._log.lateness_ms()

    @property
    def slips(self) -> int:
        """How often the machine was too slow for the emulated pace, and its schedule moved."""
        return self._engine.slips

    @property
    def requests(self) -> int:
        """How many generation requests were accepted."""
        return self._number

    def handle(self, request: Request, connection: Connection, arrived_ns: int) -> Answer | None:
        """Route one request; every refusal is an OpenAI error."""
        try:
            return self._route(request)(request, connection, arrived_ns)
        except ApiError as error:
            body = wire.error_body(error.message, error.kind, error.param, error.code)
            extra = {"x-request-id": self._new_id("req")}
            if error.status == 401:
                extra["www-authenticate"] = "Bearer"
            if error.status == 405:
                extra["allow"] = ", ".join(sorted(self._methods(request.path)))
            connection.write_json(error.status, body, extra)
            return None

    def _route(self, request: Request) -> Handler:
        path = request.path
        if path.startswith("/v1/"):
            self._authorize(request)
        methods = self._methods(path)
        if not methods:
            raise ApiError(404, f"Unknown path {path[:200]!r}: see /openapi.json", code="unknown_url")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise ApiError(
                405, f"Method {request.method[:20]} is not allowed here", code="method_not_allowed"
            )
        return handler

    def _methods(self, path: str) -> dict[str, Handler]:
        if path.startswith("/v1/models/") and len(path) > len("/v1/models/"):
            return {"GET": self._model}
        return self._routes.get(path, {})

    def _authorize(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        matches = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._api_key)
        if scheme.lower() != "bearer" or not matches:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    def _completions(self, request: Request, connection: Connection, arrived_ns: int) -> Answer | None:
        return self._generate(read_completion, request, connection, arrived_ns)

    def _chat(self, request: Request, connection: Connection, arrived_ns: int) -> Answer | None:
        return self._generate(read_chat, request, connection, arrived_ns)

    def _generate(
        self,
        read: Callable[[dict[str, object], EmulatedService], Generation],
        request: Request,
        connection: Connection,
        arrived_ns: int,
    ) -> Answer | None:
        content_type = request.headers.get("content-type", wire.JSON).partition(";")[0].strip().lower()
        if content_type != wire.JSON:
            raise ApiError(415, "the Content-Type must be application/json")
        wanted = read(read_json(request.body), self.service)
        self._require_started()
        fault = self._draw_fault()
        if fault == "error_500":
            raise ApiError(500, "internal error (emulated)", kind="server_error", code="emulated_fault")
        self._number += 1
        answer = Answer(
            wanted,
            number=self._number,
            response_id=f"{'chatcmpl' if wanted.chat else 'cmpl'}-{self._run_id}-{self._number}",
            created=int(time.time()),
            arrived_ns=arrived_ns,
            connection=connection,
            on_end=self._ended,
        )
        self._fill(answer, fault)
        self._answers.add(answer)
        for stream in answer.streams:
            self._engine.submit(stream, arrived_ns)
        return answer

    def _fill(self, answer: Answer, fault: str | None) -> None:
        wanted, lengths = answer.request, self.service.output_lengths
        heaviest = self.service.service.rule.max_batch_weight // wanted.n
        for prompt, input_tokens in enumerate(wanted.prompt_tokens):
            drawn = lengths[(self._number + prompt - 1) % len(lengths)]
            room = min(self.service.max_model_tokens, heaviest) - input_tokens
            answer.add(prompt, *wanted.output_tokens(drawn, room))
        if fault is not None:
            answer.fault, answer.stall_s = fault, self.options.faults.stall_s
            first = answer.streams[0]
            first.fault_at = min(max(1, first.total // 2), first.total - 1)

    def _draw_fault(self) -> str | None:
        faults, drawn = self.options.faults, self._faults.random()
        for name, share in (
            ("error_500", faults.error_500_share),
            ("reset", faults.reset_share),
            ("stall", faults.stall_share),
        ):
            if drawn < share:
                return name
            drawn -= share
        return None

    def _ended(self, answer: Answer, outcome: str) -> None:
        """An answer has ended: free its places, keep its truth, count it, and go on with its connection."""
        self._answers.discard(answer)
        counted = self.metrics
        for stream in answer.streams:
            if stream.made < stream.total:
                self._engine.cancel(stream)
        for row in answer.rows(outcome):
            self._log.add(row)
            counted.prompt_tokens += row.input_tokens
            counted.generation_tokens += row.copies * len(row.due_ns)
            times_s = np.frombuffer(row.due_ns, np.int64) / 1e9
            if len(times_s):
                counted.ttft.observe(float(times_s[0]) - row.arrived_ns / 1e9)
                counted.itl.observe_all(np.diff(times_s).tolist())
            if outcome == "ok":
                counted.e2e.observe((monotonic_ns() - row.arrived_ns) / 1e9)
                counted.inputs.observe(row.input_tokens)
                counted.outputs.observe(row.copies * row.output_tokens)
        for stream in answer.streams:
            reason = {"ok": stream.reason, "disconnected": "abort", "stopped": "abort"}.get(outcome, "error")
            counted.finished[reason] += stream.copies
        answer.connection.answered()

    def _models(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        self._require_started()
        connection.write_json(200, {"object": "list", "data": [self._card()]})

    def _model(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        name = request.path.removeprefix("/v1/models/")
        if name not in (self.service.model_id, *self.service.aliases):
            raise ApiError(
                404, f"The model `{name[:200]}` does not exist", param="model", code="model_not_found"
            )
        self._require_started()
        connection.write_json(200, self._card())

    def _card(self) -> dict[str, object]:
        service = self.service
        return {
            "id": service.model_id,
            "object": "model",
            "created": self._created,
            "owned_by": wire.FINGERPRINT,
            "root": service.model_id,
            "parent": None,
            "max_model_len": service.max_model_tokens,
        }

    def _health(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        self._require_started()
        connection.write_body(200, "text/plain; charset=utf-8", b"")

    def _version(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        connection.write_json(200, {"version": llmpilot.__version__, "engine": wire.FINGERPRINT})

    def _metrics(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        generating = sum(stream.made * stream.copies for answer in self._answers for stream in answer.streams)
        text = self.metrics.render(*self._engine.gauges(), generating, self._engine.slips)
        connection.write_body(200, metrics.CONTENT_TYPE, text.encode())

    def _openapi(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        connection.write_json(200, document(self.service, self.url, secured=self._api_key is not None))

    def _require_started(self) -> None:
        if monotonic_ns() < self._ready_ns:
            raise ApiError(503, "the model is still loading (emulated)", kind="server_error", code="loading")

    def _new_id(self, kind: str) -> str:
        return f"{kind}-{self._run_id}-{secrets.token_hex(4)}"

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.check(now)


def _api_key(options: Options) -> bytes | None:
    name = options.api_key_env
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise ConfigError(
            f"api_key_env={name}: there is no such environment variable, or it is empty",
            cure=f"export {name}=..., or leave api_key_env out to serve without a key",
        )
    return key.encode()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"host={host} is no address of this machine: {error}", cure="host=127.0.0.1"
        ) from None
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise PilotError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}",
            cure="port=<another>, or port=0 for any free one",
        ) from None
    return sock
