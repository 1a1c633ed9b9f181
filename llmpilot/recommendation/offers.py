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
    """Return the tokens that the service's KV cache holds, or why it cannot be started."""
    model, gpu, engine = one.model, one.profile, one.engine
    try:
        require_units(model, gpu)
        tensor = engine.tensor_gpus(gpu)
        if model.n_heads % tensor:
            return f"{model.n_heads} attention heads cannot be split evenly over {tensor} GPUs"
        memory = engine.memory(model, gpu)
        if memory.kv_capacity_tokens < mean_request_tokens:
            needed = (
                "" if not memory.kv_capacity_tokens else f", a mean request has {mean_request_tokens:,.0f}"
            )
            return f"does not fit: {memory.arithmetic()}{needed}"
        return weight_that_fits(engine, model, gpu, None)
    except PilotError as error:
        return error.wrong


def step_model_of(one: Offered) -> StepModel:
    """Return the service as it is simulated."""
    return StepModel(one.model, one.profile, one.engine.settings(one.profile))
