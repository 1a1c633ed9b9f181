"""engine=transformers without PyTorch: its command line, its decoder, its settings and refusals."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_lines import flag

from llmpilot import catalog
from llmpilot.config import Model, parse
from llmpilot.engine.server import Assignment, memory_complaint
from llmpilot.engine.torch_server.shape import DecoderShape, shape_of
from llmpilot.engine.transformers import TransformersEngine
from llmpilot.errors import ConfigError, PilotError

MODELS = catalog.models()
DENSE = [
    model
    for model in MODELS.values()
    if not model.encoder_decoder and model.n_experts == 1 and model.weight_bytes_per_parameter == 2
]
MODEL, GPU = MODELS["starcoder"], catalog.gpus()["h200"]
ASSIGNMENT = Assignment(MODEL, GPU, 6000, 300, host="127.0.0.1", port=4711)
HERE = TransformersEngine(python=sys.executable)


@pytest.mark.parametrize("model", DENSE, ids=lambda model: model.name)
def test_decoder_has_the_parameters_and_the_kv_cache_of_the_facts(model: Model) -> None:
    shape = shape_of(model)
    assert shape.parameters == pytest.approx(model.parameters_b * 1e9, rel=2e-3)
    assert 2 * shape.kv_values_per_token == model.kv_bytes_per_token
    assert shape.mlp_size % 64 == 0
    assert shape.n_heads % shape.n_kv_heads == 0


def test_known_architectures_come_out_as_they_are() -> None:
    llama, starcoder = shape_of(MODELS["llama_2_7b"]), shape_of(MODEL)
    assert (llama.gated, llama.tied, starcoder.gated, starcoder.tied) == (True, False, False, True)
    # Their own config.json: intermediate_size 11008 and n_inner 24576; the facts are rounded to 3 digits.
    assert llama.mlp_size == pytest.approx(11008, rel=0.01)
    assert starcoder.mlp_size == pytest.approx(24576, rel=0.02)


def test_command() -> None:
    command = HERE.command(ASSIGNMENT)
    argv = command.argv
    assert argv[1:3] == ("-m", "llmpilot.engine.torch_server")
    assert (flag(argv, "--host"), flag(argv, "--port")) == ("127.0.0.1", "4711")
    assert flag(argv, "--served-model-name") == HERE.served_model(MODEL) == "starcoder"
    assert (flag(argv, "--max-batch-weight"), flag(argv, "--max-model-len")) == ("6000", "300")
    assert DecoderShape(**json.loads(flag(argv, "--shape"))) == shape_of(MODEL)
    assert flag(argv, "--dtype") == "bfloat16"
    assert "--dtype-is-default" in argv
    assert str(Path(catalog.__file__).parent.parent) in str(command.environment["PYTHONPATH"])
    free = HERE.command(replace(ASSIGNMENT, max_batch_weight=None)).argv
    assert "--max-batch-weight" not in free
    assert HERE.default_max_batch_weight(MODEL, GPU) is None


def test_settings_reach_the_command() -> None:
    engine = TransformersEngine(
        python=sys.executable, dtype="float16", device="cpu", threads=3, max_num_seqs=7, max_prefill_tokens=99
    )
    argv = engine.command(replace(ASSIGNMENT, heaviest_request_tokens=10**6)).argv
    assert (flag(argv, "--dtype"), flag(argv, "--device"), flag(argv, "--threads")) == ("float16", "cpu", "3")
    assert "--dtype-is-default" not in argv
    assert (flag(argv, "--max-num-seqs"), flag(argv, "--max-prefill-tokens")) == ("7", "99")
    assert flag(argv, "--max-model-len") == str(MODEL.max_positions)


@pytest.mark.parametrize(
    ("model", "what"),
    [("flan_t5_xl", "an encoder-decoder"), ("mixtral_8x7b", "a mixture of experts")],
)
def test_refuses_other_architectures(model: str, what: str) -> None:
    for start in (
        lambda: HERE.command(replace(ASSIGNMENT, model=MODELS[model])),
        lambda: HERE.default_max_batch_weight(MODELS[model], GPU),
    ):
        with pytest.raises(ConfigError, match=f"{model} is {what}") as refused:
            start()
        assert "engine=vllm" in refused.value.cure


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv_bytes_per_token": 5000.0}, "KV cache is smaller than its heads say"),
        ({"weight_bytes_per_parameter": 1.0}, "quantized"),
        ({"n_kv_heads": 5, "kv_bytes_per_token": 102400.0}, "multiple of model.n_kv_heads"),
        ({"parameters_b": 1.0, "active_parameters_b": 1.0}, "attention and embeddings alone have"),
    ],
)
def test_refuses_facts_that_do_not_fit_together(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of(MODEL.model_copy(update=changed))


def test_refuses_several_gpus() -> None:
    several = GPU.model_copy(update={"count": 2})
    with pytest.raises(ConfigError, match="one GPU") as refused:
        HERE.command(replace(ASSIGNMENT, gpu=several))
    assert refused.value.exit_code == 2
    assert "gpu.count=1" in str(refused.value)


def test_refuses_real_weights() -> None:
    assert parse(TransformersEngine, {"weights": "dummy"}, "engine") == TransformersEngine()
    with pytest.raises(ConfigError, match="random weights only"):
        parse(TransformersEngine, {"weights": "real"}, "engine")


def test_says_how_to_get_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PilotError, match="needs PyTorch") as missing:
        TransformersEngine().command(ASSIGNMENT)
    assert "pip install torch" in missing.value.cure
    with pytest.raises(ConfigError, match=r"engine\.python is no program"):
        TransformersEngine(python="nothing").command(ASSIGNMENT)


@pytest.mark.parametrize(
    "line",
    [
        # PyTorch's own message, as our server passes it on.
        "error: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB",
        # Seen: PyTorch 2.13.0 on a CPU.
        "error: out of memory: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 4000000000000000 bytes.",
        "error: out of memory: beside 31.00 GB of weights there is room for 0 tokens of KV cache",
    ],
)
def test_lack_of_memory_is_recognised(line: str) -> None:
    complaint = memory_complaint(f"PyTorch 2.13.0 on a GPU\n{line}\n", TransformersEngine.out_of_memory)
    assert complaint == line.removeprefix("error: ")


def test_listening_is_not_taken_for_lack_of_memory() -> None:
    said = "max batch weight 6,000 tokens; ready 2.0 s on\nlistening on http://127.0.0.1:4711"
    assert memory_complaint(said, TransformersEngine.out_of_memory) is None
