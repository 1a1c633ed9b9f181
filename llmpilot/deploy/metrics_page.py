"""Fetches a server's page of metrics: quickly or not at all, for nothing of it may hold up a measurement."""

import time

import httpx

from llmpilot.deploy.exchange import Caller, NoAnswerError
from llmpilot.engine.known_metrics import KNOWN, recognise
from llmpilot.engine.server import ServerMetrics
from llmpilot.openai_client.exchange import MOST_BYTES

TIMEOUT_S = 2.0


class UnreadableError(Exception):
    """The page cannot be read now, or is none."""


def fetch(http: httpx.Client, path: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return the page as text, within about `timeout_s` for each of connecting and reading.

    Raises:
        UnreadableError: no answer in time, another status than 200, or far too long a page.
    """
    began_s, page = time.monotonic(), bytearray()
    try:
        with http.stream("GET", path, timeout=timeout_s, headers={"Accept": "text/plain"}) as answer:
            if answer.status_code != 200:
                raise UnreadableError(f"{path} answered {answer.status_code}")
            for piece in answer.iter_bytes():
                page += piece
                if len(page) > MOST_BYTES or time.monotonic() - began_s > 2 * timeout_s:
                    raise UnreadableError(f"{path} does not end")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreadableError(f"{path}: {type(error).__name__}") from None
    return page.decode("utf-8", "replace")


def discover(caller: Caller) -> ServerMetrics | None:
    """Return what the server calls its metrics; None if it shows none, or none that we know."""
    for path in dict.fromkeys(metrics.path for metrics in KNOWN):
        try:
            answer = caller.ask("GET", path, headers={"Accept": "text/plain"}, timeout_s=2 * TIMEOUT_S)
        except NoAnswerError:
            continue
        found = recognise(answer.text) if answer.status == 200 else None
        if found is not None:
            return found
    return None
