"""An answer in words and figures: what the terminal and the page say alike. Knows nothing of their layout."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log, log10
from typing import Any, Literal

from llmpilot.config import Limit
from llmpilot.recommendation.answer import FREE_LIMIT, Answer, Forecast, Interval, Option
from llmpilot.recommendation.question import HOURS_PER_MONTH

MOST_ALTERNATIVES = 6
MOST_NEAREST = 3
ENGINES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "tgi": "TGI",
    "tgis": "TGIS",
    "llamacpp": "llama.cpp",
}
ARRIVALS = {
    "poisson": "arriving at random (Poisson)",
    "gamma": "arriving in bursts (gamma)",
    "trace": "arriving as in the trace",
}
_LEFT_OF_MEMORY = re.compile(r"= (-?[\d.]+) GB")
"""Where `MemoryPlan.arithmetic` states what is left."""

# --- figures ---------------------------------------------------------------------------------------------


def money(dollars: float | None) -> str:
    """Return `$0.12`, `$3.98`, `$2,905`; a dash where there is no price."""
    if dollars is None:
        return "-"
    if dollars >= 1000:
        return f"${dollars:,.0f}"
    return f"${dollars:.2f}" if dollars >= 0.05 else f"${dollars:.2g}"


def probability(value: float) -> str:
    """Return `93%`; draws never show that something is certain or impossible."""
    if value >= 0.995:
        return ">99%"
    return "<1%" if value < 0.005 else f"{value:.0%}"


def latency(ms: float) -> str:
    """Return `31.2 ms`, `1,840 ms`, or seconds from ten of them on."""
    if not isfinite(ms):
        return "no end"
    figure, unit = _latency_figure(ms)
    return f"{figure} {unit}"


def latency_interval(interval: Interval | None) -> str:
    """Return `430 to 870 ms`; a dash where no interval is known."""
    if interval is None:
        return "-"
    low, high = interval
    if not isfinite(high):
        return "no end" if not isfinite(low) else f"from {latency(low)} on"
    (least, unit), (most, other) = _latency_figure(low), _latency_figure(high)
    return f"{least} to {most} {unit}" if unit == other else f"{least} {unit} to {most} {other}"


def _latency_figure(ms: float) -> tuple[str, str]:
    if ms >= 10_000:
        return f"{ms / 1000:,.1f}", "s"
    return (f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"), "ms"


def load(value: float) -> str:
    """Return a load in its unit: `12.1`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float) -> str:
    """Return how much of a limit is used: `61%`, `12 times` from 1000% on."""
    if not isfinite(value):
        return "no end"
    return f"{value:.0%}" if value < 10 else f"{value:,.0f} times"


def name_of(limit: Limit) -> str:
    """Return `TTFT p95`: a limit without its figure."""
    return limit.label.partition(" <= ")[0]


def sentence(text: str) -> str:
    """Return the text with a full stop."""
    return f"{text.rstrip('. ')}."


# --- the question ----------------------------------------------------------------------------------------


def asked(answer: Answer) -> tuple[str, ...]:
    """Return what was asked, in a few sentences: model and load, workload, SLA, whose prices."""
    question = answer.question
    workload = question.get("workload") or {}
    cached = workload.get("cached_share")
    given, made = workload.get("input_tokens_mean"), workload.get("output_tokens_mean")
    lengths = "" if given is None else f"{given:,.0f} tokens in and {made or 0:,.0f} out on average"
    traffic = ", ".join(
        part
        for part in (
            f"workload {workload.get('name')}" if workload.get("name") else "",
            lengths,
            f"{cached:.0%} of each prompt cached" if cached else "",
        )
        if part
    )
    return tuple(
        sentence
        for sentence in (
            f"{question['model']} for {_load_asked(question)}{f'; {traffic}' if traffic else ''}",
            f"SLA: {_promise(question)}",
            f"Prices: {question['prices']}" if question.get("prices") else "",
        )
        if sentence
    )


