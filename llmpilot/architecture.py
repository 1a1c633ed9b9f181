"""An LLM's layers by kind, and the number formats of its weights: what its speed and memory follow from.

Knows nothing of GPUs, engines or of where the facts come from. Parameter counts here are those of the
large matrices, which steps read and multiply with; norms and biases are in `Model.parameters_b` only.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from llmpilot.schema import Count, Facts

NumberFormat = Literal["bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4", "int8"]
"""How weights are stored and multiplied. `fp8`: one scale a tensor, channel or token; `fp8_block`: one for
each 128 x 128 weights (DeepSeek's); `nvfp4`, `mxfp4`: 4-bit floats with a scale for each 16 or 32; `int4`:
integers with a scale a group, multiplied as bf16; `int8`: weights and activations."""
Precision = Literal["bf16", "fp8", "nvfp4", "mxfp4", "int4"]
"""What a checkpoint is said to be quantized to; which matrices that means is `conventional_formats`."""
KvFormat = Literal["bf16", "fp8"]
KV_BYTES: dict[str, float] = {"bf16": 2.0, "fp8": 1.0}
"""Bytes of a number in the KV cache."""
BYTES: dict[str, float] = {
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,
    "nvfp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
    "int4": 0.5 + 2.5 / 128,
    "int8": 1.0,
}
"""Bytes of one weight, its share of the scales included."""


class Formats(Facts):
    """The number format of each group of a checkpoint's matrices."""

    attention: NumberFormat = "bf16"
    mlp: NumberFormat = "bf16"
    """Of dense layers, and of the experts that all tokens share."""
    experts: NumberFormat = "bf16"
    head: NumberFormat = "bf16"


class Attention(Facts):
    """Softmax attention with keys and values in a cache. `window`: positions a token sees; null: all.

    With `top_k` a token attends to so many positions only, which an indexer finds (MiniMax-M3's blocks).
    """

    kind: Literal["attention"] = "attention"
    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    value_dim: PositiveInt | None = None
    """Width of one value head; null: that of a key head."""
    window: PositiveInt | None = None
    output_gate: bool = False
    """Whether a gate as wide as the queries is projected beside them (Qwen3-Next's)."""
    tied_values: bool = False
    """Whether values are projected with the keys' matrix (Gemma 4's global layers); both are cached."""
    top_k: PositiveInt | None = None
    index_heads: Count = 0
    index_dim: Count = 0

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one position keeps in the cache, the indexer's key included."""
        return self.n_kv_heads * (self.head_dim + (self.value_dim or self.head_dim)) + self.index_dim

    @property
    def kv_values_per_further_token(self) -> float:
        """Numbers that one more token of a long context adds to the cache: none within a window."""
        return 0.0 if self.window else self.kv_values_per_token

    @property
    def kv_shards(self) -> int:
        """Over how many GPUs the cache can be split without keeping a part twice."""
        return self.n_kv_heads

    @property
    def state_bytes(self) -> float:
        """Bytes that a sequence keeps however long it is."""
        return 0.0

    def kv_values(self, context_tokens: float) -> float:
        """Return the numbers that a sequence of so many tokens keeps in the cache."""
        return self.kv_values_per_token * min(context_tokens, self.window or context_tokens)

    def parameters(self, d_model: int) -> int:
        """Return the parameters of the projections."""
        value_dim = self.value_dim or self.head_dim
        queries = self.n_heads * self.head_dim * (2 if self.output_gate else 1)
        keys_values = self.n_kv_heads * (self.head_dim + (0 if self.tied_values else value_dim))
        index = (self.index_heads + 1) * self.index_dim
        return d_model * (queries + keys_values + self.n_heads * value_dim + index)


class LatentAttention(Facts):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one latent and one rotary key a position.

    With `top_k` a token attends to so many positions only, which an indexer of `index_heads` x `index_dim`
    finds (DeepSeek-V3.2's sparse attention).
    """

    kind: Literal["latent"] = "latent"
    n_heads: PositiveInt
    query_rank: Count
    """Width that queries are compressed to; 0: they are not."""
    kv_rank: PositiveInt
    rope_dim: PositiveInt
    nope_dim: PositiveInt
    value_dim: PositiveInt
    top_k: PositiveInt | None = None
    index_heads: Count = 0
    index_dim: Count = 0

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one position keeps in the cache, the indexer's keys included."""
        return self.kv_rank + self.rope_dim + self.index_dim

    @property
    def kv_values_per_further_token(self) -> float:
        """Numbers that one more token of a long context adds to the cache."""
        return self.kv_values_per_token

    @property
    def kv_shards(self) -> int:
        """Over how many GPUs what a sequence keeps can be split without keeping a part twice."""
        return 1  # one latent serves all heads

    @property
    def state_bytes(self) -> float:
        """Bytes that a sequence keeps however long it is."""
        return 0.0

    def kv_values(self, context_tokens: float) -> float:
        """Return the numbers that a sequence of so many tokens keeps in the cache."""
        return self.kv_values_per_token * context_tokens

    def parameters(self, d_model: int) -> int:
        """Return the parameters of the projections."""
        queries = self.n_heads * (self.nope_dim + self.rope_dim)
        to_queries = self.query_rank * (d_model + queries) if self.query_rank else d_model * queries
        from_latent = self.kv_rank * self.n_heads * (self.nope_dim + self.value_dim)
        index = self.index_heads * self.index_dim * (self.query_rank or d_model) + d_model * (
            self.index_dim + self.index_heads
        )
        return (
            to_queries
            + d_model * (self.kv_rank + self.rope_dim)
            + from_latent
            + self.n_heads * self.value_dim * d_model
            + (index if self.index_heads else 0)
        )


class CompressedAttention(Facts):
    """DeepSeek-V4's attention: one key-value head over a window, and over earlier positions compressed.

    `ratio` positions become one entry of the cache (0: nothing beyond the window is kept). With `top_k` a
    token attends to so many entries, which an indexer of `index_heads` x `index_dim` finds, else to all.
    An entry serves as key and as value. Queries and outputs are of low rank, outputs in groups of heads.
    """

    kind: Literal["compressed"] = "compressed"
    n_heads: PositiveInt
    head_dim: PositiveInt
    query_rank: PositiveInt
    output_rank: PositiveInt
    output_groups: PositiveInt
    window: PositiveInt
    ratio: Count = 0
    top_k: PositiveInt | None = None
    index_heads: Count = 0
    index_dim: Count = 0

    @property
    def kv_values_per_further_token(self) -> float:
        """Numbers that one more token of a long context adds to the cache."""
        return (self.head_dim + self.index_dim) / self.ratio if self.ratio else 0.0

    @property
    def kv_shards(self) -> int:
        """Over how many GPUs what a sequence keeps can be split without keeping a part twice."""
        return 1  # one head serves all

    @property
    def state_bytes(self) -> float:
        """Bytes that a sequence keeps however long it is."""
        return 0.0

    def kv_values(self, context_tokens: float) -> float:
        """Return the numbers that a sequence of so many tokens keeps in the cache."""
        within = self.head_dim * min(context_tokens, self.window)
        return within + self.kv_values_per_further_token * context_tokens

    def parameters(self, d_model: int) -> int:
        """Return the parameters of the projections, of the compressor and of the indexer."""
        heads = self.n_heads * self.head_dim
        projections = (
            self.query_rank * (d_model + heads)
            + d_model * self.head_dim
            + heads * self.output_rank
            + self.output_groups * self.output_rank * d_model
        )
        # Values and their weights in the sum; short blocks overlap and have two of each.
        compressor = 2 * d_model * (2 if self.ratio == 4 else 1) if self.ratio else 0
        index = self.index_heads * (self.query_rank * self.index_dim + d_model)
        return projections + compressor * (self.head_dim + self.index_dim) + index


class LinearAttention(Facts):
    """Attention with a state of fixed size instead of a cache: gated delta nets (Qwen3-Next, Qwen3.5), Kimi's
    delta attention, lightning attention (MiniMax-01).

    `key_dim` and `value_dim` are of all heads together; a head's state is its key width x its value width.
    """

    kind: Literal["linear"] = "linear"
    n_heads: PositiveInt
    """Value heads: each has a state."""
    key_dim: PositiveInt
    value_dim: PositiveInt
    output_gate: bool = True
    state_values: PositiveInt
    """Numbers that one sequence keeps, those of short convolutions included."""
    state_bytes_per_value: PositiveFloat = 4.0

    @property
    def kv_values_per_further_token(self) -> float:
        """Numbers that one more token of a long context adds to the cache."""
        return 0.0

    @property
    def kv_shards(self) -> int:
        """Over how many GPUs what a sequence keeps can be split without keeping a part twice."""
        return self.n_heads

    @property
    def state_bytes(self) -> float:
        """Bytes that a sequence keeps however long it is."""
        return self.state_values * self.state_bytes_per_value

    def kv_values(self, context_tokens: float) -> float:
        """Return the numbers that a sequence of so many tokens keeps in the cache."""
        return 0.0

    def parameters(self, d_model: int) -> int:
        """Return the parameters of the projections."""
        gate = self.value_dim if self.output_gate else 0
        return d_model * (2 * self.key_dim + 2 * self.value_dim + gate)


class StateSpace(Facts):
    """A Mamba-2 mixer (Nemotron-H, Granite 4, Falcon-H1): a state of fixed size instead of a cache."""

    kind: Literal["state_space"] = "state_space"
    n_heads: PositiveInt
    inner: PositiveInt
    n_groups: PositiveInt
    state_size: PositiveInt
    state_values: PositiveInt
    """Numbers that one sequence keeps, those of the short convolution included."""
    state_bytes_per_value: PositiveFloat = 4.0

    @property
    def kv_values_per_further_token(self) -> float:
        """Numbers that one more token of a long context adds to the cache."""
        return 0.0

    @property
    def kv_shards(self) -> int:
        """Over how many GPUs what a sequence keeps can be split without keeping a part twice."""
        return self.n_heads

    @property
    def state_bytes(self) -> float:
        """Bytes that a sequence keeps however long it is."""
        return self.state_values * self.state_bytes_per_value

    def kv_values(self, context_tokens: float) -> float:
        """Return the numbers that a sequence of so many tokens keeps in the cache."""
        return 0.0

    def parameters(self, d_model: int) -> int:
        """Return the parameters of the projections."""
        return d_model * (3 * self.inner + 2 * self.n_groups * self.state_size + self.n_heads)


class Mlp(Facts):
    """A dense feed-forward layer; `gated`: three matrices instead of two."""

    kind: Literal["dense"] = "dense"
    width: PositiveInt
    gated: bool = True

    def parameters(self, d_model: int) -> int:
        """Return the parameters of its matrices."""
        return (3 if self.gated else 2) * d_model * self.width


class Experts(Facts):
    """A mixture of experts: `per_token` of `n_experts` are chosen for a token, `shared_width` serves all.

    `latent_dim`: experts work on a narrower vector than the layer's (Nemotron-3's); null: d_model.
    """

    kind: Literal["experts"] = "experts"
    n_experts: PositiveInt
    per_token: PositiveInt
    width: PositiveInt
    shared_width: Count = 0
    gated: bool = True
    latent_dim: PositiveInt | None = None

    def one_expert_parameters(self, d_model: int) -> int:
        """Return the parameters of one routed expert."""
        return (3 if self.gated else 2) * (self.latent_dim or d_model) * self.width

    def shared_parameters(self, d_model: int) -> int:
        """Return the parameters that every token passes through: shared experts and what leads to latents."""
        into_latent = 2 * d_model * self.latent_dim if self.latent_dim else 0
        return (3 if self.gated else 2) * d_model * self.shared_width + into_latent

    def parameters(self, d_model: int) -> int:
        """Return the parameters of all its matrices, without the router."""
        return self.n_experts * self.one_expert_parameters(d_model) + self.shared_parameters(d_model)


Mixer = Annotated[
    Attention | LatentAttention | CompressedAttention | LinearAttention | StateSpace,
    Field(discriminator="kind"),
]
FeedForward = Annotated[Mlp | Experts, Field(discriminator="kind")]


class LayerKind(Facts):
    """So many layers that are alike: their mixers (two side by side in Falcon-H1), and what follows them."""

    count: PositiveInt
    mixers: tuple[Mixer, ...] = ()
    feed_forward: FeedForward | None = None


Parts = tuple[int, tuple[Mixer, ...], FeedForward | None]
"""How many layers, their mixers and what follows them."""


def parameters_by_group(layers: Iterable[Parts], d_model: int) -> dict[str, int]:
    """Return the parameters of the matrices of layers, by the group of Formats that they belong to."""
    found = {"attention": 0, "mlp": 0, "experts": 0}
    for count, mixers, following in layers:
        found["attention"] += count * sum(mixer.parameters(d_model) for mixer in mixers)
        if isinstance(following, Experts):
            found["experts"] += count * following.n_experts * following.one_expert_parameters(d_model)
            found["mlp"] += count * following.shared_parameters(d_model)
        elif following is not None:
            found["mlp"] += count * following.parameters(d_model)
    return {group: size for group, size in found.items() if size}


def conventional_formats(precision: Precision, layers: Iterable[Parts], fp8: NumberFormat = "fp8") -> Formats:
    """Return what is quantized in a checkpoint that says a precision and no more; the output head never is.

    fp8 and int4: all matrices of layers. mxfp4: where there are experts, only those (gpt-oss). nvfp4: where
    there are experts, those and MLPs, as NVIDIA does; of hybrids with state-space layers the routed experts,
    the rest in fp8 (Nemotron 3). Dense models are quantized as a whole. `fp8`: how its scales are kept.
    """
    layers = list(layers)
    sparse = any(isinstance(following, Experts) for _, _, following in layers)
    hybrid = any(isinstance(mixer, StateSpace) for _, mixers, _ in layers for mixer in mixers)
    if precision == "bf16":
        return Formats()
    if precision == "fp8":
        return Formats(attention=fp8, mlp=fp8, experts=fp8 if sparse else "bf16")
    if precision == "int4":
        return Formats(attention="int4", mlp="int4", experts="int4" if sparse else "bf16")
    four: NumberFormat = "nvfp4" if precision == "nvfp4" else "mxfp4"
    if not sparse:
        return Formats(attention=four, mlp=four)
    if four == "mxfp4":
        return Formats(experts=four)
    return Formats(attention="fp8", mlp="fp8", experts=four) if hybrid else Formats(mlp=four, experts=four)
