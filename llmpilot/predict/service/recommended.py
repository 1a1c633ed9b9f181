"""Recommendations for measured LLMs that were left out, judged by what was measured of them.

The definition, in full. *Option*: a measured curve (see `measured_curves`) whose pod has a price. *Menu*:
the options of one LLM under one pair of lengths. *Setting*: a menu, a limit on TPOT, alone or with one on
TTFT, and a load to carry in output tokens/s. *Truth*: the largest load of an option within the limits, by
its measured levels; the optimum is the cheapest option, in as many pods as its largest load needs. A
recommendation is *kept* if its pods, each at the true largest load of the option, carry the load; it
*overspends* by how much more it costs than the optimum. Where no option can carry any load within the
limits, to recommend nothing is kept, and anything else is not.

What is recommended is `decision.decide`'s word on draws of what is predicted of the same options without
the LLM: step times k times as long as expected, k the same along a curve, and first tokens later by a
factor of their own, each log-normal with the spread that the prediction states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from llmpilot.config import Limit
from llmpilot.predict.decision import Deployments, decide
from llmpilot.predict.service.curves import Curve, Speeds
from llmpilot.predict.service.measured_curves import Limits, MeasuredCurve
from llmpilot.predict.service.validation import Z_80, Prediction

Numbers = NDArray[np.float64]

DRAWS = 500
SCORES = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)
"""Standard deviations that draws are off: each stands for an equal part of a normal distribution."""
SEED = 20251128


@dataclass(frozen=True)
class Menu:
    """The options of one LLM under one pair of lengths, and the price of a pod of each [options] $/h."""

    curves: tuple[MeasuredCurve, ...]
    price_per_hour: Numbers

    @property
    def model(self) -> str:
        """The LLM."""
        return self.curves[0].model

    @property
    def lengths(self) -> tuple[float, float]:
        """Input and output tokens, nominal."""
        return self.curves[0].lengths


@dataclass(frozen=True)
class Expected:
    """What is predicted of every row of a table [n rows]: latencies, and their spreads (log units).

    `first_token_spread` is that of TTFT beside TPOT.
    """

    tpot_ms: Numbers
    ttft_ms: Numbers
    steps_spread: Numbers
    first_token_spread: Numbers


@dataclass(frozen=True)
class Forecast:
    """What is predicted of one option: its curve, points at its levels, and spreads of its draws (log units).

    `mean_output_tokens` are those of a request: loads here are tokens/s where the curve counts requests.
    """

    curve: Curve
    mean_output_tokens: float
    steps_spread: float
    first_token_spread: float

    def largest_loads(self, limits: Limits, speeds: Speeds) -> Numbers:
        """Return the most output tokens/s within the limits in every draw [draws]; 0 for none."""
        asked = [
            Limit(latency=latency, statistic="mean", limit_ms=limit_ms)
            for latency, limit_ms in (("tpot_ms", limits.tpot_ms), ("ttft_ms", limits.ttft_ms))
            if np.isfinite(limit_ms)
        ]
        return self.mean_output_tokens * self.curve.capacity(asked, 1.0, speeds)


@dataclass(frozen=True)
class Outcome:
    """One recommendation beside the truth.

    `option` is None where nothing was recommended, `probability` what was promised then of that; `overspend`
    is relative to the optimum, NaN without success; `least_cost` is infinite where no option can.
    """

    model: str
    lengths: tuple[float, float]
    limits: Limits
    load: float
    option: str | None
    pods: int
    probability: float
    cost_per_hour: float
    least_cost_per_hour: float
    kept: bool
    overspend: float


def menus(curves: Sequence[MeasuredCurve], price_per_hour: Mapping[str, Mapping[int, float]]) -> list[Menu]:
    """Return what there is to choose from, of each LLM and pair of lengths.

    `price_per_hour` is GPU type -> GPUs in the pod -> $/h; a curve without a price is no option.
    """
    grouped: dict[Any, list[tuple[MeasuredCurve, float]]] = {}
    for curve in curves:
        price = price_per_hour.get(curve.gpu, {}).get(curve.n_gpus)
        if price is not None:
            grouped.setdefault((curve.model, curve.lengths), []).append((curve, price))
    return [
        Menu(tuple(curve for curve, _ in some), np.array([price for _, price in some]))
        for some in grouped.values()
    ]


def forecasts(menu: Menu, expected: Expected) -> list[Forecast]:
    """Return what is predicted of the options of a menu."""
    return [
        forecast(
            one,
            one.at_levels(expected.tpot_ms),
            one.at_levels(expected.ttft_ms),
            float(expected.steps_spread[one.all_rows].mean()),
            float(expected.first_token_spread[one.all_rows].mean()),
        )
        for one in menu.curves
    ]


def forecast(
    option: MeasuredCurve, tpot_ms: Numbers, ttft_ms: Numbers, steps_spread: float, first_token_spread: float
) -> Forecast:
    """Return what latencies expected at an option's levels [n] and their spreads say of it."""
    tokens_per_s = option.output_tokens_per_s(tpot_ms, ttft_ms)
    curve = Curve(
        rate_per_s=tokens_per_s / option.mean_output_tokens,
        output_tokens_per_s=tokens_per_s,
        latencies={("tpot_ms", "mean"): tpot_ms, ("ttft_ms", "mean"): ttft_ms},
        failures=np.zeros(len(tokens_per_s)),
        overhead_ms=0.0,
        mean_input_tokens=option.lengths[0],
    )
    return Forecast(curve, option.mean_output_tokens, steps_spread, first_token_spread)


