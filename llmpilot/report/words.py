"""A result in words and figures: what the table, the plots and the page have in common."""

from math import floor, log10
from typing import Any

from llmpilot import metrics
from llmpilot.boundary import AT_LEAST, BELOW, EXACT, UNSEEN
from llmpilot.config import LATENCIES, Sla
from llmpilot.console import counted
from llmpilot.schema import at_level, exactly

Result = dict[str, Any]
LATENCY_LABELS = {
    "ttft_ms": "TTFT [ms]",
    "nttft_ms": "nTTFT [ms per input token]",
    "itl_ms": "ITL [ms]",
    "e2e_ms": "E2E [ms]",
}
NOT_SHOWN = "-*"
STREAMS = {metrics.ONE_PIECE: "Stream held back", metrics.BURSTS: "Tokens in bursts"}
COLOURS = {"p50": "#1f77b4", "p90": "#2ca02c", "p95": "#ff7f0e", "p99": "#d62728", "mean": "#7f7f7f"}


def short_windows(result: Result) -> list[str]:
    """Return a sentence for each level whose steady window was too short to judge it by.

    Of a search, those at the boundary: the others decide nothing.
    """
    decide = {result["level_max"], result["level_broken"]} if "search" in result else None
    return [
        f"{at_level(level['level'], result['level_unit'])}: {problem}"
        for level in result["levels"]
        if (problem := level.get("window_problem")) and (decide is None or level["level"] in decide)
    ]


def stream_problems(result: Result) -> list[tuple[str, str]]:
    """Return (kind, sentence) for each group of levels whose streams do not show all latencies."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for level in result["levels"]:
        if level.get("stream_problem"):
            alike.setdefault(tuple(level["streams"]["not_shown"]), []).append(level)
    sla = sla_of(result)
    return [
        (str(metrics.kind_of(levels[0])), f"{_at(levels, result)}: {metrics.problem_of(levels, sla)}")
        for levels in alike.values()
    ]


def made_up_answers(result: Result) -> int:
    """Return how many answers stand in the prompts of later turns by ids that the server never made."""
    levels = [(level.get("client") or {}).get("histories") or {} for level in result["levels"]]
    return sum(level.get("made_up_answers", 0) for level in levels)


def other_workload(result: Result) -> str | None:
    """Return at which levels answers were not as long as asked for, and what the largest difference is."""
    levels = [level for level in result["levels"] if level.get("fidelity", {}).get("problem")]
    if not levels:
        return None

    def difference(level: dict[str, Any]) -> float:
        found = level["fidelity"]
        output = ("output_tokens_received", "output_tokens_asked")
        prompt = ("input_tokens_counted", "input_tokens_asked")
        pairs = [(found[got], found[asked]) for got, asked in (output, prompt) if found.get(got) is not None]
        return max(abs(float(got) / float(asked) - 1) for got, asked in pairs)

    most = max(levels, key=difference)
    which = f" (so at {at_level(most['level'], result['level_unit'])})" if len(levels) > 1 else ""
    return f"{_at(levels, result)}: {most['fidelity']['problem']}{which}"


def _at(levels: list[dict[str, Any]], result: Result) -> str:
    others = "".join(f"{exactly(level['level'])}, " for level in levels[:-1])
    last, unit = levels[-1]["level"], result["level_unit"]
    return f"{others}{exactly(last)} {unit}" if others else at_level(last, unit)


def service(result: Result) -> str:
    """Return `starcoder on 1 x A100-40GB`; the LLM alone where it is not known what it runs on."""
    model: str = result["model"]
    return model if result["gpu"] is None else f"{model} on {result['count']} x {result['gpu']}"


def conclusion(result: Result) -> str:
    """Return the answer in one sentence; of a search, another says how sure it is."""
    price_per_hour = result["cost_per_hour"]
    promise = f"the SLA ({sla_of(result).label}"
    promise += f", failures <= {result['sla']['max_failure_rate']:.1%})"
    if not result["level_max"]:
        dear = "" if price_per_hour is None else f" (${price_per_hour:.2f}/h{_whose(result)})"
        kept = f"keeps {promise} at no measured level{_too_few(result)}"
        return f"{service(result)} {kept}{dear}.{_searched(result)}"
    price = result["cost_per_million_output_tokens"]
    cost = "" if price_per_hour is None else f"; ${price_per_hour:.2f}/h"
    cost += f", ${price:.2f} per million output tokens there" if price is not None else ""
    cost += f" ({source})" if cost and (source := result.get("price_source")) else ""
    takes, breaks = _most(result)
    return f"{service(result)} takes {takes} within {promise}{breaks}{cost}.{_searched(result)}"


def _searched(result: Result) -> str:
    """Return between which loads a search says that the most lies, and what it took."""
    if (found := result.get("search")) is None:
        return ""
    (low, high), unit = found["interval"], result["level_unit"]
    took = f"{counted(found['levels'], 'level')} in {counted(found['windows'], 'window')}"
    if found["noise"] is None:
        return f" The search took {took}, and no repeats that would say how sure that is."
    if not high and high is not None:
        return f" That is so with {found['confidence']:.0%} confidence, by {took}."
    if high is None:
        lies = f"is {_short(low)} {unit} or more"
    elif low < high:
        lies = f"lies between {_short(low)} and" if low else "is at most"
        lies += f" {_load(high, unit)}"
    else:
        lies = f"is {_load(low, unit)}"
    return f" The most {lies} with {found['confidence']:.0%} confidence, by {took}."


def _short(load: float) -> str:
    return exactly(float(f"{load:.4g}"))


def _load(load: float, unit: str) -> str:
    return at_level(float(f"{load:.4g}"), unit)


def largest(result: Result) -> str:
    """Return the most that a service takes, for a table: `8 (12 breaks)`, `>= 128`, `< 4`; `-` unknown."""
    most, broken, meaning = (result.get(key) for key in ("level_max", "level_broken", "level_max_is"))
    if most is None:
        return "-"
    if meaning == BELOW and broken is not None:
        return f"< {exactly(broken)}"
    if meaning == UNSEEN and not most:
        return "unknown"
    if meaning in (AT_LEAST, UNSEEN):
        return f">= {exactly(most)}"
    return exactly(most) if broken is None else f"{exactly(most)} ({exactly(broken)} breaks)"


def _most(result: Result) -> tuple[str, str]:
    """Return what a service takes, and what breaks its SLA; results of earlier versions do not tell."""
    unit, meaning, broken = result["level_unit"], result.get("level_max_is"), result.get("level_broken")
    most = at_level(result["level_max"], unit)
    if meaning == AT_LEAST:
        return f"at least {most} (the largest load tried)", ""
    if meaning == UNSEEN:
        return f"at least {most} ({_unseen(result)})", ""
    if broken is None:
        return most, ""
    return f"exactly {most}" if meaning == EXACT else most, f", and {exactly(broken)} break it"


def _too_few(result: Result) -> str:
    """Return what is known of a service that breaks the SLA from the first level on."""
    broken, unit = result.get("level_broken"), result["level_unit"]
    if result.get("level_max_is") == UNSEEN:
        return f": {_unseen(result)}"
    if broken is None:
        return ""
    level: dict[str, Any] = next((one for one in result["levels"] if one["level"] == broken), {})
    if level.get("failure_rate", 0.0) > result["sla"]["max_failure_rate"]:
        return f": {share_of(level['failure_rate'])} of the requests failed at {at_level(broken, unit)}"
    if unit == "users" and broken <= 1:
        return ", not even for one user"
    few = "fewer" if unit == "users" else "less"
    return f": it takes {few} than {exactly(broken)} {unit}, the smallest load tried"


def _unseen(result: Result) -> str:
    """Return what the streams do not show of the level that nobody can judge."""
    level = next(level for level in result["levels"] if level["level"] == result["level_unseen"])
    limited = {limit.latency for limit in metrics.unseen_limits(level, sla_of(result))}
    names = metrics.and_(metrics.named(latency) for latency in LATENCIES if latency in limited)
    return f"at {at_level(level['level'], result['level_unit'])} the streams do not show {names}"


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
    """Return a figure with this many decimals, more where it would read 0 and is not; or a dash."""
    if value is None:
        return "-"
    text = f"{value:,.{digits}f}"
    if value == 0 or any(digit in "123456789" for digit in text):
        return text
    return f"{value:.{-floor(log10(abs(value)))}f}"


def latency_figure(level: dict[str, Any], latency: str, statistic: str, digits: int) -> str:
    """Return a statistic of a latency; NOT_SHOWN in place of one that the streams do not show."""
    if not metrics.shows(level, latency, statistic):
        return NOT_SHOWN
    return figure_of(level[latency][statistic], digits)


def goodput(level: dict[str, Any], result: Result) -> str:
    """Return a level's goodput; NOT_SHOWN where the streams do not show what the SLA limits."""
    unseen = metrics.unseen_limits(level, sla_of(result))
    return NOT_SHOWN if unseen else figure_of(level["goodput_per_s"], 2)


