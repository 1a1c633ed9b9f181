"""Looking at a server's metrics while a level runs: never in the way, whatever the server does."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import needs_openssl, of_internal_ca
from forward_proxy import forward_proxy
from odd_service import service, whole

from llmpilot.config import Load
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.nvml import Gpus
from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.loadtest import Traffic, run_level
from llmpilot.loadtest.server_samples import ServerSamples
from llmpilot.loadtest.watch import Watch, watching
from llmpilot.metrics import server_figures
from llmpilot.openai_client.http import clock_ns
from llmpilot.workload import fit, from_lengths

RUNNING = b'vllm:num_requests_running{engine="0"} 3.0\n'
PERIOD_S = 0.02


class FixedGpus(Gpus):
    def __init__(self) -> None:
        pass

    def power_w(self) -> float:
        return 300.0

    def memory_gb(self) -> float:
        return 40.0


@contextmanager
def page(way: str) -> Iterator[tuple[str, threading.Event]]:
    """Yield the URL of a server whose page is like that, and an event that is set once it is asked for."""
    asked, released = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            if way == "hangs":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not released.wait(0.1):
                    self.wfile.write(b"X-Not-Yet: 1\r\n")  # so that no client gives it up
            self.send_response(500 if way == "fails" else 200)
            self.end_headers()
            if way == "half":
                self.wfile.write(RUNNING[:30])
            elif way == "endless":
                while not released.is_set():
                    self.wfile.write(RUNNING * 1000)
            else:
                self.wfile.write(RUNNING)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        released.set()
        server.shutdown()
        server.server_close()


def endpoint(url: str, gpus: Gpus | None = None) -> HttpEndpoint:
    return HttpEndpoint(url, "m", OpenAIEngine(), "vllm", metrics=VllmEngine.metrics, gpus=gpus)


def look(place: HttpEndpoint, until: Any) -> ServerSamples:
    """Look until that holds of the samples, for a minute at most."""
    watch = Watch(place, PERIOD_S)
    watch.begin(clock_ns())
    deadline = time.monotonic() + 60
    while not until(watch.samples()) and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.end()
    return watch.samples()


def test_samples_follow_each_other() -> None:
    with page("answers") as (url, _):
        samples = look(endpoint(url), lambda seen: len(seen.time_us) > 4)
    assert samples.missed == 0
    assert (np.diff(samples.time_us) > 0).all()
    assert set(samples.columns["running"].tolist()) == {3.0}
    assert np.isnan(samples.columns["waiting"]).all()
    assert np.isnan(samples.columns["gpu_power_w"]).all()


@pytest.mark.parametrize("way", ["fails", "endless"])
def test_a_page_that_cannot_be_read_is_missed(way: str) -> None:
    with page(way) as (url, _):
        samples = look(endpoint(url), lambda seen: seen.missed > 1)
    assert samples.missed > 1
    assert len(samples.time_us) == 0


def test_a_server_that_is_gone_is_missed() -> None:
    with page("answers") as (url, _):
        pass
    assert look(endpoint(url), lambda seen: seen.missed > 1).missed > 1


def test_the_end_does_not_wait_for_a_page_that_hangs() -> None:
    before = set(threading.enumerate())
    with page("hangs") as (url, asked):
        watch = Watch(endpoint(url), PERIOD_S)
        watch.begin(clock_ns())
        assert asked.wait(60)
        watch.end()
        begun = set(threading.enumerate()) - before
        assert "server metrics" in {thread.name for thread in begun}, "it still waits"
        assert len(watch.samples().time_us) == 0


def test_half_a_page_says_what_it_says_and_gpus_do_not_need_one() -> None:
    with page("half") as (url, _):
        samples = look(endpoint(url, FixedGpus()), lambda seen: len(seen.time_us) > 1)
    assert np.isnan(samples.columns["running"]).all()
    with page("fails") as (url, _):
        samples = look(endpoint(url, FixedGpus()), lambda seen: len(seen.time_us) > 1)
    assert samples.missed > 1
    window_us = (0, int(samples.time_us.max()) + 1)
    figures = server_figures(samples, window_us)
    assert figures["gpu_power_w"] == {"mean": 300, "max": 300}
    assert figures["gpu_memory_gb"] == {"mean": 40, "max": 40}
    assert "running" not in figures


def test_nothing_to_look_at_is_no_watch() -> None:
    load = Load(arrival="closed", users=[1], duration_s=1)
    with watching(HttpEndpoint("http://x", "m", OpenAIEngine(), "vllm"), load) as watch:
        assert watch is None
    with watching(endpoint("http://127.0.0.1:9"), load) as watch:
        assert watch is not None, "and one that was never begun ends as well"


def test_a_level_knows_what_the_server_said() -> None:
    users = 4
    load = Load(arrival="closed", users=[users], warmup_s=0.4, duration_s=1.2, drain_s=5)
    traffic = Traffic(load, fit(lambda: [from_lengths([5], [12])]), 3)
    with in_process(options=Options(fixed=FixedTiming(ttft_ms=100, itl_ms=20))) as emulator:
        place = HttpEndpoint(
            emulator.url, example_service().model_id, OpenAIEngine(), "vllm", metrics=VllmEngine.metrics
        )
        records = run_level(place, traffic, users)
    assert set(records.failure) <= {"", "unfinished"}
    assert records.server is not None
    figures = server_figures(records.server, records.window_us)
    assert figures["samples"] > 1
    assert figures["missed"] == 0
    assert 1 < figures["running"]["mean"] + figures["waiting"]["mean"] <= users
    assert figures["preemptions"] == 0


@needs_openssl
def test_it_looks_with_the_same_trust_and_through_the_same_proxy(tmp_path: Path) -> None:
    context, ca = of_internal_ca(tmp_path)
    with (
        service(whole(RUNNING), "GET /metrics", tls=context) as url,
        forward_proxy() as passed,
    ):
        place = replace(endpoint(url), ca_file=str(ca), proxy=passed.url.replace("//", "//a:b@"))
        samples = look(place, lambda seen: len(seen.time_us) > 0)
    assert samples.columns["running"][0] == 3.0
    line, fields = passed.asked[0]
    assert line.startswith("CONNECT 127.0.0.1:")
    assert fields["proxy-authorization"] == "Basic YTpi"
