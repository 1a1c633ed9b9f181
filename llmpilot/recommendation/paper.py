"""The paper's question: users of TGIS under the paper's workload, medians of nTTFT and ITL (engine=tgis).

Answered from the published measurements by a predictor that was evaluated on them, with the rule by which it
was scored: what a pod takes is a level of the ladder that was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu, Limit, Model, Sla
from llmpilot.predict.decision import Deployments, Need, decide, drawn_users_max
from llmpilot.predict.prediction import Metric, Prediction
from llmpilot.recommendation.answer import (
    INTERVAL,
    UNFIT,
    Answer,
    Forecast,
    NextMeasurement,
    Option,
    Trust,
)
from llmpilot.recommendation.fitting import split_by_fit
from llmpilot.recommendation.learn import Learned
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.question import Choosing
from llmpilot.recommendation.settle import CANDIDATES, Stakes, settled_by, worth_of_measuring
from llmpilot.recommendation.trust import judge_trust
from llmpilot.recommendation.unseen import widen_unseen
from llmpilot.workload import WorkloadModel

PAPER_ENGINE = "tgis"


@dataclass(frozen=True)
class PaperQuestion:
    """Which of these profiles, and how many, for so many users of a model within medians of nTTFT and ITL."""

    model: Model
    users: int
    sla: Sla
    profiles: tuple[Gpu, ...]
    workload: str
    sent: WorkloadModel
    choosing: Choosing


@dataclass(frozen=True)
class PaperRanking:
    """Every profile, best first; the one to take; what it was decided by; how far to trust it."""

    options: tuple[Option, ...]
    recommended: Option | None
    best: int | None
    """Its index among the profiles of the prediction."""
    prediction: Prediction | None
    capacity: NDArray[np.float64]
    trust: Trust


def rank_paper(question: PaperQuestion, learned: Learned) -> PaperRanking:
    """Return the ranking.

    Raises:
        ConfigError: the SLA has limits that such predictions say nothing about.
    """
    need = need_of(question.users, question.sla)
    fit, unfit = split_by_fit(question.model, question.profiles, question.sent.heaviest_weight)
    misfits = [_unfit(question.model, gpu, why) for gpu, why in unfit]
    if not fit:
        return PaperRanking(tuple(misfits), None, None, None, np.zeros((1, 0)), UNFIT)
    prediction = learned.fitted.predict(question.model, fit, learned.users, learned.own)
    prediction = widen_unseen(prediction, learned.evidence, learned.measured_on)
    capacity = drawn_users_max(prediction, need).astype(np.float64)
    prices = np.array([gpu.cost_per_hour for gpu in fit])
    found = decide(capacity, prices, need.users, question.choosing.risk, question.choosing.most_pods(fit))
    options = [_option(question, prediction, found, at, capacity[:, at]) for at in found.order.tolist()]
    best = options[0] if found.best is not None else None
    ordered = sorted(options, key=lambda one: not one.feasible)
    explained = (_explained(one, best, question.choosing) for one in ordered)
    profile = options[0].profile
    trust = _trust(question, need, profile, prediction, learned)
    return PaperRanking((*explained, *misfits), best, found.best, prediction, capacity, trust)


def _unfit(model: Model, gpu: Gpu, why: str) -> Option:
    return Option(PAPER_ENGINE, model.precision, gpu, feasible=False, p_sla=0.0, unit="users", reason=why)


def _option(
    question: PaperQuestion,
    prediction: Prediction,
    found: Deployments,
    at: int,
    capacity: NDArray[np.float64],
) -> Option:
    pods = int(found.pods[at])
    load = -(-question.users // pods) if pods else 1
    low, middle, high = np.quantile(capacity, [INTERVAL[0], 0.5, INTERVAL[1]], method="lower").tolist()
    return Option(
        engine=PAPER_ENGINE,
        precision=question.model.precision,
        profile=prediction.profiles[at],
        feasible=pods > 0,
        p_sla=float(found.probability[at]),
        unit="users",
        pods=pods or None,
        load_per_pod=float(load) if pods else None,
        capacity=middle,
        capacity_interval=(low, high),
        forecasts=tuple(_forecast(prediction, at, load, limit) for limit in question.sla.limits),
        score=float(found.score[at]),
    )


def _forecast(prediction: Prediction, at: int, load: int, limit: Limit) -> Forecast:
    """Return a median latency at a load, linear between the user counts that were predicted."""
    metric: Metric = "nttft_ms" if limit.latency == "nttft_ms" else "itl_ms"
    users = np.asarray(prediction.users, dtype=float)
    expected = float(np.interp(load, users, getattr(prediction, metric)[at]))
    if prediction.draws is None:
        return Forecast(limit, expected, None, float(expected <= limit.limit_ms))
    logs = prediction.draws.logs(metric)[:, at]
    drawn = np.array([np.interp(load, users, row) for row in np.exp(logs)])
    low, high = np.quantile(drawn, INTERVAL).tolist()
    return Forecast(limit, expected, (low, high), float((drawn <= limit.limit_ms).mean()))


def _explained(one: Option, best: Option | None, choosing: Choosing) -> Option:
    return one if one is best else one.because(best, choosing)


def _trust(
    question: PaperQuestion, need: Need, profile: Gpu, prediction: Prediction, learned: Learned
) -> Trust:
    found = judge_trust(question.model, profile, learned.evidence, learned.measured_on)
    level, reasons = found.level, list(found.reasons)
    if need.count_failures and prediction.failing is None:
        reasons.append("this predictor says nothing of failed requests: P(SLA) is of latencies alone")
    if learned.evidence.simulated:
        share = f"{learned.evidence.simulated:.0%} of what was learned from was simulated, not measured"
        level, reasons = "low", [share, *reasons]
    sentence, *others = _first_with_a_number(reasons)
    return Trust(level, sentence, tuple(others))


def _first_with_a_number(reasons: Sequence[str]) -> list[str]:
    """Return the reasons, first the one that says most: with a percentage where there is one."""
    return sorted(reasons, key=lambda reason: "%" not in reason)


# --- the whole answer ------------------------------------------------------------------------------------


def answered_paper(question: PaperQuestion, learned: Learned, predictor: str, prices: str) -> Answer:
    """Return the answer to the paper's question.

    Raises:
        ConfigError: as `rank_paper`.
    """
    found = rank_paper(question, learned)
    best = found.recommended
    measured = 0 if learned.own is None else len(learned.own)
    return Answer(
        question=_question_facts(question, predictor, prices),
        options=found.options,
        recommended=best,
        reason="" if best is not None else _nothing(question, found),
        trust=found.trust,
        measurement=_next_measurement(question, learned, found),
        rule=question.choosing.rule,
        hours_per_month=question.choosing.hours_per_month,
        why_not_served="TGIS is the paper's server; engine=vllm, sglang and trtllm have a command line",
        measured={"rows": measured, "profiles": list(learned.measured_on)},
        notes=(
            f"medians under the workload {question.workload} "
            f"({question.sent.mean('input_tokens'):.0f} tokens in, "
            f"{question.sent.mean('output_tokens'):.0f} out on average) with IBM's TGIS of 2023; "
            "engine=vllm answers for today's services and any workload",
        ),
    )


def _question_facts(question: PaperQuestion, predictor: str, prices: str) -> dict[str, Any]:
    return {
        "model": question.model.name,
        "requests_per_s": None,
        "users": question.users,
        "think_time_s": 0.0,
        "arrival": "closed",
        "workload": {
            "name": question.workload,
            "input_tokens_mean": round(question.sent.mean("input_tokens"), 1),
            "output_tokens_mean": round(question.sent.mean("output_tokens"), 1),
            "cached_share": 0.0,
        },
        "sla": question.sla.model_dump(),
        "limits": [limit.model_dump() for limit in question.sla.limits],
        "risk": question.choosing.risk,
        "max_gpus": question.choosing.max_gpus,
        "prices": prices,
        "predictor": predictor,
    }


def _nothing(question: PaperQuestion, found: PaperRanking) -> str:
    if found.prediction is None:
        return f"{question.model.name} fits on none of the {len(found.options)} GPU profiles"
    nearest = found.options[0]
    return (
        f"no GPU profile carries {question.users:,} users within the SLA; nearest comes "
        f"{nearest.profile.label}: {nearest.reason}"
    )


def _next_measurement(question: PaperQuestion, learned: Learned, found: PaperRanking) -> NextMeasurement:
    prediction, choosing = found.prediction, question.choosing
    if prediction is None:
        return NextMeasurement("no measurement makes it fit")
    if prediction.draws is None:
        return NextMeasurement(
            "this predictor states no uncertainty: what a measurement is worth is not known"
        )
    profiles = prediction.profiles
    done = set(learned.measured_on)
    candidates = [at for at, gpu in enumerate(profiles) if gpu.label not in done]
    candidates = sorted(candidates, key=lambda at: profiles[at].cost_per_hour)[:CANDIDATES]
    prices = np.array([gpu.cost_per_hour for gpu in profiles])
    stakes = Stakes(prices, question.users, choosing.risk, choosing.most_pods(profiles))
    worth = worth_of_measuring(found.capacity, stakes, candidates)
    return settled_by(worth, profiles, choosing)