def drawn_loads(
    predicted: Sequence[Forecast], limits: Sequence[Limits], scores: Numbers = SCORES
) -> list[Numbers]:
    """Return the largest loads in draws of what may be true [draws, options], for each of some limits.

    `scores` [draws] are by how many spreads draws are off.
    """
    random = np.random.default_rng(SEED)
    speeds = [
        Speeds(
            np.exp(one.steps_spread * random.permutation(scores)),
            np.exp(one.first_token_spread * random.permutation(scores)),
        )
        for one in predicted
    ]
    return [
        np.stack(
            [one.largest_loads(limit, drawn) for one, drawn in zip(predicted, speeds, strict=True)], axis=1
        )
        for limit in limits
    ]


def true_loads(menu: Menu, limits: Limits) -> Numbers:
    """Return the largest measured load of each option within the limits [options]; 0 for none."""
    return np.array([curve.largest_load(limits) for curve in menu.curves])


def recommended(
    menu: Menu,
    predicted: Sequence[Forecast],
    limits: Sequence[Limits],
    loads: Sequence[float],
    risks: Sequence[float | None],
) -> dict[float | None, list[Outcome]]:
    """Return what the rule says in every setting at each risk, and what becomes of it."""
    found: dict[float | None, list[Outcome]] = {risk: [] for risk in risks}
    drawn = drawn_loads(predicted, limits)
    for limit, capacity in zip(limits, drawn, strict=True):
        truth = true_loads(menu, limit)
        for load, risk in product(loads, risks):
            deployments = decide(capacity, menu.price_per_hour, load, risk)
            found[risk].append(judge(menu, deployments, truth, limit, load))
    return found


def by_margin(
    menu: Menu,
    predicted: Sequence[Forecast],
    limits: Sequence[Limits],
    loads: Sequence[float],
    margin: float,
) -> list[Outcome]:
    """Return what becomes of the cheapest by predictions slowed down by one margin for all."""
    one = Speeds(np.array([margin]), np.ones(1))
    found = []
    for limit in limits:
        truth = true_loads(menu, limit)
        capacity = np.stack([some.largest_loads(limit, one) for some in predicted], axis=1)
        for load in loads:
            deployments = decide(capacity, menu.price_per_hour, load, 0.0)
            found.append(judge(menu, deployments, truth, limit, load))
    return found


def judge(menu: Menu, deployments: Deployments, truth: Numbers, limits: Limits, load: float) -> Outcome:
    """Return what becomes of a choice; `truth` [options] is the largest load of each, 0 for none."""
    can = truth > 0
    costs = _pods(load, truth[can]) * menu.price_per_hour[can]
    least = float(costs.min()) if can.any() else np.inf
    best = deployments.best
    if best is None:
        option, pods, probability, cost, kept = None, 0, np.nan, 0.0, not can.any()
    else:
        option, pods = menu.curves[best].label, int(deployments.pods[best])
        probability, cost = float(deployments.probability[best]), float(pods * menu.price_per_hour[best])
        kept = bool(can[best] and pods >= _pods(load, truth[best]))
    overspend = (cost / least - 1.0 if can.any() else 0.0) if kept else np.nan
    return Outcome(
        *(menu.model, menu.lengths, limits, load, option, pods, probability, cost),
        *(least, kept, overspend),
    )


def _pods(load: float, largest: Any) -> Any:
    # As `decide` counts: a load that fits but for rounding fits.
    return np.maximum(np.ceil(load / largest * (1 - 1e-9)), 1.0)


@dataclass(frozen=True)
class Score:
    """Over settings: share kept, mean and median overspend of those kept (relative), and S/O."""

    settings: int
    nothing_can: float
    kept: float
    overspend: float
    overspend_median: float
    so_score: float


def score(outcomes: Sequence[Outcome]) -> Score:
    """Return the score of some settings; S/O is the harmonic mean of share kept and 1 - mean overspend."""
    overspends = [one.overspend for one in outcomes if one.kept]
    kept = len(overspends) / len(outcomes)
    overspend = float(np.mean(overspends)) if overspends else np.nan
    thrift = max(0.0, 1.0 - overspend) if overspends else 0.0
    return Score(
        settings=len(outcomes),
        nothing_can=float(np.mean([np.isinf(one.least_cost_per_hour) for one in outcomes])),
        kept=kept,
        overspend=overspend,
        overspend_median=float(np.median(overspends)) if overspends else np.nan,
        so_score=2 * kept * thrift / (kept + thrift) if kept + thrift else 0.0,
    )


def expected_of(prediction: Prediction) -> Expected:
    """Return what is predicted of a table's rows, with the spreads of its intervals."""
    table = prediction.table
    value = {name: table[f"predicted_{name}_ms"].to_numpy(np.float64) for name in ("tpot", "ttft")}
    high = {name: table[f"predicted_{name}_ms_high"].to_numpy(np.float64) for name in value}
    spread = {name: np.log(high[name] / value[name]) / Z_80 for name in value}
    beside = np.sqrt(np.maximum(spread["ttft"] ** 2 - spread["tpot"] ** 2, 0.0))
    return Expected(value["tpot"], value["ttft"], spread["tpot"], beside)
