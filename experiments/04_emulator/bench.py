"""How exactly the emulator keeps time: 128 streams at 50 tokens/s each, the server held to one core.

Prints, and writes to results.json, how far tokens were sent from when they were due, in the server's own
truth. The client only reads, in a process and on a core of its own where the machine has two.
"""

import argparse
import json
import os
import selectors
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmpilot.emulator import FixedTiming, Options, example_service, in_process

STREAMS, TOKENS_PER_S, INPUT_TOKENS = 128, 50.0, 64
ITL_MS = 1000.0 / TOKENS_PER_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--result", type=Path, default=Path(__file__).with_name("results.json"))
    arguments = parser.parse_args()
    tokens = int(arguments.seconds * TOKENS_PER_S)
    fixed = Options(fixed=FixedTiming(ttft_ms=100.0, itl_ms=ITL_MS))
    batching = Options(speed=step_ms() / ITL_MS)
    results = {
        "fixed timing, streams spread over a token's time": measure(fixed, tokens, spread_s=ITL_MS / 1e3),
        "fixed timing, all streams at one instant": measure(fixed, tokens, spread_s=0.0),
        "continuous batching, all streams in one batch": measure(batching, tokens, spread_s=0.0),
    }
    print(
        f"{STREAMS} streams, {TOKENS_PER_S:g} tokens/s each, server on one core, {arguments.seconds:g} s each"
    )
    columns = ("itl_ms_p50", "abs_p50", "abs_p99", "p1", "p50", "p99", "server_core_share")
    print(f"{'|sent - due| and sent - due [ms]':50}" + "".join(f"{column:>13}" for column in columns))
    for name, result in results.items():
        print(f"{name:50}" + "".join(f"{result[column]:13.3f}" for column in columns))
    arguments.result.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def step_ms() -> float:
    """Return how long the example service decodes once for all streams, halfway through their answers."""
    service = example_service().service
    kv_tokens = STREAMS * (INPUT_TOKENS + 500)
    return service.step_times.decode_ms(STREAMS) + service.step_times.kv_ms_per_token * kv_tokens


def measure(options: Options, tokens: int, *, spread_s: float) -> dict[str, float]:
    """Return the percentiles of one case; the first and last tenth of every answer are left out."""
    service = example_service()
    service = replace(service, service=replace(service.service, request_overhead_ms=5.0))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})  # the server inherits its core
    try:
        with in_process(service, options) as emulator:
            os.sched_setaffinity(0, {cores[0]})
            cpu_s = -_children_cpu_s()
            started = time.monotonic()
            read_streams(emulator.url, tokens, spread_s)
            wall_s = time.monotonic() - started
    finally:
        os.sched_setaffinity(0, cores)
    cpu_s += _children_cpu_s()
    truth: pa.Table = emulator.truth()
    assert truth["outcome"].to_pylist() == ["ok"] * STREAMS, "streams were lost"
    due = np.array(truth["due_ns"].to_pylist())
    sent = np.array(truth["sent_ns"].to_pylist())
    steady = slice(tokens // 10, tokens - tokens // 10)
    late_ms = (sent - due)[:, steady].ravel() / 1e6
    itl_ms = np.diff(due[:, steady], axis=1) / 1e6
    return {
        "itl_ms_p50": round(float(np.median(itl_ms)), 4),
        "abs_p50": round(float(np.percentile(abs(late_ms), 50)), 4),
        "abs_p99": round(float(np.percentile(abs(late_ms), 99)), 4),
        "p1": round(float(np.percentile(late_ms, 1)), 4),
        "p50": round(float(np.percentile(late_ms, 50)), 4),
        "p99": round(float(np.percentile(late_ms, 99)), 4),
        "tokens": int(late_ms.size),
        "server_core_share": round(cpu_s / wall_s, 3),
    }


def read_streams(url: str, tokens: int, spread_s: float) -> None:
    """Open all streams, `spread_s` from the first to the last, and read them to their end."""
    host, port = url.removeprefix("http://").split(":")
    body = {"model": "starcoder", "prompt": list(range(300, 300 + INPUT_TOKENS)), "max_tokens": tokens}
    content = json.dumps(body | {"ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(content)}\r\nconnection: close\r\n\r\n".encode() + content
    selector = selectors.DefaultSelector()
    sockets = [socket.create_connection((host, int(port))) for _ in range(STREAMS)]
    for sock in sockets:
        selector.register(sock, selectors.EVENT_READ)

    def send() -> None:
        for sock in sockets:
            sock.sendall(request)
            time.sleep(spread_s / STREAMS)

    sender = threading.Thread(target=send)
    sender.start()
    while selector.get_map():
        for key, _ in selector.select():
            if not key.fileobj.recv(65536):
                selector.unregister(key.fileobj)
                key.fileobj.close()
    sender.join()


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
