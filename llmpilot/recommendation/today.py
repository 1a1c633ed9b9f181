"""The question of today's services from beginning to end: simulate, judge, how far to trust it, what would
settle it, and how to serve it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmpilot import catalog
from llmpilot.config import Sla
from llmpilot.errors import ConfigError
from llmpilot.predict.service.curves import Curve, Speeds, curves
from llmpilot.predict.service.first_token import as_seen
from llmpilot.predict.service.knowledge import Knowledge
from llmpilot.recommendation.answer import Answer, NextMeasurement
from llmpilot.recommendation.forecast import Judged, Simulated, judged
from llmpilot.recommendation.offers import kv_capacity_or_why, step_model_of
from llmpilot.recommendation.question import Offered, Question, question_facts
from llmpilot.recommendation.serve_line import serve_line
from llmpilot.recommendation.settle import CANDIDATES, Stakes, settled_by, worth_of_measuring
from llmpilot.recommendation.trust_today import trust_of
from llmpilot.simulator.lanes import LaneService
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

DRAWS = 400
ALL_TOO_LONG = "too long: every request is longer than the model and the service's memory take"
NOT_ASKED = NextMeasurement("what to measure next was not asked")


@dataclass(frozen=True)
class Answered:
    """The answer, and what it was judged by: other SLAs and loads are judged from the same."""

    answer: Answer
    simulated: Simulated
    judged: Judged

    @property
    def service(self) -> StepModel | None:
        """The service that is recommended, with its settings; None: nothing is."""
        at = self.judged.recommended
        return None if at is None else step_model_of(self.simulated.offered[at])


def answered(
    question: Question, knowledge: Knowledge, simulated: Simulated | None = None, *, settle: bool = True
) -> Answered:
    """Return the answer to a question; `simulated` is what `simulate` found of it before.

    Without `settle` nothing is said of what to measure next, which takes longest.

    Raises:
        ConfigError: the SLA has no limit.
    """
    require_limits(question.sla)
    found = simulated if simulated is not None else simulate(question, knowledge)
    result = judged(found, question.sla, question.asked.load, question.choosing)
    best = result.options[0] if result.recommended is not None else None
    serve, why_not = _serve(found, result.recommended)
    answer = Answer(
        question=question_facts(question),
        options=result.options,
        recommended=best,
        reason="" if best is not None else _nothing(result, question),
        trust=trust_of(question, knowledge, found, result),
        measurement=_next_measurement(question, knowledge, found, result) if settle else NOT_ASKED,
        rule=question.choosing.rule,
        hours_per_month=question.choosing.hours_per_month,
        serve=serve,
        why_not_served=why_not,
        measured=knowledge.own_facts(question.model),
        notes=_notes(question, result),
    )
    return Answered(answer, found, result)


def simulate(question: Question, knowledge: Knowledge, draws: int = DRAWS) -> Simulated:
    """Return every service of the question under rising load, with draws of how fast it may really be."""
    rooms = [kv_capacity_or_why(one, question.request_tokens) for one in question.offered]
    services = [
        service_of(one, room, knowledge)
        for one, room in zip(question.offered, rooms, strict=True)
        if not isinstance(room, str)
    ]
    drawn = knowledge.speeds([one.step_model for one in services], draws, question.seed)
    pairs = iter(zip(curves_of(services, question, knowledge), drawn, strict=True))
    return assembled(question, [room if isinstance(room, str) else next(pairs) for room in rooms])


def service_of(offered: Offered, kv_capacity_tokens: int, knowledge: Knowledge) -> LaneService:
    """Return a service with its step times, as fast as it is expected to be."""
    step_model = step_model_of(offered)
    times = OperatorStepTimes(step_model, knowledge.factors).scaled(knowledge.scale(step_model))
    return LaneService(step_model, times, kv_capacity_tokens)


def curves_of(services: Sequence[LaneService], question: Question, knowledge: Knowledge) -> list[Curve]:
    """Return the curves of services under what the question sends, as clients see them."""
    if not services:
        return []
    found = curves(services, question.asked.traffic, question.seed, effort=question.effort)
    return [
        as_seen(curve, knowledge.first_token(one.step_model))
        for one, curve in zip(services, found, strict=True)
    ]


def assembled(question: Question, found: Sequence[tuple[Curve, Speeds] | str]) -> Simulated:
    """Return what was found of each service of the question, or why it cannot be started, as one."""
    told = [
        (one, simulated if isinstance(simulated, str) or simulated[0].failures[0] < 1 else ALL_TOO_LONG)
        for one, simulated in zip(question.offered, found, strict=True)
    ]
    fit = [(one, simulated) for one, simulated in told if not isinstance(simulated, str)]
    return Simulated(
        offered=tuple(one for one, _ in fit),
        curves=tuple(curve for _, (curve, _) in fit),
        speeds=tuple(speeds for _, (_, speeds) in fit),
        unfit=tuple((one, why) for one, why in told if isinstance(why, str)),
        think_time_s=question.demand.think_time_s if question.demand.users is not None else None,
        answer_tokens=question.asked.answer_tokens,
    )


def require_limits(sla: Sla) -> None:
    """Raise ConfigError where the SLA promises nothing."""
    if not sla.limits:
        raise ConfigError(
            "the SLA has no limit: every service keeps it",
            cure="set one: sla.ttft_ms.p95=1000 sla.itl_ms.p95=50",
        )


# --- nothing, and notes ----------------------------------------------------------------------------------


def _nothing(result: Judged, question: Question) -> str:
    nearest = result.options[0]
    if too_long := [one.reason for one in result.options if one.reason.startswith("too long: every")]:
        return too_long[0].removeprefix("too long: ")
    if result.first is None:
        if any(one.reason.startswith("does not fit") for one in result.options):
            several = f"{len(result.options)} services that may be chosen"
            return f"{question.model.name} fits on none of the {several}"
        return f"{question.model.name} cannot be served so: {nearest.reason}"
    if nearest.reason.startswith("too long"):
        return f"on every service requests are {nearest.reason}"
    return (
        "no service on any GPU profile carries this load within the SLA; nearest comes "
        f"{nearest.profile.label} in {nearest.precision}"
    )


def _notes(question: Question, result: Judged) -> tuple[str, ...]:
    notes = []
    demand = question.demand
    if demand.users is not None and not demand.think_time_s:
        notes.append(
            "users are taken to send their next request at once: "
            + ("1 request is" if demand.users == 1 else f"{demand.users:,} requests are")
            + " in flight all the time; people who read and type have a think_time_s"
        )
    if len(result.capacity[0]) and demand.users is None:
        notes.append("requests are taken to be spread over pods at random")
    return tuple(notes)


# --- how to serve it -------------------------------------------------------------------------------------


def _serve(simulated: Simulated, recommended: int | None) -> tuple[str | None, str]:
    """Return the command line that serves exactly what is recommended, or why there is none."""
    if recommended is None:
        return None, ""
    service = step_model_of(simulated.offered[recommended])
    try:
        return serve_line(service.model, service.gpu, service.settings).shell(), ""
    except ConfigError as error:
        return None, f"no command line to serve it: {error.wrong}; {error.cure}"


# --- what to measure next --------------------------------------------------------------------------------


def _next_measurement(
    question: Question, knowledge: Knowledge, simulated: Simulated, result: Judged
) -> NextMeasurement:
    """Return the measurement that is worth most beyond its own cost, or why there is none."""
    if not simulated.offered:
        return NextMeasurement("no measurement makes it fit")
    choosing, load = question.choosing, question.asked.load
    profiles = [one.profile for one in simulated.offered]
    stakes = Stakes(simulated.prices, load, choosing.risk, choosing.most_pods(profiles))
    worth = worth_of_measuring(result.capacity, stakes, _candidates(result))
    return settled_by(worth, profiles, choosing, lambda option: _command(question, simulated.offered[option]))


def _candidates(result: Judged) -> list[int]:
    """Return the best options that take anything, in order."""
    order = [int(at) for at in result.deployments.order if np.median(result.capacity[:, int(at)]) > 0]
    return order[:CANDIDATES]


def _command(question: Question, offered: Offered) -> str:
    """Return the command that measures a service that somebody has started, reached by its URL."""
    profile, precision = offered.profile, offered.model.precision
    names = {gpu.name: option for option, gpu in catalog.gpus().items()}
    other = "" if precision == question.model.precision else f" precision={precision}"
    return (
        f"python -m llmpilot +gpu={names.get(profile.name, profile.name)} gpu.count={profile.count} "
        f"+model={question.model_option}{other} engine=openai engine.serves={offered.engine.name} "
        "deployment=external deployment.url=http://HOST:8000"
    )
