"""The simulated service in real time, as an OpenAI-compatible server: to prove clients against.

In a test, or to calibrate a client, start one on any free port:

    async with serve(options=Options(fixed=FixedTiming(ttft_ms=50, itl_ms=20))) as emulator:
        ...                                  # requests to emulator.url
        truth = emulator.truth()             # one row a prompt: request_id, due_ns, sent_ns, ...

`in_thread` does the same for code without an event loop. In one process, server and client take each
other's time; `in_process` gives the server a process of its own, and its truth once it has stopped:

    with in_process(options=Options(...)) as emulator:
        ...                                  # requests to emulator.url
    truth = emulator.truth()

Times are of the monotonic clock [ns], on Linux the same in every process of a machine, so a client's
`time.monotonic_ns()` at a token minus `sent_ns` of that token is the client's error. Join on the id of the
response (`id`, or the header x-request-id).
"""

from llmpilot.emulator.options import Faults, FixedTiming, Limits, Options
from llmpilot.emulator.process import ProcessEmulator, in_process, in_thread, serve
from llmpilot.emulator.server import Emulator
from llmpilot.emulator.service import EmulatedService, describe, example_service

__all__ = [
    "EmulatedService",
    "Emulator",
    "Faults",
    "FixedTiming",
    "Limits",
    "Options",
    "ProcessEmulator",
    "describe",
    "example_service",
    "in_process",
    "in_thread",
    "serve",
]
