"""What a profile of a GPU changes in the times of operators, and what it does not; files that are none."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmpilot import catalog, profile_gpu
from llmpilot.config import Gpu
from llmpilot.errors import ConfigError
from llmpilot.operators import Operators, operators_for
from llmpilot.operators.profile import LEAST_ROWS, profiled_operators, read_profile

LAUNCHES = [
    {"operator": "launch", "format": "bf16", "kernels": 1, "time_us": us, "kernel": "add_", "timed": timed}
    for timed, us in (("eager", 6.0), ("graph", 1.0))
]


def time_us(operators: Operators, item: profile_gpu.Item) -> float:
    """The time of a planned shape, in a table's units."""
    s, fmt = {key: float(size) for key, size in item.shape.items()}, item.format
    match item.operator:
        case "gemm":
            ms = operators.gemm_ms(fmt, s["m"], s["n"], s["k"])
        case "decode_attention":
            context = s["sequences"] * s["context"]
            heads = (s["n_heads"], s["n_kv_heads"], s["head_dim"])
            ms = operators.decode_attention_ms("bf16", s["sequences"], context, *heads)
        case "prefill_attention":
            tokens = s["chunks"] * s["tokens"]
            pairs = tokens * (s["context"] + (s["tokens"] + 1) / 2)
            heads = (s["n_heads"], s["n_kv_heads"], s["head_dim"])
            ms = operators.prefill_attention_ms("bf16", s["chunks"], tokens, pairs, *heads)
        case "experts":
            sizes = [s[name] for name in ("tokens", "d_model", "width", "per_token", "n_experts")]
            ms = operators.experts_ms(fmt, *sizes)
        case _:
            ms = 1.0
    return float(ms) * 1e3


def rows_of(gpu: Gpu, factor: float, operators: tuple[str, ...], fmt: str = "bf16") -> list[dict[str, Any]]:
    """Rows as if this GPU type were slower by a factor."""
    known = operators_for(gpu)
    return [
        {"operator": item.operator, "format": item.format, "kernel": "k", "timed": "graph", **item.shape}
        | {"time_us": factor * time_us(known, item)}
        for item in profile_gpu.plan()
        if item.operator in operators and item.format == fmt
    ]


def written(folder: Path, rows: list[dict[str, Any]], **facts: Any) -> str:
    content = {
        "schema": profile_gpu.SCHEMA,
        "schema_version": profile_gpu.VERSION,
        "complete": True,
        "gpu": {"name": "NVIDIA L4", "kind": "nvidia"},
        "rows": rows,
    }
    path = folder / "my_gpu.json"
    path.write_text(json.dumps(content | facts))
    return str(path)


def profiled(name: str, path: str) -> Gpu:
    return catalog.gpus([name])[name].model_copy(update={"profile": path})


@pytest.fixture
def l4() -> Gpu:
    return catalog.gpus(["l4"])["l4"]


def test_times_follow_the_profile_between_its_shapes_and_beyond(tmp_path: Path, l4: Gpu) -> None:
    rows = rows_of(l4, 1.4, ("gemm", "decode_attention", "prefill_attention"))
    mine = operators_for(profiled("l4", written(tmp_path, rows + LAUNCHES)))
    known = operators_for(l4)
    m = np.array([1.0, 24.0, 100.0, 3000.0, 20000.0])
    ratio = np.asarray(mine.gemm_ms("bf16", m, 5120.0, 9000.0)) / np.asarray(
        known.gemm_ms("bf16", m, 5120.0, 9000.0)
    )
    assert ratio == pytest.approx(np.full(5, 1.4), rel=0.12)
    decode = [o.decode_attention_ms("bf16", 48.0, 48 * 3000.0, 40.0, 8.0, 128.0) for o in (mine, known)]
    assert decode[0] / decode[1] == pytest.approx(1.4, rel=0.12)
    prefill = [o.prefill_attention_ms("bf16", 1.0, 3000.0, 4.5e6, 32.0, 8.0, 128.0) for o in (mine, known)]
    assert prefill[0] / prefill[1] == pytest.approx(1.4, rel=0.12)


