"""Which GPU profiles of the paper's question can hold a model at all, and why the others cannot.

Of today's services `offers` says it, by each engine's own account of memory.
"""

from collections.abc import Iterable

from llmpilot.config import Gpu, Model
from llmpilot.sizing import plan_memory


def split_by_fit(
    model: Model, profiles: Iterable[Gpu], heaviest_request_tokens: int
) -> tuple[list[Gpu], list[tuple[Gpu, str]]]:
    """Return the profiles that hold the model and one heaviest request, and the others with the reason."""
    fit, unfit = [], []
    for gpu in profiles:
        reason = why_unfit(model, gpu, heaviest_request_tokens)
        if reason is None:
            fit.append(gpu)
        else:
            unfit.append((gpu, f"does not fit: {reason}"))
    return fit, unfit


def why_unfit(model: Model, gpu: Gpu, heaviest_request_tokens: int) -> str | None:
    """Return why the model cannot be served on this profile, as arithmetic; None where it can."""
    if model.n_heads % gpu.count:
        return f"{model.n_heads} attention heads cannot be split evenly over {gpu.count} GPUs"
    plan = plan_memory(model, gpu)
    if plan.kv_capacity_tokens == 0:
        return plan.arithmetic()
    if plan.kv_capacity_tokens < heaviest_request_tokens:
        return f"{plan.arithmetic()}, the heaviest request holds {heaviest_request_tokens:,}"
    return None