def load_asked(answer: Answer) -> float:
    """Return the load that all pods together must carry, in the question's unit."""
    users = answer.question.get("users")
    return float(users if users is not None else answer.question.get("requests_per_s") or 0.0)


def _load_asked(question: dict[str, Any]) -> str:
    users = question.get("users")
    if users is not None:
        think = question.get("think_time_s")
        habit = (
            f", who think{'s' * (users == 1)} for {think:g} s between requests"
            if think
            else f", who send{'s' * (users == 1)} the next request at once"
        )
        return f"{_count(users, 'user')}{habit}"
    arrival = question.get("arrival")
    return f"{question['requests_per_s']:,.6g} requests/s" + (
        f" {ARRIVALS[arrival]}" if arrival in ARRIVALS else ""
    )


def _promise(question: dict[str, Any]) -> str:
    limits = [Limit.model_validate(limit).label for limit in question.get("limits", ())]
    failures = (question.get("sla") or {}).get("max_failure_rate")
    if failures is not None:
        limits.append(f"failures <= {100 * failures:.3g}%")
    promise = ", ".join(limits)
    if question.get("risk") is not None:
        promise += f"; to be kept with a probability of at least {_percent(1 - question['risk'])}"
    if question.get("max_gpus") is not None:
        promise += f"; at most {_count(question['max_gpus'], 'GPU')}"
    return promise


# --- options ---------------------------------------------------------------------------------------------


def service(option: Option, answer: Answer) -> str:
    """Return `2 x H100, fp8`, with the engine where the answer has several."""
    label = f"{option.profile.label}, {option.precision}"
    return f"{label}, {engine(option)}" if _several(answer, "engine") else label


def engine(option: Option) -> str:
    """Return the engine's name as its makers write it."""
    return ENGINES.get(option.engine, option.engine)


def taken(option: Option) -> str:
    """Return `2 pods of 1 x H100 in fp8, vLLM`."""
    return (
        f"{_count(option.pods or 0, 'pod')} of {option.profile.label} in {option.precision}, {engine(option)}"
    )


def prices(option: Option, answer: Answer) -> tuple[tuple[str, str], ...]:
    """Return what an option costs, figure and unit: an hour, a month, a million output tokens where known."""
    cost = option.cost_per_hour
    hours = answer.hours_per_month
    month = "month" if hours == HOURS_PER_MONTH else f"month ({hours:g} hours)"
    found = [(money(cost), "hour"), (money(None if cost is None else cost * hours), month)]
    if option.cost_per_million_tokens is not None:
        found.append((money(option.cost_per_million_tokens), "million output tokens"))
    return tuple(found)


def headline(option: Option, answer: Answer) -> str:
    """Return what to take and what it costs, in one sentence."""
    hour, month, *tokens = prices(option, answer)
    costs = [f"{hour[0]}/{hour[1]}", f"{month[0]}/{month[1]}", *(f"{one} per {unit}" for one, unit in tokens)]
    return f"{taken(option)}: {', '.join(costs)}"


def certainty(option: Option) -> str:
    """Return how probable it is that an option keeps the SLA."""
    kept = option.p_sla
    if kept < 0.5:
        return (
            f"It keeps the SLA with a probability of {probability(kept)} only: it is more likely missed than "
            "kept, and what would be surer costs more than the rule pays for that. risk=0.1 asks for 90%."
        )
    return f"It keeps the SLA with a probability of {probability(kept).replace('>', 'over ')}."


def pod_load(option: Option) -> str:
    """Return what a pod takes, with its interval, and what it gets."""
    interval = ""
    if option.capacity_interval is not None:
        low, high = option.capacity_interval
        interval = f" (80% interval {load(low)} to {load(high)})"
    gets = "" if option.load_per_pod is None else f" and gets {load(option.load_per_pod)}"
    return f"One pod takes {load(option.capacity)} {option.unit} within the SLA{interval}{gets}."


