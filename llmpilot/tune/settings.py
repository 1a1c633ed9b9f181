"""What a person can set about tuning, and what the objectives mean."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from llmpilot.config import Facts

Objective = Literal["e2e_ms.p50", "throughput_tok_s", "goodput_per_s", "cost_per_million_output_tokens"]

COST: Objective = "cost_per_million_output_tokens"
GOODPUT: Objective = "goodput_per_s"
MAXIMIZED: tuple[Objective, ...] = ("throughput_tok_s", "goodput_per_s")

PLACE = ("storage", "study", "stale_after_s")
"""Settings that say where a study is kept: they decide nothing of its answer."""
STEPS = ("step_objective", "step_trials")
"""Settings of the search behind that of the weight, for an engine's settings of its steps."""
BUDGET = (*PLACE, *STEPS, "question", "trials", "patience", "repeats", "contenders", "prune_beyond")
"""Settings that say how long to search and where to keep it: changing them goes on with the same study."""


class Tuner(Facts):
    """How the max batch weight is searched for.

    `question` feasible ends with the largest weight that survives the corner cases and the first part of the
    measurement (`first_part` of load.duration_s), found within `tolerance`; best goes on from there with up
    to `trials` weights that TPE proposes, and ends early when `patience` of them in a row brought nothing
    beyond the noise. None: nothing is tuned. A figure counts after `repeats` seeds where that decides; at
    most `contenders` weights get so far. All but the cost are measured at `users`; the cost is that of the
    last of `load.users` within the SLA, and a trial that is dearer than the best at the same users by more
    than the share `prune_beyond`, and the noise, is not measured to the end of this ladder (null: all are).

    `lower` and `upper` [tokens] bound the search; null: the heaviest request, and what the profile's memory
    beside the weights could hold at most. `corner_users` caps the many short requests. `storage` is a
    database URL (null: optuna.db beside the tracking database), `study` a name instead of ours. A trial
    whose worker on another machine has been silent for `stale_after_s` is given up.

    Behind the weight, task=tune searches the tokens of a step and the requests that run at once, of engines
    that can be told: `step_trials` of TPE, by `step_objective` at `users`.
    """

    question: Literal["feasible", "best"] | None = "best"
    objective: Objective = "e2e_ms.p50"
    users: PositiveInt = 128
    lower: PositiveInt | None = None
    upper: PositiveInt | None = None
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.02
    trials: Annotated[int, Field(ge=0)] = 8
    patience: PositiveInt = 4
    repeats: PositiveInt = 3
    contenders: PositiveInt = 3
    first_part: Annotated[float, Field(ge=0.01, le=1)] = 0.25
    prune_beyond: PositiveFloat | None = 0.5
    corner_users: PositiveInt = 512
    storage: str | None = None
    study: str | None = None
    stale_after_s: PositiveFloat = 7200.0
    step_objective: Objective = "goodput_per_s"
    step_trials: Annotated[int, Field(ge=0)] = 16

    @property
    def maximize(self) -> bool:
        """Whether a larger value of the objective is better."""
        return self.objective in MAXIMIZED

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what a trial means: two studies that share them are one."""
        return {key: value for key, value in self.model_dump().items() if key not in BUDGET}

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide which weight is found."""
        return {key: value for key, value in self.model_dump().items() if key not in (*PLACE, *STEPS)}
