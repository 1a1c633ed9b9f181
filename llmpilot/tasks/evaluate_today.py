"""Task `evaluate on=today`: recommendations for LLMs left out, judged by published measurements of today's
engines. `predict.service.recommended` defines options, settings, truth and scores."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import pairwise, product
from math import inf
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from pydantic import Field, PositiveFloat, PositiveInt
from rich.table import Table

from llmpilot import catalog, console, interrupts
from llmpilot.config import Facts, parse
from llmpilot.dataset.measured_file import CURE
from llmpilot.dataset.measurements import MeasurementsError
from llmpilot.files import replacing, require_writable
from llmpilot.predict import decision
from llmpilot.predict.service.levels import Level, described
from llmpilot.predict.service.measured_curves import Limits, latencies_ms, measured_curves
from llmpilot.predict.service.one_level import after_one_level, level_to_measure
from llmpilot.predict.service.recommended import (
    Expected,
    Forecast,
    Menu,
    Outcome,
    Score,
    by_margin,
    expected_of,
    forecasts,
    menus,
    recommended,
    score,
)
from llmpilot.predict.service.validation import predict
from llmpilot.prices import PriceList
from llmpilot.processes import Map, workers
from llmpilot.tasks.validate_measurements import read_rows

Limit = Annotated[list[PositiveFloat], Field(min_length=1)]

TPOT, BOTH = "tpot", "tpot_ttft"
ONE, ONE_EACH = "one_measured", "one_measured_of_lengths"
MARGIN = "margin"
PROMISES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Between these probabilities recommendations are counted together."""


class Settings(Facts):
    """The settings of all menus: limits on TPOT, alone and with each on TTFT, and loads to carry.

    `risks` are other rules to compare with, `margins` those of the simplest rule there is.
    """

    tpot_ms: Limit
    ttft_ms: Limit
    output_tokens_per_s: Limit
    risks: list[Annotated[float, Field(gt=0, lt=1)]]
    margins: list[PositiveFloat]


class EvaluationToday(Facts):
    """The task's part of the configuration, `today`."""

    measurements: str
    settings: Settings


@dataclass(frozen=True)
class Case:
    """A menu, and what is predicted of it: nothing is known of its LLM; one level; one of its lengths."""

    menu: Menu
    left_out: list[Forecast]
    one: list[Forecast]
    one_each: list[Forecast]


@dataclass(frozen=True)
class Judged:
    """One recommendation: by which rule and limits it was made, and what became of it."""

    rule: str
    risk: float | None
    limits: str
    outcome: Outcome


