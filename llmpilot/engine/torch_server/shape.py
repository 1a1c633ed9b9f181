"""The decoder that stands for a model: its sizes, solved so that it has as many parameters as the facts say.

Knows nothing of PyTorch; the facts do not say everything about an architecture, and what they do not say is
chosen here.
"""

from dataclasses import dataclass

from llmpilot.config import Model
from llmpilot.errors import ConfigError
from llmpilot.hf_config.families import FAMILIES, LLAMA


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder: `n_layers` of attention and MLP; `gated` MLPs have three matrices, others two.

    `tied`: the output head is the embedding. No biases; positions are rotary, which have no parameters.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    mlp_size: int
    vocabulary_size: int
    gated: bool
    tied: bool

    @property
    def qkv_size(self) -> int:
        """Width of queries, keys and values together."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache keeps of one token."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return self.without_mlp + self.n_layers * self.mlp_matrices * self.d_model * self.mlp_size

    @property
    def without_mlp(self) -> int:
        """Weights of everything but the MLPs."""
        d, width = self.d_model, self.n_heads * self.head_dim
        layer = d * self.qkv_size + width * d + 2 * d
        return self.n_layers * layer + d + (1 if self.tied else 2) * self.vocabulary_size * d

    @property
    def mlp_matrices(self) -> int:
        """Matrices of one MLP."""
        return 3 if self.gated else 2


def shape_of(model: Model) -> DecoderShape:
    """Return the decoder that stands for a model.

    The MLP is as wide as it takes to have `parameters_b` weights, rounded to what matrix units like. Whether
    it is gated and whether the embedding is tied follows from the family; an unknown one is taken for llama.

    Raises:
        ConfigError: this engine has no such architecture, or the facts leave no weights for the MLP.
    """
    _require_plain_decoder(model)
    family = FAMILIES.get(model.architecture, LLAMA)
    shape = DecoderShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        mlp_size=0,
        vocabulary_size=model.vocabulary_size,
        gated=family.gated,
        tied=family.tied,
    )
    left = model.parameters_b * 1e9 - shape.without_mlp
    size = left / (shape.n_layers * shape.mlp_matrices * shape.d_model)
    step = 64 if size >= 1024 else 8
    mlp_size = round(size / step) * step
    if mlp_size < step:
        raise ConfigError(
            f"{model.name}: attention and embeddings alone have {shape.without_mlp / 1e9:.4g}e9 parameters",
            given=f"model.parameters_b={model.parameters_b:g}",
            cure="correct model.parameters_b, or the sizes: n_layers, d_model, n_heads, vocabulary_size",
        )
    return DecoderShape(**{**shape.__dict__, "mlp_size": mlp_size})


def _require_plain_decoder(model: Model) -> None:
    """Refuse what is no decoder of attention and dense MLPs in 16 bits."""
    plain_kv_bytes = 4.0 * model.n_layers * model.n_kv_heads * model.head_dim
    wrong = ""
    if model.encoder_decoder:
        wrong = "an encoder-decoder"
    elif model.n_experts > 1:
        wrong = "a mixture of experts"
    elif model.kv_bytes_per_token < 0.9 * plain_kv_bytes:
        wrong = "a model whose KV cache is smaller than its heads say (latent attention, or quantized)"
    elif model.weight_bytes_per_parameter < 2:
        wrong = "a quantized model (model.weight_bytes_per_parameter is below 2)"
    if wrong:
        raise ConfigError(
            f"engine=transformers serves dense decoders in 16 bits, and {model.name} is {wrong}",
            cure="take an engine that has it: engine=vllm",
        )
    if model.n_heads % model.n_kv_heads or model.head_dim % 2:
        raise ConfigError(
            f"{model.name}: model.n_heads must be a multiple of model.n_kv_heads, and model.head_dim even",
            given=f"{model.n_heads} heads, {model.n_kv_heads} KV heads, head_dim {model.head_dim}",
            cure="correct the facts of the model",
        )