def share_of(value: float | None) -> str:
    """Return a share in percent, or a dash."""
    return "-" if value is None else f"{figure_of(100 * value, 0)}%"


def turns_of(result: Result) -> dict[int, bool]:
    """Return which turns of conversations some level has a figure of; of which later ones are part of it."""
    turns: dict[int, bool] = {}
    for level in result["levels"]:
        for entry in level.get("turns", ()):
            turns[entry["turn"]] = turns.get(entry["turn"], False) or entry["and_later"]
    return dict(sorted(turns.items()))


def turn_name(turn: int, and_later: bool) -> str:
    """Return `3`, or `10 and later`."""
    return f"{turn} and later" if and_later else f"{turn}"


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
    points = [(level["level"], level[latency][stat]) for level in seen(result, latency, stat)]
    return [x for x, _ in points], [y for _, y in points]


def seen(result: Result, latency: str, stat: str = "p50") -> list[dict[str, Any]]:
    """Return the levels that have a latency's statistic, and whose streams show it."""
    return [
        level
        for level in result["levels"]
        if level[latency][stat] is not None and metrics.shows(level, latency, stat)
    ]


def shown_statistics(result: Result, latency: str) -> list[str]:
    """Return which statistics of a latency are drawn: its percentiles, and its mean where that is limited."""
    limited = {limit.statistic for limit in sla_of(result).limits_on(latency)}
    return [name for name in COLOURS if name != "mean" or name in limited]


def sla_of(result: Result) -> Sla:
    """Return the SLA that a result was judged by; a latency that it does not name has no limit."""
    return Sla.model_validate(dict.fromkeys(LATENCIES) | result["sla"])
