"""Answers what rows ask, from a bundle, by the same functions as task=recommend."""

import hashlib
from collections.abc import Hashable, Sequence
from functools import cache
from math import isfinite
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]

from llmpilot import catalog
from llmpilot.config import LATENCIES, STATISTICS, Gpu, Limit, Model
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.errors import ConfigError
from llmpilot.recommendation.answer import UNFIT, Forecast, Option
from llmpilot.recommendation.ask import asked_of, engines_of, question_of
from llmpilot.recommendation.forecast import forecast_of
from llmpilot.recommendation.question import HOURS_PER_MONTH, Question
from llmpilot.recommendation.today import answered
from llmpilot.recommendation.trust_today import trust_in
from llmpilot.serving.bundle import Bundle
from llmpilot.serving.rows import Asked, Known, Sent, in_row, names_of
from llmpilot.serving.shelf import Kept, Shelf
from llmpilot.workload import WorkloadModel, load_workload

SEED = 42
"""That of task=recommend: the same question has the same answer."""
KEPT = 64
"""Workloads that are kept."""
CHOSEN = (
    *("gpu", "count", "engine", "precision", "pods", "gpus", "cost_per_hour", "cost_per_month"),
    *("cost_per_million_output_tokens", "users_per_pod", "requests_per_s_per_pod", "p_sla", "binding"),
)
"""What an answer says of the service to take: fields of `Option.to_dict`."""

Answer = dict[str, Any]


class Recommender:
    """Answers questions, from many threads at once."""

    def __init__(self, bundle: Bundle, shelf: Shelf | None = None) -> None:
        self.bundle = bundle
        self.known = Known(names_of(list(catalog.models().values())), bundle.gpus, bundle.prices)
        self._shelf = Shelf(bundle.knowledge) if shelf is None else shelf
        self._workloads: Kept[Sent, WorkloadModel] = Kept(KEPT)
        self._engines: Kept[str, ScheduledEngine] = Kept(KEPT)

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """Return the answers, in order; `signature.TEXTS`, `NUMBERS` and `LISTS` name their fields.

        Raises:
            ConfigError: a row that cannot be answered: says which, and why.
        """
        found = []
        for one in asked:
            with in_row(one.number), _blas().limit(limits=1, user_api="blas"):
                found.append(self.recommend(one) if one.task == "recommend" else self.predict(one))
        return found

    def recommend(self, asked: Asked) -> Answer:
        """Return the service to take, None where none will do, with the whole ranking."""
        question, keys, sent = self._question(asked)
        simulated = self._shelf.simulated(question, keys, sent)
        told = answered(question, self.bundle.knowledge, simulated, settle=False).answer
        facts = told.to_dict()
        best = told.recommended
        feasible = sum(option.feasible for option in told.options)
        why = f"the best of {feasible} services that carry the load within the SLA, of {len(told.options)}"
        return {
            "task": "recommend",
            **_asked_facts(asked, question),
            **_option_facts(best),
            "trust": told.trust.level,
            "trust_sentence": told.trust.sentence,
            "reason": why if best is not None else told.reason,
            "serve": told.serve,
            **{name: facts[name] for name in ("ranking", "alternatives")},
            "latencies": [] if best is None else [one.to_dict() for one in best.forecasts],
        }

    def predict(self, asked: Asked) -> Answer:
        """Return the latencies [ms] of one pod under the load, with 80% intervals; none: it does not fit."""
        question, keys, sent = self._question(asked)
        simulated = self._shelf.simulated(question, keys, sent)
        (offered,) = question.offered
        facts: Answer = {
            "task": "predict",
            **_asked_facts(asked, question),
            "gpu": offered.profile.name,
            "count": offered.profile.count,
            "engine": offered.engine.name,
            "precision": offered.model.precision,
        }
        if not simulated.offered:
            said = {"trust": UNFIT.level, "trust_sentence": UNFIT.sentence}
            return facts | said | {"reason": simulated.unfit[0][1], "latencies": []}
        limits = question.sla.limits
        load = question.asked.load
        capacity = simulated.capacity(question.sla)[:, 0]
        everything = [
            Limit.model_validate({"latency": latency, "statistic": statistic, "limit_ms": 1.0})
            for latency in LATENCIES
            for statistic in STATISTICS
        ]
        told = {
            (limit.latency, limit.statistic): forecast_of(simulated, 0, limit, load)
            for limit in (*everything, *limits)
        }
        limited = [told[limit.latency, limit.statistic] for limit in limits]
        trust = trust_in(question, self.bundle.knowledge, offered)
        return facts | {
            "pods": 1,
            "p_sla": float((capacity >= load).mean()),
            "binding": None,
            "trust": trust.level,
            "trust_sentence": trust.sentence,
            "reason": _why_infinite(limited, question),
            **_latency_facts(limited),
            "latencies": [
                one.to_dict() if one in limited else {**one.to_dict(), "limit_ms": None, "kept": None}
                for one in told.values()
            ],
        }

    # --- from what is asked to a question -------------------------------------------------------------------

    def _question(self, asked: Asked) -> tuple[Question, tuple[Hashable, ...], Hashable]:
        """Return the question, what tells its services apart, and what tells apart what is sent."""
        (workload,) = self._workloads.get([asked.sent], lambda _: [load_workload(asked.sent.node)])
        engines = self._engines.get(
            asked.engines, lambda places: [engines_of([asked.engines[at]], None)[0] for at in places]
        )
        question = question_of(
            asked.model,
            asked.named,
            asked.demand,
            asked_of(asked.demand, workload, asked.sent.name),
            sla=asked.sla,
            engines=engines,
            precisions=list(asked.precisions),
            profiles=self._profiles(asked),
            choosing=asked.choosing,
            prices=asked.prices.label,
            cached_share=workload.cached_share,
            seed=SEED,
        )
        models = {id(one.model): one.model for one in question.offered}
        names = {at: _key_of(model) for at, model in models.items()}
        keys = tuple(
            (
                one.engine.name,
                workload.cached_share,
                names[id(one.model)],
                one.profile.name,
                one.profile.count,
            )
            for one in question.offered
        )
        demand = asked.demand
        arrives = (
            (demand.arrival, demand.burstiness if demand.arrival == "gamma" else 1.0)
            if demand.users is None
            else ("closed", demand.think_time_s)
        )
        return question, keys, (asked.sent, arrives)

    def _profiles(self, asked: Asked) -> list[Gpu]:
        """Return the GPU profiles to choose from at the prices of the row: the pod's, or all with a price."""
        gpus, prices = self.bundle.gpus, asked.prices
        chosen = gpus if asked.gpus is None else asked.gpus
        priced = {option: prices.of(option) for option in chosen}
        profiles = [
            gpus[option].model_copy(
                update={"price_per_hour": of_type, "price_source": prices.label, "count": count}
            )
            for option, of_type in priced.items()
            for count in ([asked.count] if asked.task == "predict" else of_type)
        ]
        if profiles:
            return profiles
        types = "any GPU type" if asked.gpus is None else ", ".join(asked.gpus)
        raise ConfigError(
            f"column prices: no price of {types} is known",
            given=f"{prices.name} ({prices.label})",
            cure='other gpus, another list of prices, or prices of your own: {"h100": {"1": 2.5}}',
        )


