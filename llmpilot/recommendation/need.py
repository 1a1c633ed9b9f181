"""From an SLA to what a predictor can judge: medians of nTTFT and ITL, 1% of failures. Refuses the rest."""

from math import inf

from llmpilot.config import Sla
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Need
from llmpilot.predict.prediction import FAILURES_ALLOWED


def need_of(users: int, sla: Sla) -> Need:
    """Return what a service must do for so many users within the SLA.

    A `max_failure_rate` of 1 counts no failures.

    Raises:
        ConfigError: the SLA has a limit that predictions say nothing about, or none that they do.
    """
    if sla.percentile != 50:
        raise ConfigError(
            "predictions are of medians: there is none of other percentiles",
            given=f"sla.percentile={sla.percentile}",
            cure="sla.percentile=50; a characterization measures percentiles of a service that runs",
        )
    for key in ("ttft_ms", "tpot_ms", "e2e_ms"):
        limit = getattr(sla, key)
        if limit is not None:
            raise ConfigError(
                f"predictions are of nTTFT and ITL: there is none of {key}",
                given=f"sla.{key}={limit:g}",
                cure=f"sla.{key}=null, and limits of sla.nttft_ms and sla.itl_ms",
            )
    if sla.nttft_ms is None and sla.itl_ms is None:
        raise ConfigError(
            "the SLA has no limit: every service keeps it", cure="set sla.nttft_ms or sla.itl_ms or both"
        )
    if sla.max_failure_rate not in (FAILURES_ALLOWED, 1.0):
        raise ConfigError(
            f"predictions tell only whether more than {FAILURES_ALLOWED:.0%} of the requests fail",
            given=f"sla.max_failure_rate={sla.max_failure_rate:g}",
            cure=f"sla.max_failure_rate={FAILURES_ALLOWED:g}, or 1 to count no failures",
        )
    return Need(
        users=users,
        nttft_ms=inf if sla.nttft_ms is None else sla.nttft_ms,
        itl_ms=inf if sla.itl_ms is None else sla.itl_ms,
        count_failures=sla.max_failure_rate == FAILURES_ALLOWED,
    )
