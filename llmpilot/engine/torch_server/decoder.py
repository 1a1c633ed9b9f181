"""A decoder on random weights: RMSNorm, rotary positions, grouped-query attention, SiLU MLP.

Two forwards over one set of weights: prompts of any lengths back to back, without padding, and one token of
each running request. Where keys and values lie is the cache's business.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

from llmpilot.engine.torch_server.cache import KvBlocks, Span
from llmpilot.engine.torch_server.shape import DecoderShape

ROPE_BASE = 10_000.0
NORM_EPSILON = 1e-5
DEVIATION = 0.02


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; matrices are [out, in]."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    up: Tensor
    down: Tensor


class Decoder:
    """Weights of a shape, made on the device that they stay on; `max_positions` bounds a request's length."""

    def __init__(
        self,
        shape: DecoderShape,
        *,
        device: "torch.device",
        dtype: "torch.dtype",
        max_positions: int,
        seed: int,
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        random = torch.Generator(device=device)
        random.manual_seed(seed)

        def matrix(rows: int, columns: int, deviation: float = DEVIATION) -> Tensor:
            made = torch.empty((rows, columns), device=device, dtype=dtype)
            return made.normal_(0.0, deviation, generator=random)

        d, heads = shape.d_model, shape.n_heads * shape.head_dim
        into_residual = DEVIATION / (2 * shape.n_layers) ** 0.5  # keeps a deep random model's sums small
        ones = torch.ones(d, device=device, dtype=dtype)
        self.embedding = matrix(shape.vocabulary_size, d)
        self.layers = [
            Layer(
                attention_norm=ones.clone(),
                qkv=matrix(shape.qkv_size, d),
                out=matrix(d, heads, into_residual),
                mlp_norm=ones.clone(),
                up=matrix((shape.mlp_matrices - 1) * shape.mlp_size, d),
                down=matrix(d, shape.mlp_size, into_residual),
            )
            for _ in range(shape.n_layers)
        ]
        self.norm = ones
        self.head = self.embedding if shape.tied else matrix(shape.vocabulary_size, d)
        self._cosine, self._sine = _rotations(shape.head_dim, max_positions, device, dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take on the device."""
        return self.shape.parameters * int(self.embedding.element_size())

    def prefill(
        self, tokens: Tensor, positions: Tensor, ends: list[int], cache: KvBlocks | None, slots: Tensor | None
    ) -> Tensor:
        """Return the logits [request, vocabulary] after the last token of each prompt.

        `tokens` and `positions` [token] hold the prompts back to back, `ends` where each ends. Keys and
        values go into the cache at `slots` [token]; without a cache they are forgotten.
        """
        hidden = embedding(tokens, self.embedding)
        turn = self._cosine[positions], self._sine[positions]
        for number, layer in enumerate(self.layers):
            queries, keys, values = self._qkv(layer, hidden, turn)
            if cache is not None:
                cache.write(number, slots, keys, values)
            mixed = torch.empty_like(queries)
            start = 0
            for end in ends:
                mixed[start:end] = _causal(queries[start:end], keys[start:end], values[start:end])
                start = end
            hidden = self._mlp(layer, hidden + linear(mixed.flatten(1), layer.out))
        last = torch.tensor(ends, device=self.device) - 1
        return self._logits(hidden[last])

    def decode(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KvBlocks, spans: list[Span]
    ) -> Tensor:
        """Return the logits [request, vocabulary] after one more token of each request.

        `tokens`, `positions` and `slots` are [request]; `spans` say where the KV of each lies.
        """
        hidden = embedding(tokens, self.embedding)
        turn = self._cosine[positions], self._sine[positions]
        shape = self.shape
        # The queries that share a KV head stand in for a sequence of queries: nothing is repeated for them.
        grouped = (-1, shape.n_kv_heads, shape.n_heads // shape.n_kv_heads, shape.head_dim)
        for number, layer in enumerate(self.layers):
            queries, keys, values = self._qkv(layer, hidden, turn)
            cache.write(number, slots, keys, values)
            queries = queries.view(grouped)
            mixed = torch.empty_like(queries)
            for span in spans:
                past_keys, past_values = cache.read(number, span)
                mixed[span.start : span.stop] = scaled_dot_product_attention(
                    queries[span.start : span.stop], past_keys, past_values, attn_mask=span.mask
                )
            hidden = self._mlp(layer, hidden + linear(mixed.flatten(1), layer.out))
        return self._logits(hidden)

    def _qkv(
        self, layer: Layer, hidden: Tensor, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [token, head, head_dim], turned by their positions."""
        shape = self.shape
        together = linear(_norm(hidden, layer.attention_norm), layer.qkv)
        heads = together.view(-1, shape.n_heads + 2 * shape.n_kv_heads, shape.head_dim)
        turned = _turn(heads[:, : shape.n_heads + shape.n_kv_heads], *turn)
        queries, keys = turned.split([shape.n_heads, shape.n_kv_heads], dim=1)
        return queries.contiguous(), keys, heads[:, shape.n_heads + shape.n_kv_heads :]

    def _mlp(self, layer: Layer, hidden: Tensor) -> Tensor:
        inner = linear(_norm(hidden, layer.mlp_norm), layer.up)
        if self.shape.gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = silu(gate) * inner
        else:
            inner = silu(inner)
        return hidden + linear(inner, layer.down)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(_norm(hidden, self.norm), self.head)


def _norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(hidden, weight.shape, weight, NORM_EPSILON)


def _rotations(
    head_dim: int, positions: int, device: "torch.device", dtype: "torch.dtype"
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [position, 1, head_dim / 2] of rotary positions (arXiv 2104.09864)."""
    pairs = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    frequencies = ROPE_BASE ** (-pairs / head_dim)
    angles = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos()[:, None].to(dtype), angles.sin()[:, None].to(dtype)


def _turn(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the attention [token, head, head_dim] of one prompt to itself."""
    batch = (part.transpose(0, 1)[None] for part in (queries, keys, values))
    shared = queries.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=shared)[0].transpose(0, 1)
