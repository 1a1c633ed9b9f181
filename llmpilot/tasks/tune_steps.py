"""Behind the max batch weight: the engine's settings of a step, its tokens and the requests that run at once.

The size of a prefill chunk is what trades the time to the first token for the gaps between tokens today.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from llmpilot import interrupts
from llmpilot.console import note
from llmpilot.deploy.place import Endpoint
from llmpilot.schema import at_level
from llmpilot.tasks.tune_setup import Tuning
from llmpilot.tune import Outcome, Services, measure
from llmpilot.tune.plan import BEST
from llmpilot.tune.settings import MAXIMIZED
from llmpilot.tune.steps import StepStudy
from llmpilot.tune.tracked import PARAM_QUESTION, PARAM_SEED, PARAM_WEIGHT

STEPS = "steps"
Result = dict[str, Any]


def find(tuning: Tuning, weight: int | None, run_id: str | None) -> Result:
    """Search the engine's settings of a step under the weight that was found; return them for the result.

    `settings` are all that were found, `use` is what to type for them; `steps` has the search, None where the
    engine has no such settings or none was asked for.
    """
    if weight is None:
        return {"settings": None, "use": None, "steps": None}
    cell, settings = tuning.cell, tuning.settings
    choices, defaults = cell.engine.step_choices(cell.facts_known[1], settings.users)
    if not choices or settings.step_trials == 0:
        return _found({"max_batch_weight": weight}) | {"steps": None}
    objective = settings.step_objective
    study = StepStudy(
        tuning.study.url,
        f"{tuning.study.name}, {STEPS} at {weight} for {objective}",
        choices,
        defaults,
        maximize=objective in MAXIMIZED,
        timeout_s=tuning.tracker.tracking.timeout_s,
    )
    known = study.rows()
    if len(known) < settings.step_trials:
        names = " and ".join(f"engine.{key}" for key in choices)
        note(f"now {names}, for {objective} at {at_level(settings.users, 'users')}")
    while len(known) < settings.step_trials:
        interrupts.check()
        begun = study.ask(cell.seed)
        try:
            outcome, held = _measured(tuning, weight, begun.values, known)
        except BaseException:
            interrupts.acknowledge()
            study.abandon(begun)
            raise
        row = study.tell(begun, outcome, held)
        params = {PARAM_WEIGHT: held, PARAM_SEED: cell.seed, PARAM_QUESTION: STEPS}
        params |= {f"engine.{key}": value for key, value in begun.values.items()}
        tuning.tracker.log_trial(run_id, f"{STEPS} {row['number']}", params, outcome, tags=tuning.tags)
        known = study.rows()
    best = study.best()
    found = {f"engine.{key}": best[key] for key in choices} if best else {}
    weight = best["max_batch_weight"] if best else weight
    return _found({"max_batch_weight": weight} | found) | {
        STEPS: {
            "study": study.name,
            "objective": objective,
            "value": best["value"] if best else None,
            "value_of_defaults": next((row["value"] for row in known if _same(row, defaults)), None),
            "defaults": {f"engine.{key}": value for key, value in defaults.items()},
            "users": settings.users,
            "trials": known,
        }
    }


def _measured(
    tuning: Tuning, weight: int, values: dict[str, int], known: list[Result]
) -> tuple[Outcome, int]:
    """Return what settings come to, and under which weight: longer steps leave less memory for it.

    Settings that were measured before are not measured again.
    """
    if before := next((row for row in known if _same(row, values)), None):
        outcome = Outcome(
            before["feasible"], before["reason"], before["value"], (), before["failure_rate"], deployments=0
        )
        return outcome, before["max_batch_weight"]
    cell, settings = tuning.cell, tuning.settings
    try:
        engine = type(cell.engine).model_validate(cell.engine.model_dump() | values)
    except ValidationError as error:
        why = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        return Outcome(False, why, None, (), None, deployments=0), weight
    if (memory := cell.deployment.memory(engine, *cell.facts_known)) is not None:
        weight = max(tuning.bounds.lower, tuning.bounds.snap(min(weight, memory.kv_capacity_tokens)))

    @contextmanager
    def start(at: int) -> Iterator[Endpoint]:
        with replace(cell, max_batch_weight=at, engine=engine).start() as endpoint:
            yield endpoint

    services = Services(start)
    try:
        outcome = measure(
            services,
            cell.traffic,
            settings.model_copy(update={"objective": settings.step_objective}),
            weight,
            sla=cell.sla,
            cost_per_hour=cell.cost_per_hour,
            seed=cell.seed,
            question=BEST,
        )
    finally:
        services.discard()
    words = ", ".join(f"{key}={value:,}" for key, value in values.items())
    shown = outcome.reason if outcome.value is None else f"{settings.step_objective} {outcome.value:,.2f}"
    note(f"{STEPS}: {words}: {shown}")
    return outcome, weight


def _same(row: Result, values: dict[str, int]) -> bool:
    return all(row[key] == value for key, value in values.items())


def _found(settings: dict[str, int]) -> Result:
    return {"settings": settings, "use": " ".join(f"{key}={value}" for key, value in settings.items())}
