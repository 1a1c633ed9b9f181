"""What is asked: a load of a workload to carry within an SLA, and what may be chosen to carry it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmpilot.config import Facts, Gpu, Model, NonNegative, Sla
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Rule
from llmpilot.predict.service.curves import QUICK, THOROUGH, Effort, Traffic

HOURS_PER_MONTH = 730.0
"""A twelfth of a year."""
MOST_USERS = 10_000_000


class Demand(Facts):
    """The load that all pods together must carry: one of requests/s, users, or a trace with its own times.

    `requests_per_s` arrive at random (poisson), in bursts (gamma; `burstiness` is the shape of the gaps, 1 is
    Poisson, less is burstier). `users` send their next request when the last one has ended and they have
    thought for `think_time_s` on average; without thinking they are as many requests in flight.
    """

    requests_per_s: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    users: Annotated[int, Field(ge=1, le=MOST_USERS)] | None = None
    think_time_s: NonNegative = 0.0
    arrival: Literal["poisson", "gamma"] = "poisson"
    burstiness: PositiveFloat = 0.5
    trace: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_load(self) -> "Demand":
        traced = bool((self.trace or {}).get("path"))
        given = [
            name
            for name, there in (
                ("requests_per_s", self.requests_per_s is not None),
                ("users", self.users is not None),
                ("trace.path", traced),
            )
            if there
        ]
        if len(given) != 1:
            raise ConfigError(
                "the load to carry is not given" if not given else "the load is given more than once",
                given=" and ".join(given) or None,
                cure="one of requests_per_s=20, users=500 (with think_time_s=20 for people who read), "
                "trace.path=my.csv",
            )
        if self.think_time_s and self.users is None:
            raise ConfigError(
                "think_time_s is of users, and the load is not given in users",
                given=f"think_time_s={self.think_time_s:g}",
                cure="users=500 think_time_s=20, or leave it out",
            )
        return self

    @property
    def arrival_label(self) -> str:
        """How requests arrive, in a word: poisson, gamma, or the trace's own times."""
        return self.arrival if self.requests_per_s is not None else "trace"

    @property
    def unit(self) -> str:
        """What the load is counted in."""
        return "users" if self.users is not None else "requests/s"


class Choosing(Facts):
    """How to choose: the largest `risk` of missing the SLA (null: price and certainty are weighed), at most
    `max_gpus` in all, `hours` that it will run: what a measurement must pay for itself in.
    """

    risk: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_gpus: PositiveInt | None = None
    hours: PositiveFloat = HOURS_PER_MONTH
    hours_per_month: Annotated[float, Field(gt=0, le=744)] = HOURS_PER_MONTH

    def most_pods(self, profiles: Iterable[Gpu]) -> NDArray[np.float64] | None:
        """Return how many pods of each profile there may be; None: any number."""
        if self.max_gpus is None:
            return None
        return np.array([float(self.max_gpus // gpu.count) for gpu in profiles])

    @property
    def rule(self) -> dict[str, Any]:
        """The rule of decision, as plain values."""
        return asdict(Rule.at(self.risk))


@dataclass(frozen=True)
class Offered:
    """A service that may be chosen: an engine with a model in some precision on a GPU profile."""

    engine: ScheduledEngine
    model: Model
    profile: Gpu

    @property
    def label(self) -> str:
        """`2 x H100, fp8`: how tables call it."""
        return f"{self.profile.label}, {self.model.precision}"


@dataclass(frozen=True)
class Asked:
    """The load of a question: what is sent, in which unit it is counted, and how much of it.

    `requests` are drawn from a workload model, or are those of a trace; `load` is what all pods together must
    carry, in users or requests/s; `input_tokens` and `output_tokens` are means of a sequence, and
    `answer_tokens` that of all output of a request, which may ask for several.
    """

    traffic: Traffic
    load: float
    input_tokens: float
    output_tokens: float
    name: str
    answer_tokens: float


@dataclass(frozen=True)
class Question:
    """A question of today's services. `cached_share` of every prompt's tokens is cached by the server.

    `model_option` is how the command line names the model; `prices` says whose they are and of when.
    """

    model: Model
    model_option: str
    demand: Demand
    asked: Asked
    cached_share: float
    sla: Sla
    offered: tuple[Offered, ...]
    choosing: Choosing
    prices: str
    seed: int = 42

    @property
    def effort(self) -> Effort:
        """How much is simulated: more where a limit is on the slowest hundredth of the requests."""
        rare = any(limit.statistic == "p99" for limit in self.sla.limits)
        return THOROUGH if rare else QUICK

    @property
    def request_tokens(self) -> float:
        """Mean tokens of a request, input and output."""
        return self.asked.input_tokens + self.asked.output_tokens


def question_facts(question: Question) -> dict[str, Any]:
    """Return what was asked as plain values."""
    demand, asked = question.demand, question.asked
    return {
        "model": question.model.name,
        "requests_per_s": asked.load if demand.users is None else None,
        "users": demand.users,
        "think_time_s": demand.think_time_s if demand.users is not None else None,
        "arrival": "closed" if demand.users is not None else demand.arrival_label,
        "workload": {
            "name": asked.name,
            "input_tokens_mean": round(asked.input_tokens, 1),
            "output_tokens_mean": round(asked.output_tokens, 1),
            "cached_share": question.cached_share,
        },
        "sla": question.sla.model_dump(),
        "limits": [limit.model_dump() for limit in question.sla.limits],
        "risk": question.choosing.risk,
        "max_gpus": question.choosing.max_gpus,
        "prices": question.prices,
    }
