"""Random models made on the spot: every token is text, and our own reader of configurations agrees."""

import json
from pathlib import Path

import pytest

from llmpilot.engine.tiny_model import END_OF_TEXT, TinyModel, main, vocabulary, write_gguf, write_hf


def test_every_token_but_the_end_is_visible_ascii() -> None:
    tokens = vocabulary(5000)
    assert len(set(tokens)) == 5000
    assert tokens[0] == END_OF_TEXT
    assert all(token.isascii() for token in tokens if token not in "ĠĊ")


def test_hf_folder(tmp_path: Path) -> None:
    write_hf(tmp_path / "m", TinyModel(n_layers=3, vocabulary_size=300))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["n_layer"], config["vocab_size"], config["multi_query"]) == (3, 300, True)
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 300


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    sizes = TinyModel(n_layers=3, max_positions=128)
    write_gguf(tmp_path / "m.gguf", sizes)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "position_embd.weight", "output.weight", "blk.2.attn_qkv.bias"} <= names
    write_gguf(tmp_path / "again.gguf", sizes)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "m")]) == 0
    assert (tmp_path / "m" / "config.json").is_file()
    assert main([]) == main(["--help"]) == 2
    assert "usage" in capsys.readouterr().err
