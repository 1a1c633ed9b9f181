"""Ways to have an emulator beside other code: in its event loop, in a thread, or in a process of its own."""

import asyncio
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot.emulator.options import Limits, Options
from llmpilot.emulator.server import Emulator
from llmpilot.emulator.service import EmulatedService, example_service
from llmpilot.errors import PilotError

STOP_S = 20.0


@asynccontextmanager
async def serve(
    service: EmulatedService | None = None, options: Options | None = None, limits: Limits | None = None
) -> AsyncIterator[Emulator]:
    """Serve in the running event loop until the block ends; by default an example service on a free port.

    Raises:
        PilotError: the address is taken, or the send log cannot be written.
    """
    emulator = Emulator(service or example_service(), options or Options(), limits)
    await emulator.start()
    try:
        yield emulator
    finally:
        await emulator.stop()


@contextmanager
def in_thread(
    service: EmulatedService | None = None, options: Options | None = None, limits: Limits | None = None
) -> Iterator[Emulator]:
    """Serve in a thread until the block ends, for tests without an event loop of their own.

    Raises:
        PilotError: as `serve`.
    """
    started: Future[Emulator] = Future()
    stop: Callable[[], object] = bool

    async def main() -> None:
        nonlocal stop
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        stop = partial(loop.call_soon_threadsafe, stopped.set)
        async with serve(service, options, limits) as emulator:
            started.set_result(emulator)
            await stopped.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="emulator", daemon=True)
    thread.start()
    try:
        yield started.result()
    finally:
        stop()
        thread.join()


async def serve_until_signalled(emulator: Emulator, on_start: Callable[[Emulator], None]) -> None:
    """Serve until SIGINT or SIGTERM. Meant for a process that does nothing else."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    with suppress(NotImplementedError):  # Windows raises KeyboardInterrupt instead
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
    await emulator.start()
    try:
        # The many objects of imported libraries would cost every full collection tens of milliseconds.
        gc.collect()
        gc.freeze()
        on_start(emulator)
        await stopped.wait()
    finally:
        await emulator.stop()


class ProcessEmulator:
    """An emulator in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._truth: pa.Table | None = None

    def truth(self) -> pa.Table:
        """Return the true send times (see `truth.Sent`); they are there once the `in_process` block ended."""
        if self._truth is None:
            raise PilotError("the emulator's truth is there only once its block has ended")
        return self._truth

    def collect(self, send_log: Path) -> None:
        """Take the truth from the file that the stopped process left."""
        self._truth = pq.read_table(send_log)


@contextmanager
def in_process(
    service: EmulatedService | None = None, options: Options | None = None
) -> Iterator[ProcessEmulator]:
    """Serve in a new process until the block ends; it takes a second or two to start.

    Raises:
        PilotError: it did not come up.
    """
    options = options or Options()
    with tempfile.TemporaryDirectory(prefix="llmpilot-emulator-") as folder:
        send_log = Path(options.send_log or Path(folder) / "sent.parquet").expanduser()
        options = options.model_copy(update={"send_log": str(send_log)})
        child = subprocess.Popen(
            [sys.executable, "-m", "llmpilot.emulator.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):
                pickle.dump((service or example_service(), options), child.stdin)
                child.stdin.flush()
            answer = json.loads(child.stdout.readline() or '{"error": "the emulator did not come up"}')
            if "error" in answer:
                raise PilotError(answer["error"])
            emulator = ProcessEmulator(answer["url"])
            yield emulator
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()  # it stops when we hang up, and so it does if we are killed
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()
        emulator.collect(send_log)