@cache
def _blas() -> ThreadpoolController:
    """Return what holds NumPy's linear algebra to one thread: on matrices as small as ours, its threads wait
    for each other for longer than they compute, and burn the cores that other requests need."""
    return ThreadpoolController()


def _key_of(model: Model) -> str:
    return hashlib.sha256(model.model_dump_json().encode()).hexdigest()


# --- facts of an answer ----------------------------------------------------------------------------------


def _asked_facts(asked: Asked, question: Question) -> Answer:
    demand = asked.demand
    return {
        "model": question.model.name,
        "workload": question.asked.name,
        "requests_per_s": demand.requests_per_s,
        "users": demand.users,
        "think_time_s": demand.think_time_s if demand.users is not None else None,
        "prices": question.prices,
    }


def _option_facts(best: Option | None) -> Answer:
    if best is None:
        return dict.fromkeys(CHOSEN)
    facts = best.to_dict(HOURS_PER_MONTH)
    return {name: facts[name] for name in CHOSEN} | _latency_facts(best.forecasts)


def _latency_facts(forecasts: Sequence[Forecast]) -> Answer:
    """Return what is expected under each limited latency's own name; of several limits, the strictest."""
    facts: Answer = {}
    for one in sorted(forecasts, key=lambda one: -one.limit.limit_ms):
        said, name = one.to_dict(), one.limit.latency
        low, high = said["interval_ms"] or (None, None)
        facts |= {name: said["expected_ms"], f"{name}_low": low, f"{name}_high": high}
    return facts


def _why_infinite(limited: Sequence[Forecast], question: Question) -> str:
    if all(isfinite(one.expected_ms) for one in limited):
        return ""
    return f"one pod does not keep up with {question.asked.load:g} {question.demand.unit}: requests pile up"
