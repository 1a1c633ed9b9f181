"""One recommendation from beginning to end: predict, rank, how far to trust it, and what to measure next."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llmpilot.config import Gpu, Model, Sla
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.prediction import Prediction
from llmpilot.recommendation.fitting import split_by_fit
from llmpilot.recommendation.learn import Learned
from llmpilot.recommendation.measurement import Measurement, worth_of_measuring
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.ranking import Option, Ranking, rank
from llmpilot.recommendation.serve_line import serve_line
from llmpilot.recommendation.trust import Trust, judge_trust
from llmpilot.recommendation.unseen import widen_unseen

CANDIDATES = 14
"""Measurements that are weighed against each other, at most."""
LEVEL_S = 130.0
"""A level of a characterization: warm-up and window."""
START_S = 300.0
"""Until a service is ready: the image is pulled, the weights are loaded."""


@dataclass(frozen=True)
class Question:
    """What is asked: which of these profiles, and how many, for so many users of a model within an SLA.

    `risk` is the largest probability with which the SLA may be missed. `hours` is how long the service will
    run: a measurement is worth its cost if it saves more than that by then.
    """

    model: Model
    users: int
    sla: Sla
    profiles: tuple[Gpu, ...]
    heaviest_request_tokens: int
    risk: float = 0.1
    hours: float = 720.0


@dataclass(frozen=True)
class Advice:
    """The answer."""

    question: Question
    ranking: Ranking
    trust: Trust
    measurement: Measurement | None
    why_measurement: str
    measured_rows: int
    measured_on: tuple[str, ...] = field(default=())

    @property
    def serve(self) -> str | None:
        """The command line that serves what is recommended with vLLM; None where vLLM cannot."""
        best = self.ranking.recommended
        if best is None:
            return None
        try:
            return serve_line(self.question.model, best.profile).shell()
        except ConfigError:
            return None

    @property
    def why_not_served(self) -> str:
        """Why there is no such line for what is recommended; empty where there is one."""
        best = self.ranking.recommended
        try:
            if best is not None:
                serve_line(self.question.model, best.profile)
        except ConfigError as error:
            return f"no vllm serve line: {error.wrong}; {error.cure}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values; what the keys of `ranking` mean is said at Option."""
        best = self.ranking.recommended
        found = self.measurement
        return {
            "model": self.question.model.name,
            "users": self.question.users,
            "sla": self.question.sla.model_dump(),
            "risk": self.question.risk,
            "recommended": None if best is None else _plain(best),
            "reason": self.ranking.reason or None,
            "ranking": [_plain(option) for option in self.ranking.options],
            "trust": {"level": self.trust.level, "reasons": list(self.trust.reasons)},
            "next_measurement": {
                "gpu": None if found is None else found.profile.name,
                "count": None if found is None else found.profile.count,
                "gain": 0.0 if found is None else found.gain,
                "cost": 0.0 if found is None else found.cost,
                "reason": self.why_measurement,
            },
            "measured": {"rows": self.measured_rows, "profiles": list(self.measured_on)},
            "serve": self.serve,
        }


def advise(question: Question, learned: Learned) -> Advice:
    """Return the advice.

    Raises:
        ConfigError: the SLA has limits that predictions say nothing about, or there is no profile.
    """
    need = need_of(question.users, question.sla)
    fit, unfit = split_by_fit(question.model, question.profiles, question.heaviest_request_tokens)
    if not fit:
        ranking = Ranking(
            tuple(Option(gpu, False, 0.0, reason=why) for gpu, why in unfit),
            None,
            f"{question.model.name} fits on none of the {len(unfit)} GPU profiles",
        )
        trust = Trust("high", ("that it does not fit is arithmetic, not a prediction",))
        return Advice(question, ranking, trust, None, "no measurement makes it fit", 0)
    prediction = learned.fitted.predict(question.model, fit, learned.users, learned.own)
    prediction = widen_unseen(prediction, learned.evidence, learned.measured_on)
    ranking = rank(prediction, need, question.risk, unfit)
    best = ranking.recommended
    profile = best.profile if best else next(option.profile for option in ranking.options)
    trust = judge_trust(question.model, profile, learned.evidence, learned.measured_on)
    if need.count_failures and prediction.failing is None:
        ignored = "this predictor says nothing of failed requests: P(SLA) is of latencies alone"
        trust = Trust(trust.level, (*trust.reasons, ignored))
    if learned.evidence.simulated:
        share = f"{learned.evidence.simulated:.0%} of what was learned from was simulated, not measured"
        trust = Trust("low", (*trust.reasons, share))
    measurement, why = _next_measurement(question, need, prediction, learned.measured_on)
    rows = 0 if learned.own is None else len(learned.own)
    return Advice(question, ranking, trust, measurement, why, rows, tuple(learned.measured_on))


def hours_per_run(levels: int) -> float:
    """Return how long one characterization with so many levels takes [hours]."""
    return (START_S + levels * LEVEL_S) / 3600


# --- what to measure next --------------------------------------------------------------------------------


def _next_measurement(
    question: Question, need: Need, prediction: Prediction, measured_on: Iterable[str]
) -> tuple[Measurement | None, str]:
    """Return the measurement that is worth most beyond its own cost, and why; None where none is."""
    if prediction.draws is None:
        return None, "this predictor states no uncertainty: what a measurement is worth is not known"

    def decide(posterior: Prediction) -> Choice | None:
        best = rank(posterior, need, question.risk).recommended
        return None if best is None or best.pods is None else Choice(best.profile, best.pods)

    done = set(measured_on)
    candidates = _candidates([gpu for gpu in prediction.profiles if gpu.label not in done])
    weighed = worth_of_measuring(prediction, need, decide, candidates, hours_per_run(len(prediction.users)))
    best = max(weighed, key=lambda one: one.gain * question.hours - one.cost, default=None)
    if best is None or best.gain * question.hours <= best.cost:
        return None, "nothing that one more run could show is expected to pay for it: the choice is settled"
    return best, (
        f"a characterization on {best.profile.label} costs about ${best.cost:,.2f} and is expected to save "
        f"${best.gain:,.2f} an hour, for {question.hours:g} hours; {best.settles:.0%} of what it may show "
        "changes the choice"
    )


def _candidates(profiles: list[Gpu]) -> list[Gpu]:
    """Return of each GPU type the fewest GPUs that fit, then the other profiles, the cheapest first."""
    ordered = sorted(profiles, key=lambda gpu: gpu.cost_per_hour)
    least: dict[str, Gpu] = {}
    for gpu in sorted(profiles, key=lambda gpu: gpu.count):
        least.setdefault(gpu.name, gpu)
    first = [gpu for gpu in ordered if least[gpu.name] == gpu]
    return [*first, *(gpu for gpu in ordered if least[gpu.name] != gpu)][:CANDIDATES]


def _plain(option: Option) -> dict[str, Any]:
    return {
        "gpu": option.profile.name,
        "count": option.profile.count,
        "pods": option.pods,
        "cost_per_hour": option.cost_per_hour,
        "users_per_pod": option.users_per_pod,
        "p_sla": option.p_sla,
        "nttft_ms": option.nttft_ms,
        "itl_ms": option.itl_ms,
        "nttft_ms_interval": option.nttft_ms_interval,
        "itl_ms_interval": option.itl_ms_interval,
        "users_max": option.users_max,
        "feasible": option.feasible,
        "reason": option.reason,
    }
