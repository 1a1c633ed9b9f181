"""Prometheus' text format, as far as a server's own metrics need it: a page in, a few figures out. No I/O."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llmpilot.engine.server import ServerMetrics

NAN = math.nan


@dataclass(frozen=True)
class Reading:
    """What a server's page says at one moment; NaN where it does not say.

    Requests in the running batch and before it, share of the KV cache in use from 0 to 1, and preemptions
    and output tokens since the server's start.
    """

    running: float = NAN
    waiting: float = NAN
    kv_usage: float = NAN
    preemptions: float = NAN
    tokens: float = NAN


def read(page: str, names: ServerMetrics) -> Reading:
    """Return the page's figures under these names.

    A name may stand there once for each engine core (data parallel) or model: requests and counts are
    summed, shares averaged.
    """
    wanted = (names.running, names.waiting, names.kv_use, names.preemptions, names.tokens)
    found = values(page, filter(None, wanted))

    def total(name: str | None) -> float:
        return sum(found[name]) if name in found else NAN

    shares = found.get(names.kv_use or "", [])
    return Reading(
        running=total(names.running),
        waiting=total(names.waiting),
        kv_usage=sum(shares) / len(shares) if shares else NAN,
        preemptions=total(names.preemptions),
        tokens=total(names.tokens),
    )


def values(page: str, names: Iterable[str]) -> dict[str, list[float]]:
    """Return every finite value that the page has for each of the names, whatever the labels."""
    wanted = set(names)
    found: dict[str, list[float]] = {}
    for line in page.splitlines():
        # Labels may hold spaces and braces, but nothing behind them does: a value, and perhaps a time.
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name not in wanted:
            continue
        words = line.rpartition("}")[2].split() if "{" in line else line.split()[1:]
        try:
            value = float(words[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            found.setdefault(name, []).append(value)
    return found