def binds(option: Option) -> str:
    """Return which limit is reached first, in a sentence; nothing where nothing is known."""
    if option.binding is None:
        return ""
    if option.binding == FREE_LIMIT:
        return "No limit is near: throughput runs out first as load rises."
    return (
        f"{option.binding.partition(' <= ')[0]} is the limit that binds: it is reached first as load rises."
    )


def nearest_limit(option: Option) -> str:
    """Return `TTFT p95 at 61%`: the latency that takes most of its limit."""
    worst = _worst(option)
    return "-" if worst is None else f"{name_of(worst.limit)} at {share(_used(worst))}"


def price_beside(option: Option, best: Option | None) -> str:
    """Return `+50%`, `-12%`, `12 times`: the price beside that of the option to take."""
    if best is None or not best.cost_per_hour or option.cost_per_hour is None or option is best:
        return ""
    ratio = option.cost_per_hour / best.cost_per_hour
    if abs(ratio - 1) < 0.005:
        return "the same"
    return f"{ratio - 1:+.0%}" if ratio < 10 else f"{ratio:,.0f} times"


def alternatives(answer: Answer, most: int = MOST_ALTERNATIVES) -> tuple[Option, ...]:
    """Return the alternatives to show, the cheapest first: those nearest in price where there are many."""
    best = answer.recommended
    found = list(answer.alternatives)
    if best is not None and best.cost_per_hour:
        found.sort(key=lambda one: abs(log((one.cost_per_hour or inf) / (best.cost_per_hour or 1.0))))
    return tuple(sorted(found[:most], key=lambda one: one.cost_per_hour or inf))


def _several(answer: Answer, what: Literal["engine", "precision"]) -> bool:
    return len({getattr(one, what) for one in answer.options}) > 1


def _worst(option: Option) -> Forecast | None:
    return max(option.forecasts, key=_used, default=None)


def _used(forecast: Forecast) -> float:
    return forecast.expected_ms / forecast.limit.limit_ms


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}{'s' * (number != 1)}"


# --- the rest --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Options of one GPU type, or of several with the same fate, in one line."""

    gpus: str
    text: str
    options: tuple[Option, ...]
    alone: str = ""
    """The text without GPU counts, where types with the same one can be told of together."""


def folds(answer: Answer, shown: Iterable[Option]) -> tuple[Fold, ...]:
    """Return one fold a GPU type of all options that are not shown, in the order of the answer."""
    left_out = {id(one) for one in shown}
    by_type: dict[str, list[Option]] = {}
    for option in answer.options:
        if id(option) not in left_out:
            by_type.setdefault(option.profile.name, []).append(option)
    return tuple(_fold(name, options, answer) for name, options in by_type.items())


def merged(found: Sequence[Fold]) -> tuple[Fold, ...]:
    """Return the folds, those of GPU types with nothing to tell apart as one."""
    alike: dict[str, list[Fold]] = {}
    for one in found:
        alike.setdefault(one.alone or f"\0{one.gpus}", []).append(one)
    return tuple(
        group[0]
        if len(group) == 1
        else Fold(
            ", ".join(one.gpus for one in group),
            group[0].alone,
            tuple(option for one in group for option in one.options),
        )
        for group in alike.values()
    )


def _fold(name: str, options: Sequence[Option], answer: Answer) -> Fold:
    dearer = [one for one in options if one.feasible]
    slow = [one for one in options if not one.feasible and one.forecasts]
    unfit: dict[str, list[Option]] = {}
    for one in options:
        if not one.feasible and not one.forecasts:
            unfit.setdefault(re.split(r"[:,] ", one.reason, maxsplit=1)[0], []).append(one)
    told = [(dearer, _why_dearer(dearer))] if dearer else []
    told += [(slow, _why_slow(slow))] if slow else []
    told += [(group, reason) for reason, group in unfit.items()]
    clauses = [f"{_which(group, answer)}: {reason}" for group, reason in told[:1]]
    # Of what is farther from the answer only the heart of the matter.
    clauses += [f"{_which(group, answer)}: {re.split(r': | [(]', reason)[0]}" for group, reason in told[1:]]
    alone = next(iter(unfit)) + _common(options, answer) if len(told) == 1 and unfit else ""
    return Fold(name, "; ".join(clauses), tuple(options), alone)


