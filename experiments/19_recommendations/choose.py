"""What the rule of decision should be on today's engines: nested scores of what was to choose.

Every choice is made for an LLM by the scores of the others: S/O with limits on TPOT and with limits on both,
each weighing alike. Also counted is how often, by each rule, a larger load or a tighter limit costs less.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import norm, t

from llmpilot import catalog, console
from llmpilot.predict import decision
from llmpilot.predict.service.recommended import drawn_loads, judge, true_loads
from llmpilot.processes import workers
from llmpilot.tasks.evaluate_today import BOTH, TPOT, Case, Settings, cases_of, limits_of

DRAWS = 200
DRAWN = ((1.0, "normal"), (0.7, "normal"), (1.2, "normal"), (1.0, "t3"))
"""Spreads, times those that predictions state, and tails: normal, or Student's t of 3 degrees of freedom."""
WORTHS = (0.7, 0.75, 0.8, 0.9, 1.0)
LEASTS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
RISKS = (0.5, 0.4, 0.35, 0.3, 0.2, 0.1, 0.05)
LADDER = np.geomspace(100, 10_000, 25).tolist()
"""Loads at which is looked whether more costs less."""
Rule = tuple[str, float, float]
"""`weighed`, worth of certainty and least certainty; or `risk`, risk and 0."""
Option = tuple[float, str, Rule]
"""Times the spread, tails, rule."""
Sums = tuple[float, float, float]
"""Settings, recommendations kept, and overspend of those kept."""
SHIPPED: Rule = ("weighed", decision.CERTAINTY_WORTH, decision.LEAST_CERTAINTY)


def decided(capacity: Any, price: Any, load: float) -> Iterator[tuple[Rule, decision.Deployments]]:
    """Yield what every rule says."""
    reachable = (capacity > 0).mean(axis=0).max()
    shipped = decision.CERTAINTY_WORTH, decision.LEAST_CERTAINTY
    try:
        decision.LEAST_CERTAINTY = 0.0
        for worth in WORTHS:
            decision.CERTAINTY_WORTH = worth
            found = decision.decide(capacity, price, load)
            for least in LEASTS:
                hopeless = reachable < least - 1e-12
                yield ("weighed", worth, least), (replace(found, best=None) if hopeless else found)
    finally:
        decision.CERTAINTY_WORTH, decision.LEAST_CERTAINTY = shipped
    for risk in RISKS:
        yield ("risk", risk, 0.0), decision.decide(capacity, price, load, risk)


def judged(case: Case, settings: Settings) -> list[tuple[Option, str, Sums]]:
    """Return what becomes of a menu under everything that was to choose."""
    found: dict[tuple[Option, str], Sums] = {}
    even = (np.arange(DRAWS) + 0.5) / DRAWS
    scores = {"normal": norm.ppf(even), "t3": t.ppf(even, 3) * norm.ppf(0.9) / t.ppf(0.9, 3)}
    for spread, tails in DRAWN:
        predicted = [replace(one, steps_spread=spread * one.steps_spread) for one in case.left_out]
        for kind, limits in limits_of(settings).items():
            drawn = drawn_loads(predicted, limits, scores[tails])
            for limit, capacity in zip(limits, drawn, strict=True):
                truth = true_loads(case.menu, limit)
                for load in settings.output_tokens_per_s:
                    for rule, said in decided(capacity, case.menu.price_per_hour, load):
                        outcome = judge(case.menu, said, truth, limit, load)
                        gained = (1.0, float(outcome.kept), outcome.overspend if outcome.kept else 0.0)
                        key = ((spread, tails, rule), kind)
                        found[key] = summed([found.get(key, (0.0, 0.0, 0.0)), gained])
    return [(option, kind, sums) for (option, kind), sums in found.items()]


def broken(case: Case, settings: Settings) -> list[tuple[str, float | None, float]]:
    """Return by how much a larger load, or a tighter limit on TPOT, costs less (0: it does not)."""
    limits = limits_of(settings)[TPOT]
    drawn = drawn_loads(case.left_out, limits)
    price = case.menu.price_per_hour
    found = []
    for risk in (None, 0.35, 0.1):
        costs = []
        for capacity in drawn:
            said = [decision.decide(capacity, price, load, risk) for load in LADDER]
            costs.append(
                [np.inf if one.best is None else float(one.pods[one.best] * price[one.best]) for one in said]
            )
        steps = [("load", pair) for row in costs for pair in pairwise(row)]
        steps += [("limit", pair) for row in zip(*costs[::-1], strict=True) for pair in pairwise(row)]
        for what, (less, more) in steps:
            if np.isfinite(less):
                found.append((what, risk, max(0.0, 1.0 - more / less)))
    return found


