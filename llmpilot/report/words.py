"""A result in words and figures: what the table, the plots and the page have in common."""

from typing import Any

from llmpilot import metrics
from llmpilot.boundary import AT_LEAST, BELOW, EXACT
from llmpilot.config import LATENCIES, Sla
from llmpilot.schema import exactly

Result = dict[str, Any]
LATENCY_LABELS = {
    "ttft_ms": "TTFT [ms]",
    "nttft_ms": "nTTFT [ms per input token]",
    "itl_ms": "ITL [ms]",
    "e2e_ms": "E2E [ms]",
}
COLOURS = {"p50": "#1f77b4", "p90": "#2ca02c", "p95": "#ff7f0e", "p99": "#d62728", "mean": "#7f7f7f"}


def short_windows(result: Result) -> list[str]:
    """Return a sentence for each level whose steady window was too short to judge it by."""
    return [
        f"{exactly(level['level'])} {result['level_unit']}: {problem}"
        for level in result["levels"]
        if (problem := level.get("window_problem"))
    ]


def service(result: Result) -> str:
    """Return `starcoder on 1 x A100-40GB`; the LLM alone where it is not known what it runs on."""
    model: str = result["model"]
    return model if result["gpu"] is None else f"{model} on {result['count']} x {result['gpu']}"


def conclusion(result: Result) -> str:
    """Return the answer in one sentence."""
    price_per_hour = result["cost_per_hour"]
    promise = f"the SLA ({sla_of(result).label}"
    promise += f", failures <= {result['sla']['max_failure_rate']:.1%})"
    if not result["level_max"]:
        dear = "" if price_per_hour is None else f" (${price_per_hour:.2f}/h{_whose(result)})"
        return f"{service(result)} keeps {promise} at no measured level{_too_few(result)}{dear}."
    price = result["cost_per_million_output_tokens"]
    cost = "" if price_per_hour is None else f"; ${price_per_hour:.2f}/h"
    cost += f", ${price:.2f} per million output tokens there" if price is not None else ""
    cost += f" ({source})" if cost and (source := result.get("price_source")) else ""
    takes, breaks = _most(result)
    return f"{service(result)} takes {takes} within {promise}{breaks}{cost}."


def largest(result: Result) -> str:
    """Return the most that a service takes, for a table: `8 (12 breaks)`, `>= 128`, `< 4`; `-` unknown."""
    most, broken, meaning = (result.get(key) for key in ("level_max", "level_broken", "level_max_is"))
    if most is None:
        return "-"
    if meaning == BELOW and broken is not None:
        return f"< {exactly(broken)}"
    if meaning == AT_LEAST:
        return f">= {exactly(most)}"
    return exactly(most) if broken is None else f"{exactly(most)} ({exactly(broken)} breaks)"


def _most(result: Result) -> tuple[str, str]:
    """Return what a service takes, and what breaks its SLA; results of earlier versions do not tell."""
    unit, meaning, broken = result["level_unit"], result.get("level_max_is"), result.get("level_broken")
    most = f"{exactly(result['level_max'])} {unit}"
    if meaning == AT_LEAST:
        return f"at least {most} (the largest load tried)", ""
    if broken is None:
        return most, ""
    return f"exactly {most}" if meaning == EXACT else most, f", and {exactly(broken)} break it"


def _too_few(result: Result) -> str:
    """Return what is known of a service that breaks the SLA from the first level on."""
    broken, unit = result.get("level_broken"), result["level_unit"]
    if broken is None:
        return ""
    if unit == "users" and broken <= 1:
        return ", not even for one user"
    few = "fewer" if unit == "users" else "less"
    return f": it takes {few} than {exactly(broken)} {unit}, the smallest load tried"


def _whose(result: Result) -> str:
    """Return whose prices these are, as far as the result says."""
    source = result.get("price_source")
    return f", {source}" if source else ""


def mark(level: dict[str, Any]) -> str:
    """Return what stands behind a level whose steady window was too short."""
    return " !" if level.get("window_problem") else ""


def server_figure(level: dict[str, Any], gauge: str, statistic: str, digits: int) -> str:
    """Return a figure that the server gave of itself, or a dash."""
    return figure_of(level.get("server", {}).get(gauge, {}).get(statistic), digits)


def figure_of(value: float | None, digits: int) -> str:
    """Return a figure with this many decimals, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def dollars_per_million(level: dict[str, Any], result: Result) -> float | None:
    """Return $ per 1e6 output tokens at a level; None where there are none, or no price is known."""
    return metrics.cost_per_million_output_tokens(level, result["cost_per_hour"])


def per_dollar(result: Result) -> float | None:
    """Return what turns output tokens/s into millions of them per $; None where no price is known."""
    price_per_hour = result["cost_per_hour"]
    return None if price_per_hour is None else 3600 / price_per_hour / 1e6


def title(result: Result) -> str:
    """Return what was measured, with which workload."""
    weight = result["max_batch_weight"]
    return f"{service(result)} ({result['measurement']}), workload {result['workload']}" + (
        f", max batch weight {weight:,}" if weight else ""
    )


def series(result: Result, latency: str, stat: str) -> tuple[list[float], list[float]]:
    """Return (levels, values) of a latency's statistic, where it has one."""
    points = [(level["level"], level[latency][stat]) for level in result["levels"]]
    points = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in points], [y for _, y in points]


def shown_statistics(result: Result, latency: str) -> list[str]:
    """Return which statistics of a latency are drawn: its percentiles, and its mean where that is limited."""
    limited = {limit.statistic for limit in sla_of(result).limits_on(latency)}
    return [name for name in COLOURS if name != "mean" or name in limited]


def sla_of(result: Result) -> Sla:
    """Return the SLA that a result was judged by; a latency that it does not name has no limit."""
    return Sla.model_validate(dict.fromkeys(LATENCIES) | result["sla"])
