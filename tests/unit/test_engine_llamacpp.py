"""llama.cpp's command line from facts: slots under a max batch weight, and why it cannot start."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import flag
from hypothesis import given
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.engine.llamacpp import CONTEXT_STEP, MAX_SLOTS, LlamaCppEngine
from llmpilot.engine.server import Assignment
from llmpilot.errors import ConfigError, PilotError

ASSIGNMENT = Assignment(
    catalog.models()["starcoder"], catalog.gpus()["a100"], 1200, 300, host="127.0.0.1", port=4711
)


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    return str(tmp_path / "m.gguf")


def test_weight_becomes_slots_that_each_hold_the_heaviest_request() -> None:
    assert LlamaCppEngine().context(1200, 300) == (4 * 512, 4)
    assert LlamaCppEngine().context(1199, 300) == (3 * 512, 3)
    assert LlamaCppEngine().context(10**9, 300) == (MAX_SLOTS * 512, MAX_SLOTS)
    assert LlamaCppEngine().context(None, 300) == (512, 1)
    assert LlamaCppEngine(slots=8).context(None, 300) == (8 * 512, 8)
    assert LlamaCppEngine(unified_kv=True).context(1200, 300) == (1200, MAX_SLOTS)
    with pytest.raises(ConfigError, match=r"engine\.slots=5 .*1,200"):
        LlamaCppEngine(slots=5).context(1200, 300)


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_slots_never_hold_more_than_the_weight(weight: int, heaviest: int) -> None:
    tokens, slots = LlamaCppEngine().context(weight, heaviest)
    assert slots == 1 or slots * heaviest <= weight
    assert slots in (MAX_SLOTS, max(1, weight // heaviest))
    assert heaviest <= tokens // slots < heaviest + CONTEXT_STEP


def test_binary(gguf: str, binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    engine = LlamaCppEngine(model_path=gguf, binary=binary, threads=3, gpu_layers=0, extra_args=("--mlock",))
    command = engine.command(ASSIGNMENT)
    argv = command.argv
    assert argv[0] == binary
    assert flag(argv, "--model") == gguf
    assert flag(argv, "--alias") == engine.served_model(ASSIGNMENT.model) == "starcoder"
    assert (flag(argv, "--host"), flag(argv, "--port")) == ("127.0.0.1", "4711")
    assert (flag(argv, "--ctx-size"), flag(argv, "--parallel")) == ("2048", "4")
    assert (flag(argv, "--threads"), flag(argv, "--n-gpu-layers")) == ("3", "0")
    assert argv[-1] == "--mlock"
    assert "hf_secret" not in " ".join(argv)
    assert command.environment["LLAMA_ARG_KV_UNIFIED"] == "0"
    # What the user's shell says of a llama-server does not change what is measured.
    assert command.environment["LLAMA_ARG_CTX_SIZE"] is None
    assert command.environment["LLAMA_API_KEY"] is None


def test_embedded(gguf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    argv = LlamaCppEngine(model_path=gguf, threads=2).command(ASSIGNMENT).argv
    assert argv[:3] == (sys.executable, "-m", "llmpilot.engine.llamacpp_embedded")
    settings = json.loads(argv[3])
    assert settings["model.path"] == gguf
    assert (settings["n_ctx"], settings["n_parallel"], settings["port"]) == (2048, 4, 4711)
    assert settings["cpuparams.n_threads"] == 2
    with pytest.raises(ConfigError, match="extra_args"):
        LlamaCppEngine(model_path=gguf, extra_args=("--mlock",)).command(ASSIGNMENT)


def test_says_what_is_missing(gguf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PilotError, match=r"pip install xllamacpp") as missing:
        LlamaCppEngine(model_path=gguf).command(ASSIGNMENT)
    assert missing.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"engine\.model_path=FILE\.gguf"):
        LlamaCppEngine().command(ASSIGNMENT)
    with pytest.raises(ConfigError, match=r"engine\.model_path is no file"):
        LlamaCppEngine(model_path="nowhere.gguf").command(ASSIGNMENT)
    with pytest.raises(ConfigError, match=r"engine\.binary is no program"):
        LlamaCppEngine(model_path=gguf, binary="nothing").command(ASSIGNMENT)


def test_default_weight_is_what_the_profile_holds() -> None:
    engine = LlamaCppEngine()
    model, a100 = ASSIGNMENT.model, ASSIGNMENT.gpu
    assert engine.default_max_batch_weight(model, a100) > 100_000
    assert engine.default_max_batch_weight(model, catalog.gpus()["t4"]) == 1
    default = engine.default_max_batch_weight(model, a100)
    assert engine.context(replace(ASSIGNMENT, max_batch_weight=default).max_batch_weight, 10**6)[1] == 1
