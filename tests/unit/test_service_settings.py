"""Settings of a service: each engine's own defaults, and where its memory goes."""

import pytest
from pydantic import ValidationError

from llmpilot import catalog
from llmpilot.simulator.service_settings import ENGINE_NAMES, service_settings, version_numbers

GPUS, MODELS = catalog.gpus(), catalog.models()


@pytest.mark.parametrize(
    ("gpu", "version", "tokens", "sequences"),
    [
        ("h100", None, 8192, 1024),
        ("a100_80gb", None, 2048, 256),
        ("a100", "0.19.0", 2048, 256),
        ("b200", "0.12.0", 8192, 1024),
        ("h100", "0.6.1", 8192, 256),
    ],
)
def test_vllm_takes_the_step_that_its_gpu_is_large_enough_for(
    gpu: str, version: str | None, tokens: int, sequences: int
) -> None:
    settings = service_settings("vllm", GPUS[gpu], version=version)
    assert (settings.max_num_batched_tokens, settings.max_num_seqs) == (tokens, sequences)
    assert settings.chunked_prefill == (version != "0.6.1")


def test_what_is_given_stands_and_none_is_not_given() -> None:
    settings = service_settings("vllm", GPUS["h100"], max_num_seqs=7, max_num_batched_tokens=None)
    assert (settings.max_num_seqs, settings.max_num_batched_tokens) == (7, 8192)


def test_tensor_parallelism_takes_the_gpus_that_other_kinds_leave() -> None:
    gpu = GPUS["h100"].model_copy(update={"count": 8})
    assert service_settings("vllm", gpu).tensor_parallel == 8
    assert service_settings("vllm", gpu, data_parallel=4, expert_parallel=8).tensor_parallel == 2
    with pytest.raises(ValidationError, match="does not divide"):
        service_settings("vllm", gpu, expert_parallel=3)


def test_vllm_keeps_as_many_kv_tokens_as_its_log_says() -> None:
    """vLLM 0.19.0 gave Llama-3.1-8B 2,588 blocks of 16 on an RTX 4090 of 25.25 GB (its default shares)."""
    gpu = GPUS["rtx_4090"]
    plan = service_settings("vllm", gpu).memory(MODELS["llama_3_1_8b"], gpu)
    assert plan.kv_capacity_tokens == pytest.approx(2588 * 16, rel=0.02)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_larger_steps_leave_less_to_the_cache_and_replicas_hold_their_weights_each(engine: str) -> None:
    gpu, model = GPUS["h100"].model_copy(update={"count": 4}), MODELS["llama_3_1_8b"]

    def plan(**given: int):  # type: ignore[no-untyped-def]
        return service_settings(engine, gpu, **given).memory(model, gpu)  # type: ignore[arg-type]

    if engine != "sglang":  # whose share says so already
        small, large = plan(max_num_batched_tokens=1024), plan(max_num_batched_tokens=32768)
        assert small.kv_capacity_tokens > large.kv_capacity_tokens > 0
    assert plan(data_parallel=4).weights_gb == pytest.approx(4 * plan().weights_gb)
    mixture = MODELS["qwen3_30b_a3b"]
    replicas = service_settings(engine, gpu, data_parallel=4, expert_parallel=4).memory(mixture, gpu)  # type: ignore[arg-type]
    assert mixture.weight_bytes / 1e9 < replicas.weights_gb < 2 * mixture.weight_bytes / 1e9


def test_versions_are_compared_by_their_numbers() -> None:
    assert version_numbers("0.19.0rc1") == (0, 19, 0)
    assert version_numbers("v1.2.0rc6.post2") == (1, 2, 0)
    assert version_numbers("nightly-dev") is None
    assert version_numbers(None) is None
