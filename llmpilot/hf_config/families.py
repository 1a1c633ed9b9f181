"""How the architectures of Hugging Face configs differ from llama's. What is not here is not understood."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Layout = Literal["attention", "qwen_hybrid", "lightning", "kimi_linear", "mamba", "nemotron_h", "nas"]


@dataclass(frozen=True)
class Family:
    """How an architecture differs from llama's; `defaults` are those of its transformers config class.

    `layout`: which kinds of layers it mixes (hf_config.layers). `full_every`: every n-th layer attends to
    everything and the others to a window, where the config does not list its layers' types; None: all alike.
    `norms` per layer, each of `norm_vectors` vectors (2: scale and bias); `qk_norm`: queries and keys are
    normalized, a head's width at a time or all heads together, where `qk_norm_key` says so; `bias_key` is the
    config key that switches all biases; `ffn_ratio` gives the MLP's width where the config leaves it out;
    `flash` whether the common servers batch it without padding.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = "attention"
    full_every: int | None = None
    gated: bool = True
    norms: int = 2
    norm_vectors: int = 1
    final_norm: bool = True
    qk_norm: Literal["", "head", "layer"] = ""
    qk_norm_key: str = ""
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
    qk_norm="head",
    full_every=6,
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)
QWEN2 = Family(qkv_bias=True, defaults={"use_sliding_window": False})
QWEN3 = Family(qk_norm="head", defaults={"head_dim": 128, "use_sliding_window": False})
QWEN_HYBRID = Family(
    layout="qwen_hybrid", qk_norm="head", full_every=4, defaults={"head_dim": 256, "attn_output_gate": True}
)
DEEPSEEK_V3 = Family(router_bias=True)
DEEPSEEK_V4 = Family(router_bias=True)
GLM4_MOE = Family(router_bias=True, qkv_bias=True, qk_norm="head", qk_norm_key="use_qk_norm")
MAMBA = Family(layout="mamba")
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
    "llama4": replace(LLAMA, full_every=4, defaults={"use_qk_norm": False}),
    "mistral": replace(LLAMA, defaults={"num_key_value_heads": 8}),
    "mixtral": replace(LLAMA, defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2}),
    "qwen2": QWEN2,
    "qwen2_moe": replace(QWEN2, defaults={"num_experts_per_tok": 4, "use_sliding_window": False}),
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3,
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": QWEN3,
    "qwen3_next": QWEN_HYBRID,
    "qwen3_5": QWEN_HYBRID,
    "qwen3_5_moe": QWEN_HYBRID,
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norms=4, full_every=2, defaults={"head_dim": 256, "sliding_window": 4096}),
    "gemma3": GEMMA3,
    "gemma4": replace(GEMMA3, defaults={}),
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
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V3,
    "deepseek_v4": DEEPSEEK_V4,
    "deepseek_ref": DEEPSEEK_V4,  # what SGLang's fp8 repackaging of DeepSeek-V4 calls itself
    "kimi_k2": DEEPSEEK_V3,
    "kimi_linear": replace(DEEPSEEK_V3, layout="kimi_linear"),
    "glm4_moe": GLM4_MOE,
    "gpt_oss": replace(
        LLAMA,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        router_bias=True,
        attention_sinks=True,
        full_every=2,
    ),
    "minimax_m1": replace(LLAMA, layout="lightning"),
    "minimax_text_01": replace(LLAMA, layout="lightning"),
    "minimax_m2": replace(LLAMA, qk_norm="layer", router_bias=True),
    "minimax_m3": replace(LLAMA, qk_norm="head", router_bias=True),
    "mimo": replace(QWEN2, qkv_bias=True),
    "mimo_v2_flash": replace(LLAMA, router_bias=True),
    "step3p7": replace(LLAMA, qk_norm="head", router_bias=True),
    "nemotron_h": replace(MAMBA, layout="nemotron_h", norms=1, gated=False, router_bias=True),
    "nemotron-nas": replace(LLAMA, layout="nas"),
    "aquila": LLAMA,
    "deci": LLAMA,
    "granitemoehybrid": replace(MAMBA, tied=True),
    "falcon_h1": MAMBA,
    "bamba": MAMBA,
}
