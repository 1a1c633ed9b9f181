"""Answers questions from a bundle. What was predicted for a model is kept for its next question."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.predict.prediction import Metric, Prediction
from llmpilot.recommendation.fitting import split_by_fit
from llmpilot.recommendation.ranking import Option, Ranking, latency_at, rank
from llmpilot.recommendation.trust import judge_trust
from llmpilot.recommendation.unseen import widen_unseen
from llmpilot.serving.bundle import Bundle
from llmpilot.serving.rows import Cell, Known, Question, names_of

KEPT_MODELS = 16
"""Predictions kept: of 100 profiles, 500 draws and 8 user counts, each takes 6 MB."""
FIELDS = (
    "pods",
    "cost_per_hour",
    "users_per_pod",
    "p_sla",
    "nttft_ms",
    "itl_ms",
    "nttft_ms_interval",
    "itl_ms_interval",
    "users_max",
    "feasible",
    "reason",
)
SUMMARY = ("pods", "cost_per_hour", "users_per_pod", "p_sla", "nttft_ms", "itl_ms")

Answer = dict[str, Any]


@dataclass(frozen=True)
class _Predicted:
    """One model on every profile that holds it, and why the others do not."""

    prediction: Prediction | None
    unfit: tuple[tuple[Gpu, str], ...]
    measured_on: tuple[str, ...]

    def only(self, types: frozenset[str]) -> "_Predicted":
        """Return the same for some GPU types."""
        unfit = tuple((gpu, why) for gpu, why in self.unfit if gpu.name in types)
        if self.prediction is None:
            return replace(self, unfit=unfit)
        kept = [at for at, gpu in enumerate(self.prediction.profiles) if gpu.name in types]
        return replace(self, prediction=_pick(self.prediction, kept) if kept else None, unfit=unfit)


class Recommender:
    """Answers questions, from many threads at once."""

    def __init__(self, bundle: Bundle, kept_models: int = KEPT_MODELS) -> None:
        self.bundle = bundle
        models = [*bundle.data.models.values(), *catalog.models().values()]
        self.known = Known(names_of(models), bundle.profiles, bundle.users[-1])
        self._kept: OrderedDict[Model, Future[_Predicted]] = OrderedDict()
        self._kept_models, self._lock = kept_models, Lock()

    def answer(self, questions: Sequence[Question | Cell]) -> list[Answer]:
        """Return the answers, in order; what their fields mean is said at `recommend` and `latencies`."""
        answers: dict[int, Answer] = {}
        cells: dict[Model, list[int]] = {}
        for at, one in enumerate(questions):
            if isinstance(one, Question):
                answers[at] = self.recommend(one)
            else:
                cells.setdefault(one.model, []).append(at)
        for model, places in cells.items():
            asked = [one for at in places if isinstance(one := questions[at], Cell)]
            answers |= dict(zip(places, self.latencies(model, asked), strict=True))
        return [answers[at] for at in range(len(questions))]

    def recommend(self, question: Question) -> Answer:
        """Return the profile to take, None where none will do, the reason, and the ranking as JSON.

        The fields of a ranking's entries are those of `llmpilot.recommendation.ranking.Option`.
        """
        predicted = self._predicted(question.model)
        if question.gpus is not None:
            predicted = predicted.only(question.gpus)
        ranking = self._ranking(question, predicted)
        best = ranking.recommended
        return {
            "task": "recommend",
            "model": question.model.name,
            "users": question.need.users,
            "gpu": None if best is None else best.profile.name,
            "count": None if best is None else best.profile.count,
            **{name: None if best is None else getattr(best, name) for name in SUMMARY},
            "reason": ranking.reason or _why(ranking, question),
            "trust": self._trust(question.model, ranking, predicted.measured_on),
            "ranking": json.dumps([_plain(option) for option in ranking.options]),
        }

    def latencies(self, model: Model, cells: Sequence[Cell]) -> list[Answer]:
        """Return median latencies [ms] of one pod under each load with 80% intervals; none: does not fit."""
        predicted = self._predicted(model)
        unfit = {gpu.label: why for gpu, why in predicted.unfit}
        answers: list[Answer] = [
            {
                "task": "predict",
                "model": model.name,
                "users": cell.users,
                "gpu": cell.profile.name,
                "count": cell.profile.count,
                "reason": unfit.get(cell.profile.label, ""),
            }
            for cell in cells
        ]
        fit = [at for at, cell in enumerate(cells) if cell.profile.label not in unfit]
        if predicted.prediction is None or not fit:
            return answers
        places = {gpu.label: at for at, gpu in enumerate(predicted.prediction.profiles)}
        profiles = np.array([places[cells[at].profile.label] for at in fit])
        users = np.array([cells[at].users for at in fit])
        metrics: tuple[Metric, ...] = ("nttft_ms", "itl_ms")
        for metric in metrics:
            latencies = latency_at(users, predicted.prediction, metric, profiles)
            for at, middle, interval in zip(fit, *latencies, strict=True):
                assert interval is not None  # a pilot has draws
                low, high = interval
                answers[at] |= {metric: middle, f"{metric}_low": low, f"{metric}_high": high}
        return answers

    def _ranking(self, question: Question, predicted: _Predicted) -> Ranking:
        if predicted.prediction is None:
            options = tuple(Option(gpu, False, 0.0, reason=why) for gpu, why in predicted.unfit)
            return Ranking(
                options, None, f"{question.model.name} fits on none of the {len(options)} GPU profiles"
            )
        return rank(predicted.prediction, question.need, question.risk, predicted.unfit)

    def _trust(self, model: Model, ranking: Ranking, measured_on: tuple[str, ...]) -> str:
        option = ranking.recommended or next((o for o in ranking.options if o.nttft_ms is not None), None)
        if option is None:
            return "high"  # that it does not fit is arithmetic
        return judge_trust(model, option.profile, self.bundle.evidence, measured_on).level

    def _predicted(self, model: Model) -> _Predicted:
        """Return what is kept for the model; who asks for it at the same time waits for the first one."""
        with self._lock:
            found = self._kept.get(model)
            first = found is None
            if found is None:
                found = self._kept[model] = Future()
                while len(self._kept) > self._kept_models:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(model)
        if first:
            try:
                with _blas().limit(limits=1, user_api="blas"):
                    found.set_result(self._predict(model))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(model, None)
                found.set_exception(error)
        return found.result()

    def _predict(self, model: Model) -> _Predicted:
        bundle = self.bundle
        fit, unfit = split_by_fit(model, bundle.profiles, bundle.heaviest_request_tokens)
        own = bundle.measured(model)
        measured_on: tuple[str, ...] = ()
        if own is not None:
            pairs = zip(own["count"], own["gpu"], strict=True)
            measured_on = tuple(dict.fromkeys(f"{count} x {gpu}" for count, gpu in pairs))
        if not fit:
            return _Predicted(None, tuple(unfit), measured_on)
        prediction = bundle.fitted.predict(model, fit, bundle.users, own)
        return _Predicted(widen_unseen(prediction, bundle.evidence, measured_on), tuple(unfit), measured_on)


@cache
def _blas() -> ThreadpoolController:
    """Return what holds NumPy's linear algebra to one thread: on matrices as small as ours, its threads wait
    for each other for longer than they compute, and burn the cores that other requests need."""
    return ThreadpoolController()


def _pick(prediction: Prediction, kept: list[int]) -> Prediction:
    draws = prediction.draws
    return replace(
        prediction,
        profiles=tuple(prediction.profiles[at] for at in kept),
        nttft_ms=prediction.nttft_ms[kept],
        itl_ms=prediction.itl_ms[kept],
        failing=None if prediction.failing is None else prediction.failing[kept],
        draws=None if draws is None else draws.of_profiles(kept),
    )


def _plain(option: Option) -> Answer:
    named = {"gpu": option.profile.name, "count": option.profile.count}
    return named | {name: getattr(option, name) for name in FIELDS}


def _why(ranking: Ranking, question: Question) -> str:
    feasible = sum(option.feasible for option in ranking.options)
    return (
        f"the cheapest of {feasible} profiles that keep the SLA with a probability of "
        f"{1 - question.risk:.0%} or more"
    )