def run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate the rule of `decision` on measured LLMs left out; return its scores, as fractions.

    Raises:
        ConfigError, MeasurementsError: an impossible option, or a table that cannot be used.
    """
    started = time.perf_counter()
    settings = parse(EvaluationToday, cfg.today, "today")
    of_both = {"risk": cfg.evaluate.risk, "workers": cfg.evaluate.workers}
    shared = parse(_Shared, of_both, "evaluate")
    rule = decision.Rule.at(shared.risk)
    output = Path(str(cfg.predictions_file)).expanduser() if cfg.predictions_file else None
    if output is not None:
        require_writable(output)
    prices = catalog.composed_prices(cfg)
    with workers(shared.workers, "evaluate.workers") as run_on, console.err.status("") as status:
        cases = cases_of(settings.measurements, prices, run_on)
        judged: list[Judged] = []
        of_case = partial(_judged, settings.settings, shared.risk)
        for done, found in enumerate(run_on(of_case, cases)):
            judged += found
            interrupts.check()
            status.update(f"{done + 1} of {len(cases)} LLMs and pairs of lengths judged")
    result = {
        "rule": asdict(rule),
        **_result(judged, settings.settings, shared.risk),
        "options": sum(len(case.menu.curves) for case in cases),
        "llms_and_lengths": len(cases),
        "prices": prices.to_dict(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _show(result, prices.label)
    if output is not None:
        with replacing(output) as temporary:
            _table(judged).to_csv(temporary, index=False)
        result |= {"predictions_file": str(output)}
    return result


class _Shared(Facts):
    """What counts on=paper, too."""

    risk: Annotated[float, Field(gt=0, lt=1)] | None
    workers: PositiveInt


# --- what is predicted -----------------------------------------------------------------------------------


def cases_of(name: str, prices: PriceList, run_on: Map) -> list[Case]:
    """Return the menus of a table of measurements, with what is predicted of them without their LLM.

    Raises:
        MeasurementsError: there is none.
    """
    _, measurements = read_rows(name)
    levels = described(measurements, {}).levels
    of_types = {name: gpu.price_per_hour for name, gpu in catalog.gpus(prices=prices).items()}
    found = menus(measured_curves(measurements, levels), of_types)
    if not found:
        raise MeasurementsError(
            "no row of the table is a closed loop of a service that can be simulated and has a price",
            given=f"{name}, prices={prices.name}",
            cure=CURE,
        )
    expected = expected_of(predict(measurements, {}, "model", run_on, console.note))
    tpot, ttft = latencies_ms(measurements)
    models = measurements.table["model"].to_numpy()
    of_llm: dict[str, list[Menu]] = {}
    for menu in found:
        of_llm.setdefault(menu.model, []).append(menu)
    by_row: list[Level | None] = [None] * len(measurements)
    for level in levels:
        by_row[level.row] = level
    simulated = [row for row, level in enumerate(by_row) if level is not None]
    learn = partial(after_one_level, expected, by_row, tpot_ms=tpot, ttft_ms=ttft)
    one = learn(
        {
            level_to_measure([curve for menu in some for curve in menu.curves]): [
                row for row in simulated if models[row] == model
            ]
            for model, some in of_llm.items()
        }
    )
    one_each = learn(
        {
            level_to_measure(menu.curves): [row for curve in menu.curves for row in curve.all_rows]
            for menu in found
        }
    )
    known: tuple[Expected, ...] = (expected, one, one_each)
    return [Case(menu, *(forecasts(menu, some) for some in known)) for menu in found]


# --- judged, in other processes --------------------------------------------------------------------------


def limits_of(settings: Settings) -> dict[str, list[Limits]]:
    """Return the limits on TPOT alone, and those on both."""
    return {
        TPOT: [Limits(tpot) for tpot in settings.tpot_ms],
        BOTH: [Limits(tpot, ttft) for tpot, ttft in product(settings.tpot_ms, settings.ttft_ms)],
    }


def _judged(settings: Settings, rule: float | None, case: Case) -> list[Judged]:
    """Return every recommendation of a menu by every rule."""
    found = []
    loads = settings.output_tokens_per_s
    others: list[float | None] = [risk for risk in settings.risks if risk != rule]
    for kind, limits in limits_of(settings).items():
        for name, predicted, risks in (
            ("", case.left_out, [rule, *others]),
            (ONE, case.one, [rule]),
            (ONE_EACH, case.one_each, [rule]),
        ):
            for risk, outcomes in recommended(case.menu, predicted, limits, loads, risks).items():
                found += [Judged(name, risk, kind, outcome) for outcome in outcomes]
        for margin in settings.margins:
            outcomes = by_margin(case.menu, case.left_out, limits, loads, margin)
            found += [Judged(f"{MARGIN} {margin:g}", None, kind, outcome) for outcome in outcomes]
    return found


# --- scores ----------------------------------------------------------------------------------------------


def _result(judged: Sequence[Judged], asked: Settings, rule: float | None) -> dict[str, Any]:
    """Return the scores over all settings, by LLM, by what was promised, and those of other rules."""
    grouped: dict[tuple[str, float | None, str], list[Outcome]] = {}
    for one in judged:
        grouped.setdefault((one.rule, one.risk, one.limits), []).append(one.outcome)

    def of(name: str, kind: str, risk: float | None = rule, llm: str | None = None) -> list[Outcome]:
        return [outcome for outcome in grouped[name, risk, kind] if llm in (None, outcome.model)]

    def scored(name: str, kind: str, risk: float | None = rule, llm: str | None = None) -> dict[str, Any]:
        return _rounded(score(of(name, kind, risk, llm)))

    llms = sorted({one.outcome.model for one in judged})
    risks = [rule, *(risk for risk in asked.risks if risk != rule)]
    return {
        TPOT: scored("", TPOT),
        BOTH: scored("", BOTH),
        ONE: scored(ONE, BOTH),
        f"{ONE}_tpot": scored(ONE, TPOT),
        ONE_EACH: scored(ONE_EACH, BOTH),
        f"{ONE_EACH}_tpot": scored(ONE_EACH, TPOT),
        "where_something_can": {
            kind: _rounded(score(possible))
            for kind in (TPOT, BOTH)
            if (possible := [one for one in of("", kind) if np.isfinite(one.least_cost_per_hour)])
        },
        "per_model": [
            {
                "model": llm,
                TPOT: scored("", TPOT, llm=llm),
                BOTH: scored("", BOTH, llm=llm),
                ONE: scored(ONE, BOTH, llm=llm),
            }
            for llm in llms
        ],
        "promises": _promises([*of("", TPOT), *of("", BOTH)]),
        "risks": [
            {"risk": risk, **_came_to(of("", BOTH, risk)), TPOT: scored("", TPOT, risk)}
            | {BOTH: scored("", BOTH, risk)}
            for risk in risks
        ],
        "margins": [
            {"margin": margin} | {kind: scored(f"{MARGIN} {margin:g}", kind, None) for kind in (TPOT, BOTH)}
            for margin in asked.margins
        ],
        "settings": asked.model_dump(),
    }


def _promises(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return what became of recommendations by the probability that they stated."""
    stated = [one for one in outcomes if one.option is not None]
    found = []
    for low, high in pairwise(PROMISES):
        some = [one for one in stated if low <= one.probability < high or one.probability == high == 1.0]
        if some:
            found.append(
                {"from": low, "to": high, "recommendations": len(some)}
                | {"promised": round(float(np.mean([one.probability for one in some])), 4)}
                | {"kept": round(float(np.mean([one.kept for one in some])), 4)}
            )
    return found