def _which(options: Sequence[Option], answer: Answer) -> str:
    counts = sorted({one.profile.count for one in options})
    gpus = f"{', '.join(map(str, counts))} GPU{'s' * (counts != [1])}"
    return gpus + _common(options, answer)


def _common(options: Sequence[Option], answer: Answer) -> str:
    """Return ` in fp8 with vLLM`, where the options have that in common and others differ."""
    precisions, engines = {one.precision for one in options}, {engine(one) for one in options}
    common = ""
    if _several(answer, "precision") and len(precisions) == 1:
        common += f" in {precisions.pop()}"
    if _several(answer, "engine") and len(engines) == 1:
        common += f" with {engines.pop()}"
    return common


def _why_dearer(options: Sequence[Option]) -> str:
    first = min(options, key=lambda one: one.cost_per_hour or inf)
    if len(options) > 1 and first.reason.endswith(" more"):
        return first.reason.replace("costs ", "costs at least ", 1)
    return first.reason


def _why_slow(options: Sequence[Option]) -> str:
    nearest = min(options, key=lambda one: one.headroom)
    worst = _worst(nearest)
    if worst is None or _used(worst) <= 1 or nearest.reason.startswith("too long"):
        return nearest.reason
    return f"too slow ({name_of(worst.limit)} {latency(worst.expected_ms)} when nearly idle)"


# --- where nothing will do -------------------------------------------------------------------------------


def nearest(answer: Answer, most: int = MOST_NEAREST) -> tuple[Option, ...]:
    """Return the options that come nearest to an SLA that none keeps; none where the model fits nowhere."""
    running = [one for one in answer.options if one.forecasts]
    return tuple(
        sorted(running, key=lambda one: (one.headroom > 1, _gpus_needed(one, answer), one.headroom))[:most]
    )


def idle(option: Option, answer: Answer) -> str:
    """Return what a nearly idle pod of an option comes to under each limit."""
    figures = [
        f"{name_of(one.limit)} {latency(one.expected_ms)}"
        + ("" if one.interval_ms is None else f" (80% interval {latency_interval(one.interval_ms)})")
        + f", {share(_used(one))} of the limit"
        for one in option.forecasts
    ]
    return f"{service(option, answer)}: {'; '.join(figures)}"


def nearest_misfit(answer: Answer) -> Option | None:
    """Return the option that misses the memory it needs by least; of equals the smallest."""
    return min(
        (one for one in answer.options if not one.forecasts),
        key=lambda one: (_missing_gb(one), one.profile.count * one.profile.memory_gb),
        default=None,
    )


def what_would_help(answer: Answer) -> tuple[str, ...]:
    """Return what would make possible a question that nothing answers."""
    close = nearest(answer, 1)
    if not close:
        return _more_room(answer)
    best = close[0]
    missed = [one for one in best.forecasts if _used(one) > 1]
    label = service(best, answer)
    if missed:
        looser = " ".join(_looser(one) for one in missed)
        expected = " and ".join(
            f"{'a ' if name_of(one.limit)[0] == 'T' else 'an '}{name_of(one.limit)} of "
            f"{latency(one.expected_ms)}"
            + ("" if one.interval_ms is None else f" (80% interval {latency_interval(one.interval_ms)})")
            for one in missed
        )
        return (
            f"looser limits, {looser} or more: a nearly idle pod of {label} is expected to have {expected}",
            "a smaller model, fewer bits a weight, or, where TTFT is too long, shorter prompts",
        )
    found = []
    most_gpus, needed = answer.question.get("max_gpus"), _gpus_needed(best, answer)
    if most_gpus is not None and isfinite(needed):
        pods = ceil(needed / best.profile.count)
        fleet = f"{_count(pods, 'pod')} of {label}"
        found.append(f"more GPUs: about {needed:,.0f} instead of max_gpus={most_gpus}, as {fleet}")
    elif answer.question.get("risk") is not None:
        surest = max(
            min(one.kept for one in option.forecasts) for option in answer.options if option.forecasts
        )
        found.append(
            f"a larger risk than {answer.question['risk']:g}: at best a nearly idle pod keeps the SLA with "
            f"{probability(surest)}"
        )
    return tuple(found) or ("shorter requests, or a GPU profile whose memory holds more of them",)


