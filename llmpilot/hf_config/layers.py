"""An architecture's layers, one by one: mixers, what follows them, and the small vectors beside both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmpilot.architecture import (
    Attention,
    CompressedAttention,
    Experts,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mixer,
    Mlp,
    StateSpace,
)
from llmpilot.errors import ConfigError
from llmpilot.hf_config.families import Family
from llmpilot.hf_config.keys import (
    MOST_LAYERS,
    find_key,
    read_flag,
    read_integer,
    read_list,
    read_word,
)

Config = Mapping[str, Any]
FULL, WINDOW, LINEAR, MAMBA = "full", "window", "linear", "mamba"
TYPES = {
    "full_attention": FULL,
    "attention": FULL,
    "sliding_attention": WINDOW,
    "chunked_attention": WINDOW,
    "linear_attention": LINEAR,
    "mamba": MAMBA,
}


@dataclass(frozen=True)
class Layer:
    """One layer; `small`: parameters of norms, biases, the router; `small_per_expert`: an expert's biases."""

    mixers: tuple[Mixer, ...]
    feed_forward: FeedForward | None
    small: int
    small_per_expert: int = 0


def read_layers(config: Config, family: Family) -> list[Layer]:
    """Return the decoder's layers in order.

    Raises:
        ConfigError: a key is missing or impossible, or a layer is of a kind that is not understood.
    """
    if family.layout == "nemotron_h":
        return _nemotron_layers(config, family)
    if family.layout == "nas":
        return _nas_layers(config, family)
    if read_integer(config, "hidden_size_per_layer_input", 0, least=0):
        raise not_understood(config, "embeddings of every layer (hidden_size_per_layer_input)")
    sparse = sparse_layers(config)
    layers = []
    for at, kind in enumerate(layer_types(config, family)):
        mixers, small = _mixers(config, family, at, kind)
        following, more, per_expert = _feed_forward(config, family, sparse[at])
        small += family.norms * norm_size(config, family) + more
        layers.append(Layer(mixers, following, small, per_expert))
    return layers


def not_understood(config: Config, what: str) -> ConfigError:
    """Return the error that says what of an architecture is not understood."""
    architecture = read_word(config, "model_type", "unknown")
    return ConfigError(
        f"layers of {architecture!r} are not understood here: {what}",
        given=f"model_type {architecture}",
        cure="describe the model in a file of its own, as conf/model/llama_3_1_8b.yaml does, with its layers",
    )


def layer_count(config: Config) -> int:
    """Return the number of decoder layers."""
    for key in ("layers_block_type", "hybrid_override_pattern"):
        listed = config.get(key)
        if find_key(config, "num_hidden_layers")[1] is None and isinstance(listed, (str, list)):
            return len(listed)
    return read_integer(config, "num_hidden_layers", most=MOST_LAYERS)


def encoder_layer_count(config: Config) -> int:
    """Return the number of encoder layers of an encoder-decoder."""
    return read_integer(config, "num_layers", layer_count(config), most=MOST_LAYERS)


def norm_size(config: Config, family: Family) -> int:
    """Return the parameters of one norm over the hidden size."""
    return family.norm_vectors * read_integer(config, "hidden_size")


# --- which layer is of which kind --------------------------------------------------------------------------