def test_what_was_not_measured_stays_as_it_is(tmp_path: Path, l4: Gpu) -> None:
    mine = operators_for(profiled("l4", written(tmp_path, rows_of(l4, 2.0, ("gemm",)))))
    known = operators_for(l4)
    assert mine.decode_attention_ms("fp8", 8.0, 8e3, 32.0, 8.0, 128.0) == known.decode_attention_ms(
        "fp8", 8.0, 8e3, 32.0, 8.0, 128.0
    )
    assert mine.gemm_ms("fp8", 8.0, 4096.0, 4096.0) == known.gemm_ms("fp8", 8.0, 4096.0, 4096.0)
    assert mine.experts_ms("bf16", 8.0, 2048.0, 768.0, 8.0, 128.0) == known.experts_ms(
        "bf16", 8.0, 2048.0, 768.0, 8.0, 128.0
    )
    assert mine.spread("gemm") > 0


def test_an_engines_own_kernels_are_kept_where_their_tables_are_known(tmp_path: Path) -> None:
    h100 = catalog.gpus(["h100"])["h100"]
    rows = rows_of(h100, 1.5, ("gemm", "decode_attention", "experts"))
    found = profiled_operators(profiled("h100", written(tmp_path, rows)))
    assert found.taken == (("gemm", "bf16"),)
    assert found.kept == (("decode_attention", "bf16"), ("experts", "bf16"))
    known = operators_for(h100)
    assert found.operators.gemm_ms("bf16", 64.0, 6144.0, 4096.0) > 1.2 * known.gemm_ms(
        "bf16", 64.0, 6144.0, 4096.0
    )
    same = [o.decode_attention_ms("bf16", 8.0, 8e3, 32.0, 8.0, 128.0) for o in (found.operators, known)]
    assert same[0] == same[1]
    assert "NVIDIA L4, which is not called H100" in found.summary()
    assert "not taken: decode attention in bf16, experts in bf16" in found.summary()


def test_too_few_rows_replace_nothing(tmp_path: Path, l4: Gpu) -> None:
    rows = rows_of(l4, 3.0, ("gemm",))[: LEAST_ROWS - 1]
    found = profiled_operators(profiled("l4", written(tmp_path, rows, complete=False)))
    assert (found.taken, found.kept) == ((), (("gemm", "bf16"),))
    assert found.operators.gemm_ms("bf16", 1.0, 4096.0, 4096.0) == operators_for(l4).gemm_ms(
        "bf16", 1.0, 4096.0, 4096.0
    )
    assert "incomplete" in found.summary()
    empty = profiled_operators(profiled("l4", written(tmp_path, [])))
    assert (empty.taken, empty.kept) == ((), ())


def test_launches_one_by_one_count_as_in_a_graph(tmp_path: Path, l4: Gpu) -> None:
    graph = rows_of(l4, 1.0, ("gemm",))
    eager = [row | {"timed": "eager", "time_us": row["time_us"] + 5.0} for row in graph]
    times = []
    for rows in (graph, eager):
        operators = operators_for(profiled("l4", written(tmp_path, rows + LAUNCHES)))
        times.append(operators.gemm_ms("bf16", 256.0, 8192.0, 8192.0))
    assert times[0] == pytest.approx(times[1], rel=0.02)


def test_quantized_gemms_quantize_their_activations_too(tmp_path: Path, l4: Gpu) -> None:
    rows = rows_of(l4, 1.0, ("gemm",), "fp8")
    copies = [{"operator": "copy", "format": "bf16", "bytes": 2**28, "time_us": 1e4, "timed": "graph"}]
    operators = operators_for(profiled("l4", written(tmp_path, rows + LAUNCHES + copies)))
    m, k = 8192.0, 4096.0
    more_us = (operators.gemm_ms("fp8", m, 4096.0, k) - operators_for(l4).gemm_ms("fp8", m, 4096.0, k)) * 1e3
    assert more_us == pytest.approx(1.0 + 3 * m * k / (2 * 2**28 / 1e4), rel=0.5)


