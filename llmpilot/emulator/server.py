"""The emulator itself: a site whose tokens come by simulated batching or at fixed times, with faults."""

import asyncio
import os
import random
from time import monotonic_ns

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmpilot.emulator.answer import Answer, Stream
from llmpilot.emulator.api import ApiError, Generation
from llmpilot.emulator.connection import Connection
from llmpilot.emulator.engines import BatchingEngine, Engine, FixedEngine
from llmpilot.emulator.http import Request
from llmpilot.emulator.listening import listen
from llmpilot.emulator.openapi import document
from llmpilot.emulator.options import Limits, Options
from llmpilot.emulator.prefixes import KeptPrefixes
from llmpilot.emulator.service import EmulatedService
from llmpilot.emulator.site import OpenAISite
from llmpilot.emulator.truth import SendLog
from llmpilot.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Emulator(OpenAISite):
    """A running emulator; `start` it inside an event loop, and `stop` it there."""

    product = "llm-pilot-emulator"

    def __init__(self, service: EmulatedService, options: Options, limits: Limits | None = None) -> None:
        super().__init__(service, limits, _api_key(options))
        self.options = options
        self._faults = random.Random(options.faults.seed)
        self._ready_ns = 0
        self._routes["/openapi.json"] = {"GET": self._openapi}
        self._engine: Engine
        self._log: SendLog

    async def start(self) -> None:
        """Listen; `url` is set then.

        Raises:
            PilotError: the address is taken or cannot be used.
            ConfigError: the send log cannot be written.
        """
        options, loop = self.options, asyncio.get_running_loop()
        sock = listen(options.host, options.port)
        try:
            self._log = SendLog(options.send_log)
        except BaseException:
            sock.close()
            raise
        if options.fixed.on:
            tokens = options.prefix_cache_tokens
            kept = None if tokens is None else KeptPrefixes(tokens)
            self._engine = FixedEngine(options.fixed, options.speed, loop, kept)
        else:
            above = options.faults.out_of_memory_above_weight
            self._engine = BatchingEngine(self.service.service, options.speed, above, loop)
        await self.open(sock)
        self._ready_ns = monotonic_ns() + int(options.faults.start_delay_s * 1e9)

    async def stop(self) -> None:
        """Close every connection, and write the send log to its end.

        Raises:
            PilotError: the send log could not be written.
        """
        await super().stop()
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
    def preemptions(self) -> int:
        """How often a sequence lost its place and was computed anew."""
        return self._engine.preemptions

    @property
    def requests(self) -> int:
        """How many generation requests were accepted."""
        return self._number

    def _begin(self, wanted: Generation, connection: Connection, arrived_ns: int) -> Answer:
        self._require_ready()
        fault = self._draw_fault()
        if fault == "error_500":
            raise ApiError(500, "internal error (emulated)", kind="server_error", code="emulated_fault")
        answer = self._new_answer(Answer, wanted, connection, arrived_ns)
        self._fill(answer, fault)
        for stream in answer.streams:
            self._engine.submit(stream, arrived_ns)
        return answer

    def _fill(self, answer: Answer, fault: str | None) -> None:
        wanted, lengths = answer.request, self.service.output_lengths
        longest = self.service.service.longest_request_tokens(wanted.n)
        for prompt, input_tokens in enumerate(wanted.prompt_tokens):
            drawn = lengths[(answer.number + prompt - 1) % len(lengths)]
            room = min(self.service.max_model_tokens, longest) - input_tokens
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

    def _cancel(self, stream: Stream) -> None:
        self._engine.cancel(stream)

    def _gauges(self) -> tuple[int, int, float]:
        return self._engine.gauges()

    def _ended(self, answer: Answer, outcome: str) -> None:
        """Keep the truth of an answer that has ended."""
        for row in answer.rows(outcome):
            self._log.add(row)
        super()._ended(answer, outcome)

    def _openapi(self, request: Request, connection: Connection, arrived_ns: int) -> None:
        connection.write_json(200, document(self.service, self.url, secured=self._api_key is not None))

    def _require_ready(self) -> None:
        if monotonic_ns() < self._ready_ns:
            raise ApiError(503, "the model is still loading (emulated)", kind="server_error", code="loading")


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
