"""From an SLA to what the paper's predictors can judge: medians of nTTFT and ITL, 1% of failures.

Refuses the rest.
"""

from math import inf

from llmpilot.config import Limit, Sla
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Need
from llmpilot.predict.prediction import FAILURES_ALLOWED

PREDICTED = ("nttft_ms", "itl_ms")


def need_of(users: int, sla: Sla) -> Need:
    """Return what a service must do for so many users within the SLA.

    A `max_failure_rate` of 1 counts no failures.

    Raises:
        ConfigError: the SLA has a limit that predictions say nothing about, or none that they do.
    """
    limits = median_limits(sla)
    if sla.max_failure_rate not in (FAILURES_ALLOWED, 1.0):
        raise ConfigError(
            f"predictions tell only whether more than {FAILURES_ALLOWED:.0%} of the requests fail",
            given=f"sla.max_failure_rate={sla.max_failure_rate:g}",
            cure=f"sla.max_failure_rate={FAILURES_ALLOWED:g}, or 1 to count no failures",
        )
    return Need(
        users=users,
        nttft_ms=limits.get("nttft_ms", inf),
        itl_ms=limits.get("itl_ms", inf),
        count_failures=sla.max_failure_rate == FAILURES_ALLOWED,
    )


def median_limits(sla: Sla) -> dict[str, float]:
    """Return the limits on the medians of nTTFT and ITL: one or both.

    Raises:
        ConfigError: there is another limit, or none.
    """
    others = [limit for limit in sla.limits if limit.latency not in PREDICTED or limit.statistic != "p50"]
    if others:
        raise ConfigError(
            "from the paper's measurements only medians of nTTFT and ITL are predicted",
            given=" ".join(dict.fromkeys(typed for limit in others for typed in _as_typed(limit, sla))),
            cure="limit sla.nttft_ms and sla.itl_ms at sla.percentile=50; task=recommend engine=vllm "
            "predicts every percentile",
        )
    if not sla.limits:
        raise ConfigError(
            "the SLA has no limit: every service keeps it", cure="set sla.nttft_ms or sla.itl_ms or both"
        )
    return {limit.latency: limit.limit_ms for limit in sla.limits}


def _as_typed(limit: Limit, sla: Sla) -> list[str]:
    """Return the overrides that give a limit: its statistic is its own, or that of the whole SLA."""
    key = f"sla.{limit.latency}"
    if isinstance(getattr(sla, limit.latency), dict):
        return [f"{key}.{limit.statistic}={limit.limit_ms:g}"]
    usual = [] if sla.percentile == 50 else [f"sla.percentile={sla.percentile}"]
    return [*usual, f"{key}={limit.limit_ms:g}"]