def summed(some: Iterable[Sums]) -> Sums:
    settings, kept, overspend = (sum(column) for column in zip(*some, strict=True))
    return settings, kept, overspend


def nested(of: Mapping[tuple[Option, str], Mapping[str, Sums]], options: list[Option]) -> dict[str, Any]:
    """Return the scores of each LLM's choice by the other LLMs' scores."""
    llms = sorted(next(iter(of.values())))
    chosen: dict[str, Option] = {}
    for llm in llms:
        others = {
            option: sum(
                figures([of[option, kind][name] for name in llms if name != llm])["so_score"]
                for kind in (TPOT, BOTH)
            )
            for option in options
        }
        chosen[llm] = max(options, key=lambda option: others[option])
    picked = list(chosen.values())
    return {
        "chosen": {str(option): picked.count(option) for option in dict.fromkeys(picked)},
        **{kind: figures([of[chosen[llm], kind][llm] for llm in llms]) for kind in (TPOT, BOTH)},
    }


def figures(some: Iterable[Sums]) -> dict[str, float]:
    """Return the score as `recommended.score` has it."""
    settings, kept, overspend = summed(some)
    success, thrift = kept / settings, max(0.0, 1.0 - overspend / max(kept, 1.0))
    so_score = 2 * success * thrift / (success + thrift) if success + thrift else 0.0
    return {"kept": round(success, 4), "overspend": round(1.0 - thrift, 4), "so_score": round(so_score, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prices", default="runpod")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "chosen.json")
    given = parser.parse_args()
    text = (catalog.conf_dir() / "task" / "evaluate.yaml").read_text(encoding="utf-8")
    settings = Settings(**yaml.safe_load(text)["today"]["settings"])
    of: dict[tuple[Option, str], dict[str, Sums]] = {}
    steps: dict[tuple[str, float | None], list[float]] = {}
    with workers(given.workers, "--workers") as run_on:
        cases = cases_of("shipped", catalog.price_list(given.prices), run_on)
        several = [settings] * len(cases)
        for done, found in enumerate(run_on(judged, cases, several)):
            llm = cases[done].menu.model
            for option, kind, sums in found:
                by_llm = of.setdefault((option, kind), {})
                by_llm[llm] = summed([by_llm.get(llm, (0.0, 0.0, 0.0)), sums])
            if (done + 1) % 20 == 0:
                console.note(f"{done + 1} of {len(cases)}")
        for some in run_on(broken, cases, several):
            for what, risk, cheaper in some:
                steps.setdefault((what, risk), []).append(cheaper)
    options: list[Option] = list(dict.fromkeys(option for option, _ in of))
    plain = [option for option in options if option[:2] == (1.0, "normal")]
    result = {
        "prices": given.prices,
        "nested": {
            "everything": nested(of, options),
            "spreads as they are, normal": nested(of, plain),
            "of these, weighed": nested(of, [one for one in plain if one[2][0] == "weighed"]),
            "of these, without a least certainty": nested(
                of, [one for one in plain if one[2][0] == "weighed" and one[2][2] == 0.0]
            ),
            "of these, at a risk": nested(of, [one for one in plain if one[2][0] == "risk"]),
        },
        "alone": [
            {"spread": spread, "tails": tails, "rule": list(rule)}
            | {kind: figures(of[(spread, tails, rule), kind].values()) for kind in (TPOT, BOTH)}
            for spread, tails, rule in options
            if (spread, tails) == (1.0, "normal") or rule == SHIPPED
        ],
        "properties": [
            {"what": what, "risk": risk, "steps": len(some)}
            | {"broken": round(float(np.mean(np.array(some) > 1e-9)), 4)}
            | {"cheaper_by": round(float(np.mean([one for one in some if one > 1e-9] or [0.0])), 4)}
            for (what, risk), some in steps.items()
        ],
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.say(json.dumps(result["nested"], indent=1))
    console.say(json.dumps(result["properties"], indent=1))


if __name__ == "__main__":
    main()
