"""A server as a process on this machine: started, awaited, watched, and stopped with all it has started.

Says nothing of engines: what to start, and how it complains, an engine tells (`engine.server`).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal

import httpx
from pydantic import Field, PositiveFloat

from llmpilot.config import Facts, Gpu, Model, NonNegative
from llmpilot.console import note
from llmpilot.deploy import keeper
from llmpilot.deploy.endpoint import ClientSettings, HttpEndpoint, ServerOutOfMemoryError
from llmpilot.deploy.external import ExternalDeployment, ServiceError
from llmpilot.deploy.hardware import local_hardware
from llmpilot.deploy.nvml import Gpus, local_gpus
from llmpilot.deploy.served_text import shown
from llmpilot.engine.server import Assignment, Command, ServerEngine, last_words, memory_complaint
from llmpilot.errors import PilotError
from llmpilot.secrets import redact

HOST = "127.0.0.1"
LOGS = Path(".llmpilot") / "servers"
POLL_S = 0.1
DYING_S = 10.0
PORT_ATTEMPTS = 3
LOG_BYTES = 4_000_000
PORT_TAKEN = ("address already in use", "couldn't bind", "failed to bind", "bind to address")


class ServerDiedError(ServiceError):
    """The server that we started has ended, or never came up."""

    exit_code = 1


class ServerProcess:
    """A running server, whose log goes to a file."""

    def __init__(self, name: str, command: Command, log_path: Path, grace_s: float) -> None:
        environment = dict(os.environ)
        for variable, value in command.environment.items():
            environment.pop(variable, None)
            if value is not None:
                environment[variable] = value
        self.name, self.log_path, self._grace_s = name, log_path, grace_s
        self._files = [Path(path) for path in command.files]
        for path, text in command.files.items():
            Path(path).write_text(text, encoding="utf-8")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            # -I -S: the keeper needs nothing but the standard library, and is there at once.
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(grace_s), *command.argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    @property
    def exit_code(self) -> int | None:
        """How it ended (128 + signal when killed); None while it runs."""
        return self._keeper.poll()

    def log(self) -> str:
        """Return what it has said, secrets hidden; of a long log the last part."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - LOG_BYTES))
            return redact(log.read().decode(errors="replace"))

    def stop(self) -> None:
        """Stop it and everything that it has started."""
        stdin: IO[bytes] | None = self._keeper.stdin
        if stdin is not None:
            with suppress(BrokenPipeError):
                stdin.close()
        try:
            self._keeper.wait(self._grace_s + 10)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        for file in self._files:
            file.unlink(missing_ok=True)

    def problem(self, engine: ServerEngine, wrong: str) -> PilotError:
        """Return what is to be said of a server that did not do as it should: with its own words."""
        log = self.log()
        words = "\n    ".join(map(shown, last_words(log))) or "(none)"
        complaint = memory_complaint(log, engine.out_of_memory)
        if complaint is not None:
            return ServerOutOfMemoryError(
                f"{self.name} ran out of memory: {shown(complaint)}",
                cure=f"a smaller max_batch_weight, or a machine with more memory; its log is {self.log_path}",
            )
        return ServerDiedError(
            f"{wrong}; what it said:\n    {words}", cure=f"its whole log is {self.log_path}"
        )

    def death(self, engine: ServerEngine) -> PilotError:
        """Return what is to be said of a server that has ended by itself."""
        code = self.exit_code or 0
        how = f"with exit code {code}" if code < 128 else f"killed by signal {code - 128}"
        if code == 137:
            how += ", as the kernel does when the machine's memory runs out"
        return self.problem(engine, f"{self.name} has ended, {how}")


@dataclass(frozen=True)
class ProcessEndpoint(HttpEndpoint):
    """The endpoint of a server that we started. It goes to worker processes without the server."""

    started_by: ServerEngine | None = None
    server: ServerProcess | None = None

    @property
    def hardware(self) -> str:
        """This machine's GPUs, or its processor."""
        return local_hardware()

    def log(self) -> str | None:
        """Return what the server has said, secrets hidden."""
        return None if self.server is None else self.server.log()

    def raise_if_ended(self) -> None:
        """Raise what it died of if the server no longer runs.

        Raises:
            ServerOutOfMemoryError: its log says so.
            ServerDiedError: of anything else.
        """
        if self.server is not None and self.started_by is not None and self.server.exit_code is not None:
            raise self.server.death(self.started_by)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"server": None, "started_by": None}


