"""Step times out of tables of layers: what is added up, and what lies between the measured points."""

from pathlib import Path

import pandas as pd
import pytest

from llmpilot.config import Model
from llmpilot.errors import ConfigError
from llmpilot.simulator import Batch
from llmpilot.simulator.layer_tables import LayerTables, read_layer_tables

DENSE = {"qkv_proj": 10.0, "layernorm": 1.0, "embedding": 100.0, "final_layernorm": 50.0}
"""us at one token; each further token costs a hundredth of it."""


def model(n_experts: int = 1) -> Model:
    return Model(
        name="tiny",
        hf_id="",
        architecture="llama",
        parameters_b=1.0,
        active_parameters_b=1.0 if n_experts == 1 else 0.5,
        n_layers=10,
        d_model=64,
        n_heads=4,
        n_kv_heads=4,
        head_dim=16,
        kv_bytes_per_token=100.0,
        vocabulary_size=100,
        n_experts=n_experts,
        experts_per_token=min(2, n_experts),
    )


def attention_us(chunk: int, before: int, sequences: int, context: int) -> float:
    return 5 + 0.001 * chunk * (before + (chunk + 1) / 2) + 0.01 * sequences * context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokens = (1, 64, 512, 1024)
    rows = [(name, n, us * (1 + (n - 1) / 100)) for name, us in DENSE.items() for n in tokens]
    pd.DataFrame(rows, columns=["layer", "tokens", "time_us"]).to_csv(tmp_path / "tp1_dense.csv", index=False)
    rows = [("lm_head", n, 1000.0 + n) for n in (1, 128)]
    columns = ["layer", "sequences", "time_us"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "tp1_per_sequence.csv", index=False)
    points = [
        (chunk, before, sequences, context, attention_us(chunk, before, sequences, context))
        for chunk in (0, 128, 1024)
        for before in ((0, 1024, 4096) if chunk else (0,))
        for sequences in (0, 1, 128)
        for context in ((16, 4096) if sequences else (0,))
        if chunk or sequences
    ]
    columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    pd.DataFrame(points, columns=columns).to_csv(tmp_path / "tp1_attention.csv", index=False)
    return tmp_path


def test_a_step_is_its_layers_and_what_is_computed_once(folder: Path) -> None:
    times = read_layer_tables(folder, model(), host_ms=0.25)
    layer_us = (10 + 2 * 1) * 1.63 + attention_us(0, 0, 64, 1000)  # 64 tokens need no padding
    once_us = (100 + 50) * 1.63 + 1064
    expected_ms = 0.25 + (10 * layer_us + once_us) / 1e3
    assert times.step_ms(Batch(64, 64_000)) == pytest.approx(expected_ms)


def test_prompts_beside_decoding_are_one_kernel(folder: Path) -> None:
    times = read_layer_tables(folder, model())
    chunk = Batch(32, 32 * 500, 1024, 1024 * (1024 + 1025 / 2), 1)
    assert times.attention_us(chunk) == pytest.approx(attention_us(1024, 1024, 32, 500))
    several = chunk._replace(prefill_pairs=8 * 128 * 129 / 2, prefills=8)
    assert attention_us(0, 0, 32, 500) < times.attention_us(several) < attention_us(1024, 0, 32, 500)


def test_small_batches_are_padded_to_the_size_of_a_graph(folder: Path) -> None:
    times = read_layer_tables(folder, model())
    sixty, sixty_four = times.step_ms(Batch(60, 60_000)), times.step_ms(Batch(64, 60_000))
    # Only the output head and attention see how many there are.
    assert sixty_four - sixty == pytest.approx(4 / 1e3, abs=0.1)


def with_skew(folder: Path) -> LayerTables:
    text = "skew_fit: {enabled: true, per_tp: {1: {alpha_default: 0.1}}}"
    (folder / "bf16_meta.yaml").write_text(text, encoding="utf-8")
    return read_layer_tables(folder, model())


def test_unequal_contexts_take_the_longer_the_longest_is(folder: Path) -> None:
    equal, unequal = Batch(64, 64_000, longest_context_tokens=1000), Batch(64, 64_000, 0, 0.0, 0, 4000)
    plain, skewed = read_layer_tables(folder, model()), with_skew(folder)
    assert skewed.step_ms(equal) == plain.step_ms(equal) == plain.step_ms(unequal)
    assert skewed.attention_us(unequal) == pytest.approx(attention_us(0, 0, 64, 1000 + 300))


def test_replicas_share_experts_and_wait_for_the_slowest(folder: Path) -> None:
    rows = [(n, touched, 10.0 * touched) for touched in (1, 8) for n in (1, 1024)]
    columns = ["tokens", "activated_experts", "time_us"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "tp1_moe.csv", index=False)
    alone = read_layer_tables(folder, model(8))
    spread = read_layer_tables(folder, model(8), expert_parallel=2, share_ms=lambda tokens: tokens / 1e3)
    busy = Batch(64, 64_000)
    both = spread.replicas_ms([busy, busy])
    # All experts are touched: half of them each, and 128 tokens between the replicas.
    assert both == pytest.approx(alone.step_ms(busy) + 10 * (-40 + 128) / 1e3, rel=1e-3)
    assert spread.replicas_ms([busy, Batch(1, 1000)]) == pytest.approx(both)


def test_a_folder_without_tables_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tp2_dense\.csv"):
        read_layer_tables(tmp_path, model(), 2)
