"""A step's time is the sum of its parts times factors, whether it is looked up or computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.simulator.batch import Batch
from llmpilot.simulator.factors import FACTORS, design, multipliers, priors
from llmpilot.simulator.service_settings import service_settings
from llmpilot.simulator.steady import ClosedLoads, steady_parts, time_per_output_token
from llmpilot.simulator.step_model import PARTS, StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

MODELS = catalog.models(("llama_3_1_8b", "mixtral_8x7b", "gpt_oss_20b", "deepseek_v2_lite"))


def service(model: str = "llama_3_1_8b", count: int = 1, engine: str = "vllm") -> StepModel:
    gpu = catalog.gpus(("h100",))["h100"].model_copy(update={"count": count})
    return StepModel(MODELS[model], gpu, service_settings(engine, gpu))


def computed(of: StepModel, batch: Batch) -> float:
    weights = multipliers(of, priors())
    alone = of.parts(Batch(batch.decodes, batch.decode_context_tokens))
    whole = of.parts(batch)
    head, rest = PARTS.index("head_gemm"), weights[:-1].copy()
    rest[head] = 0.0
    added = weights[-1] * float(rest @ (whole - alone))
    base = float(rest @ alone) + float(weights[head] * whole[head])
    return base + added


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [1, 4])
@given(
    decoding=st.tuples(st.integers(0, 512), st.integers(16, 30_000)),
    reading=st.tuples(st.integers(0, 8192), st.integers(0, 20_000)),
)
def test_looked_up_is_computed(
    model: str, count: int, decoding: tuple[int, int], reading: tuple[int, int]
) -> None:
    of, (decodes, context), (chunk, cached) = service(model, count), decoding, reading
    if decodes == chunk == 0:
        return
    batch = Batch(decodes, decodes * context, chunk, chunk * (cached + (chunk + 1) / 2), int(chunk > 0))
    # Matrices are computed in tiles: a token more can cost one, between the points of a table a part of it.
    assert OperatorStepTimes(of, priors()).step_ms(batch) == pytest.approx(computed(of, batch), rel=0.07)


@given(decodes=st.integers(1, 400), context=st.integers(16, 20_000), more=st.integers(1, 50))
def test_more_work_takes_no_less(decodes: int, context: int, more: int) -> None:
    times = OperatorStepTimes(service(), priors())
    base = times.step_ms(Batch(decodes, decodes * context))
    assert times.step_ms(Batch(decodes + more, (decodes + more) * context)) >= base * 0.999
    assert times.step_ms(Batch(decodes, decodes * (context + more))) >= base * 0.999
    assert times.step_ms(Batch(decodes, decodes * context, 16 * more, 8.0 * (16 * more) ** 2, 1)) > base


def test_a_factor_multiplies_its_parts_where_it_applies_and_nothing_else() -> None:
    of = service()
    for factor in FACTORS:
        changed = multipliers(of, priors() | {factor.name: 2 * factor.median}) / multipliers(of, priors())
        expected = {*factor.parts} if factor.applies(of) else set()
        assert {
            name for name, ratio in zip((*PARTS, "prefill"), changed, strict=True) if ratio != 1.0
        } == expected
    assert design(of).shape == (len(FACTORS), len(PARTS) + 1)


def test_more_gpus_share_a_step_but_pay_for_it() -> None:
    one, four = service(count=1).parts(Batch(16, 16_000)), service(count=4).parts(Batch(16, 16_000))
    at = PARTS.index
    assert four[at("mlp_gemm")] < one[at("mlp_gemm")]
    assert one[at("all_reduce")] == 0.0 < four[at("all_reduce")]


def test_steady_state_approaches_a_decode_step_for_long_outputs() -> None:
    of = service()
    weights = multipliers(of, priors())
    loads = ClosedLoads(*(np.array([value]) for value in (16.0, 8192.0, 8.0, 8192.0)))
    found = float(time_per_output_token(steady_parts(of, loads), weights)[0])
    alone = computed(of, Batch(8, 8 * (16 + 4096)))
    assert found == pytest.approx(alone, rel=0.02)
    heavy = ClosedLoads(*(np.array([value]) for value in (4096.0, 64.0, 8.0, 8192.0)))
    assert float(time_per_output_token(steady_parts(of, heavy), weights)[0]) > alone
