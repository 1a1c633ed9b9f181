"""One device: the decoder, its KV cache, and the forwards over requests. Greedy: the likeliest token."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmpilot.engine.torch_server.batching import Job
from llmpilot.engine.torch_server.cache import BLOCK_TOKENS, KvBlocks
from llmpilot.engine.torch_server.decoder import Decoder
from llmpilot.engine.torch_server.loop import OutOfMemoryError
from llmpilot.engine.torch_server.shape import DecoderShape

GATHER_BUFFERS = 4.0
"""Layers' worth of the whole KV cache that one layer's attention may hold as copies: keys and values, each
read at up to twice its length on average."""


@dataclass(frozen=True)
class Settings:
    """What a runner is to hold. `max_batch_weight` None: what the memory leaves, at most all that
    `max_requests` of the longest requests could use."""

    max_batch_weight: int | None
    max_request_tokens: int
    max_requests: int
    max_prefill_tokens: int
    memory_utilization: float
    seed: int = 0


class DecoderRunner:
    """A decoder on a device, ready to serve.

    Raises:
        OutOfMemoryError: its memory does not suffice.
    """

    def __init__(
        self, shape: DecoderShape, settings: Settings, *, device: "torch.device", dtype: "torch.dtype"
    ) -> None:
        self.device = device
        with _out_of_memory_named():
            self.decoder = Decoder(
                shape,
                device=device,
                dtype=dtype,
                max_positions=settings.max_request_tokens,
                seed=settings.seed,
            )
            self.max_batch_weight = settings.max_batch_weight or self._room(shape, settings)
            self._cache = KvBlocks(
                shape,
                max_tokens=self.max_batch_weight,
                max_requests=settings.max_requests,
                max_request_tokens=settings.max_request_tokens,
                device=device,
                dtype=dtype,
            )
        self._try_out(settings)

    def prefill(self, jobs: list[Job]) -> list[int]:
        """Process the prompts; return the first token of each.

        Raises:
            OutOfMemoryError: memory does not suffice for all of them.
        """
        for job in jobs:
            if job.row < 0:
                self._cache.reserve(job)
        tokens = [token for job in jobs for token in job.prompt]
        positions = [position for job in jobs for position in range(len(job.prompt))]
        slots = [self._cache.slot(job, position) for job in jobs for position in range(len(job.prompt))]
        ends, end = [], 0
        for job in jobs:
            end += len(job.prompt)
            ends.append(end)
        with _out_of_memory_named(), torch.inference_mode():
            uploaded = self._upload(tokens, positions, slots)
            logits = self.decoder.prefill(uploaded[0], uploaded[1], ends, self._cache, uploaded[2])
            return _likeliest(logits)

    def decode(self, jobs: list[Job]) -> list[int]:
        """Return the next token of each.

        Raises:
            OutOfMemoryError: memory does not suffice for all of them.
        """
        order = sorted(range(len(jobs)), key=lambda at: jobs[at].context)
        batch = [jobs[at] for at in order]
        with _out_of_memory_named(), torch.inference_mode():
            tokens, positions, slots = self._upload(
                [job.last_token for job in batch],
                [job.context for job in batch],
                [self._cache.slot(job, job.context) for job in batch],
            )
            spans = self._cache.spans(batch)
            found = _likeliest(self.decoder.decode(tokens, positions, slots, self._cache, spans))
        in_place = [0] * len(jobs)
        for at, token in zip(order, found, strict=True):
            in_place[at] = token
        return in_place

    def release(self, job: Job) -> None:
        """Forget a request: its place in the cache is free."""
        self._cache.release(job)

    def _upload(self, *columns: list[int]) -> Tensor:
        return torch.tensor(columns, dtype=torch.int64).to(self.device)

    def _room(self, shape: DecoderShape, settings: Settings) -> int:
        """Return the batch weight that the memory left by the weights holds [tokens]."""
        bytes_each = self.decoder.embedding.element_size()
        widest = 2 * shape.mlp_matrices * shape.mlp_size + 4 * shape.qkv_size + 8 * shape.d_model
        activations = settings.max_prefill_tokens * widest * bytes_each
        per_token = shape.kv_values_per_token * bytes_each * (1 + GATHER_BUFFERS / shape.n_layers)
        room = _free_bytes(self.device) * settings.memory_utilization - activations
        spare = settings.max_requests * BLOCK_TOKENS
        tokens = int(room // per_token) - spare
        if tokens < settings.max_request_tokens:
            raise OutOfMemoryError(
                f"out of memory: beside {self.decoder.weight_bytes / 1e9:.2f} GB of weights there is room "
                f"for {max(0, tokens):,} tokens of KV cache, and a request may hold "
                f"{settings.max_request_tokens:,}"
            )
        return min(tokens, settings.max_requests * settings.max_request_tokens)

    def _try_out(self, settings: Settings) -> None:
        """Do once what serving does, so that a lack of memory shows now, and first users wait for nothing."""
        longest = max(1, settings.max_request_tokens - 2)
        # A processor has no kernels to load, and would take its time over a full prefill.
        tokens = settings.max_prefill_tokens if self.device.type == "cuda" else min(32, longest)
        count = min(max(1, tokens // longest), self.max_batch_weight // settings.max_request_tokens)
        jobs = [Job([0] * min(longest, tokens), 2) for _ in range(max(1, count))]
        try:
            for job, token in zip(jobs, self.prefill(jobs), strict=True):
                job.made, job.last_token = 1, token
            self.decode(jobs)
        finally:
            for job in jobs:
                self.release(job)


def _likeliest(logits: Tensor) -> list[int]:
    found: list[int] = logits.argmax(dim=-1).tolist()
    return found


@contextmanager
def _out_of_memory_named() -> Iterator[None]:
    """Raise OutOfMemoryError for PyTorch's many ways to say so, and free what the failed step has left."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in said
        if not (on_gpu or "can't allocate memory" in said):
            raise
        line = " ".join(said.split())[:300]
    else:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemoryError(line if "out of memory" in line else f"out of memory: {line}")


def _free_bytes(device: "torch.device") -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
