"""What fits where: the memory arithmetic of a model on a GPU profile. Knows nothing about speed."""

from dataclasses import dataclass

from llmpilot.architecture import KV_BYTES
from llmpilot.config import Gpu, Model
from llmpilot.errors import DoesNotFitError

GB = 1e9


@dataclass(frozen=True)
class MemoryPlan:
    """Where a profile's memory goes, summed over its GPUs [GB], and the KV tokens that the rest holds."""

    total_gb: float
    usable_gb: float
    weights_gb: float
    reserve_gb: float
    kv_bytes_per_token: float
    kv_capacity_tokens: int

    def arithmetic(self) -> str:
        """Return the plan as one line of arithmetic, for messages."""
        left = self.usable_gb - self.weights_gb - self.reserve_gb
        room = (
            f"{self.usable_gb:.1f} GB usable of {self.total_gb:.0f} GB "
            f"- {self.weights_gb:.1f} GB weights - {self.reserve_gb:.1f} GB runtime reserve = {left:.1f} GB"
        )
        if left <= 0:
            return f"{room} for the KV cache"
        per_token = f"{self.kv_bytes_per_token / 1e3:.0f} kB"
        return f"{room} for the KV cache, at {per_token} per token: {self.kv_capacity_tokens:,} tokens"


def kv_bytes_on_profile(model: Model, gpu: Gpu, context_tokens: float | None = None) -> float:
    """Return the bytes that sequences keep for each of their tokens, summed over the profile's GPUs.

    `context_tokens`: how long the sequences are, on average: windows fill up and states count once, so that a
    token of a long sequence costs less. None: what one more token of a long context adds. Tensor parallelism
    splits the cache by KV heads; with fewer heads than GPUs (multi-query, latent attention) each head is kept
    more than once.
    """
    if context_tokens is None:
        copies = max(1.0, gpu.count / model.kv_shards)
        return model.kv_bytes_per_token * KV_BYTES[model.kv_format] / 2 * copies
    return model.sequence_bytes(context_tokens, gpus=gpu.count) / context_tokens


def plan_memory(
    model: Model,
    gpu: Gpu,
    *,
    memory_utilization: float = 0.95,
    reserve_gb_per_gpu: float = 0.5,
    context_tokens: float | None = None,
) -> MemoryPlan:
    """Return where the memory goes when `model` is sharded over the profile.

    `memory_utilization` is the share of the memory that an engine takes; `reserve_gb_per_gpu` is what
    the runtime (CUDA context, activations) keeps of it. `context_tokens`: how long sequences are on average,
    which decides what a token takes (`kv_bytes_on_profile`); None: so long that windows and states do not
    count.
    """
    total_gb = gpu.count * gpu.memory_gb
    usable_gb = total_gb * memory_utilization
    reserve_gb = gpu.count * reserve_gb_per_gpu
    weights_gb = model.weight_bytes / GB
    kv_bytes = kv_bytes_on_profile(model, gpu, context_tokens)
    room_bytes = (usable_gb - weights_gb - reserve_gb) * GB
    return MemoryPlan(
        total_gb, usable_gb, weights_gb, reserve_gb, kv_bytes, max(0, int(room_bytes // kv_bytes))
    )


def require_fit(
    model: Model, gpu: Gpu, plan: MemoryPlan, heaviest_request_tokens: int, cure: str = ""
) -> None:
    """Raise DoesNotFitError, with the arithmetic, unless the plan holds the workload's heaviest request."""
    if plan.kv_capacity_tokens >= heaviest_request_tokens:
        return
    if plan.kv_capacity_tokens == 0:
        wrong = f"{model.name} does not fit on {gpu.label}"
    else:
        wrong = (
            f"{model.name} on {gpu.label} leaves too little memory: "
            f"the workload's heaviest request holds {heaviest_request_tokens:,} tokens"
        )
    raise DoesNotFitError(wrong, given=plan.arithmetic(), cure=cure or "take a larger GPU profile")
