"""What may be chosen: engines, precisions and GPU profiles together, and why some do not hold the model."""

from collections.abc import Iterable, Sequence

from llmpilot.config import Gpu, Model
from llmpilot.deploy.simulated import weight_that_fits
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.errors import PilotError
from llmpilot.precision import require_units
from llmpilot.recommendation.question import Offered
from llmpilot.simulator.step_model import StepModel

Unfit = tuple[Offered, str]

LEAST_HELD = 3.0
"""Mean requests that the KV cache must hold at once: with less room tokens take longer than is simulated
(experiments/19_recommendations)."""


def offers_of(
    engines: Iterable[ScheduledEngine], models: Iterable[Model], profiles: Sequence[Gpu]
) -> tuple[Offered, ...]:
    """Return every engine with the model in every precision on every profile."""
    listed = list(models)
    return tuple(
        Offered(engine, model, gpu)
        for engine in engines
        for model in listed
        for gpu in sorted(profiles, key=lambda one: (one.name, one.count))
    )


def kv_capacity_or_why(one: Offered, mean_request_tokens: float) -> int | str:
    """Return the tokens that the service's KV cache holds, or why it cannot be offered."""
    model, gpu, engine = one.model, one.profile, one.engine
    try:
        require_units(model, gpu)
        tensor = engine.tensor_gpus(gpu)
        if model.n_heads % tensor:
            return f"{model.n_heads} attention heads cannot be split evenly over {tensor} GPUs"
        memory = engine.memory(model, gpu)
        held = memory.kv_capacity_tokens / mean_request_tokens
        if held < LEAST_HELD:
            size = f"requests of {mean_request_tokens:,.0f} tokens"
            few = f", {held:.1f} {size} at once, where {LEAST_HELD:g} are needed" if held > 0 else ""
            return f"does not fit: {memory.arithmetic()}{few}"
        return weight_that_fits(engine, model, gpu, None)
    except PilotError as error:
        return error.wrong


def step_model_of(one: Offered) -> StepModel:
    """Return the service as it is simulated."""
    return StepModel(one.model, one.profile, one.engine.settings(one.profile))