def _came_to(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Return what recommendations promised, which share of them was kept, and at what cost.

    `promised` is the mean of the probabilities stated, `came_to` the share kept, `came_at` the mean overspend
    of those kept, and `came_at_median` the median. Settings in which nothing was recommended do not count.
    """
    stated = [one for one in outcomes if one.option is not None]
    found = score(stated) if stated else None
    return {
        "promised": _round(float(np.mean([one.probability for one in stated])) if stated else None),
        "came_to": _round(found.kept if found else None),
        "came_at": _round(found.overspend if found else None),
        "came_at_median": _round(found.overspend_median if found else None),
    }


def _rounded(one: Score) -> dict[str, Any]:
    values = {field.name: getattr(one, field.name) for field in fields(one)}
    return {name: _round(value) for name, value in values.items()}


def _round(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(value, 4)


def _table(judged: Sequence[Judged]) -> pd.DataFrame:
    """Return a row for every recommendation."""
    rows = []
    for one in judged:
        facts = asdict(one.outcome)
        (given, out), limits = facts.pop("lengths"), facts.pop("limits")
        limits = {name: None if value == inf else value for name, value in limits.items()}
        said = {"rule": one.rule, "risk": one.risk, "model": facts.pop("model")}
        rows.append(said | {"input_tokens": given, "output_tokens": out} | limits | facts)
    return pd.DataFrame(rows)


# --- the screen ------------------------------------------------------------------------------------------


def _show(result: dict[str, Any], label: str) -> None:
    rule = result["rule"]
    console.say(f"rule: {rule['name']}" + (f", risk {rule['risk']:g}" if rule["risk"] else ""))
    console.say(f"prices: {label}")
    table = Table(title=f"each LLM left out, {result['options']} measured curves to choose from")
    for heading in ("limits on", "settings", "kept", "overspend", "median", "S/O"):
        table.add_column(heading, justify="right" if heading != "limits on" else "left")
    lines = {
        TPOT: "TPOT",
        BOTH: "TPOT and TTFT",
        ONE: "both, a level known",
        ONE_EACH: "both, one of the lengths",
    }
    for key, title in lines.items():
        table.add_row(title, str(result[key]["settings"]), *_figures(result[key], median=True))
    for one in result["margins"]:
        title = f"TPOT, margin {one['margin']:g} for all"
        table.add_row(title, str(one[TPOT]["settings"]), *_figures(one[TPOT], median=True))
    console.out.print(table)
    by_llm = Table(title="limits on TPOT and TTFT, by LLM")
    for heading in ("LLM", "settings", "kept", "overspend", "S/O", "a level known"):
        by_llm.add_column(heading, justify="right" if heading != "LLM" else "left")
    for one in result["per_model"]:
        known = f"{one[ONE]['so_score']:.3f}"
        by_llm.add_row(one["model"].split("/")[-1], str(one[BOTH]["settings"]), *_figures(one[BOTH]), known)
    console.out.print(by_llm)
    risks = Table(title="limits on TPOT and TTFT, by the largest risk")
    for heading in ("risk", "promised", "came to", "at", "kept", "overspend", "S/O"):
        risks.add_column(heading, justify="right")
    for one in result["risks"]:
        told = [_percent(one[name]) for name in ("promised", "came_to", "came_at")]
        risks.add_row("weighed" if one["risk"] is None else f"{one['risk']:g}", *told, *_figures(one[BOTH]))
    console.out.print(risks)
    console.say(f"{result['seconds']:.0f} s")


def _figures(one: dict[str, Any], *, median: bool = False) -> list[str]:
    names = ("kept", "overspend", "overspend_median") if median else ("kept", "overspend")
    return [*(_percent(one[name]) for name in names), f"{one['so_score']:.3f}"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