def _looser(forecast: Forecast) -> str:
    """Return the setting of a limit that an idle pod keeps in 9 cases of 10."""
    high = forecast.expected_ms if forecast.interval_ms is None else forecast.interval_ms[1]
    return f"sla.{forecast.limit.latency}.{forecast.limit.statistic}={_rounded_up(high)}"


def _rounded_up(ms: float) -> str:
    """Return a limit that a latency keeps, with two digits that count."""
    if not isfinite(ms) or ms <= 0:
        return "..."
    step = 10.0 ** (floor(log10(ms)) - 1)
    return f"{ceil(ms / step - 1e-9) * step:.10g}"


def _more_room(answer: Answer) -> tuple[str, ...]:
    reasons = [one.reason for one in answer.options]
    if any(reason.startswith("too long") for reason in reasons):
        return ("shorter requests, or a model with a longer context",)
    if not any(reason.startswith("does not fit") for reason in reasons):
        return ("another model, engine, precision or GPU type: whichever the reasons name",)
    found = ["more GPUs in a pod, or a GPU type with more memory"]
    tried = {one.precision for one in answer.options}
    if tried and not tried & {"fp8", "int8", "int4", "nvfp4", "mxfp4"}:
        found.append("fewer bytes for each weight: precision=fp8, or a checkpoint that is stored in less")
    return tuple(found)


def _gpus_needed(option: Option, answer: Answer) -> float:
    if option.capacity <= 0:
        return inf
    return ceil(load_asked(answer) / option.capacity) * option.profile.count


def _missing_gb(option: Option) -> float:
    found = _LEFT_OF_MEMORY.search(option.reason)
    return -float(found[1]) if found is not None else inf


# --- what it rests on ------------------------------------------------------------------------------------


def measured(answer: Answer) -> str:
    """Return which of the user's own measurements the answer rests on; nothing where there are none."""
    rows, on = answer.measured.get("rows"), answer.measured.get("profiles") or ()
    if not rows:
        return ""
    where = f" on {', '.join(map(str, on))}" if on else ""
    own = f"{_count(rows, 'level')} that you measured of this model{where}"
    return f"{own} {'is' if rows == 1 else 'are'} taken into account"


def why_not_served(answer: Answer) -> str:
    """Return why there is no command line to serve what is recommended."""
    why = answer.why_not_served
    return sentence(why[:1].upper() + why[1:])


def rule(answer: Answer) -> str:
    """Return the rule of decision in a sentence."""
    risk = answer.rule.get("risk")
    if risk is not None:
        return f"the cheapest service with P(SLA) of at least {_percent(1 - risk)}"
    worth = answer.rule.get("certainty_worth")
    power = "" if worth in (None, 1) else f"^{worth:g}"
    return f"the least price / P(SLA){power}; risk=0.1 takes the cheapest service with P(SLA) of at least 90%"


def next_measurement(answer: Answer) -> str:
    """Return what to measure next and what it is worth, or that nothing is and why."""
    none = "none; " if answer.measurement.profile is None else ""
    return sentence(f"Next measurement: {none}{answer.measurement.reason}")
