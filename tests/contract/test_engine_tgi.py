"""TGI's command line and wire. We have never run TGI: formats are from its sources, named where they stand.

The router's are from router/src/server.rs and lib.rs of huggingface/text-generation-inference (v2 and v3).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_lines import flag
from hypothesis import given
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.config import parse
from llmpilot.engine.openai import Asked
from llmpilot.engine.server import Assignment, memory_complaint
from llmpilot.engine.tgi import TgiEngine
from llmpilot.errors import ConfigError, PilotError
from llmpilot.openai_client.reading import Reading, read_answer

MODEL, GPU = catalog.models()["starcoder"], catalog.gpus()["a100"]
ASSIGNMENT = Assignment(MODEL, GPU, 6000, 300, host="127.0.0.1", port=4711)


def number(argv: tuple[str, ...], name: str) -> int:
    return int(flag(argv, name))


def test_command(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very-secret")
    monkeypatch.setenv("QUANTIZE", "bitsandbytes")
    engine = TgiEngine(
        binary=binary, dtype="float16", cuda_memory_fraction=0.8, extra_args=("--json-output",)
    )
    command = engine.command(ASSIGNMENT)
    argv = command.argv
    assert (argv[0], flag(argv, "--model-id")) == (binary, "bigcode/starcoder")
    assert (flag(argv, "--hostname"), flag(argv, "--port")) == ("127.0.0.1", "4711")
    assert (flag(argv, "--num-shard"), flag(argv, "--dtype")) == ("1", "float16")
    assert flag(argv, "--cuda-memory-fraction") == "0.8"
    assert (number(argv, "--max-batch-total-tokens"), number(argv, "--max-batch-size")) == (6000, 20)
    assert argv[-1] == "--json-output"
    assert "hf_very-secret" not in repr(command) + " ".join(argv)
    assert command.environment["API_KEY"] is None
    assert command.environment["QUANTIZE"] is None
    assert command.environment["PREFIX_CACHING"] == "0"
    assert engine.command(ASSIGNMENT) == command
    several = replace(ASSIGNMENT, gpu=GPU.model_copy(update={"count": 4}))
    assert flag(engine.command(several).argv, "--num-shard") == "4"
    assert flag(TgiEngine(binary=binary, tensor_parallel=2).command(several).argv, "--num-shard") == "2"


@given(
    st.integers(2, 5000), st.integers(0, 10**6), st.sampled_from(["requests", "tokens"]), st.integers(1, 9000)
)
def test_flags_are_such_as_its_router_takes(heaviest: int, spare: int, cap: str, prefill: int) -> None:
    """The router checks at start (backends/v3/src/main.rs): input < total, input <= prefill <= batch."""
    engine = parse(
        TgiEngine, {"binary": "/bin/sh", "cap": cap, "max_batch_prefill_tokens": prefill}, "engine"
    )
    weight = heaviest + spare
    argv = engine.command(replace(ASSIGNMENT, max_batch_weight=weight, heaviest_request_tokens=heaviest)).argv
    longest_input, longest = number(argv, "--max-input-tokens"), number(argv, "--max-total-tokens")
    batch_prefill, batch = (
        number(argv, "--max-batch-prefill-tokens"),
        number(argv, "--max-batch-total-tokens"),
    )
    assert 1 <= longest_input < longest <= batch == weight
    assert longest_input <= batch_prefill <= batch
    assert min(heaviest, MODEL.max_positions or heaviest) <= longest
    if cap == "requests":
        assert number(argv, "--max-batch-size") * heaviest <= weight
    else:
        assert "--max-batch-size" not in argv


def test_without_a_weight_the_memory_is_its_own(binary: str) -> None:
    argv = TgiEngine(binary=binary).command(replace(ASSIGNMENT, max_batch_weight=None)).argv
    assert not {"--max-batch-total-tokens", "--max-batch-size", "--max-batch-prefill-tokens"} & {*argv}
    assert TgiEngine().default_max_batch_weight(MODEL, GPU) is None


def test_is_called_by_what_it_was_loaded_from(tmp_path: Path) -> None:
    assert TgiEngine().served_model(MODEL) == "bigcode/starcoder"
    assert TgiEngine(model_path=str(tmp_path)).served_model(MODEL) == str(tmp_path)


def test_missing_program_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PilotError, match="TGI is not installed") as missing:
        TgiEngine().command(ASSIGNMENT)
    assert "text-generation-inference" in missing.value.cure
    with pytest.raises(ConfigError, match=r"engine\.binary is no program"):
        TgiEngine(binary="nothing").command(ASSIGNMENT)


def test_requests_are_text_in_openais_own_fields() -> None:
    wire = TgiEngine().wire
    body = json.loads(wire.body(Asked(4, 20, 1, True, 1.0, 0, 1.0), [b'"the of and to"'], "m", "standard"))
    assert body == {
        "model": "m",
        "stream": True,
        "max_tokens": 20,
        "temperature": 0,  # its router takes 0 for greedy
        "stream_options": {"include_usage": True},
        "prompt": "the of and to",
    }
    assert wire.dialects("bigcode/starcoder") == ("standard",)
    assert not wire.takes_token_ids


def event(text: str, finish: str = "", index: int = 0, usage: dict[str, int] | None = None) -> dict[str, Any]:
    """Return what its router sends for one token: `Chunk`, or `CompletionFinal` for the last."""
    choice = {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
    said = {
        "object": "text_completion",
        "id": "",
        "created": 1712863765,
        "choices": [choice],
        "model": "bigcode/starcoder",
        "system_fingerprint": "3.0.1-native",
    }
    return said | ({"usage": usage} if usage else {})


def answer(*events: dict[str, Any], asked: int, done: bool = True) -> Reading:
    """Return what our client reads of a stream as axum frames it: `data:` without a space."""
    body = b"".join(b"data:" + json.dumps(each).encode() + b"\n\n" for each in events)
    body += b"data:[DONE]\n\n" if done else b""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    raw = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return read_answer(raw, [len(raw)], [1000], output_tokens=asked, sequences=1)


def usage(inputs: int, outputs: int) -> dict[str, int]:
    return {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}


def test_one_event_is_one_token_and_its_count_goes_before_ours() -> None:
    read = answer(event(" a"), event(" b"), event(" c", "length", usage=usage(5, 3)), asked=3)
    assert (read.failure, read.method, len(read.token_ns)) == ("", "chunks_confirmed", 3)
    assert read.input_tokens == 5


def test_tokens_without_text_are_counted_by_the_usage() -> None:
    # A part of a character, or a special token, has no text of its own.
    read = answer(event(" a"), event(""), event("é", "length", usage=usage(5, 3)), asked=3)
    assert (read.failure, len(read.token_ns)) == ("", 3)
    assert answer(event(" a", "length", usage=usage(5, 1)), asked=3).ended_early


def test_errors_within_the_stream_are_told_apart() -> None:
    # `ErrorResponse` of router/src/lib.rs; the message is `InferError::GenerationError` around PyTorch's.
    said = "Request failed during generation: Server error: CUDA out of memory. Tried to allocate 2.00 GiB"
    lost = answer(event(" a"), {"error": said, "error_type": "generation"}, asked=3)
    assert (lost.failure, lost.message) == ("out_of_memory", said)
    busy = answer({"error": "Model is overloaded", "error_type": "overloaded"}, asked=3)
    assert busy.failure == "error_in_stream"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        # https://github.com/huggingface/text-generation-inference/issues/1164
        (
            "2023-10-18T09:12:10.123456Z ERROR warmup{max_input_length=64 max_prefill_tokens=256}:warmup: "
            "text_generation_client: router/client/src/lib.rs:33: Server error: Not enough memory to handle "
            "256 prefill tokens. You need to decrease `--max-batch-prefill-tokens`",
            "Not enough memory to handle 256 prefill tokens. You need to decrease",
        ),
        # .../issues/1067
        (
            "RuntimeError: Not enough memory to handle 4096 prefill tokens. You need to decrease "
            "`--max-batch-prefill-tokens`",
            "Not enough memory to handle 4096 prefill tokens.",
        ),
        # The router after its warm-up (router/src/main.rs of v2).
        (
            'Error: ArgumentValidation("`max_total_tokens` must be <= `max_batch_total_tokens`. Given: '
            '4096 and 1200")',
            "`max_total_tokens` must be <= `max_batch_total_tokens`. Given: 4096 and 1200",
        ),
    ],
)
def test_lack_of_memory_is_recognised(line: str, complaint: str) -> None:
    seen = memory_complaint(f"a line before\n{line}\nError: ShardCannotStart", TgiEngine.out_of_memory)
    assert seen is not None
    assert complaint in seen
    assert "ERROR" not in seen
    assert memory_complaint("INFO text_generation_router: Connected", TgiEngine.out_of_memory) is None


def test_an_answer_may_end_early() -> None:
    read = answer(event(" a"), event("</s>", "eos_token", usage=usage(5, 2)), asked=9)
    assert (read.failure, read.ended_early, len(read.token_ns)) == ("", True, 2)