def layer_types(config: Config, family: Family) -> list[str]:
    """Return for each layer whether it attends to everything or to a window, or keeps a state instead."""
    n = layer_count(config)
    if family.layout == "lightning":
        listed = read_list(config, "attn_type_list", n)
        return [FULL if kind == 1 else LINEAR for kind in listed]
    if family.layout == "kimi_linear":
        full = _linear_settings(config).get("full_attn_layers", [])
        return [FULL if at + 1 in full else LINEAR for at in range(n)]
    if "layer_types" in config or ("layers_block_type" in config and family.layout == "mamba"):
        key = "layer_types" if "layer_types" in config else "layers_block_type"
        return [_type_of(word, config) for word in read_list(config, key, n)]
    if "hybrid_layer_pattern" in config:
        return [WINDOW if kind == 1 else FULL for kind in read_list(config, "hybrid_layer_pattern", n)]
    if family.layout == "mamba":
        full = _layer_numbers(config, "attn_layer_indices")
        both = read_word(config, "model_type", "") == "falcon_h1"
        return ["both" if both else FULL if at in full else MAMBA for at in range(n)]
    every = family.full_every
    for key in ("full_attention_interval", "sliding_window_pattern", "_sliding_window_pattern"):
        if isinstance(config.get(key), int):
            every = read_integer(config, key, most=MOST_LAYERS)
    other = LINEAR if family.layout == "qwen_hybrid" else WINDOW
    if every is not None:
        return [FULL if (at + 1) % every == 0 else other for at in range(n)]
    windowed = window_size(config) is not None
    first = read_integer(config, "max_window_layers", 0, least=0) if "use_sliding_window" in config else 0
    return [WINDOW if windowed and at >= first else FULL for at in range(n)]


def _layer_numbers(config: Config, key: str) -> list[Any]:
    numbers = config.get(key, [])
    if not isinstance(numbers, list):
        raise ConfigError(f"{key} is not possible", given=repr(numbers)[:80], cure="a list of layer numbers")
    return numbers


def _type_of(word: Any, config: Config) -> str:
    if not isinstance(word, str) or word not in TYPES:
        raise not_understood(config, f"layer type {str(word)[:40]!r}")
    return TYPES[word]


def window_size(config: Config) -> int | None:
    """Return how many positions a layer with a window sees; None where there is no window."""
    if not read_flag(config, "use_sliding_window", True):
        return None
    key = "sliding_window" if config.get("sliding_window") is not None else "attention_chunk_size"
    if config.get(key) is None:
        return None
    window = read_integer(config, key)
    limit = find_key(config, "max_position_embeddings")[1]
    return None if isinstance(limit, int) and window >= limit else window


def sparse_layers(config: Config) -> list[bool]:
    """Return for each layer whether it has experts; the others have a plain MLP."""
    n = layer_count(config)
    if expert_count(config) < 2:
        return [False] * n
    first = read_integer(config, "first_k_dense_replace", 0, least=0)
    frequency = config.get("moe_layer_freq", 1)
    if isinstance(frequency, list):
        return [bool(flag) for flag in read_list(config, "moe_layer_freq", n)]
    step = read_integer(config, "decoder_sparse_step", 1)
    step = read_integer(config, "interleave_moe_layer_step", step)
    every = read_integer(config, "moe_layer_freq", 1)
    dense = _layer_numbers(config, "mlp_only_layers")
    return [at >= first and at not in dense and (at + 1) % step == 0 and at % every == 0 for at in range(n)]


# --- mixers ------------------------------------------------------------------------------------------------


def _mixers(config: Config, family: Family, at: int, kind: str) -> tuple[tuple[Mixer, ...], int]:
    """Return a layer's mixers, and the parameters of their small vectors."""
    if kind == LINEAR:
        linear, small = LINEAR_ATTENTION[family.layout](config)
        return (linear,), small
    if kind == MAMBA:
        space, small = _state_space(config)
        return (space,), small
    attention, small = attention_of(config, family, at, kind)
    if kind == "both":
        space, more = _state_space(config)
        return (attention, space), small + more
    return (attention,), small


def attention_of(config: Config, family: Family, at: int, kind: str) -> tuple[Mixer, int]:
    """Return the attention of layer `at`, and the parameters of its small vectors."""
    if "compress_ratios" in config:
        return _compressed(config, at)
    if is_latent(config):
        return _latent(config)
    return _plain_attention(config, family, at, kind)


