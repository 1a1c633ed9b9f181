"""Times of single operators: the roofline they stay above, the sizes they grow with, the GPUs they cover."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmpilot.operators
from llmpilot import catalog
from llmpilot.architecture import BYTES, KvFormat, NumberFormat
from llmpilot.operators import Operators, operators_for

GPUS = {name: operators_for(gpu) for name, gpu in catalog.gpus().items()}
FORMATS = get_args(NumberFormat)
KV_FORMATS = get_args(KvFormat)
FLOOR = 0.8
"""Share of the datasheet's roofline below which no time may fall."""
SLACK = 0.1
"""Share of its time that a larger shape may take less: corrections are rounded to percents, and they are kept
from falling at the rates and formats of the tables, not at all others."""


def _size(most: int) -> st.SearchStrategy[int]:
    return st.floats(0, math.log2(most)).map(lambda log: round(2**log))


Times = Callable[[Operators, str, dict[str, Any]], Any]
SHAPES: dict[str, tuple[Times, dict[str, st.SearchStrategy[int]]]] = {
    "gemm": (
        lambda o, f, s: o.gemm_ms(f, s["m"], s["n"], s["k"]),
        {"m": _size(32768), "n": _size(65536), "k": _size(65536)},
    ),
    "decode_attention": (
        lambda o, f, s: o.decode_attention_ms(
            _kv(f), s["b"], s["b"] * s["context"], s["h"] * s["kv"], s["kv"], 128
        ),
        {"b": _size(1024), "context": _size(131072), "h": _size(16), "kv": _size(8)},
    ),
    "prefill_attention": (
        lambda o, f, s: o.prefill_attention_ms(
            _kv(f), s["b"], s["b"] * s["q"], _pairs(s), s["h"] * s["kv"], s["kv"], 128
        ),
        {"b": _size(64), "q": _size(16384), "cached": _size(131072), "h": _size(16), "kv": _size(8)},
    ),
    "latent_decode": (
        lambda o, f, s: o.latent_decode_ms(_kv(f), s["b"], s["b"] * s["context"], s["h"], 512, 64),
        {"b": _size(1024), "context": _size(131072), "h": _size(128)},
    ),
    "latent_prefill": (
        lambda o, f, s: o.latent_prefill_ms(_kv(f), s["b"], s["b"] * s["q"], _pairs(s), s["h"], 128, 64, 128),
        {"b": _size(64), "q": _size(16384), "cached": _size(131072), "h": _size(128)},
    ),
    "experts": (
        lambda o, f, s: o.experts_ms(f, s["tokens"], s["d"], s["width"], 8, 8 * s["e"], 1, 1),
        {"tokens": _size(16384), "d": _size(8192), "width": _size(16384), "e": _size(64)},
    ),
    "recurrent": (
        lambda o, f, s: o.recurrent_ms(s["b"], s["tokens"], s["state"], 4.0, 4096),
        {"b": _size(1024), "tokens": _size(8192), "state": _size(2**20)},
    ),
    "all_reduce": (lambda o, f, s: o.all_reduce_ms(s["bytes"], 4), {"bytes": _size(2**29)}),
    "all_gather": (lambda o, f, s: o.all_gather_ms(s["bytes"], 8), {"bytes": _size(2**29)}),
    "reduce_scatter": (lambda o, f, s: o.reduce_scatter_ms(s["bytes"], 8), {"bytes": _size(2**29)}),
    "all_to_all": (lambda o, f, s: o.all_to_all_ms(s["bytes"], 8), {"bytes": _size(2**29)}),
    "element": (lambda o, f, s: o.element_ms(s["bytes"]), {"bytes": _size(2**29)}),
}


def _kv(fmt: str) -> Any:
    return fmt if fmt in KV_FORMATS else "bf16"


def _pairs(shape: dict[str, Any]) -> Any:
    return shape["b"] * shape["q"] * (shape["cached"] + (shape["q"] + 1) / 2)


@pytest.mark.parametrize("operator", SHAPES)
@given(data=st.data())
def test_a_larger_size_never_takes_less_time(operator: str, data: st.DataObject) -> None:
    times, sizes = SHAPES[operator]
    gpu, fmt = data.draw(st.sampled_from(sorted(GPUS))), data.draw(st.sampled_from(FORMATS))
    shape = {name: data.draw(size) for name, size in sizes.items()}
    grown = data.draw(st.sampled_from(sorted(sizes)))
    larger = shape | {grown: shape[grown] + data.draw(sizes[grown])}
    assert times(GPUS[gpu], fmt, larger) >= times(GPUS[gpu], fmt, shape) * (1 - SLACK)


