"""Settings of today's engines: the same to the simulated service and to the real server's command line."""

import json
from pathlib import Path

import pytest
from command_lines import flag
from pydantic import ValidationError

from llmpilot import catalog
from llmpilot.engine import scheduled
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.engine.server import Assignment, Command
from llmpilot.engine.sglang import SglangEngine
from llmpilot.engine.trtllm import TrtllmEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import ConfigError
from llmpilot.simulator import Batch
from llmpilot.simulator.service_settings import NEWEST

MODEL, H100 = catalog.models()["llama_3_1_8b"], catalog.gpus()["h100"]
MIXTURE = catalog.models()["qwen3_30b_a3b"]


def gpus(count: int):  # type: ignore[no-untyped-def]
    return H100.model_copy(update={"count": count})


def command(engine: ScheduledEngine, *, count: int = 1, model=MODEL) -> Command:  # type: ignore[no-untyped-def]
    return engine.command(Assignment(model, gpus(count), 6000, 300, host="127.0.0.1", port=4711))


@pytest.fixture(params=[VllmEngine, SglangEngine, TrtllmEngine])
def made(request: pytest.FixtureRequest, binary: str):  # type: ignore[no-untyped-def]
    engine = request.param
    program = "python" if engine is SglangEngine else "binary"
    return lambda **given: engine(**{program: binary}, **given)


FLAGS = {
    "vllm": ("--max-num-batched-tokens", "--max-num-seqs", "--gpu-memory-utilization"),
    "sglang": ("--chunked-prefill-size", "--max-running-requests", "--mem-fraction-static"),
    "trtllm": ("--max_num_tokens", "--max_batch_size", "--kv_cache_free_gpu_memory_fraction"),
}
SHARES = {
    "vllm": "gpu_memory_utilization",
    "sglang": "mem_fraction_static",
    "trtllm": "kv_cache_free_gpu_memory_fraction",
}


def test_settings_reach_simulation_and_server_alike(made) -> None:  # type: ignore[no-untyped-def]
    tokens, requests = made().step_settings
    engine = made(**{tokens: 4096, requests: 48, SHARES[made().name]: 0.8})
    settings = engine.settings(H100)
    assert (settings.max_num_batched_tokens, settings.max_num_seqs, settings.memory_share) == (4096, 48, 0.8)
    argv = command(engine).argv
    assert [flag(argv, name) for name in FLAGS[engine.name]] == ["4096", "48", "0.8"]


def test_what_is_not_set_is_left_to_the_server(made) -> None:  # type: ignore[no-untyped-def]
    assert not set(FLAGS[made().name]) & set(command(made()).argv)
    assert made().settings(H100).max_num_batched_tokens > 0


def test_parallelism_must_make_up_the_profile(made) -> None:  # type: ignore[no-untyped-def]
    assert made().settings(gpus(4)).tensor_parallel == 4
    assert made(data_parallel=4, expert_parallel=4).settings(gpus(4)).tensor_parallel == 1
    with pytest.raises(ConfigError, match="8 GPUs are not those of the profile") as wrong:
        made(tensor_parallel=8).settings(gpus(4))
    assert "gpu.count=8" in wrong.value.cure
    with pytest.raises(ConfigError, match="expert"):
        made(expert_parallel=3).settings(gpus(4))