def test_uniform_routing_counts_as_the_skewed_one_of_services(tmp_path: Path, l4: Gpu) -> None:
    known = operators_for(l4)
    uniform = Operators(
        l4,
        {"experts": {"bf16": {**known.universal["experts"]["bf16"], "choosing_share": 1.0}}},
        known.universal,
    )
    rows = [
        {"operator": "experts", "format": "bf16", "kernel": "k", "timed": "graph", **item.shape}
        | {"time_us": time_us(uniform, item)}
        for item in profile_gpu.plan()
        if (item.operator, item.format) == ("experts", "bf16")
    ]
    mine = operators_for(profiled("l4", written(tmp_path, rows)))
    tokens = np.array([1.0, 12.0, 100.0, 2000.0])
    sizes = (2048.0, 768.0, 8.0, 128.0)
    assert mine.experts_ms("bf16", tokens, *sizes) == pytest.approx(
        known.experts_ms("bf16", tokens, *sizes), rel=0.05
    )


def test_a_file_that_changed_is_read_again(tmp_path: Path, l4: Gpu) -> None:
    gpu = profiled("l4", written(tmp_path, rows_of(l4, 1.0, ("gemm",))))
    before = operators_for(gpu).gemm_ms("bf16", 16.0, 4096.0, 4096.0)
    path = written(tmp_path, rows_of(l4, 2.0, ("gemm",)))
    os.utime(path, ns=(1, 1))
    assert operators_for(gpu).gemm_ms("bf16", 16.0, 4096.0, 4096.0) > 1.5 * before


GOOD = {"operator": "gemm", "format": "bf16", "m": 1, "n": 2, "k": 3, "time_us": 1.0, "timed": "graph"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "dictionary"),
        ("{}", "schema"),
        ({"schema": "other"}, "schema"),
        ({"schema_version": 99}, "version 99"),
        ({"rows": None}, "rows"),
        ({"rows": [1]}, "rows.0"),
        ({"gpu": {"name": "x", "kind": "cpu"}}, "measured on a CPU"),
        ({"rows": [GOOD | {"time_us": 0}]}, "rows.0.time_us"),
        ({"rows": [GOOD | {"time_us": float("nan")}]}, "rows.0.time_us"),
        ({"rows": [GOOD, GOOD | {"m": -1}]}, "rows.1: m of gemm is -1"),
        ({"rows": [GOOD | {"m": 1.5}]}, "m of gemm is 1.5"),
        ({"rows": [GOOD | {"m": True}]}, "m of gemm is True"),
        ({"rows": [{key: GOOD[key] for key in GOOD if key != "k"}]}, "k of gemm is missing"),
        ({"rows": [GOOD | {"format": "fp5"}]}, "no format 'fp5'"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_the_reason(tmp_path: Path, text: Any, words: str) -> None:
    path = tmp_path / "my_gpu.json"
    if isinstance(text, str):
        path.write_text(text)
    else:
        written(tmp_path, **({"rows": [GOOD]} | text))
    with pytest.raises(ConfigError) as caught:
        read_profile(path)
    assert "gpu.profile cannot be used" in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, l4: Gpu) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=r"gpu\.profile cannot be used"):
            operators_for(profiled("l4", str(path)))


def test_operators_that_are_not_known_yet_are_passed_over(tmp_path: Path) -> None:
    row = {"operator": "later", "format": "fp2", "time_us": 1.0, "timed": "graph", "size": [1]}
    assert len(read_profile(written(tmp_path, [row, GOOD])).rows) == 1


def test_every_gpu_type_can_have_a_profile() -> None:
    for file in (catalog.conf_dir() / "gpu").glob("*.yaml"):
        assert "\nprofile: null" in file.read_text(), file.name
