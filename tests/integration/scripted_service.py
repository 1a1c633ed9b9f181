"""A server that plays scripts: what it sends, after which pauses, and when it sent what carries output.

The clock is the load test's own (one for all processes of a machine), so the send log is the truth that the
client's times are held against.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """Wait `pause_s`, then send `data`; `shows` says whether it carries output."""

    data: bytes
    pause_s: float = 0.0
    shows: bool = False


@dataclass
class Log:
    """When the steps that show output were sent [ns]: by the prompt's length, answer by answer."""

    sent_ns: dict[int, list[list[int]]] = field(default_factory=dict)


@contextmanager
def playing(scripts: dict[int, list[Step]]) -> Iterator[tuple[str, Log]]:
    """Yield the URL of a server that plays the script of each prompt's length, and its log."""
    log = Log()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                tokens = len(body["prompt"])
                sent_ns: list[int] = []
                log.sent_ns.setdefault(tokens, []).append(sent_ns)
                for step in scripts[tokens]:
                    if step.pause_s:
                        await asyncio.sleep(step.pause_s)
                    if step.shows:
                        sent_ns.append(time.perf_counter_ns())
                    writer.write(step.data)
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", log
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