def test_parallelism_in_flags(binary: str) -> None:
    spread = {"data_parallel": 4, "expert_parallel": 4}
    argv = command(VllmEngine(binary=binary, **spread), count=4).argv
    assert (flag(argv, "--tensor-parallel-size"), flag(argv, "--data-parallel-size")) == ("1", "4")
    assert "--enable-expert-parallel" in argv
    argv = command(SglangEngine(python=binary, **spread), count=4, model=MIXTURE).argv
    assert [flag(argv, name) for name in ("--tp-size", "--dp-size", "--ep-size")] == ["4", "4", "4"]
    assert "--enable-dp-attention" in argv
    argv = command(SglangEngine(python=binary, data_parallel=4), count=4).argv
    assert flag(argv, "--tp-size") == "1"
    assert "--enable-dp-attention" not in argv
    started = command(TrtllmEngine(binary=binary, **spread), count=4)
    assert (flag(started.argv, "--tp_size"), flag(started.argv, "--ep_size")) == ("4", "4")
    assert json.loads(started.files[flag(started.argv, "--extra_llm_api_options")])["enable_attention_dp"]
    with pytest.raises(ConfigError, match="every GPU or on none"):
        command(TrtllmEngine(binary=binary, data_parallel=2), count=4)
    with pytest.raises(ConfigError, match="experts over all GPUs"):
        VllmEngine(expert_parallel=2).settings(gpus(4))


def test_a_cached_share_can_be_told_to_a_simulation_only(binary: str) -> None:
    engine = VllmEngine(binary=binary, enable_prefix_caching=True, prefix_hit_share=0.5)
    assert engine.settings(H100).prefix_hit_share == 0.5
    with pytest.raises(ConfigError, match="for simulated services"):
        command(engine)
    with pytest.raises(ValidationError, match="enable_prefix_caching=true"):
        VllmEngine(prefix_hit_share=0.5)


@pytest.mark.parametrize("kept", [True, False])
def test_prefixes_are_kept_by_simulation_and_server_alike(made, kept: bool) -> None:  # type: ignore[no-untyped-def]
    engine = made(enable_prefix_caching=kept)
    assert (engine.settings(H100).prefix_caching, engine.finds_prefixes) == (kept, kept)
    started = command(engine)
    match engine.name:
        case "vllm":  # which says what it found only when told to
            assert ("--enable-prefix-caching" in started.argv) == kept
            assert ("--no-enable-prefix-caching" in started.argv) != kept
            assert ("--enable-prompt-tokens-details" in started.argv) == kept
        case "sglang":
            assert ("--disable-radix-cache" in started.argv) != kept
            assert ("--enable-cache-report" in started.argv) == kept
        case "trtllm":
            options = json.loads(started.files[flag(started.argv, "--extra_llm_api_options")])
            assert options["kv_cache_config"]["enable_block_reuse"] is kept


def test_vllm_needs_a_token_of_a_step_for_each_request() -> None:
    with pytest.raises(ValidationError, match=r"engine\.max_num_seqs=64"):
        VllmEngine(max_num_batched_tokens=64, max_num_seqs=128)
    assert VllmEngine(max_num_batched_tokens=64).settings(H100).max_num_seqs == 64


def test_longer_steps_leave_less_cache() -> None:
    def held(tokens: int) -> int:
        return VllmEngine(max_num_batched_tokens=tokens).memory(MODEL, H100).kv_capacity_tokens

    assert held(2048) > held(32_768) > 0


def test_step_choices_begin_from_the_engines_own(made) -> None:  # type: ignore[no-untyped-def]
    choices, now = made().step_choices(H100, users=100)
    for key, values in choices.items():
        assert now[key] in values
        assert list(values) == sorted(set(values))
    requests = choices[made().step_settings[1]]
    assert [value for value in requests if value != now[made().step_settings[1]]] == [16, 32, 64, 128]


