"""Times of single operators: the roofline they stay above, the sizes they grow with, the GPUs they cover."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmpilot.operators
from llmpilot import catalog
from llmpilot.architecture import BYTES, KvFormat, NumberFormat
from llmpilot.operators import Operators, operators_for
from llmpilot.operators.fit import fit_operators
from llmpilot.operators.forms import FORMS, Grid

GPUS = {name: operators_for(gpu) for name, gpu in catalog.gpus().items()}
FORMATS = get_args(NumberFormat)
KV_FORMATS = get_args(KvFormat)
FLOOR = 0.8
"""Share of the datasheet's roofline below which no time may fall."""
SLACK = 0.2
"""Share of its time that a larger shape may take less: corrections are kept from falling at the corners of
their grid, for one shape of those coordinates, and at the rates and formats of the tables."""


def _size(most: int, least: int = 1) -> st.SearchStrategy[int]:
    return st.floats(math.log2(least), math.log2(most)).map(lambda log: round(2**log))


Times = Callable[[Operators, str, dict[str, Any]], Any]
SHAPES: dict[str, tuple[Times, dict[str, st.SearchStrategy[int]]]] = {
    "gemm": (
        lambda o, f, s: o.gemm_ms(f, s["m"], s["n"], s["k"]),
        {"m": _size(32768), "n": _size(65536, 128), "k": _size(65536, 128)},
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
        {"tokens": _size(16384), "d": _size(8192, 512), "width": _size(16384, 64), "e": _size(64)},
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


@pytest.mark.parametrize(
    ("gpu", "operator", "shape", "published_us"),
    [
        ("h100", "gemm", ("bf16", 64, 4096, 4096), 15.3),
        ("h100", "gemm", ("fp8", 2048, 6144, 4096), 89.9),
        ("b200", "gemm", ("bf16", 512, 65536, 8192), 317.4),
        ("a100_80gb", "gemm", ("bf16", 1, 65536, 8192), 638.5),
        ("h100", "decode_attention", ("bf16", 32, 32 * 8192, 32, 8, 128), 356),
        ("b200", "decode_attention", ("fp8", 128, 128 * 4096, 8, 8, 128), 156),
        ("h100", "prefill_attention", ("bf16", 1, 8192, 8192 * 4096.5, 32, 8, 128), 788),
        ("h100", "experts", ("bf16", 128, 7168, 2048, 8, 256, 8, 1), 842),
        ("b200", "experts", ("nvfp4", 64, 7168, 2048, 8, 256, 8, 1), 127),
        ("a100_80gb", "all_reduce", (2 * 2**20, 8), 28),
    ],
)
def test_published_times_of_operators_are_met(
    gpu: str, operator: str, shape: tuple[Any, ...], published_us: float
) -> None:
    """Single rows of the tables that the constants were fitted to (ai-dynamo/aiconfigurator, 095f58a5)."""
    own = replace(GPUS[gpu], own_share=1.0)
    assert 1e3 * getattr(own, f"{operator}_ms")(*shape) == pytest.approx(published_us, rel=0.25)


def test_a_few_measured_times_teach_a_gpu_type_its_own() -> None:
    l4, rng = catalog.gpus(["l4"])["l4"], np.random.default_rng(0)
    m, n, k = (2 ** rng.uniform(low, 13, 60) for low in (0, 10, 10))
    truth = 1.4 * np.asarray(operators_for(l4).gemm_ms("bf16", m, n, k))
    table = pd.DataFrame({"op": "gemm", "format": "bf16", "m": m, "n": n, "k": k, "time_us": 1e3 * truth})
    own = fit_operators(table, l4)
    taught = Operators(l4, own, operators_for(l4).universal, own_share=1.0)
    tokens = 2.0 ** np.arange(12)
    before = np.asarray(operators_for(l4).gemm_ms("bf16", tokens, 4096, 4096))
    after = np.asarray(taught.gemm_ms("bf16", tokens, 4096, 4096))
    np.testing.assert_allclose(after / before, 1.4, rtol=0.1)
    assert taught.gemm_ms("fp8", 1, 4096, 4096) == operators_for(l4).gemm_ms("fp8", 1, 4096, 4096)


@given(data=st.data())
def test_a_grid_is_linear_between_its_knots_and_constant_beyond(data: st.DataObject) -> None:
    values = [float(v) for v in data.draw(st.lists(st.integers(-9, 9), min_size=8, max_size=8))]
    grid = Grid([(0, 2), (1, 3, 4)], [(5, 6)], values)
    x, y, z = (data.draw(st.floats(-2, 8)) for _ in range(3))
    rows = np.array(values[:6]).reshape(2, 3)
    of_rows = [np.interp(y, [1, 3, 4], row) for row in rows]
    expected = np.interp(x, [0, 2], of_rows) + np.interp(z, [5, 6], values[6:])
    assert grid.at((2**x, 2**y, 2**z)) == pytest.approx(expected, abs=1e-6)
    arrays = [np.array([2**x, 1.0]), np.array([2**y, 2.0]), np.array([2**z, 32.0])]
    corners, weights = grid.weights(arrays)
    np.testing.assert_allclose((np.array(values)[corners] * weights).sum(1), grid.at(arrays), atol=1e-9)
    np.testing.assert_allclose(np.asarray(grid.at(arrays))[0], expected, atol=1e-6)


def test_every_correction_has_a_number_for_each_knot() -> None:
    file = Path(llmpilot.operators.__file__).with_name("fitted.json")
    fitted = json.loads(file.read_text())
    for constants in (fitted["universal"], *fitted["gpus"].values()):
        for operator, of_format in constants.items():
            form = FORMS[operator]
            for one in of_format.values():
                assert set(form.constants) <= set(one)
                if form.knots:
                    assert len(one["correction"]) == Grid(form.knots, form.alone, []).size


def test_own_tables_and_what_is_common_are_averaged() -> None:
    shape = ("bf16", 64.0, 4096.0, 4096.0)
    h100 = GPUS["h100"]
    own, common = replace(h100, own_share=1.0), replace(h100, own={})
    assert h100.gemm_ms(*shape) == pytest.approx((own.gemm_ms(*shape) * common.gemm_ms(*shape)) ** 0.5)
