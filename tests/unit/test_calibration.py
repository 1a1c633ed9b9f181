"""Calibrations: their tables, the physics behind unmeasured pairs, and what the engine chooses."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmpilot import catalog
from llmpilot.engine.tgis import TgisEngine
from llmpilot.errors import ConfigError
from llmpilot.simulator import physics
from llmpilot.simulator.calibration import (
    COLUMNS,
    THREE_LEVELS,
    Calibration,
    read_calibrations,
    shipped_calibrations,
    write_calibrations,
)

STARCODER = catalog.models(["starcoder"])["starcoder"]
A100 = catalog.gpus(["a100"])["a100"]


def test_a_table_survives_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    found = shipped_calibrations()
    write_calibrations(path, list(found.values()), "two lines\nof comment")
    assert read_calibrations(path) == found
    assert path.read_text().startswith("# two lines\n# of comment\nmodel,gpu,count,")


@pytest.mark.parametrize(
    "text", ["", "model,gpu\na,b\n", ",".join(COLUMNS) + "\n" + "a,b,1" + ",x" * 9 + "\n"]
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no table of calibrations"):
        read_calibrations(path)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no table of calibrations"):
        TgisEngine(calibration=str(tmp_path / "absent.csv")).service(STARCODER, A100, 10_000)


def test_both_shipped_tables_hold_the_same_66_pairs_of_the_catalogue() -> None:
    pairs = set(shipped_calibrations())
    assert len(pairs) == 66
    assert set(read_calibrations(THREE_LEVELS)) == pairs
    assert {model for model, _, _ in pairs} <= set(catalog.models())
    assert {gpu for _, gpu, _ in pairs} <= {gpu.name for gpu in catalog.gpus().values()}


def test_the_engine_takes_the_best_it_has_and_says_so(tmp_path: Path) -> None:
    mistral = catalog.models(["mistral_7b"])["mistral_7b"]
    own = replace(shipped_calibrations()["starcoder", "A100-40GB", 1], decode_ms=5.0)
    table = tmp_path / "mine.csv"
    write_calibrations(table, [own], "mine")

    chosen, source = TgisEngine().calibrated(STARCODER, A100)
    assert chosen == shipped_calibrations()[chosen.pair]
    assert "this pair" in source
    assert "physics" in TgisEngine(calibration="physics").calibrated(STARCODER, A100)[1]
    assert "physics" in TgisEngine().calibrated(mistral, A100)[1]
    mine = TgisEngine(calibration=str(table))
    assert mine.calibrated(STARCODER, A100) == (own, f"calibrated by {table}")
    assert "physics" in mine.calibrated(mistral, A100)[1]
    assert mine.service(STARCODER, A100, 10_000).step_times.decode_ms(1) == pytest.approx(
        5.0 + own.decode_ms_per_sequence
    )


def test_physics_knows_any_number_of_gpus() -> None:
    factors, gpu = physics.shipped_factors(), catalog.gpus()["h100"]
    model = catalog.models()["llama_3_1_70b"]
    two, three, four, five, eight = (
        physics.predict(factors, model, gpu.model_copy(update={"count": count})) for count in (2, 3, 4, 5, 8)
    )
    assert two.decode_ms > three.decode_ms > four.decode_ms > five.decode_ms > eight.decode_ms
    assert two.max_batch_weight < three.max_batch_weight < four.max_batch_weight
    low, high = sorted((two.prefill_ms, four.prefill_ms))
    assert low <= three.prefill_ms <= high


def test_physics_covers_the_whole_catalogue() -> None:
    factors = physics.shipped_factors()
    for model in catalog.models().values():
        for gpu in catalog.gpu_profiles():
            calibration = physics.predict(factors, model, gpu)
            values = asdict(calibration)
            assert all(values[name] > 0 for name in COLUMNS[3:]), calibration
            step_times = calibration.step_times(model, gpu)
            sizes = (1, 8, 64, 1024)
            steps = [step_times.decode_ms(size) for size in sizes]
            assert steps == sorted(steps)
            # A larger batch decodes more tokens in the same time.
            assert 8 / steps[1] > 1 / steps[0]


def test_more_of_a_gpu_is_not_slower_for_a_large_model() -> None:
    llama = catalog.models(["llama_3_1_70b"])["llama_3_1_70b"]
    gpus = catalog.gpus(["a100", "h100"])
    factors = physics.shipped_factors()
    a100, h100 = (
        physics.predict(factors, llama, gpu.model_copy(update={"count": 4})) for gpu in gpus.values()
    )
    assert h100.decode_ms < a100.decode_ms
    assert h100.prefill_ms_per_token < a100.prefill_ms_per_token
    assert h100.max_batch_weight >= a100.max_batch_weight


def test_experts_are_read_as_tokens_hit_them() -> None:
    mixtral = catalog.models(["mixtral_8x7b"])["mixtral_8x7b"]
    h100 = catalog.gpus(["h100"])["h100"].model_copy(update={"count": 4})
    times = physics.predict(physics.shipped_factors(), mixtral, h100).step_times(mixtral, h100)
    assert isinstance(times.expert_weights_ms, float)
    assert times.weights_ms(1) < times.weights_ms(2) < times.weights_ms(64)
    assert times.weights_ms(64) == pytest.approx(times.weights_ms(1000), rel=1e-6)


def test_calibrations_are_plain_values() -> None:
    for calibration in shipped_calibrations().values():
        assert isinstance(calibration, Calibration)
        assert 1_000 < calibration.max_batch_weight < 1_000_000
        assert 1 < calibration.decode_ms < 200


def test_quantized_models_are_not_of_its_time() -> None:
    llama = catalog.models()["llama_3_1_8b"]
    for engine in (TgisEngine(), TgisEngine(calibration="physics")):
        for ask in (engine.memory, engine.calibrated):
            with pytest.raises(ConfigError, match="no step times of quantized") as wrong:
                ask(llama.at_precision("fp8"), A100)
            assert wrong.value.cure == "engine=vllm, or precision=bf16"
            with pytest.raises(ConfigError, match="KV cache is in fp8") as wrong:
                ask(llama.at_precision("bf16", "fp8"), A100)
            assert wrong.value.cure == "engine=vllm, or kv_precision=bf16"
        assert engine.memory(llama.at_precision("bf16", "bf16"), A100).kv_capacity_tokens > 0
