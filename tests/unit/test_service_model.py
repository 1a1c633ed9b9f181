"""Which scheduler and which settings a simulated service has."""

import pytest

from llmpilot import catalog
from llmpilot.simulator import SglangRule, SteppedService, TrtllmRule, VllmRule
from llmpilot.simulator.schedulers.paged import PagedRule
from llmpilot.simulator.service_model import simulated_service
from llmpilot.simulator.service_settings import EngineName, service_settings


@pytest.mark.parametrize(
    ("engine", "rule"), [("vllm", VllmRule), ("sglang", SglangRule), ("trtllm", TrtllmRule)]
)
def test_each_engine_schedules_by_its_own_rule_with_its_settings(
    engine: EngineName, rule: type[PagedRule]
) -> None:
    model, gpu = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"], catalog.gpus(["h100"])["h100"]
    settings = service_settings(engine, gpu, max_num_seqs=77, prefix_hit_share=0.25)
    service = simulated_service(model, gpu, engine, settings, 100_000)
    assert isinstance(service, SteppedService)
    assert type(service.rule) is rule
    assert service.rule.max_num_seqs == 77
    assert service.rule.max_num_batched_tokens == settings.max_num_batched_tokens
    assert service.rule.block_size == settings.block_size
    assert service.rule.prefix_hit_share == 0.25
