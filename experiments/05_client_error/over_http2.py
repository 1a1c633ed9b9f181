"""How wrong is the client over HTTP/2, beside itself over HTTP/1.1, at one and the same server?

    python over_http2.py --users 32,128 --repeats 3 --out over_http2.json

The server sends 64 tokens a request at fixed times in either protocol, and writes down when it did. Both
protocols take turns, so that a noisy minute of the machine meets both.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from hpack import Decoder, Encoder

from llmpilot.config import Load
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.loadtest import Traffic
from llmpilot.loadtest.client import run_http_level
from llmpilot.loadtest.client_error import compare
from llmpilot.openai_client import http2
from llmpilot.workload import fit, from_lengths

TTFT_S, ITL_S, TOKENS = 0.05, 0.02, 64
ROUND_S = TTFT_S + (TOKENS - 1) * ITL_S
EVENT = (
    b'data: {"id": "%s", "object": "text_completion", "created": 1790000000, "model": "m", "choices": '
    b'[{"index": 0, "text": " a", "logprobs": null, "finish_reason": %s, "token_ids": [1207]}]}\n\n'
)


class Served(asyncio.Protocol):
    """One connection, in either protocol: whole requests in, tokens at their times out."""

    def __init__(self, truth: list[tuple[str, int, list[int]]], version: int) -> None:
        self.truth, self.version = truth, version
        self.received, self.encoder, self.decoder = b"", Encoder(), Decoder()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.version == 2:
            transport.write(http2.frame(http2.SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff"))

    def data_received(self, data: bytes) -> None:
        now_ns = time.perf_counter_ns()
        self.received += data
        if self.version == 1:
            head, end, body = self.received.partition(b"\r\n\r\n")
            if end and len(body) == int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
                self.received = b""
                self.answer(0, now_ns)
            return
        self.received = self.received.removeprefix(http2.PREFACE)
        while len(self.received) >= 9:
            stop = 9 + int.from_bytes(self.received[:3])
            if len(self.received) < stop:
                return
            frame, self.received = self.received[:stop], self.received[stop:]
            kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:9])
            if kind == http2.HEADERS:
                self.decoder.decode(frame[9:])
            if kind == http2.SETTINGS and not flags:
                self.transport.write(http2.frame(http2.SETTINGS, http2.ACK, 0, b""))
            if kind == http2.DATA:
                self.window = stop - 9
                self.transport.write(http2.frame(http2.WINDOW_UPDATE, 0, 0, self.window.to_bytes(4)))
                if flags & http2.END_STREAM:
                    self.answer(stream, now_ns)

    def answer(self, stream: int, arrived_ns: int) -> None:
        name = f"r{len(self.truth)}"
        times: list[int] = []
        self.truth.append((name, arrived_ns, times))
        due_s = asyncio.get_running_loop().time() + TTFT_S
        self.later(due_s, stream, name.encode(), times)

    def later(self, due_s: float, stream: int, name: bytes, times: list[int]) -> None:
        asyncio.get_running_loop().call_at(due_s, self.token, due_s, stream, name, times)

    def token(self, due_s: float, stream: int, name: bytes, times: list[int]) -> None:
        if self.transport.is_closing():
            return
        first, last = not times, len(times) == TOKENS - 1
        event = EVENT % (name, b'"length"' if last else b"null") + (b"data: [DONE]\n\n" if last else b"")
        if self.version == 2:
            data = http2.frame(http2.DATA, http2.END_STREAM if last else 0, stream, event)
            if first:
                fields = self.encoder.encode([(":status", "200"), ("content-type", "text/event-stream")])
                data = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, fields) + data
        else:
            data = b"%x\r\n%b\r\n" % (len(event), event) + (b"0\r\n\r\n" if last else b"")
            if first:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
                data = head + b"\r\n\r\n" + data
        times.append(time.perf_counter_ns())
        self.transport.write(data)
        if not last:
            self.later(due_s + ITL_S, stream, name, times)


def serve(pipe: Pipe, version: int) -> None:
    async def run() -> None:
        truth: list[tuple[str, int, list[int]]] = []
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Served(truth, version), "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.recv)
        pipe.send(truth)

    try:
        import uvloop

        uvloop.run(run())
    except ImportError:
        asyncio.run(run())


@contextmanager
def server(version: int) -> Iterator[tuple[str, Pipe]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, version), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}", ours
    finally:
        process.terminate()
        process.join()


def error(users: int, version: int, rounds: int) -> dict[str, Any]:
    """Return the client's error at this many users."""
    load = Load(
        arrival="closed", users=[users], warmup_s=2 * ROUND_S, duration_s=rounds * ROUND_S, drain_s=60
    )
    traffic = Traffic(load, fit(lambda: [from_lengths([64], [TOKENS])]), 0)
    with server(version) as (url, pipe):
        place = HttpEndpoint(url, "m", OpenAIEngine(), "vllm", http2=version == 2)
        records = run_http_level(place, traffic, users)
        pipe.send("end")
        truth = pipe.recv()
    names, arrived_ns, sent_ns = zip(*truth, strict=True)
    table = pa.table({"request_id": names, "arrived_ns": arrived_ns, "sent_ns": sent_ns})
    return compare(records, table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", default="32,128")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = []
    for users in map(int, arguments.users.split(",")):
        for repeat in range(arguments.repeats):
            for version in (1, 2):
                figures = error(users, version, arguments.rounds)
                results.append(
                    {"users": users, "http": version, "repeat": repeat, "load_average": os.getloadavg()[0]}
                    | figures
                )
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print("| users | HTTP | TTFT error p50, p99 [ms] | ITL error p50, p99 [ms] | busiest worker | failed |")
    print("|---|---|---|---|---|---|")
    for users, version in dict.fromkeys((r["users"], r["http"]) for r in results):
        runs = [r for r in results if (r["users"], r["http"]) == (users, version)]

        def mid(latency: str, statistic: str, runs: list[dict[str, Any]] = runs) -> str:
            return f"{median(r[latency][statistic] for r in runs):.3f}"

        ttft, itl = (", ".join(mid(f"{x}_error_ms", p) for p in ("p50", "p99")) for x in ("ttft", "itl"))
        busy, failed = median(r["busy_share"] for r in runs), sum(r["requests_failed"] for r in runs)
        print(f"| {users} | {version} | {ttft} | {itl} | {busy:.0%} | {failed} |")


if __name__ == "__main__":
    main()
