"""How much slower than factors alone say services are expected to be: measured ones, their kin, others."""

from math import exp, log

import numpy as np
import pytest

from llmpilot import catalog
from llmpilot.simulator import SteppedService
from llmpilot.simulator.batch import Batch
from llmpilot.simulator.factors import service_key, shipped_factors
from llmpilot.simulator.service_model import simulated_service
from llmpilot.simulator.service_scales import (
    BOTH,
    CURVE,
    ENGINE,
    FAMILY,
    GPU,
    GPUS,
    LEVEL,
    MOST,
    NARROWER,
    SERVICE,
    Place,
    Residual,
    ServiceScales,
    covariance,
    service_scale,
    shipped_scales,
)
from llmpilot.simulator.service_settings import EngineName, service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

TOTAL = FAMILY + ENGINE + GPU + BOTH + SERVICE + CURVE + LEVEL


def service_of(
    model: str, gpu: str, count: int = 1, engine: EngineName = "vllm", **settings: int
) -> StepModel:
    profile = catalog.gpus([gpu])[gpu].model_copy(update={"count": count})
    return StepModel(catalog.models([model])[model], profile, service_settings(engine, profile, **settings))


def place_of(*args: object, **settings: int) -> Place:
    return Place.of_key(service_key(service_of(*args, **settings)))  # type: ignore[arg-type]


def scales_of(error: float, levels: int = 400, curves: int = 100) -> ServiceScales:
    return ServiceScales((Residual(place_of("llama_3_1_8b", "h100"), error, curves, levels),))


def test_a_key_tells_the_place_of_its_service() -> None:
    place = place_of("llama_3_1_70b", "h100", 8, pipeline_parallel=2)
    assert place.doublings == 3.0
    assert place.engine == "vllm"
    assert place.gpu.startswith("H100 ")
    assert place.key != place_of("llama_3_1_70b", "h100", 8).key
    assert place_of("llama_3_1_70b", "h100", 4).doublings == 2.0


def test_services_are_the_more_alike_the_more_they_share() -> None:
    here = place_of("llama_3_1_8b", "h100")
    others = [
        here,
        place_of("llama_3_1_8b", "h100", 2),
        place_of("llama_3_1_8b", "h100", 8),
        place_of("llama_3_1_8b", "h100", 1, "sglang"),
        place_of("llama_3_1_8b", "l4", 1, "sglang"),
        place_of("qwen3_8b", "h100"),
    ]
    alike = covariance([here], others)[0]
    beside = FAMILY + ENGINE + GPU
    assert alike[0] == pytest.approx(beside + BOTH + SERVICE)
    assert alike[1] == pytest.approx(beside + BOTH * exp(-1 / (2 * GPUS**2)))
    assert alike[2] == pytest.approx(beside + BOTH * exp(-9 / (2 * GPUS**2)))
    assert alike[3:].tolist() == pytest.approx([FAMILY + GPU, FAMILY, 0.0])


def test_gpu_counts_that_are_no_power_of_two_are_alike_in_the_same_way() -> None:
    three, six = place_of("llama_3_1_8b", "h100", 3), place_of("llama_3_1_8b", "h100", 6)
    expected = FAMILY + ENGINE + GPU + BOTH * exp(-1 / (2 * GPUS**2))
    assert covariance([three], [six])[0, 0] == pytest.approx(expected, rel=1e-3)


def test_measured_kin_and_unknown_services() -> None:
    """A well measured service has its error; its kin part of it; another LLM none, and the full spread."""
    scales = scales_of(0.2)
    own, own_variance = scales.mean_and_variance(place_of("llama_3_1_8b", "h100"))
    kin, kin_variance = scales.mean_and_variance(place_of("llama_3_1_8b", "h100", 2))
    far, far_variance = scales.mean_and_variance(place_of("llama_3_1_8b", "l4", 1, "sglang"))
    assert own == pytest.approx(0.2, rel=0.02)
    assert own > kin > far > 0
    assert CURVE + LEVEL < own_variance < kin_variance < far_variance < TOTAL
    assert scales.mean_and_variance(place_of("qwen3_8b", "h100")) == (0.0, pytest.approx(TOTAL))


def test_few_levels_say_less_than_many() -> None:
    place = place_of("llama_3_1_8b", "h100")
    one, many = scales_of(0.2, 1, 1), scales_of(0.2, 30, 3)
    assert 0 < one.mean_and_variance(place)[0] < many.mean_and_variance(place)[0] < 0.2


def test_an_error_far_out_counts_as_the_largest() -> None:
    place = place_of("llama_3_1_8b", "h100")
    assert scales_of(3.0).mean_and_variance(place) == scales_of(MOST).mean_and_variance(place)


def test_scales_are_the_same_after_json() -> None:
    shipped = shipped_scales()
    assert len(shipped.residuals) > 100
    assert ServiceScales.from_dict(shipped.to_dict()) == shipped


def test_simulated_services_take_the_expected_scale() -> None:
    service = service_of("llama_3_1_8b", "h100", 2)
    expected, spread = service_scale(service)
    assert expected != 0
    assert spread < NARROWER * np.sqrt(TOTAL)
    simulated = simulated_service(service.model, service.gpu, "vllm", service.settings, 100_000)
    assert isinstance(simulated, SteppedService)
    batch = Batch(decodes=8, decode_context_tokens=4000)
    alone = OperatorStepTimes(service, shipped_factors()).step_ms(batch)
    assert log(simulated.step_times.step_ms(batch) / alone) == pytest.approx(expected)
