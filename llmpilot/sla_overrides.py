"""Lets `sla.ttft_ms.p95=1000` be typed although the SLA says `ttft_ms: null`, or a number.

Hydra sets keys that are there, and only a forced one (`++key=value`) makes a mapping of what was none. So
limits by statistic are forced before Hydra composes; sweeps over them (`-m sla.ttft_ms.p95=500,1000`) work
like others.
"""

from collections.abc import Sequence

from llmpilot.config import LATENCIES
from llmpilot.errors import ConfigError

FORCED = "++"


def force_statistics(arguments: Sequence[str]) -> list[str]:
    """Return the command line with limits by statistic as overrides that Hydra takes.

    Raises:
        ConfigError: a latency has both a number and limits by statistic: one of them would go unheard.
    """
    _refuse_both(arguments)
    return [FORCED + argument.lstrip("+") if _latency_of(argument) else argument for argument in arguments]


def _latency_of(argument: str) -> str | None:
    """Return the latency that `sla.itl_ms.p95=60` or `sla.itl_ms={p95: 60}` limits by statistic, or None."""
    key, _, value = argument.lstrip("+").partition("=")
    group, _, name = key.partition(".")
    latency, _, statistic = name.partition(".")
    if group != "sla" or latency not in LATENCIES:
        return None
    return latency if statistic or value.lstrip().startswith("{") else None


def _refuse_both(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if (latency := _latency_of(argument)) is None:
            continue
        key = f"sla.{latency}="
        alone = [a for a in arguments if a.lstrip("+").startswith(key) and _latency_of(a) is None]
        if alone:
            raise ConfigError(
                f"sla.{latency} is given as a number and by statistic",
                given=f"{alone[0]} {argument}",
                cure=f"name the statistic of each: sla.{latency}.p50=... sla.{latency}.p95=...",
            )