def _plain_attention(config: Config, family: Family, at: int, kind: str) -> tuple[Attention, int]:
    d, heads = read_integer(config, "hidden_size"), read_integer(config, "num_attention_heads")
    dim, kv_heads, value_dim = head_size(config), kv_head_count(config, at), None
    if "v_head_dim" in config:
        value_dim = read_integer(config, "v_head_dim")
    tied = False
    if kind == WINDOW and "swa_num_key_value_heads" in config:
        heads = read_integer(config, "swa_num_attention_heads", heads)
        kv_heads = read_integer(config, "swa_num_key_value_heads")
        dim = read_integer(config, "swa_head_dim", dim)
        value_dim = read_integer(config, "swa_v_head_dim", value_dim or dim)
    elif kind == FULL and "global_head_dim" in config:
        dim = read_integer(config, "global_head_dim")
        tied = read_flag(config, "attention_k_eq_v", False)
        kv_heads = read_integer(config, "num_global_key_value_heads", kv_heads) if tied else kv_heads
    sparse = _sparse_attention(config, at)
    attention = Attention(
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim,
        value_dim=None if value_dim == dim else value_dim,
        window=window_size(config) if kind == WINDOW else None,
        output_gate=read_flag(config, "attn_output_gate", False),
        tied_values=tied,
        **sparse,
    )
    queries, keys, values = heads * dim, kv_heads * dim, kv_heads * (value_dim or dim)
    small = (queries + keys + values if family.qkv_bias else 0) + (d if family.out_bias else 0)
    small += {"": 0, "head": 2 * dim, "layer": queries + keys}[family.qk_norm]
    small += 2 * int(sparse.get("index_dim", 0))
    sinks = family.attention_sinks or (kind == WINDOW and read_flag(config, SWA_SINKS, False))
    return attention, small + (heads if sinks else 0)


SWA_SINKS = "add_swa_attention_sink_bias"


def _sparse_attention(config: Config, at: int) -> dict[str, int]:
    """Return what layer `at` has of block-sparse attention (MiniMax-M3): how many positions, its indexer."""
    settings = config.get("sparse_attention_config")
    if not isinstance(settings, dict) or not read_flag(settings, "use_sparse_attention", True):
        return {}
    if not read_list(settings, "sparse_attention_freq", layer_count(config))[at]:
        return {}
    blocks = read_integer(settings, "sparse_topk_blocks")
    return {
        "top_k": blocks * read_integer(settings, "sparse_block_size"),
        "index_heads": read_integer(settings, "sparse_num_index_heads"),
        "index_dim": read_integer(settings, "sparse_index_dim"),
    }


def _latent(config: Config) -> tuple[LatentAttention, int]:
    indexed = "index_topk" in config
    latent = LatentAttention(
        n_heads=read_integer(config, "num_attention_heads"),
        query_rank=read_integer(config, "q_lora_rank", 0, least=0),
        kv_rank=read_integer(config, "kv_lora_rank"),
        rope_dim=read_integer(config, "qk_rope_head_dim"),
        nope_dim=read_integer(config, "qk_nope_head_dim"),
        value_dim=read_integer(config, "v_head_dim"),
        top_k=read_integer(config, "index_topk") if indexed else None,
        index_heads=read_integer(config, "index_n_heads") if indexed else 0,
        index_dim=read_integer(config, "index_head_dim") if indexed else 0,
    )
    return latent, latent.query_rank + latent.kv_rank + 2 * latent.index_dim


def _compressed(config: Config, at: int) -> tuple[CompressedAttention, int]:
    ratios = read_list(config, "compress_ratios", layer_count(config))
    ratio = read_integer({"compress_ratios": ratios[at]}, "compress_ratios", least=0)
    indexed = 0 < ratio < 16  # blocks of 128 are few enough to attend to all of them
    attention = CompressedAttention(
        n_heads=read_integer(config, "num_attention_heads"),
        head_dim=read_integer(config, "head_dim"),
        query_rank=read_integer(config, "q_lora_rank"),
        output_rank=read_integer(config, "o_lora_rank"),
        output_groups=read_integer(config, "o_groups"),
        window=read_integer(config, "sliding_window"),
        ratio=ratio,
        top_k=read_integer(config, "index_topk") if indexed else None,
        index_heads=read_integer(config, "index_n_heads") if indexed else 0,
        index_dim=read_integer(config, "index_head_dim") if indexed else 0,
    )
    d, streams = read_integer(config, "hidden_size"), read_integer(config, "hc_mult", 1)
    # Around attention and MLP, the residual streams are mixed by matrices of their own (hyper-connections).
    mixing = 2 * streams * d * (2 * streams + streams**2) if streams > 1 else 0
    small = attention.query_rank + attention.head_dim + attention.n_heads
    return attention, small + mixing


