"""The KV cache in blocks of tokens: a request reserves all that it may come to hold, and gives it back.

Blocks rather than a slot of the longest request's length for each: so the memory of a max batch weight W is
W tokens, whatever the requests' lengths. Attention reads a request's blocks through a copy of them (PyTorch
has no kernel that would follow the table), which about trebles the traffic of the KV cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmpilot.engine.torch_server.batching import Job
from llmpilot.engine.torch_server.shape import DecoderShape

BLOCK_TOKENS = 16
SPREAD = 4
"""A group of requests is read as if all were as long as its longest, which has at most so many times the
blocks of its shortest."""


@dataclass(frozen=True)
class Span:
    """Requests `start` to `stop` of a batch sorted by context: their blocks, `width` of each back to back
    [request x width], and which of the tokens in them count, as a mask [request, 1, 1, token]."""

    start: int
    stop: int
    width: int
    blocks: Tensor
    mask: Tensor


class KvBlocks:
    """Keys and values of every layer. Holds `max_tokens` and, since a request's last block may be partly
    unused, one block more for each of `max_requests`."""

    def __init__(
        self,
        shape: DecoderShape,
        *,
        max_tokens: int,
        max_requests: int,
        max_request_tokens: int,
        device: "torch.device",
        dtype: "torch.dtype",
    ) -> None:
        self.device = device
        blocks = blocks_for(max_tokens, max_requests)
        size = (blocks, BLOCK_TOKENS, shape.n_kv_heads, shape.head_dim)
        self._layers = [
            # Zeros: what a mask hides must still be a number.
            (torch.zeros(size, device=device, dtype=dtype), torch.zeros(size, device=device, dtype=dtype))
            for _ in range(shape.n_layers)
        ]
        self._tables = torch.zeros(
            (max_requests, -(-max_request_tokens // BLOCK_TOKENS)), device=device, dtype=torch.int64
        )
        # Copies are made into the same memory again: fresh pages cost a processor more than the copying.
        self._copies = (self._layers[0][0][:0], self._layers[0][1][:0])
        self._free_blocks = list(range(blocks))
        self._free_rows = list(range(max_requests))

    @property
    def free_tokens(self) -> int:
        """Tokens that could still be reserved."""
        return len(self._free_blocks) * BLOCK_TOKENS

    def reserve(self, job: Job) -> None:
        """Give a request the blocks for all that it may come to hold."""
        needed = -(-job.weight // BLOCK_TOKENS)
        job.row = self._free_rows.pop()
        job.blocks = [self._free_blocks.pop() for _ in range(needed)]
        self._tables[job.row, :needed] = torch.tensor(job.blocks, device=self.device)

    def release(self, job: Job) -> None:
        """Take a request's blocks back, if it has any."""
        if job.row < 0:
            return
        self._free_rows.append(job.row)
        self._free_blocks += job.blocks
        job.row, job.blocks = -1, []

    def write(self, layer: int, slots: Tensor | None, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [token, head, head_dim] at `slots` [token]."""
        for kept, new in zip(self._layers[layer], (keys, values), strict=True):
            kept.flatten(0, 1)[slots] = new

    def read(self, layer: int, span: Span) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a span [request, head, token, head_dim], until the next `read`."""
        count = len(span.blocks)
        if count > len(self._copies[0]):
            size = (count + count // 4, *self._layers[0][0].shape[1:])
            self._copies = self._copies[0].new_empty(size), self._copies[1].new_empty(size)
        keys, values = (
            torch.index_select(kept, 0, span.blocks, out=copy[:count])
            for kept, copy in zip(self._layers[layer], self._copies, strict=True)
        )
        return _in_order(keys, span.width), _in_order(values, span.width)

    def slot(self, job: Job, position: int) -> int:
        """Return where the token at `position` of a request lies."""
        return job.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS

    def spans(self, jobs: list[Job]) -> list[Span]:
        """Return how to read a batch that is sorted by context, each with the token that it now gets."""
        rows = torch.tensor([job.row for job in jobs], device=self.device)
        lengths = torch.tensor([job.context + 1 for job in jobs], device=self.device)
        blocks = [job.context // BLOCK_TOKENS + 1 for job in jobs]
        spans, start = [], 0
        for stop in range(1, len(jobs) + 1):
            if stop == len(jobs) or blocks[stop] > SPREAD * blocks[start]:
                width = blocks[stop - 1]
                counted = torch.arange(width * BLOCK_TOKENS, device=self.device) < lengths[start:stop, None]
                read = self._tables[rows[start:stop], :width].flatten()
                spans.append(Span(start, stop, width, read, counted[:, None, None]))
                start = stop
        return spans


def blocks_for(max_tokens: int, max_requests: int) -> int:
    """Return the blocks that hold `max_tokens` of at most `max_requests` requests, however they fall."""
    return -(-max_tokens // BLOCK_TOKENS) + max_requests


def _in_order(copied: Tensor, width: int) -> Tensor:
    """Return [request x width, token, head, head_dim] as [request, head, token, head_dim], as a view."""
    return copied.unflatten(0, (-1, width)).flatten(1, 2).transpose(1, 2)
