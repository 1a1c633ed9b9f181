"""Load on a real service over HTTP: starts the workers, begins and ends with them, joins their records.

Requests are fixed by user: user k of a closed loop sends rows k, k + users, k + 2 users ... of the
traffic; in an open loop request i goes out at arrival i, and its latency counts from that time. Users of a
closed loop begin one after the other in the first half of the warm-up, so no burst goes on into the window.
"""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import SystemRandom
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llmpilot
from llmpilot import interrupts
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.errors import PilotError
from llmpilot.loadtest.records import Records
from llmpilot.loadtest.server_samples import ServerSamples
from llmpilot.loadtest.talk_rows import conversation_of, requests_of, turn_of
from llmpilot.loadtest.traffic import Traffic
from llmpilot.loadtest.watch import watching
from llmpilot.loadtest.worker import Job
from llmpilot.loadtest.worker_log import Part
from llmpilot.openai_client.http import clock_ns
from llmpilot.secrets import remembered
from llmpilot.workload import Requests

USERS_PER_WORKER = 256
HEAD_START_NS = 50_000_000


def run_http_level(endpoint: HttpEndpoint, traffic: Traffic, level: float) -> Records:
    """Measure one level of the ladder: warm-up, steady window, and the drain behind it.

    Raises:
        PilotError: a worker process has died, or the service's name is known no more.
    """
    load = traffic.load
    workers = _workers(endpoint.client.workers, level if load.arrival == "closed" else None)
    nonce = SystemRandom().getrandbits(20)
    secrets = remembered()
    jobs = [Job(endpoint, traffic, level, index, workers, nonce, secrets) for index in range(workers)]
    with watching(endpoint, load) as watch, _started(jobs) as channels:
        _gather(channels, "ready")
        start_ns = clock_ns() + HEAD_START_NS
        for channel in channels:
            channel.send(start_ns)
        if watch is not None:
            watch.begin(start_ns)
        # Users keep the load up until every measured request, of all workers, has ended.
        early = _gather(channels, "quiet")
        for channel in channels:
            if channel not in early:
                channel.send("end")
        parts = early | _gather([c for c in channels if c not in early], "done")
    window_us = (round(load.warmup_s * 1e6), round((load.warmup_s + load.duration_s) * 1e6))
    ordered = [parts[channel] for channel in channels]
    return _join(
        ordered,
        window_us,
        level,
        start_ns,
        traffic,
        replace_inputs=not endpoint.engine.takes_token_ids,
        repeated=endpoint.engine.repeats_prompts,
        server=None if watch is None else watch.samples(),
    )


