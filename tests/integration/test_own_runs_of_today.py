"""The user's own runs of today's engines, from MLflow, as levels that what is known is conditioned on."""

import numpy as np
import pytest
from conftest import Run
from tracked import client_here, read

from llmpilot import catalog, tracking
from llmpilot.config import Tracking
from llmpilot.emulator import FixedTiming, Options, example_service, in_process
from llmpilot.predict.service.knowledge import shipped_knowledge
from llmpilot.predict.service.own_levels import own_levels
from llmpilot.simulator.service_settings import service_settings
from llmpilot.simulator.step_model import StepModel

STORE = Tracking(uri="sqlite:///mlflow.db")
RUN = (
    *("+gpu=h100", "gpu.count=2", "+model=qwen3_14b", "engine=vllm", "engine.max_num_seqs=128"),
    *("workload.input_tokens=800", "workload.output_tokens=100", "tuner=none"),
    *("load.duration_s=40", "load.warmup_s=5", "result_file=r.json"),
)


@pytest.mark.parametrize(
    "load",
    [
        ("workload=lengths", "load.users=[4,16]"),  # alike, simulated users would go on in step
        ("workload=fixed", "load=poisson", "load.rates_per_s=[2,6]"),
    ],
)
def test_a_run_is_simulated_again_as_it_was(run: Run, load: tuple[str, ...]) -> None:
    """Had the simulated service been measured, it would be as fast as it is expected to be."""
    ran = run(*RUN, *load)
    assert ran.code == 0, ran.err
    assert own_levels(STORE) == [], "a simulated run says nothing new"

    client_here().set_tag(read("r.json")["run_id"], tracking.TAG_MEASUREMENT, "measured")
    found = own_levels(STORE)
    gpu = catalog.gpus(["h100"])["h100"].model_copy(update={"count": 2})
    model = catalog.models(["qwen3_14b"])["qwen3_14b"]
    service = StepModel(model, gpu, service_settings("vllm", gpu, max_num_seqs=128))
    assert len(found) == 2
    assert {one.level.service.settings.max_num_seqs for one in found} == {128}
    for one in found:
        assert one.level.input_tokens == pytest.approx(800, rel=0.1)
        assert one.level.output_tokens == pytest.approx(100, rel=0.1)

    knowledge = shipped_knowledge()
    conditioned = knowledge.conditioned_on(found)
    assert conditioned.own_facts(model) == {"rows": 2, "profiles": ["2 x H100"]}
    steps = [np.log(knowledge.scale(service)) - one.steps for one in conditioned.own]
    assert steps == pytest.approx([0.0, 0.0], abs=0.06)
    assert conditioned.scale(service) == pytest.approx(knowledge.scale(service), rel=0.05)
    assert conditioned.spread(service) < 0.8 * knowledge.spread(service)
    assert conditioned.kin(service).case == "service"


@pytest.mark.parametrize(("said", "rows"), [((), 0), (("engine.serves=sglang",), 1)])
def test_a_server_that_was_there_counts_as_the_engine_it_is_said_to_run(
    run: Run, said: tuple[str, ...], rows: int
) -> None:
    with in_process(example_service(), Options(fixed=FixedTiming(ttft_ms=20, itl_ms=5))) as emulator:
        ran = run(
            "+gpu=h100", "+model=qwen3_14b", "engine=openai", "engine.vocabulary_size=30000", *said,
            "deployment=external", f"deployment.url={emulator.url}", "load.users=[2]", "load.duration_s=4",
            "load.warmup_s=0.5", "workload=fixed", "workload.input_tokens=64", "workload.output_tokens=16",
            "result_file=r.json",
        )  # fmt: skip
    assert ran.code == 0, ran.err
    client_here().set_tag(read("r.json")["run_id"], tracking.TAG_MEASUREMENT, "measured")
    found = own_levels(STORE)
    assert [one.level.service.settings.engine for one in found] == ["sglang"] * rows
    assert all(one.tpot_ms == pytest.approx(5, rel=0.5) for one in found)