@pytest.mark.parametrize("operator", SHAPES)
@given(data=st.data())
def test_arrays_and_numbers_give_the_same_times(operator: str, data: st.DataObject) -> None:
    times, sizes = SHAPES[operator]
    gpu, fmt = data.draw(st.sampled_from(sorted(GPUS))), data.draw(st.sampled_from(FORMATS))
    shapes = [{name: data.draw(size) for name, size in sizes.items()} for _ in range(3)]
    together = times(GPUS[gpu], fmt, {name: np.array([float(s[name]) for s in shapes]) for name in sizes})
    assert together.shape == (3,)
    np.testing.assert_allclose(together, [times(GPUS[gpu], fmt, shape) for shape in shapes], rtol=1e-9)


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    fmt=st.sampled_from(FORMATS),
    m=_size(32768),
    n=_size(65536),
    k=_size(65536),
)
def test_a_gemm_stays_above_the_datasheets_roofline(gpu: str, fmt: Any, m: int, n: int, k: int) -> None:
    rates = GPUS[gpu].rates
    read, multiply = n * k * BYTES[fmt] / rates.bandwidth, 2.0 * m * n * k / rates.compute(fmt)
    assert GPUS[gpu].gemm_ms(fmt, m, n, k) >= FLOOR * max(read, multiply)


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    fmt=st.sampled_from(KV_FORMATS),
    sequences=_size(1024),
    context=_size(131072),
    heads=_size(16),
    kv_heads=_size(8),
)
def test_decode_attention_reads_the_cache(
    gpu: str, fmt: Any, sequences: int, context: int, heads: int, kv_heads: int
) -> None:
    cache = sequences * context * 2 * kv_heads * 128 * BYTES[fmt]
    time = GPUS[gpu].decode_attention_ms(fmt, sequences, sequences * context, heads * kv_heads, kv_heads, 128)
    assert time >= FLOOR * cache / GPUS[gpu].rates.bandwidth


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    fmt=st.sampled_from(FORMATS),
    tokens=_size(16384),
    per_token=st.integers(1, 8),
    experts=st.integers(8, 512),
    shards=st.sampled_from([(1, 1), (2, 1), (8, 1), (1, 8), (2, 4)]),
)
def test_experts_multiply_what_they_are_sent(
    gpu: str, fmt: Any, tokens: int, per_token: int, experts: int, shards: tuple[int, int]
) -> None:
    rates = GPUS[gpu].rates
    multiplied = 2.0 * tokens * per_token * 3 * 4096 * 2048 / (shards[0] * shards[1])
    time = GPUS[gpu].experts_ms(fmt, tokens, 4096, 2048, per_token, experts, *shards)
    assert time >= FLOOR * multiplied / rates.compute(fmt)


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize("operator", SHAPES)
def test_every_gpu_type_answers_every_format(gpu: str, operator: str) -> None:
    times, sizes = SHAPES[operator]
    for fmt in FORMATS:
        assert 0 < times(GPUS[gpu], fmt, dict.fromkeys(sizes, 64)) < 1e3
        assert 0 <= GPUS[gpu].spread(operator, fmt) < 1


def test_no_work_takes_no_time() -> None:
    h100 = GPUS["h100"]
    assert h100.gemm_ms("bf16", 0, 4096, 4096) == 0
    assert h100.decode_attention_ms("bf16", 0, 0, 32, 8, 128) == 0
    assert h100.prefill_attention_ms("bf16", 0, 0, 0, 32, 8, 128) == 0
    assert h100.experts_ms("bf16", 0, 4096, 2048, 8, 128) == 0
    assert h100.recurrent_ms(0, 0, 2**20, 4.0, 4096) == 0
    assert h100.all_reduce_ms(2**20, 1) == 0
    assert h100.all_reduce_ms(0, 8) == 0
    times = h100.gemm_ms("bf16", np.array([0.0, 1.0]), 4096, 4096)
    assert list(np.asarray(times) > 0) == [False, True]


def test_a_gpu_without_fp8_units_stores_fp8_and_multiplies_bf16() -> None:
    a100, h100 = GPUS["a100_80gb"], GPUS["h100"]
    many, few = (8192, 8192, 8192), (1, 8192, 8192)
    assert a100.gemm_ms("fp8", *many) == pytest.approx(a100.gemm_ms("bf16", *many), rel=0.05)
    assert a100.gemm_ms("fp8", *few) < 0.7 * a100.gemm_ms("bf16", *few)
    assert h100.gemm_ms("fp8", *many) < 0.75 * h100.gemm_ms("bf16", *many)


def test_the_shipped_constants_stay_small() -> None:
    file = Path(llmpilot.operators.__file__).with_name("fitted.json")
    assert file.stat().st_size < 120_000
    assert "Apache-2.0" in json.loads(file.read_text())["source"]["licence"]
