"""A service of one of today's engines, simulated: its scheduler, its step times, its KV blocks."""

from collections import OrderedDict
from math import exp

from llmpilot.config import Gpu, Model
from llmpilot.simulator.batch import StepTime
from llmpilot.simulator.factors import shipped_factors
from llmpilot.simulator.first_token import MEDIANS, shipped_first_token
from llmpilot.simulator.schedulers import SglangRule, TrtllmRule, VllmRule
from llmpilot.simulator.service import SchedulingRule, SteppedService, VirtualService
from llmpilot.simulator.service_scales import service_scale
from llmpilot.simulator.service_settings import EngineName, ServiceSettings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

REQUEST_OVERHEAD_MS = MEDIANS[0]
"""Connection, parsing and tokenization before a request is queued, and the way of its first token back, where
nothing is fitted."""
TABLES = 16
"""Services whose step times are kept: a search asks for the same ones again and again."""


def simulated_service(
    model: Model, gpu: Gpu, engine_name: EngineName, settings: ServiceSettings, max_batch_weight: int
) -> VirtualService:
    """Return the service of a model on a GPU profile under a max batch weight [tokens].

    The weight is kept by the number of KV blocks: as many as hold it.
    First tokens come as any client sees them by published measurements, as `task=validate` has them.
    """
    first_token = shipped_first_token(StepModel(model, gpu, settings))
    blocks = -(-max_batch_weight // settings.block_size)
    return SteppedService(
        _step_times(model, gpu, settings),
        _rule(model, settings),
        blocks * settings.block_size,
        first_token.offset_ms,
        first_token,
    )


def service_at(service: StepModel, times: StepTime, kv_capacity_tokens: int) -> SteppedService:
    """Return a service with given step times and a KV cache of so many tokens.

    It is the engine alone: a request is queued when it is sent, and seen when it is answered.
    """
    block = service.settings.block_size
    capacity = -(-kv_capacity_tokens // block) * block
    return SteppedService(times, _rule(service.model, service.settings), capacity)


def _rule(model: Model, settings: ServiceSettings) -> SchedulingRule:
    """Return the engine's rule; replicas of the attention layers are scheduled as one."""
    # A step has a token of each sequence at least: no more sequences than tokens.
    sequences = min(settings.max_num_seqs, settings.max_num_batched_tokens)
    common = {
        "max_num_seqs": sequences * settings.data_parallel,
        "max_num_batched_tokens": settings.max_num_batched_tokens * settings.data_parallel,
        "block_size": settings.block_size,
        "chunked_prefill": settings.chunked_prefill,
        "prefix_hit_share": settings.prefix_hit_share,
        "prefix_caching": settings.prefix_caching,
        "overlapped": settings.overlapped,
        "max_positions": model.max_positions,
    }
    if settings.engine == "sglang":
        whole = {} if settings.chunked_prefill else {"max_prefill_tokens": common["max_num_batched_tokens"]}
        return SglangRule.model_validate(common | whole)
    if settings.engine == "trtllm":
        return TrtllmRule.model_validate(common)
    return VllmRule.model_validate(common)


_kept: OrderedDict[tuple[str, str, ServiceSettings], OperatorStepTimes] = OrderedDict()


def _step_times(model: Model, gpu: Gpu, settings: ServiceSettings) -> OperatorStepTimes:
    """Return the step times of a service as they are expected; those of the last few from memory."""
    key = (model.model_dump_json(), gpu.model_dump_json(), settings)
    if key not in _kept:
        service = StepModel(model, gpu, settings)
        expected, _ = service_scale(service)
        _kept[key] = OperatorStepTimes(service, shipped_factors()).scaled(exp(expected))
        if len(_kept) > TABLES:
            _kept.popitem(last=False)
    return _kept[key]