def test_says_what_is_simulated_and_how_far_off(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    accuracy = tmp_path / "accuracy.json"
    monkeypatch.setattr(scheduled, "ACCURACY", accuracy)
    scheduled.expected_errors.cache_clear()
    said = VllmEngine(version="0.12.0").simulated_from(MODEL, H100)
    assert said.startswith("vLLM 0.12.0, from operator times")
    assert "off" not in said
    accuracy.write_text(json.dumps({"tpot": {"median": 0.083}, "ttft": {"median": 0.27}}))
    scheduled.expected_errors.cache_clear()
    assert "off by TPOT 8%, TTFT 27% (median, LLM left out" in VllmEngine().simulated_from(MODEL, H100)
    monkeypatch.undo()
    scheduled.expected_errors.cache_clear()
    assert "off by TPOT" in VllmEngine().simulated_from(MODEL, H100)  # by the file that ships


@pytest.mark.parametrize("version", ["", "foo", "0.19.x", "0.19rc", "..", "0.2\n", True, float("nan"), [1]])
def test_what_names_no_release_is_refused(made, version: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"engine\.version names no release") as wrong:
        made(version=version)
    assert "engine.version='\"" in wrong.value.cure


def test_a_release_may_be_a_number_unless_that_loses_zeros() -> None:
    given = (None, 0.19, 2024, "0.20", "v0.5.6.post2", "1.2.0rc0.post1")
    kept = [None, "0.19", "2024", "0.20", "v0.5.6.post2", "1.2.0rc0.post1"]
    assert [VllmEngine(version=version).version for version in given] == kept
    with pytest.raises(ConfigError, match="loses zeros") as wrong:
        VllmEngine(version=0.20)
    assert "engine.version='\"0.20\"'" in wrong.value.cure


def test_the_newest_known_release_stands_in_for_newer_ones(made) -> None:  # type: ignore[no-untyped-def]
    newest = NEWEST[made().settings_name]
    said = made(version="99.1").simulated_from(MODEL, H100)
    assert f"{newest} in place of 99.1, which is newer" in said
    assert made(version="99.1").simulated_facts(MODEL, H100)["service"]["version"] == newest
    patched = f"{newest}.1"
    assert made(version=patched).simulated_version == patched
    assert "in place of" not in made(version=patched).simulated_from(MODEL, H100)


def test_precision_reaches_the_real_server(binary: str, tmp_path: Path) -> None:
    fp8 = MODEL.at_precision("fp8", "fp8")
    argv = command(VllmEngine(binary=binary), model=fp8).argv
    assert (flag(argv, "--quantization"), flag(argv, "--kv-cache-dtype")) == ("fp8", "fp8")
    argv = command(SglangEngine(python=binary), model=fp8).argv
    assert (flag(argv, "--quantization"), flag(argv, "--kv-cache-dtype")) == ("fp8", "fp8_e4m3")
    started = command(TrtllmEngine(binary=binary, model_path="nvidia/Llama-3.1-8B-FP8"), model=fp8)
    assert json.loads(started.files[flag(started.argv, "--extra_llm_api_options")])["kv_cache_config"][
        "dtype"
    ]
    for engine in (VllmEngine(binary=binary), TrtllmEngine(binary=binary)):
        with pytest.raises(ConfigError, match=r"do not bring meta-llama/Llama-3.1-8B.* to nvfp4"):
            command(engine, model=MODEL.at_precision("nvfp4"))

    # What the checkpoint says by itself is told to nobody, nor what a named one holds.
    plain = command(VllmEngine(binary=binary), model=MODEL.at_precision("bf16", "bf16")).argv
    named = command(
        VllmEngine(binary=binary, model_path="nvidia/x-NVFP4"), model=MODEL.at_precision("nvfp4")
    ).argv
    assert not {"--quantization", "--kv-cache-dtype"} & {*plain, *named}
    for config, flagged in (("{}", True), ('{"quantization_config": {"quant_method": "fp8"}}', False)):
        (tmp_path / "config.json").write_text(config)
        engine = VllmEngine(binary=binary, model_path=str(tmp_path))
        assert ("--quantization" in command(engine, model=MODEL.at_precision("fp8")).argv) is flagged


def test_precision_makes_room_and_haste_in_a_simulation() -> None:
    engine, fp8 = VllmEngine(), MODEL.at_precision("fp8", "fp8")
    assert engine.memory(fp8, H100).kv_capacity_tokens > 2 * engine.memory(MODEL, H100).kv_capacity_tokens
    times = [engine.service(model, H100, 100_000).step_times for model in (MODEL, fp8)]  # type: ignore[attr-defined]
    assert times[1].step_ms(Batch(1, 1000)) < 0.8 * times[0].step_ms(Batch(1, 1000))
