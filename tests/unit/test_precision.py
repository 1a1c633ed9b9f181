"""Number formats on GPU types: what runs, what is emulated, what is refused; and what a token then takes."""

import pytest

from llmpilot import catalog
from llmpilot.errors import ConfigError
from llmpilot.precision import precision_flags, require_units
from llmpilot.sizing import kv_bytes_on_profile, plan_memory

GPUS, MODELS = catalog.gpus(), catalog.models()
QWEN, GPT_OSS = MODELS["qwen3_32b"], MODELS["gpt_oss_120b"]


@pytest.mark.parametrize(
    ("precision", "gpu", "remark"),
    [
        (None, "t4", ""),
        ("fp8", "h100", ""),
        ("fp8", "mi300x", ""),
        ("fp8", "a100", "no units for fp8: weights are stored so and computed in bf16"),
        ("nvfp4", "b200", ""),
        ("nvfp4", "h100", "no units for nvfp4"),
        ("int4", "t4", ""),
    ],
)
def test_what_runs_and_what_is_emulated(precision: str | None, gpu: str, remark: str) -> None:
    said = require_units(QWEN.at_precision(precision), GPUS[gpu])  # type: ignore[arg-type]
    assert remark in said
    assert bool(remark) == bool(said)


@pytest.mark.parametrize(
    ("precision", "kv_precision", "gpu", "said"),
    [
        ("fp8", None, "t4", r"T4 has no units for fp8[\s\S]*\+gpu=h100"),
        ("fp8", None, "mi250", "MI250 has no units for fp8"),
        ("nvfp4", None, "mi300x", r"MI300X has no units for nvfp4[\s\S]*\+gpu=b200"),
        ("nvfp4", None, "v100", "V100 has no units for nvfp4"),
        (None, "fp8", "v100", r"no KV cache in fp8 on V100[\s\S]*kv_precision=bf16"),
    ],
)
def test_what_engines_refuse(precision: str | None, kv_precision: str | None, gpu: str, said: str) -> None:
    model = QWEN.at_precision(precision, kv_precision)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        require_units(model, GPUS[gpu])


def test_amd_emulates_mxfp4() -> None:
    assert "mxfp4" in require_units(GPT_OSS, GPUS["mi300x"])


def test_windows_and_states_leave_room_for_more_tokens() -> None:
    gpu = GPUS["h100"]
    for model in (GPT_OSS, MODELS["qwen3_next_80b_a3b"]):
        assert kv_bytes_on_profile(model, gpu, 1e9) == pytest.approx(
            kv_bytes_on_profile(model, gpu), rel=1e-3
        )
    short, long = (kv_bytes_on_profile(GPT_OSS, gpu, tokens) for tokens in (100, 100_000))
    assert short == 2 * 2 * 36 * 8 * 64  # within the window of 128 all layers keep everything
    assert short / 2 < long < 1.01 * short / 2
    states = MODELS["qwen3_next_80b_a3b"]
    assert states.sequence_bytes(1) - states.kv_bytes_per_token == pytest.approx(states.state_bytes)
    # 36 layers of 32 heads: states of 128 x 128 in float32, and three inputs of 8192 channels to convolve
    assert states.state_bytes == pytest.approx(36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2), rel=1e-4)
    plenty = plan_memory(GPT_OSS, gpu.model_copy(update={"count": 4}), context_tokens=10_000)
    scarce = plan_memory(GPT_OSS, gpu.model_copy(update={"count": 4}), context_tokens=100)
    assert plenty.kv_capacity_tokens > 1.9 * scarce.kv_capacity_tokens


def test_a_cache_of_half_the_bytes_holds_twice_the_tokens() -> None:
    gpu = GPUS["h200"]
    full, half = (plan_memory(QWEN.at_precision(None, kv), gpu) for kv in (None, "fp8"))
    assert half.kv_capacity_tokens == pytest.approx(2 * full.kv_capacity_tokens, rel=1e-4)


def test_heads_are_kept_more_than_once_where_there_are_more_gpus() -> None:
    deepseek, gemma = MODELS["deepseek_v3"], MODELS["gemma_4_26b_a4b"]
    assert deepseek.sequence_bytes(1000, gpus=8) == 8 * deepseek.sequence_bytes(1000)
    # 25 layers have 8 heads, 5 have 2
    alone, eight = gemma.sequence_bytes(1000), gemma.sequence_bytes(1000, gpus=8)
    wide = 5 * 1000 * 2 * 2 * 512 * 2
    assert eight - alone == 3 * wide
    assert QWEN.sequence_bytes(1000, gpus=8) == QWEN.sequence_bytes(1000)


def test_real_engines_are_told_what_the_checkpoint_does_not_say() -> None:
    assert precision_flags(QWEN, "fp8") == []
    asked = QWEN.at_precision("fp8", "fp8")
    assert precision_flags(asked, "fp8") == ["--quantization", "fp8", "--kv-cache-dtype", "fp8"]
    stored = catalog.model_of_hf_id("Qwen/Qwen3-32B-FP8")
    assert stored is not None
    assert stored.precision == "fp8"
    assert precision_flags(stored, "fp8") == []
    for precision in ("nvfp4", "int4"):
        with pytest.raises(ConfigError, match="do not bring Qwen/Qwen3-32B to"):
            precision_flags(QWEN.at_precision(precision), "fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="do not bring deepseek-ai/DeepSeek-V3 to bf16"):
        precision_flags(MODELS["deepseek_v3"].at_precision("bf16"), "fp8")