class ProcessDeployment(Facts):
    """Starts the engine's server on the loopback interface; a port null is a free one."""

    name: ClassVar[str] = "process"
    measurement: ClassVar[Literal["measured", "simulated"]] = "measured"
    starts_services: ClassVar[bool] = True

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    ready_timeout_s: PositiveFloat = 600.0
    stop_grace_s: NonNegative = 15.0
    client: ClientSettings = ClientSettings()

    @property
    def service_name(self) -> None:
        """Nothing: the facts of the LLM are always known."""
        return

    def memory(self, engine: ServerEngine, model: Model, gpu: Gpu) -> None:
        """Return None: the server itself finds out what fits."""
        return

    def facts(self, engine: ServerEngine, model: Model, gpu: Gpu) -> dict[str, Any]:
        """Return nothing: the settings say all."""
        return {}

    def headline(self, engine: ServerEngine, model: Model, gpu: Gpu) -> str:
        """Return what is measured."""
        return f"{engine.name} on this machine, whatever its hardware; the GPU profile is a label"

    @contextmanager
    def start(
        self,
        engine: ServerEngine,
        model: Model,
        gpu: Gpu,
        max_batch_weight: int | None,
        *,
        heaviest_request_tokens: int,
        log_path: Path | None = None,
    ) -> Iterator[ProcessEndpoint]:
        """Yield the endpoint once the server has shown that it answers; stop it when the block ends.

        The log goes to `log_path`. Without one it goes to a file under `.llmpilot`, which stays only when
        the block ends with an error.

        Raises:
            PilotError: the engine cannot be started (see its `command`), or the port is taken.
            ServerOutOfMemoryError: memory does not suffice.
            ServerDiedError: it ended early, or was not ready in time.
        """
        path = log_path or LOGS / f"{engine.name}-{os.getpid()}.log"
        path = path.absolute()
        assignment = Assignment(model, gpu, max_batch_weight, heaviest_request_tokens, HOST, self.port or 0)
        server, port = self._ready(engine, assignment, path)
        try:
            with local_gpus() as gpus:
                endpoint = self._endpoint(engine, model, gpu, server, port)
                seen = gpus if isinstance(gpus, Gpus) else None
                yield replace(endpoint, metrics=engine.metrics, gpus=seen, gpus_known=str(gpus))
        finally:
            server.stop()
            _hide_secrets(path)
        if log_path is None:
            _remove(path)

    def _ready(self, engine: ServerEngine, assignment: Assignment, log: Path) -> tuple[ServerProcess, int]:
        """Return a server that answers its health check, and its port."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = assignment.port or free_port()
            if assignment.port:
                _require_free(port)
            command = engine.command(replace(assignment, port=port))
            log.unlink(missing_ok=True)
            server = ServerProcess(f"the {engine.name} server", command, log, self.stop_grace_s)
            note(f"starting the {engine.name} server; its log: {log}")
            try:
                self._wait(engine, server, port)
                return server, port
            except BaseException as error:
                server.stop()
                _hide_secrets(log)
                # Somebody else may have taken the free port before the server did.
                lost = isinstance(error, ServerDiedError) and _says_port_taken(server.log())
                if not lost or assignment.port or attempt == PORT_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _wait(self, engine: ServerEngine, server: ServerProcess, port: int) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        with httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=5.0) as http:
            while True:
                if server.exit_code is not None:
                    raise server.death(engine)
                with suppress(httpx.HTTPError):
                    if http.get(engine.health_path).status_code == 200:
                        return
                if time.monotonic() > deadline:
                    raise server.problem(
                        engine,
                        f"{server.name} was not ready after {self.ready_timeout_s:g} s "
                        "(deployment.ready_timeout_s)",
                    )
                time.sleep(POLL_S)

    def _require_health(self, engine: ServerEngine, server: ServerProcess, port: int) -> None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://{HOST}:{port}{engine.health_path}", trust_env=False).status_code == 200:
                return
        deadline = time.monotonic() + DYING_S
        while server.exit_code is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if server.exit_code is not None:
            raise server.death(engine)
        raise server.problem(engine, f"{server.name} is no longer healthy after a first request")

    def _endpoint(
        self, engine: ServerEngine, model: Model, gpu: Gpu, server: ServerProcess, port: int
    ) -> ProcessEndpoint:
        """Look at the server as at one that was there already: its model, its dialect, a first answer."""
        there = ExternalDeployment(
            url=f"http://{HOST}:{port}",
            model=engine.served_model(model),
            api_key_env="",  # a key for another service is none of its business
            client=self.client,
        )
        try:
            with there.start(engine.wire, model, gpu, None) as seen:
                found = {name: getattr(seen, name) for name in HttpEndpoint.__dataclass_fields__}
        except ServiceError:
            self._require_health(engine, server, port)
            raise
        # An engine may have died of the first request, in the middle of an answer that began well.
        self._require_health(engine, server, port)
        return ProcessEndpoint(**found, started_by=engine, server=server)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of ended connections are free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PilotError(
                f"port {port} cannot be used: {error.strerror}",
                given=f"deployment.port={port}",
                cure="stop what listens there, or leave deployment.port out to take a free one",
            ) from None


def _says_port_taken(log: str) -> bool:
    log = log.lower()
    return any(words in log for words in PORT_TAKEN)


def _hide_secrets(log: Path) -> None:
    """Take secrets out of a log that a server has finished: it becomes an artifact of the run."""
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        if (hidden := redact(text)) != text:
            log.write_text(hidden, encoding="utf-8")


def _remove(log: Path) -> None:
    with suppress(OSError):
        log.unlink()
        log.parent.rmdir()
        log.parent.parent.rmdir()