def _gated_delta(config: Config) -> tuple[LinearAttention, int]:
    d = read_integer(config, "hidden_size")
    heads, kernel = read_integer(config, "linear_num_value_heads"), read_integer(config, CONV_KERNEL, 4)
    key_head, value_head = (
        read_integer(config, "linear_key_head_dim"),
        read_integer(config, "linear_value_head_dim"),
    )
    keys, values = read_integer(config, "linear_num_key_heads") * key_head, heads * value_head
    small = 2 * d * heads + (2 * keys + values) * kernel + 2 * heads + value_head
    convolved = (2 * keys + values) * (kernel - 1)
    state = heads * key_head * value_head
    linear = LinearAttention(
        n_heads=heads, key_dim=keys, value_dim=values, **_state(config, state, convolved)
    )
    return linear, small


CONV_KERNEL = "linear_conv_kernel_dim"


def _kimi_delta(config: Config) -> tuple[LinearAttention, int]:
    """Return Kimi's delta attention (arXiv 2510.26692): decay and output gate are of low rank."""
    d, settings = read_integer(config, "hidden_size"), _linear_settings(config)
    heads, dim = read_integer(settings, "num_heads"), read_integer(settings, "head_dim")
    kernel, width = read_integer(settings, "short_conv_kernel_size", 4), heads * dim
    low_rank = 2 * (d * dim + dim * width)
    small = low_rank + d * heads + 3 * width * kernel + heads + width + dim
    convolved = 3 * width * (kernel - 1)
    state = _state(config, heads * dim * dim, convolved)
    linear = LinearAttention(n_heads=heads, key_dim=width, value_dim=width, output_gate=False, **state)
    return linear, small


def _lightning(config: Config) -> tuple[LinearAttention, int]:
    heads, dim = read_integer(config, "num_attention_heads"), head_size(config)
    width = heads * dim
    state = _state(config, heads * dim * dim, 0)
    return LinearAttention(n_heads=heads, key_dim=width, value_dim=width, **state), width


LINEAR_ATTENTION: dict[str, Callable[[Config], tuple[LinearAttention, int]]] = {
    "qwen_hybrid": _gated_delta,
    "kimi_linear": _kimi_delta,
    "lightning": _lightning,
}


