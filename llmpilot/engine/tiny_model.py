"""Random models of the StarCoder architecture, made on the spot: real servers can be tried without weights.

A server's speed does not depend on the values of its weights, but these models are tiny: what is measured
with them is the server's own overhead, not the speed of any LLM in use.
"""

import json
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot.errors import PilotError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TinyModel:
    """The sizes of a random model; multi-query attention (one KV head), as StarCoder has it."""

    n_layers: int = 2
    d_model: int = 128
    n_heads: int = 2  # vLLM's attention on CPUs wants heads of 32 or more
    vocabulary_size: int = 512
    max_positions: int = 8192
    seed: int = 0


def vocabulary(size: int) -> list[str]:
    """Return so many tokens, all but the first (the end of text) of visible ASCII.

    Servers hold back bytes that are only a part of a character: with these tokens every one shows at once.
    """

    def words() -> Iterator[str]:
        yield END_OF_TEXT
        yield from ("Ġ", "Ċ")  # space and new line, in the byte-level alphabet of GPT-2
        yield from string.ascii_letters + string.digits + string.punctuation
        for length in (2, 3, 4):
            yield from ("".join(word) for word in product(string.ascii_lowercase, repeat=length))

    return list(islice(words(), size))


def write_gguf(path: str | Path, sizes: TinyModel | None = None) -> None:
    """Write a random model for llama.cpp (some MB, in well under a second).

    Raises:
        PilotError: the package gguf is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise PilotError("writing a GGUF file needs the package gguf", cure="pip install gguf") from None
    of = sizes or TinyModel()
    random = np.random.default_rng(of.seed)
    writer: Any = gguf.GGUFWriter(str(path), "starcoder")
    writer.add_name("tiny-starcoder")
    writer.add_context_length(of.max_positions)
    writer.add_embedding_length(of.d_model)
    writer.add_feed_forward_length(4 * of.d_model)
    writer.add_block_count(of.n_layers)
    writer.add_head_count(of.n_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("starcoder")
    writer.add_token_list(vocabulary(of.vocabulary_size))
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control] + [normal] * (of.vocabulary_size - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, shape in _tensors(of):
        if len(shape) == 2:
            values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        else:
            values = np.full(shape, float(name.endswith("norm.weight")), np.float32)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(of: TinyModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes (output first) as llama.cpp's StarCoder wants them."""
    wide, key = of.d_model, of.d_model // of.n_heads
    yield "token_embd.weight", (of.vocabulary_size, wide)
    yield "position_embd.weight", (of.max_positions, wide)
    for layer in range(of.n_layers):
        shapes = {
            "attn_norm": (wide,),
            "attn_qkv": (wide + 2 * key, wide),
            "attn_output": (wide, wide),
            "ffn_norm": (wide,),
            "ffn_up": (4 * wide, wide),
            "ffn_down": (wide, 4 * wide),
        }
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}.weight", shape
            yield f"blk.{layer}.{name}.bias", shape[:1]
    yield "output_norm.weight", (wide,)
    yield "output_norm.bias", (wide,)
    yield "output.weight", (of.vocabulary_size, wide)


def write_hf(folder: str | Path, sizes: TinyModel | None = None) -> None:
    """Write configuration and tokenizer of such a model, without weights, as Hugging Face keeps them.

    For servers that make up weights themselves (vLLM's `--load-format dummy`).
    """
    of, folder = sizes or TinyModel(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": True,
        "n_embd": of.d_model,
        "n_head": of.n_heads,
        "n_inner": 4 * of.d_model,
        "n_layer": of.n_layers,
        "n_positions": of.max_positions,
        "vocab_size": of.vocabulary_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {
        "id": 0,
        "content": END_OF_TEXT,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tokens = vocabulary(of.vocabulary_size)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
            "unk_token": END_OF_TEXT,
        },
    }
    of_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": of.max_positions,
    }
    files = {"config.json": config, "tokenizer.json": tokenizer, "tokenizer_config.json": of_tokenizer}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """`python -m llmpilot.engine.tiny_model PATH`: a GGUF file, or, without .gguf, a folder for vLLM."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m llmpilot.engine.tiny_model FILE.gguf|FOLDER", file=sys.stderr)
        return 2
    try:
        (write_gguf if arguments[0].endswith(".gguf") else write_hf)(arguments[0])
    except PilotError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