def _workers(wanted: int | None, users: float | None) -> int:
    """Return how many processes: two, more for many users where there are cores for them."""
    if wanted is None:
        cores = os.cpu_count() or 1
        wanted = max(2, min(cores // 2, int((users or 1) // USERS_PER_WORKER)))
    return wanted if users is None else min(wanted, int(users))


@contextmanager
def _started(jobs: list[Job]) -> Iterator[list[Connection]]:
    """Yield a channel to a running worker for each job; none of them outlives this context."""
    processes: list[subprocess.Popen[bytes]] = []
    channels: list[Connection] = []
    environment = dict(os.environ)
    package = str(Path(llmpilot.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    # The measuring loop is one thread; numeric libraries need not start their own.
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        for job in jobs:
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-m", "llmpilot.loadtest.worker", str(theirs.fileno())]
            # A terminal's Ctrl-C is for us alone: a worker would say where in its imports it was.
            with interrupts.held():
                processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
                    )
                )
            theirs.close()
            channel: Connection = Connection(ours.detach())
            channels.append(channel)
            channel.send(job)
        yield channels
    finally:
        for channel in channels:
            channel.close()
        for process in processes:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _gather(channels: list[Connection], expected: str) -> dict[Connection, Any]:
    """Wait for this message from every worker; return the Parts of those that were done even earlier."""
    done: dict[Connection, Any] = {}
    waiting = set(channels)
    while waiting:
        for channel in wait(list(waiting)):
            assert isinstance(channel, Connection)
            try:
                message = channel.recv()
            except (EOFError, ConnectionResetError):
                raise PilotError(
                    "a worker process of the load test has died",
                    cure="look above for why, and at free memory",
                ) from None
            if message[0] == "refused":
                raise message[1]
            if message[0] == "error":
                raise RuntimeError(f"a worker process of the load test failed:\n{message[1]}")
            if message[0] == "done":
                done[channel] = message[1]
            if message[0] in (expected, "done"):
                waiting.discard(channel)
    return done


def _join(
    parts: list[Part],
    window_us: tuple[int, int],
    level: float,
    start_ns: int,
    traffic: Traffic,
    *,
    replace_inputs: bool,
    repeated: bool,
    server: ServerSamples | None,
) -> Records:
    """Return the workers' parts as one table in the order of sending, in microseconds from the start."""

    def column(name: str) -> NDArray[np.int64]:
        return np.concatenate([getattr(part, name) for part in parts])

    def microseconds(times_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(times_ns < 0, -1, np.maximum(0, times_ns - start_ns) // 1000)

    row, talks = column("row"), traffic.conversations
    failure = np.array([kind for part in parts for kind in part.failure], dtype=np.str_)
    begun_us = microseconds(column("begun_ns"))
    order = np.lexsort((row, begun_us))
    counts = column("token_counts")
    token_us = microseconds(column("token_ns"))
    gap_us, gap_offsets = _gaps(token_us, counts, order)
    succeeded = failure == ""
    last_us, ended_us = microseconds(column("last_ns")), microseconds(column("ended_ns"))
    done_us = np.where(succeeded, last_us, np.where(failure == "unfinished", -1, ended_us))
    row, counted, cached = row[order], column("input_tokens")[order], column("cached_tokens")[order]
    asked = None
    if talks is None:
        requests = _rows(traffic, row)
    else:
        requests, asked = requests_of(talks, row, column("prompt_tokens")[order])
    if repeated:
        counted, cached = _of_one_prompt(requests, counted, cached)
    if replace_inputs:
        asked = requests.input_tokens if asked is None else asked
        requests = _with_counted_inputs(requests, counted)
    return Records(
        level=level,
        window_us=window_us,
        requests=requests,
        sent_us=begun_us[order],
        first_token_us=microseconds(column("first_ns"))[order],
        done_us=done_us[order],
        failure=failure[order],
        gap_us=gap_us,
        gap_offsets=gap_offsets,
        dispatch_delay_us=((column("sent_ns") - column("begun_ns")) // 1000)[order],
        response_id=np.array([own for part in parts for own in part.response_id], dtype=np.str_)[order],
        notes={"start_ns": start_ns} | _notes(parts),
        server=server,
        first_answer_us=microseconds(column("first_answer_ns"))[order],
        hidden_tokens=column("hidden_tokens")[order],
        cached_tokens=cached,
        conversation=None if talks is None else conversation_of(row),
        turn=None if talks is None else turn_of(row),
        counted_input_tokens=counted,
        asked_input_tokens=asked,
    )


def _gaps(
    token_us: NDArray[np.int64], counts: NDArray[np.int64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the gaps between each request's tokens, requests in this order, and where each one's begin."""
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    counts, starts = counts[order], starts[order]
    gaps = np.maximum(counts - 1, 0)
    offsets = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    at = np.arange(offsets[-1]) - np.repeat(offsets[:-1], gaps) + np.repeat(starts, gaps)
    return token_us[at + 1] - token_us[at], offsets


def _rows(traffic: Traffic, row: NDArray[np.int64]) -> Requests:
    source = traffic.requests()
    return source.take(int(row.max()) + 1 if len(row) else 0).take(row)


def _of_one_prompt(
    requests: Requests, counted: NDArray[np.int64], cached: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what the server counted, and had in its cache, of each of the prompts that a request sends.

    Most servers add them all up; a count that is nearer to the length of one is taken for that.
    """
    copies = requests.batch_size
    prompts = np.where(counted > requests.input_tokens * np.sqrt(copies), copies, 1)
    each = (np.rint(values / prompts).astype(np.int64) for values in (counted, cached))
    counted_each, cached_each = (
        np.where(values > 0, one, values) for one, values in zip(each, (counted, cached), strict=True)
    )
    return counted_each, cached_each


def _with_counted_inputs(requests: Requests, counted: NDArray[np.int64]) -> Requests:
    """Return the requests with the server's own count of input tokens, where it gave one."""
    from dataclasses import replace

    return replace(requests, input_tokens=np.where(counted > 0, counted, requests.input_tokens))


def _notes(parts: list[Part]) -> dict[str, Any]:
    """Return what columns cannot say: how tokens were counted, why requests failed, how the client did."""
    notes = [part.notes for part in parts]
    counted: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for note in notes:
        counted.update(note["counted_by"])
        totals.update(note["totals"])
    messages: dict[str, str] = {}
    for note in reversed(notes):
        messages |= note["messages"]
    return {
        "tokens_counted_by": dict(counted),
        "chunks": totals["chunks"],
        "chunks_merged_share": totals["chunks_merged"] / max(1, totals["chunks"]),
        "answers": totals["answers"],
        "pieces_per_answer": totals["pieces"] / max(1, totals["answers"]),
        "in_one_piece": totals["in_one_piece"],
        "in_one_piece_share": totals["in_one_piece"] / max(1, totals["answers_of_several"]),
        "ended_early": totals["ended_early"],
        "longer_than_asked": totals["longer_than_asked"],
        "hidden_tokens": totals["hidden_tokens"],
        "thinking_share": totals["thinking_tokens"] / max(1, totals["output_tokens"]),
        "reconnects": sum(note["stale_connections"] for note in notes),
        "failure_messages": messages,
        **_of_histories([note["histories"] for note in notes if note["histories"] is not None]),
        "client": {
            "workers": len(parts),
            "loop": notes[0]["loop"],
            "busy_share": max((note["busy_share"] or 0.0 for note in notes), default=0.0),
            "lag_ms_p50": max((note["lag_ms_p50"] or 0.0 for note in notes), default=0.0),
            "lag_ms_p99": max((note["lag_ms_p99"] or 0.0 for note in notes), default=0.0),
        },
    }


def _of_histories(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what it took to write conversations; see `Records`."""
    if not parts:
        return {}
    slices = sum(part["slices"] for part in parts)
    return {
        "histories": {
            "slice_ms_mean": sum(part["busy_ms"] for part in parts) / max(1, slices),
            "slice_ms_longest": max(part["longest_slice_ms"] for part in parts),
            "busy_ms_per_turn": sum(part["busy_ms"] for part in parts)
            / max(1, sum(p["turns"] for p in parts)),
            "made_up_answers": sum(part["made_up_answers"] for part in parts),
        }
    }
