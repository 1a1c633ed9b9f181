"""Looks at the server's own metrics, and at this machine's GPUs, about once a second while a level runs.

A thread of the driving process, which otherwise waits: the workers, which measure, know nothing of it, and
whatever goes wrong in it costs samples, never the level.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from llmpilot.config import Load
from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.deploy.metrics_page import UnreadableError, fetch
from llmpilot.engine.prometheus import NAN, Reading, read
from llmpilot.loadtest.server_samples import Sample, ServerSamples, as_columns
from llmpilot.openai_client.http import clock_ns
from llmpilot.openai_client.proxies import read_proxy

PERIOD_S = 1.0
FEWEST = 4
SHORTEST_PERIOD_S = 0.1
LEAVE_S = 0.1
"""How long the end of a level waits for a look that is under way; a slow server's answer is let go."""


@contextmanager
def watching(endpoint: HttpEndpoint, load: Load) -> Iterator["Watch | None"]:
    """Yield a watch that can be begun and ends with the block; None where there is nothing to look at."""
    if endpoint.metrics is None and endpoint.gpus is None:
        yield None
        return
    watch = Watch(endpoint, period_of(load.duration_s))
    try:
        yield watch
    finally:
        watch.end()


def period_of(window_s: float) -> float:
    """Return the time between two looks [s]: a second, less for a window of few seconds."""
    return min(PERIOD_S, max(SHORTEST_PERIOD_S, window_s / FEWEST))


class Watch:
    """Samples of one level."""

    def __init__(self, endpoint: HttpEndpoint, period_s: float) -> None:
        self._endpoint, self._period_ns = endpoint, round(period_s * 1e9)
        self._http = _http(endpoint)
        self._samples: list[Sample] = []
        self._missed = 0
        self._start_ns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_again, name="server metrics", daemon=True)

    def begin(self, start_ns: int) -> None:
        """Look for the first time at the level's start, a time of our clock."""
        self._start_ns = start_ns
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.ident is None:
            self._http.close()
        else:
            self._thread.join(LEAVE_S)

    def samples(self) -> ServerSamples:
        """Return what was seen so far."""
        return as_columns(list(self._samples), self._missed, self._start_ns)

    def _look_again(self) -> None:
        at_ns = self._start_ns
        with self._http:
            while not self._over.wait(max(0, at_ns - clock_ns()) / 1e9):
                self._look()
                # Looks that a slow answer has cost are left out: a burst of them later would say nothing.
                periods = max(1, -((at_ns - clock_ns()) // self._period_ns))
                at_ns += periods * self._period_ns

    def _look(self) -> None:
        metrics, gpus = self._endpoint.metrics, self._endpoint.gpus
        asked_ns = clock_ns()
        power_w, memory_gb = (gpus.power_w(), gpus.memory_gb()) if gpus is not None else (NAN, NAN)
        reading, answer_ms = Reading(), NAN
        if metrics is not None:
            try:
                reading = read(fetch(self._http, self._endpoint.at(metrics.path)), metrics)
                answer_ms = (clock_ns() - asked_ns) / 1e6
            except UnreadableError:
                if self._over.is_set():
                    return
                self._missed += 1
                if gpus is None:
                    return
        figures = {name: getattr(reading, name) for name in Reading.__dataclass_fields__}
        sample = Sample(
            asked_ns, answer_ms=answer_ms, **figures, gpu_power_w=power_w, gpu_memory_gb=memory_gb
        )
        self._samples.append(sample)


def _http(endpoint: HttpEndpoint) -> httpx.Client:
    """Return a client that reaches the server as the workers do: by the same trust, proxy and HTTP."""
    access = endpoint.access
    proxy = None
    if access.proxy is not None:
        found = read_proxy(access.proxy)
        proxy = httpx.Proxy(
            found.shown,
            headers={"Proxy-Authorization": found.authorization} if found.authorization else None,
            ssl_context=access.context() if found.tls else None,
        )
    return httpx.Client(
        base_url=endpoint.url,
        headers=endpoint.headers,
        verify=access.context() if access.secure else False,
        proxy=proxy,
        http1=not access.http2,
        http2=access.http2,
        trust_env=False,
    )