def _state(config: Config, state: int, convolved: int) -> dict[str, Any]:
    """Return what a sequence keeps: states (float32, if the config does not say), and inputs to convolve."""
    words = [config.get(key) for key in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype")]
    size = 2.0 if "bfloat16" in words or "float16" in words else 4.0
    values = state + convolved
    on_average = (size * state + 2.0 * convolved) / values
    return {"state_values": values, "state_bytes_per_value": round(on_average, 4)}


def _linear_settings(config: Config) -> Mapping[str, Any]:
    settings = config.get("linear_attn_config")
    if not isinstance(settings, dict) or not isinstance(settings.get("full_attn_layers", []), list):
        raise ConfigError("linear_attn_config is not possible", given=repr(settings)[:80])
    return settings


def _state_space(config: Config) -> tuple[StateSpace, int]:
    heads, head = read_integer(config, "mamba_num_heads"), read_integer(config, "mamba_head_dim")
    inner = read_integer(config, "mamba_d_ssm", heads * head)
    groups, size = read_integer(config, "mamba_n_groups", 1), read_integer(config, "mamba_d_state")
    kernel = read_integer(config, "mamba_d_conv", 4)
    convolved = inner + 2 * groups * size
    biased = read_flag(config, "mamba_conv_bias", read_flag(config, "use_conv_bias", True))
    normed = read_flag(config, "mamba_rms_norm", True)
    small = convolved * kernel + (convolved if biased else 0) + 3 * heads + (inner if normed else 0)
    state, window = inner * size, convolved * (kernel - 1)
    space = StateSpace(
        n_heads=heads,
        inner=inner,
        n_groups=groups,
        state_size=size,
        **_state(config, state, window),
    )
    return space, small


# --- what follows the mixers -------------------------------------------------------------------------------


def _feed_forward(config: Config, family: Family, sparse: bool) -> tuple[FeedForward | None, int, int]:
    """Return what follows the mixers, its small parameters, and those of one expert."""
    d = read_integer(config, "hidden_size")
    if sparse:
        return _experts(config, family)
    width = dense_width(config, family)
    mlp = Mlp(width=width, gated=is_gated(config, family))
    return mlp, _mlp_biases(d, width, family, mlp.gated), 0


def _experts(config: Config, family: Family) -> tuple[Experts, int, int]:
    d, n = read_integer(config, "hidden_size"), read_integer(config, "num_experts")
    width = read_integer(config, "moe_intermediate_size", 0, least=0) or _plain_width(config, family)
    gated = is_gated(config, family)
    shared = shared_width(config, width)
    latent = read_integer(config, "moe_latent_size", 0, least=0) or None
    experts = Experts(
        n_experts=n,
        per_token=read_integer(config, "num_experts_per_tok"),
        width=width,
        shared_width=shared,
        gated=gated,
        latent_dim=latent,
    )
    small = d * n + (n if family.router_bias else 0)  # the router
    small += d if config.get("shared_expert_intermediate_size") else 0  # the shared expert's gate
    return experts, small, _mlp_biases(d, width, family, gated)


def shared_width(config: Config, expert_width: int) -> int:
    """Return the width of all experts together that every token passes through."""
    for key in (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "share_expert_dim",
        "shared_intermediate_size",
    ):
        if config.get(key) is not None:
            return read_integer(config, key, least=0)
    if "interleave_moe_layer_step" in config:
        return expert_width  # Llama 4 has one and does not say so
    if read_flag(config, "enable_moe_block", False):
        return read_integer(config, "intermediate_size")  # Gemma 4's MLP works beside its experts
    return read_integer(config, "n_shared_experts", 0, least=0) * expert_width


def expert_count(config: Config) -> int:
    """Return the number of routed experts in a sparse layer, 0 for a dense model."""
    return read_integer(config, "num_experts", 0, least=0)


def dense_width(config: Config, family: Family) -> int:
    """Return the width of a plain MLP."""
    for key in ("intermediate_size_mlp", "dense_intermediate_size"):
        if config.get(key) is not None:
            return read_integer(config, key)
    if read_word(config, "model_type", "") == "granitemoehybrid":
        return read_integer(config, "shared_intermediate_size")
    return _plain_width(config, family)


def _plain_width(config: Config, family: Family) -> int:
    if family.ffn_ratio is None:
        return read_integer(config, "intermediate_size")
    ratio = read_integer(config, "expansion_ratio", family.ffn_ratio)
    return read_integer(config, "intermediate_size", ratio * read_integer(config, "hidden_size"))


def is_gated(config: Config, family: Family) -> bool:
    """Whether MLPs have three matrices."""
    if not family.encoder_decoder:
        return family.gated
    return read_word(config, "feed_forward_proj", "relu").startswith("gated")


def _mlp_biases(d: int, width: int, family: Family, gated: bool) -> int:
    return (2 if gated else 1) * width + d if family.mlp_bias else 0


# --- architectures that list what their layers are ---------------------------------------------------------


def _nemotron_layers(config: Config, family: Family) -> list[Layer]:
    """Return Nemotron-H's layers: each is a mixer or a feed-forward part alone."""
    letters = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
    pattern = config.get("hybrid_override_pattern") or config.get("layers_block_type")
    if not isinstance(pattern, (str, list)) or not pattern:
        raise ConfigError("hybrid_override_pattern is missing", cure="add it, or layers_block_type")
    read_list({"pattern": list(pattern)}, "pattern", layer_count(config))
    layers = []
    for at, word in enumerate(pattern):
        mixers: tuple[Mixer, ...] = ()
        following: FeedForward | None = None
        per_expert = 0
        letter = letters.get(word, word) if isinstance(word, str) else ""
        if letter == "M":
            space, small = _state_space(config)
            mixers = (space,)
        elif letter == "*":
            attention, small = attention_of(config, family, at, FULL)
            mixers = (attention,)
        elif letter in ("-", "E"):
            following, small, per_expert = _feed_forward(config, family, letter == "E")
        else:
            raise not_understood(config, f"layer type {str(word)[:40]!r}")
        layers.append(Layer(mixers, following, small + norm_size(config, family), per_expert))
    return layers


def _nas_layers(config: Config, family: Family) -> list[Layer]:
    """Return the layers of NVIDIA's pruned llamas (Nemotron Super): some without attention or narrower."""
    d, heads = read_integer(config, "hidden_size"), read_integer(config, "num_attention_heads")
    layers = []
    for block in read_list(config, "block_configs", layer_count(config)):
        attention, ffn = (_block_part(block, part, config) for part in ("attention", "ffn"))
        mixers: tuple[Mixer, ...] = ()
        following: FeedForward | None = None
        small = 0
        if not read_flag(attention, "no_op", False):
            kv_heads = max(1, heads // read_integer(attention, "n_heads_in_group"))
            window = attention.get("window_length")
            mixers = (Attention(n_heads=heads, n_kv_heads=kv_heads, head_dim=d // heads, window=window),)
            small += d
        if not read_flag(ffn, "no_op", False):
            ratio = ffn.get("ffn_mult")
            if not isinstance(ratio, (int, float)) or not 0 < ratio < 1000:
                raise ConfigError("ffn_mult is not possible", given=repr(ratio)[:80])
            width = -(-int(2 * ratio * d / 3) // 256) * 256  # as its maker's code rounds it
            following = Mlp(width=width)
            small += d
        layers.append(Layer(mixers, following, small))
    return layers


def _block_part(block: Any, part: str, config: Config) -> dict[str, Any]:
    found = block.get(part) if isinstance(block, dict) else None
    if not isinstance(found, dict):
        raise ConfigError("block_configs is not possible", given=repr(block)[:80])
    if found.get("replace_with_linear") or found.get("sparsify"):
        raise not_understood(config, f"block_configs replaces or sparsifies {part}")
    return {key: value for key, value in found.items() if value is not None}


# --- heads -------------------------------------------------------------------------------------------------


def kv_head_count(config: Config, at: int = 0) -> int:
    """Return the number of heads that the KV cache of layer `at` keeps."""
    heads = read_integer(config, "num_attention_heads")
    # Falcon writes num_kv_heads also where it means one: only its newer decoder reads that key.
    grouped = read_flag(config, "new_decoder_architecture", False) or not read_flag(
        config, "multi_query", False
    )
    if "num_key_value_heads_per_layer" in config:
        listed = read_list(config, "num_key_value_heads_per_layer", layer_count(config))
        config = {**config, "num_key_value_heads": listed[at]}
    kv_heads = read_integer(config, "num_key_value_heads", heads) if grouped else 1
    if heads % kv_heads:
        raise ConfigError(
            f"{heads} attention heads cannot share {kv_heads} key-value heads",
            given=f"num_attention_heads {heads}, num_key_value_heads {kv_heads}",
            cure="the first must be a multiple of the second",
        )
    return kv_heads


def head_size(config: Config) -> int:
    """Return the width of one attention head."""
    hidden, heads = read_integer(config, "hidden_size"), read_integer(config, "num_attention_heads")
    if find_key(config, "head_dim")[1] is None and hidden % heads:
        raise ConfigError(
            f"{heads} attention heads do not divide a hidden size of {hidden}",
            given=f"hidden_size {hidden}, num_attention_heads {heads}",
            cure="correct one of them, or add head_dim",
        )
    return read_integer(config, "head_dim", hidden // heads)


def is_latent(config: Config) -> bool:
    """Whether the KV cache is latent (multi-head latent attention)."""
    return "kv_lora_rank" in config


def position_limit(config: Config, family: Family) -> int | None:
    """Return the longest sequence, or None: T5's relative positions have no end, despite its n_positions."""
    if family.relative_bias or find_key(config, "max_position_embeddings")[1] is None:
        return None
    return read_integer(config, "max_position_embeddings")
