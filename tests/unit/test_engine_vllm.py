"""vLLM's command line from facts: KV blocks under a max batch weight, sharding, random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import flag
from hypothesis import given
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.engine.server import Assignment
from llmpilot.engine.tiny_model import TinyModel, write_hf
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import ConfigError, PilotError

MODEL = catalog.models()["starcoder"]
GPU = catalog.gpus()["a100"]
ASSIGNMENT = Assignment(MODEL, GPU, 1200, 300, host="127.0.0.1", port=4711)


@given(st.integers(1, 10**6), st.sampled_from([16, 32, 128]))
def test_blocks_hold_the_weight_beside_the_one_that_is_kept_back(weight: int, size: int) -> None:
    blocks = VllmEngine(block_size=size).blocks(weight)
    assert (blocks - 2) * size < weight <= (blocks - 1) * size


def test_command(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    command = VllmEngine(binary=binary).command(ASSIGNMENT)
    argv = command.argv
    assert argv[:3] == (binary, "serve", "bigcode/starcoder")
    assert flag(argv, "--served-model-name") == "starcoder"
    assert (flag(argv, "--host"), flag(argv, "--port")) == ("127.0.0.1", "4711")
    assert (flag(argv, "--block-size"), flag(argv, "--num-gpu-blocks-override")) == ("16", "76")
    assert int(flag(argv, "--kv-cache-memory-bytes")) == 76 * 16 * MODEL.kv_bytes_per_token
    assert flag(argv, "--max-model-len") == "300"
    assert flag(argv, "--tensor-parallel-size") == "1"
    assert "--no-enable-prefix-caching" in argv
    assert "--load-format" not in argv
    assert "hf_secret" not in " ".join(argv)
    assert command.environment["VLLM_API_KEY"] is None
    own = VllmEngine.model_validate({"binary": binary, "environment": {"VLLM_CPU_KVCACHE_SPACE": 1}})
    assert own.command(ASSIGNMENT).environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "HF_HUB_OFFLINE" not in command.environment


def test_without_a_weight_the_memory_is_its_own(binary: str) -> None:
    engine = VllmEngine(binary=binary, gpu_memory_utilization=0.8, max_num_seqs=64, enforce_eager=True)
    argv = engine.command(replace(ASSIGNMENT, max_batch_weight=None)).argv
    assert not {"--num-gpu-blocks-override", "--kv-cache-memory-bytes", "--block-size"} & {*argv}
    assert flag(argv, "--gpu-memory-utilization") == "0.8"
    assert flag(argv, "--max-num-seqs") == "64"
    assert "--enforce-eager" in argv
    assert engine.default_max_batch_weight(MODEL, GPU) is None


def test_sharded_over_the_profile(binary: str) -> None:
    model, gpu = catalog.models()["llama_2_7b"], GPU.model_copy(update={"count": 4})
    sharded = replace(ASSIGNMENT, model=model, gpu=gpu)
    argv = VllmEngine(binary=binary).command(sharded).argv
    assert flag(argv, "--tensor-parallel-size") == "4"
    assert int(flag(argv, "--kv-cache-memory-bytes")) == 76 * 16 * model.kv_bytes_per_token / 4
    # One KV head cannot be split: every GPU keeps it.
    argv = VllmEngine(binary=binary).command(replace(sharded, model=MODEL)).argv
    assert int(flag(argv, "--kv-cache-memory-bytes")) == 76 * 16 * MODEL.kv_bytes_per_token
    one = VllmEngine(binary=binary, tensor_parallel=1).command(sharded).argv
    assert flag(one, "--tensor-parallel-size") == "1"


def test_random_weights_of_a_local_architecture(binary: str, tmp_path: Path) -> None:
    write_hf(tmp_path / "tiny", TinyModel(vocabulary_size=600))
    engine = VllmEngine(binary=binary, model_path=str(tmp_path / "tiny"), weights="dummy")
    command = engine.command(ASSIGNMENT)
    assert command.argv[2] == str(tmp_path / "tiny")
    assert flag(command.argv, "--load-format") == "dummy"
    assert command.environment["HF_HUB_OFFLINE"] == "1"
    # The facts are of another model: ids of prompts must be those that this one has.
    assert engine.wire.vocabulary_size == 600
    assert VllmEngine(model_path="bigcode/starcoder").wire.vocabulary_size is None


def test_no_longer_requests_than_the_model_has_positions(binary: str) -> None:
    argv = VllmEngine(binary=binary).command(replace(ASSIGNMENT, heaviest_request_tokens=10**6)).argv
    assert flag(argv, "--max-model-len") == str(MODEL.max_positions)


def test_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(PilotError, match=r"pip install vllm") as missing:
        VllmEngine().command(ASSIGNMENT)
    assert missing.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"engine\.binary is no program"):
        VllmEngine(binary="nothing").command(ASSIGNMENT)
