"""How the architectures of Hugging Face configs differ from llama's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """How an architecture differs from llama's; `defaults` are those of its transformers config class.

    `norms` per layer, each of `norm_vectors` vectors (2: scale and bias); `bias_key` is the config key that
    switches all biases; `ffn_ratio` gives the MLP's width where the config leaves it out; `flash` whether the
    common servers batch it without padding.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = True
    norms: int = 2
    norm_vectors: int = 1
    final_norm: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    router_bias: bool = False
    bias_key: str = ""
    tied: bool = False
    learned_positions: int | None = None
    embedding_norm: bool = False
    attention_sinks: bool = False
    ffn_ratio: int | None = None
    relative_bias: str = ""
    encoder_decoder: bool = False
    flash: bool = True


LLAMA = Family()
# GPT-2's kin: plain two-matrix MLP, LayerNorm with a bias, biases everywhere.
GPT = Family(gated=False, norm_vectors=2, qkv_bias=True, out_bias=True, mlp_bias=True, ffn_ratio=4)
GPT2 = replace(GPT, tied=True, learned_positions=0)
GPTJ = replace(GPT, norms=1, qkv_bias=False, out_bias=False, head_bias=True)
GEMMA = Family(tied=True, defaults={"head_dim": 256})
GEMMA3 = Family(
    tied=True,
    norms=4,
    qk_norm=True,
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
)
QWEN3 = Family(qk_norm=True, defaults={"head_dim": 128})
T5 = Family(
    tied=True,
    encoder_decoder=True,
    flash=False,
    relative_bias="stack",
    defaults={"feed_forward_proj": "relu"},
)
MT5 = replace(T5, defaults={"feed_forward_proj": "gated-gelu"})

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, defaults={"num_key_value_heads": 8}),
    "mixtral": replace(LLAMA, defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2}),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen2_moe": replace(LLAMA, qkv_bias=True, defaults={"num_experts_per_tok": 4}),
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3,
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norms=4),
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "phi3": LLAMA,
    "phi": replace(GPT, norms=1, head_bias=True),
    "gpt2": GPT2,
    "gpt_bigcode": replace(GPT2, defaults={"multi_query": True}),
    "gpt_neox": replace(GPT, ffn_ratio=None),
    "gptj": GPTJ,
    "codegen": replace(GPTJ, flash=False),
    "mpt": replace(
        GPT, norm_vectors=1, tied=True, bias_key="no_bias", defaults={"no_bias": True}, flash=False
    ),
    "falcon": replace(GPT, tied=True, bias_key="bias", defaults={"bias": False, "multi_query": True}),
    "opt": replace(GPT2, learned_positions=2, bias_key="enable_bias", ffn_ratio=None, flash=False),
    "bloom": replace(GPT, tied=True, embedding_norm=True, flash=False),
    "starcoder2": replace(GPT, tied=True, bias_key="use_bias", ffn_ratio=None),
    "t5": T5,
    "mt5": MT5,
    "umt5": replace(MT5, relative_bias="layer"),
    "deepseek_v2": LLAMA,
    "deepseek_v3": replace(LLAMA, router_bias=True),
    "kimi_k2": replace(LLAMA, router_bias=True),
    "gpt_oss": replace(
        LLAMA, qkv_bias=True, out_bias=True, mlp_bias=True, router_bias=True, attention_sinks=True
    ),
}
