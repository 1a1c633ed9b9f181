"""Measure the operators of an LLM engine on the GPU at hand, with PyTorch and nothing else:

    python profile_gpu.py > my_gpu.json

One file that runs by itself, so it can be copied to a machine where only PyTorch is installed (2.5 or newer).
JSON goes to stdout, progress to stderr. Shapes are measured in order of importance until the time is used up;
what was left out, and why, is in the JSON. Ctrl-C ends early with what was measured, marked as incomplete.
This file knows nothing of LLM-Pilot; `gpu.profile=my_gpu.json` there predicts from what it wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

STARTED = time.monotonic()
SCHEMA = "llmpilot.gpu_profile"
VERSION = 1
BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625}
FORMATS = {"gemm": ("bf16", "fp8", "fp8_block", "nvfp4"), "experts": ("bf16", "fp8")}
"""Formats to try; attention, copies and communication are in bf16 alone."""
LIMITS = (
    "bf16 stands for 16 bits: on GPUs without bf16 units float16 is measured.",
    "time_us is the median over `repeats` of the mean over `calls` back to back. Each call has other weights "
    "or another KV cache, so that these come from memory and not from the L2 cache. timed=graph: the calls "
    "are one CUDA graph; timed=eager: launched one by one, launch overhead included.",
    "tflops and gb_s: the operations and bytes that the shape needs at least, over time_us.",
    "kernel: the fastest of those tried; the times of the others are in `others`.",
    "gemm in fp8, fp8_block and nvfp4: the multiplication alone, activations are quantized beforehand.",
    "decode_attention: one query a sequence over a contiguous KV cache, all sequences of the same length. "
    "The cache is not paged. Queries that share a KV head are packed; flash attention may split the cache.",
    "prefill_attention: causal, chunks of the same length, `context` positions cached before each.",
    "experts: gather, two grouped GEMMs with a gated activation between them, and the sum over a token's "
    "experts, without weights; routing is uniform and given. `touched`: experts that got any token.",
    "all_reduce: NCCL's, launched one by one; engines have faster ones for short messages.",
    "Not measured, for want of such kernels in PyTorch: paged, latent (MLA), sliding-window and fp8 "
    "attention, mxfp4 and int4 weights, experts in fp8_block or 4 bits.",
    "Shapes are measured in bursts of 50 ms: under sustained load a GPU at its power limit may clock lower.",
)
LEAST_SECONDS, MOST_SECONDS = 2.0, 3600.0
SAMPLING_S = 0.05  # of one shape, once it is warm
MOST_REPEATS, LEAST_REPEATS = 50, 5
EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
Call = Callable[[], Any]
UNSUPPORTED = (RuntimeError, AttributeError, TypeError, ValueError, ImportError)
"""What PyTorch raises of kernels that this version or this GPU does not have."""
Work = tuple[dict[str, list[Call]], dict[str, Any]]
"""Kernel -> calls to be timed, each with operands of its own; and what the row says beside."""


class UsageError(Exception):
    """Nothing can be measured here: what is wrong and what to do, for stderr."""


class TooLargeError(Exception):
    """A shape needs more memory than there is."""


class Item(NamedTuple):
    """One shape to be measured."""

    operator: str
    format: str
    shape: dict[str, int]


class Prepared(NamedTuple):
    """Calls that are ready to be timed: `run` runs all of them, as one CUDA graph or one by one."""

    how: str
    run: Call
    calls: int


# --- what to measure, in order of importance ---


def plan(*, small: bool = False) -> list[Item]:
    """Return all shapes, the most important first; `small`: a handful of tiny ones, for a CPU.

    Each wave covers every operator before the next one refines it, and within a wave operators take turns:
    wherever the time ends, all have had their share.
    """
    items = []
    for wave in range(1 if small else 3):
        groups: list[list[Item]] = [[Item("launch", "bf16", {"kernels": 1})]] if wave == 0 else []
        for operator, shapes in (_SMALL if small else _WAVES[wave]).items():
            for fmt in FORMATS.get(operator, ("bf16",)):
                groups.append([Item(operator, fmt, shape) for shape in shapes])
        turns = zip_longest(*groups)
        items += [item for turn in turns for item in turn if item is not None]
    return list({str(item): item for item in items}.values())


def _grid(names: str, *rows: Iterable[tuple[int, ...]]) -> list[dict[str, int]]:
    """Return the shapes of a grid: every combination of one tuple out of each of `rows`, chained."""
    chains: list[tuple[int, ...]] = [()]
    for row in rows:
        chains = [chain + more for chain in chains for more in row]
    return [dict(zip(names.split(), chain, strict=True)) for chain in chains]


def _ones(*numbers: int) -> list[tuple[int, ...]]:
    return [(number,) for number in numbers]


_GEMM, _EXPERTS = "n k m", "n_experts per_token d_model width tokens"
_DECODE = "n_heads n_kv_heads head_dim sequences context"
_PREFILL = "n_heads n_kv_heads head_dim chunks tokens context"
# Weights of layers that are served today, whole (Llama 8B and 70B, Qwen3) and as one of 4 or 8 GPUs has them.
_LAYERS = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 8192)]
_MORE_LAYERS = [(1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584), (57344, 8192), (8192, 28672)]
_MORE_LAYERS += [(2560, 5120), (5120, 2048), (2048, 2048), (128256, 4096)]
_TOKENS = _ones(1, 16, 64, 256, 1024, 4096)
_MORE_TOKENS = _ones(4, 8, 32, 96, 128, 192, 384, 512, 768, 2048, 8192)
_HEADS, _MORE_HEADS = [(32, 8, 128), (8, 1, 128)], [(64, 8, 128), (16, 2, 128), (64, 8, 64)]
_CACHES = [(s, c) for c in (2048, 512, 8192) for s in (1, 16, 64, 256)]
_MORE_CACHES = [(s, c) for c in (1024, 4096, 128, 16384, 65536) for s in (1, 8, 32, 128, 512)]
_CHUNKS = [(1, 2048, 0), (1, 512, 0), (1, 8192, 0), (4, 1024, 0), (1, 512, 4096)]
_MORE_CHUNKS = [(1, 128, 0), (1, 256, 0), (1, 1024, 0), (1, 4096, 0), (2, 2048, 0), (8, 512, 0), (32, 128, 0)]
_MORE_CHUNKS += [(1, 2048, 8192), (1, 512, 16384), (1, 16384, 0), (4, 512, 2048)]
# Qwen3-30B-A3B, Mixtral; gpt-oss, Qwen3-235B and DeepSeek-V3 as one of 2, 4 and 8 GPUs holds them.
_MOES, _MORE_MOES = [(128, 8, 2048, 768), (8, 2, 4096, 14336)], [(128, 4, 2880, 1440), (128, 8, 4096, 384)]
_MORE_MOES += [(256, 8, 7168, 256)]
_ROUTED, _MORE_ROUTED = _ones(1, 16, 128, 1024, 4096), _ones(4, 8, 32, 64, 256, 512, 2048, 8192)
_WAVES: list[dict[str, list[dict[str, int]]]] = [
    {
        "copy": _grid("bytes", _ones(2**28, 2**24, 2**30)),
        "gemm": _grid(_GEMM, _LAYERS, _TOKENS),
        "decode_attention": _grid(_DECODE, _HEADS, _CACHES),
        "prefill_attention": _grid(_PREFILL, _HEADS, _CHUNKS),
        "experts": _grid(_EXPERTS, _MOES, _ROUTED),
    },
    {
        "gemm": _grid(_GEMM, _MORE_LAYERS, _TOKENS),
        "decode_attention": _grid(_DECODE, _MORE_HEADS, _CACHES) + _grid(_DECODE, _HEADS, _MORE_CACHES),
        "prefill_attention": _grid(_PREFILL, _MORE_HEADS, _CHUNKS) + _grid(_PREFILL, _HEADS, _MORE_CHUNKS),
        "experts": _grid(_EXPERTS, _MORE_MOES, _ROUTED),
    },
    {
        "gemm": _grid(_GEMM, _LAYERS + _MORE_LAYERS, _MORE_TOKENS),
        "decode_attention": _grid(_DECODE, _MORE_HEADS, _MORE_CACHES),
        "prefill_attention": _grid(_PREFILL, _MORE_HEADS, _MORE_CHUNKS),
        "experts": _grid(_EXPERTS, _MOES + _MORE_MOES, _MORE_ROUTED),
    },
]
_SMALL: dict[str, list[dict[str, int]]] = {
    "copy": _grid("bytes", _ones(2**16)),
    "gemm": _grid(_GEMM, [(256, 128), (128, 256)], _ones(1, 16)),
    "decode_attention": _grid(_DECODE, [(4, 2, 32)], [(2, 64), (4, 128)]),
    "prefill_attention": _grid(_PREFILL, [(4, 2, 32)], [(1, 64, 0), (1, 16, 64)]),
    "experts": _grid(_EXPERTS, [(8, 2, 64, 32)], _ones(1, 16)),
}
_MESSAGES = (2**13, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)


# --- how: operands, calls and clocks ---


class Bench:
    """Runs operators on one device and times them; `end`: when to stop, on time.monotonic's clock [s]."""

    def __init__(self, torch: Any, device: Any, end: float) -> None:
        self.torch, self.device, self.end = torch, device, end
        self.cuda = device.type == "cuda"
        self.cache_bytes = 2**20
        self.dtype, self.capability, room = torch.bfloat16, (0, 0), 2**25
        if self.cuda:
            facts = torch.cuda.get_device_properties(device)
            self.capability = (facts.major, facts.minor)
            self.cache_bytes = getattr(facts, "L2_cache_size", 0) or 2**26
            if torch.version.hip is None and facts.major < 8:
                self.dtype = torch.float16
            free = torch.cuda.mem_get_info(device)[0]
            if free < 2**31:
                raise UsageError(
                    f"{free / 2**30:.1f} GiB of the GPU's memory are free: end what else is running on it"
                )
            room = min(6 * 2**30, free // 4)
            self.stream = torch.cuda.Stream(device)
        # Weights and caches are windows into one pool of random numbers (zeros would draw less power).
        self.pool = torch.empty(room // 2, dtype=self.dtype, device=device).normal_(0.0, 0.05)
        self._eight: Any = None
        self._scales: dict[tuple[int, ...], Any] = {}
        self.broken: dict[tuple[str, str, str], str] = {}
        """(operator, format, kernel) -> why it cannot be run here."""
        self._ran: set[tuple[str, str, str]] = set()

    @property
    def fp8(self) -> Any:
        """The 8-bit float of this device: AMD's MI300 has another than the rest."""
        facts = self.torch.cuda.get_device_properties(self.device) if self.cuda else None
        odd = self.torch.version.hip and "gfx94" in getattr(facts, "gcnArchName", "")
        return self.torch.float8_e4m3fnuz if odd else self.torch.float8_e4m3fn

    def missing(self, fmt: str) -> str:
        """Return why the hardware cannot multiply in this format, or an empty text."""
        if not self.cuda or self.torch.version.hip:
            return "" if fmt in ("bf16", "fp8") else f"{fmt} is for NVIDIA GPUs here"
        least = {"fp8": (8, 9), "fp8_block": (9, 0), "nvfp4": (10, 0)}.get(fmt, (0, 0))
        major, minor = self.capability
        return f"compute capability {major}.{minor} has no {fmt}" if self.capability < least else ""

    def window(self, fmt: str, index: int, *shape: int) -> Any:
        """Return a tensor of the pool: the `index`-th of this shape, around the pool and on; -1: its last."""
        pool = self.pool if fmt == "bf16" else self._pool_of(fmt)
        size = math.prod(shape)
        if size > pool.numel():
            raise TooLargeError(f"one operand takes {size * pool.element_size() / 2**30:.1f} GiB")
        places = pool.numel() // size
        spare = pool.numel() - places * size
        start = index % places * size + (index // places * 4096) % (spare + 1) // 256 * 256
        return pool[start : start + size].view(*shape)

    def _pool_of(self, fmt: str) -> Any:
        if self._eight is None:
            self._eight = self.pool.to(self.fp8)
        return self._eight.view(self.torch.uint8) if fmt == "nvfp4" else self._eight

    def rotation(self, size: float) -> range:
        """Return so many calls that operands of `size` bytes are out of the cache when their turn comes."""
        return range(max(2, min(128, math.ceil(4 * self.cache_bytes / max(size, 1)))))

    def gemm(self, fmt: str, n: int, k: int, m: int) -> Work:
        """Multiply m tokens with weights of n x k."""
        torch, scale = self.torch, self._ones
        if fmt == "bf16":
            x = self.window(fmt, -1, m, k)
            weights = [self.window(fmt, i, n, k).t() for i in self.rotation(2.0 * n * k)]
            return {"mm": [partial(torch.mm, x, w) for w in weights]}, {}
        if fmt == "nvfp4":
            x = self.window(fmt, -1, m, k // 2).view(torch.float4_e2m1fn_x2)
            halves = [self.window(fmt, i, n, k // 2) for i in self.rotation(n * k / 2)]
            weights = [half.t().view(torch.float4_e2m1fn_x2) for half in halves]
            blocks = _up(k // 16, 4)
            one, other = (scale(_up(rows, 128) * blocks).to(torch.float8_e4m3fn) for rows in (m, n))
            return {"scaled_mm nvfp4": self._scaled(x, weights, one, other)}, {}
        x = self.window(fmt, -1, m, k)
        weights = [self.window(fmt, i, n, k).t() for i in self.rotation(float(n * k))]
        if fmt == "fp8_block":
            one, other = scale(_up(k, 128) // 128, m).t(), scale(_up(n, 128) // 128, _up(k, 128) // 128).t()
            return {"scaled_mm 1x128 128x128": self._scaled(x, weights, one, other)}, {}
        fast = {"use_fast_accum": self.capability < (10, 0)}  # as engines do on Hopper and Ada
        return {
            "scaled_mm rowwise": self._scaled(x, weights, scale(m, 1), scale(1, n), **fast),
            "scaled_mm tensorwise": self._scaled(x, weights, scale(1).view(()), scale(1).view(()), **fast),
        }, {}

    def _scaled(self, x: Any, weights: list[Any], one: Any, other: Any, **more: Any) -> list[Call]:
        run = partial(self.torch._scaled_mm, scale_a=one, scale_b=other, out_dtype=self.dtype, **more)
        return [partial(run, x, w) for w in weights]

    def _ones(self, *shape: int) -> Any:
        if shape not in self._scales:
            self._scales[shape] = self.torch.ones(*shape, dtype=self.torch.float32, device=self.device)
        return self._scales[shape]

    def decode_attention(
        self, fmt: str, n_heads: int, n_kv_heads: int, head_dim: int, sequences: int, context: int
    ) -> Work:
        """Attend with one query of each sequence to its cache."""
        size = 4.0 * sequences * context * n_kv_heads * head_dim
        # Queries that share a KV head, packed as if they were so many tokens: the cache is read once.
        q = self.window(fmt, -1, sequences, n_kv_heads, n_heads // n_kv_heads, head_dim)
        pairs = [self._cache(fmt, i, sequences, context, n_kv_heads, head_dim) for i in self.rotation(size)]
        return self._attention([(q, k, v, {}) for k, v in pairs]), {}

    def prefill_attention(
        self, fmt: str, n_heads: int, n_kv_heads: int, head_dim: int, chunks: int, tokens: int, context: int
    ) -> Work:
        """Attend with chunks of prompts to themselves and to what is cached before them."""
        length = context + tokens
        q = self.window(fmt, -1, chunks, n_heads, tokens, head_dim)
        size = 4.0 * chunks * length * n_kv_heads * head_dim
        # Prompts were just computed: only what was cached long before is out of the L2 cache.
        calls = self.rotation(size) if context else range(max(2, min(32, 2**14 // (chunks * tokens))))
        places = [i if context else i % 2 for i in calls]
        caches = [self._cache(fmt, i, chunks, length, n_kv_heads, head_dim) for i in places]
        gqa = n_heads != n_kv_heads
        if not context:
            return self._attention([(q, k, v, {"is_causal": True, "enable_gqa": gqa}) for k, v in caches]), {}
        if self.cuda:
            # Unlike the public function, the kernel lets the last query see the last key.
            flash = self.torch.ops.aten._scaled_dot_product_flash_attention
            return {"flash attention": [partial(flash, q, k, v, 0.0, True) for k, v in caches]}, {}
        mask = self.torch.ones(tokens, length, dtype=self.torch.bool).tril(context)
        return self._attention([(q, k, v, {"attn_mask": mask, "enable_gqa": gqa}) for k, v in caches]), {}

    def _cache(self, fmt: str, index: int, *shape: int) -> tuple[Any, Any]:
        keys, values = (self.window(fmt, 2 * index + side, *shape).transpose(1, 2) for side in (0, 1))
        return keys, values

    def _attention(self, work: list[tuple[Any, Any, Any, dict[str, Any]]]) -> dict[str, list[Call]]:
        attend = self.torch.nn.functional.scaled_dot_product_attention
        calls: list[Call] = [partial(attend, q, k, v, **how) for q, k, v, how in work]
        if not self.cuda:
            return {"sdpa": calls}
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def through(backend: Any, call: Call) -> Any:
            with sdpa_kernel(backend):
                return call()

        backends = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
        found = {name: getattr(SDPBackend, name) for name in backends if hasattr(SDPBackend, name)}
        return {
            f"sdpa {name.split('_')[0].lower()}": [partial(through, backend, call) for call in calls]
            for name, backend in found.items()
        }

    def experts(
        self, fmt: str, n_experts: int, per_token: int, d_model: int, width: int, tokens: int
    ) -> Work:
        """Send each token through its experts: gather, up and gate, activation, down, sum."""
        torch, rows = self.torch, tokens * per_token
        expected = n_experts * (1 - (1 - per_token / n_experts) ** tokens)
        bytes_each = 3.0 * d_model * width * (2 if fmt == "bf16" else 1)
        grouped: list[Call] = []
        touched = []
        x = self.window("bf16", -1, tokens, d_model)
        for i in self.rotation(expected * bytes_each)[:32]:
            up = self.window(fmt, 2 * i, n_experts, 2 * width, d_model).transpose(1, 2)
            down = self.window(fmt, 2 * i + 1, n_experts, d_model, width).transpose(1, 2)
            chosen = torch.rand(tokens, n_experts, device=self.device).topk(per_token).indices.flatten()
            order = chosen.argsort()
            counts = torch.bincount(chosen, minlength=n_experts)
            ends, back, source = counts.cumsum(0).to(torch.int32), order.argsort(), order // per_token
            touched.append(int((counts > 0).sum()))
            routing = (ends, source, back)
            grouped.append(partial(self._through_experts, fmt, x, (up, down), routing, per_token))
        found = {"grouped_mm" if fmt == "bf16" else "scaled_grouped_mm rowwise": grouped}
        if fmt == "bf16":
            share = max(1, round(expected))
            each = self.window("bf16", -1, share, math.ceil(rows / share), d_model)
            calls: list[Call] = []
            for i in self.rotation(share * bytes_each)[:32]:
                up = self.window(fmt, 2 * i, share, 2 * width, d_model).transpose(1, 2)
                down = self.window(fmt, 2 * i + 1, share, d_model, width).transpose(1, 2)
                calls.append(partial(self._equal_shares, each, up, down))
            found["fallback: bmm, equal shares"] = calls
        return found, {"touched": round(statistics.mean(touched), 1)}

    def _through_experts(self, fmt: str, x: Any, weights: Any, routing: Any, per_token: int) -> Any:
        multiply = self._grouped if fmt == "bf16" else self._scaled_grouped
        ends, source, back = routing
        inner = self._gated(multiply(x[source], weights[0], ends))
        return multiply(inner, weights[1], ends)[back].view(-1, per_token, x.shape[1]).sum(1)

    def _gated(self, both: Any) -> Any:
        gate, up = both.chunk(2, dim=-1)
        return self.torch.nn.functional.silu(gate) * up

    def _equal_shares(self, each: Any, up: Any, down: Any) -> Any:
        return self.torch.bmm(self._gated(self.torch.bmm(each, up)), down)

    def _grouped(self, x: Any, weights: Any, ends: Any) -> Any:
        return self.torch._grouped_mm(x, weights, offs=ends)

    def _scaled_grouped(self, x: Any, weights: Any, ends: Any) -> Any:
        one, other = self._ones(x.shape[0]), self._ones(weights.shape[0], weights.shape[2])
        run = self.torch._scaled_grouped_mm
        return run(x.to(self.fp8), weights, one, other, offs=ends, out_dtype=self.dtype)

    def copy(self, fmt: str, bytes: int) -> Work:
        """Copy so many bytes from memory to memory: they cross the memory's bus twice."""
        turns = self.rotation(2.0 * bytes)
        pairs = [
            (self.window(fmt, 2 * i, bytes // 2), self.window(fmt, 2 * i + 1, bytes // 2)) for i in turns
        ]
        return {"copy_": [partial(a.copy_, b) for a, b in pairs]}, {}

    def launches(self) -> Iterator[dict[str, Any]]:
        """Yield rows of what launching a kernel that does nothing costs: one by one, and in a CUDA graph."""
        one = self._ones(1)
        calls: list[Call] = [partial(one.add_, 1.0)] * 200
        eager = [self._wall(calls) for _ in range(20)]
        yield {"kernel": "add_", "timed": "eager", "samples": eager}
        if self.cuda and (graph := self._captured(calls)) is not None:
            in_graph = [self._wall([graph.replay]) / len(calls) for _ in range(20)]
            yield {"kernel": "add_", "timed": "graph", "samples": in_graph}
            single = self._captured(calls[:1])
            whole = [self._wall([single.replay] * 50) for _ in range(20)]
            yield {"kernel": "replay of a graph of one add_", "timed": "eager", "samples": whole}

    def _wall(self, calls: list[Call]) -> float:
        """Return the microseconds that a call takes from launch to end, launched as fast as the host can."""
        self.wait()
        begin = time.perf_counter()
        for call in calls:
            call()
        self.wait()
        return (time.perf_counter() - begin) * 1e6 / len(calls)

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.cuda:
            self.torch.cuda.synchronize(self.device)

    def _captured(self, calls: list[Call]) -> Any:
        """Return a CUDA graph of calls that ran before, or None where they cannot be captured."""
        torch = self.torch
        self.wait()
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self.stream):
            graph = torch.cuda.CUDAGraph()
            try:
                graph.capture_begin(pool=pool)
                try:
                    for call in calls:
                        call()
                finally:
                    graph.capture_end()
            except RuntimeError:
                # PyTorch's allocator believes the capture to go on; it refuses much until told otherwise.
                with suppress(AttributeError, RuntimeError):
                    torch._C._cuda_endAllocateToPool(self.device.index, pool)
                return None
        self.wait()
        return graph

    def measure(self, item: Item) -> dict[str, Any] | None:
        """Return the row of a shape: its fastest kernel's times; None where no kernel of PyTorch can run it.

        Raises:
            TooLargeError: it needs more memory than there is.
        """
        ready: dict[str, Prepared] = {}
        try:
            try:
                found, extra = getattr(self, item.operator)(item.format, **item.shape)
            except UNSUPPORTED as error:
                self._failed(item, "any", error)
                return None
            for kernel, calls in found.items():
                name = kernel.removeprefix("fallback: ")
                if (item.operator, item.format, name) in self.broken or (name != kernel and ready):
                    continue
                try:
                    ready[name] = self._prepared(calls)
                    self._ran.add((item.operator, item.format, name))
                except UNSUPPORTED as error:
                    self._failed(item, name, error)
            if not ready:
                return None
            quick = {name: min(self._samples(one, 2)) for name, one in ready.items()}
            kernel = min(quick, key=lambda name: quick[name])
            best = ready[kernel]
            repeats = round(SAMPLING_S * 1e6 / max(quick[kernel] * best.calls, 1.0))
            samples = self._samples(best, max(LEAST_REPEATS, min(MOST_REPEATS, repeats)))
            more = {"kernel": kernel, "timed": best.how, "calls": best.calls} | extra
            others = {name: round(time_us, 3) for name, time_us in quick.items() if name != kernel}
            return _row(item, samples, more | ({"others": others} if others else {}))
        finally:
            ready.clear()
            if self.cuda:
                self.torch.cuda.empty_cache()

    def _failed(self, item: Item, kernel: str, error: Exception) -> None:
        """Note that a kernel cannot be run here, unless it could with another shape."""
        if isinstance(error, self.torch.cuda.OutOfMemoryError):
            raise TooLargeError(_first_line(error)) from None
        self.wait()  # raises where the error has left the device unusable
        key = (item.operator, item.format, kernel)
        if key not in self._ran:
            self.broken[key] = f"{type(error).__name__}: {_first_line(error)}"

    def _prepared(self, calls: list[Call]) -> Prepared:
        """Warm the calls up and return what runs them all."""

        def one_by_one() -> None:
            for call in calls:
                call()

        if not self.cuda:
            one_by_one()
            return Prepared("clock", one_by_one, len(calls))
        self.wait()  # for the operands, which another stream made
        with self.torch.cuda.stream(self.stream):
            calls[0]()
            waits = self._waits(calls[-1])
        graph = None if waits else self._captured(calls)
        run = one_by_one if graph is None else graph.replay
        run()
        self.wait()
        return Prepared("eager" if graph is None else "graph", run, len(calls))

    def _waits(self, call: Call) -> bool:
        """Run a call and return whether it waits for the device, which a graph cannot hold."""
        self.torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError:
            return True
        finally:
            self.torch.cuda.set_sync_debug_mode("default")
        return False

    def _samples(self, ready: Prepared, repeats: int) -> list[float]:
        """Return the microseconds of a call, one figure a repeat; fewer repeats where the time is used up."""
        if not self.cuda:
            return [self._wall([ready.run]) / ready.calls for _ in range(repeats)]
        events = [[self.torch.cuda.Event(enable_timing=True) for _ in (0, 1)] for _ in range(repeats)]
        done = []
        for begin, end in events:
            begin.record()
            ready.run()
            end.record()
            done.append((begin, end))
            if time.monotonic() > self.end and len(done) >= 3:
                break
        self.wait()
        return [begin.elapsed_time(end) * 1e3 / ready.calls for begin, end in done]


def _row(item: Item, samples: list[float], more: dict[str, Any]) -> dict[str, Any]:
    ordered = sorted(samples)
    figures = {
        "time_us": statistics.median(ordered),
        "p10": ordered[round(0.1 * (len(ordered) - 1))],
        "p90": ordered[round(0.9 * (len(ordered) - 1))],
    }
    rounded = {name: round(value, 3) for name, value in figures.items()}
    operations, moved = work(item, more.get("touched", 0.0))
    seconds = figures["time_us"] * 1e-6
    rates = {"tflops": operations / seconds / 1e12, "gb_s": moved / seconds / 1e9}
    rounded |= {name: round(value, 2) for name, value in rates.items() if value}
    named = {"operator": item.operator, "format": item.format}
    return named | item.shape | rounded | {"repeats": len(ordered)} | more


def work(item: Item, touched: float) -> tuple[float, float]:
    """Return the operations of a shape and the bytes that it must move; 0 where that says nothing."""
    s, size = item.shape, BYTES[item.format]
    match item.operator:
        case "gemm":
            m, n, k = s["m"], s["n"], s["k"]
            return 2.0 * m * n * k, (n * k + m * k) * size + 2.0 * m * n
        case "decode_attention":
            positions = s["sequences"] * s["context"] * s["head_dim"]
            return 4.0 * positions * s["n_heads"], 2.0 * positions * s["n_kv_heads"] * size
        case "prefill_attention":
            tokens, width = s["tokens"], s["chunks"] * s["head_dim"]
            pairs = tokens * (s["context"] + (tokens + 1) / 2)
            kept = (s["context"] + tokens) * s["n_kv_heads"]
            return 4.0 * width * s["n_heads"] * pairs, 2.0 * width * (tokens * s["n_heads"] + kept) * size
        case "experts":
            one = 3.0 * s["d_model"] * s["width"]
            return 2.0 * s["tokens"] * s["per_token"] * one, touched * one * size
        case "copy":
            return 0.0, 2.0 * s["bytes"]
        case "all_reduce":
            return 0.0, 2.0 * s["bytes"] * (s["gpus"] - 1) / s["gpus"]
    return 0.0, 0.0


def _up(number: int, step: int) -> int:
    return math.ceil(number / step) * step


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


# --- several GPUs ---


def all_reduce(torch: Any, device: Any, end: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of all-reduce over 2, 4 and 8 GPUs (two processes on a CPU), and what failed."""
    there = torch.cuda.device_count() if device.type == "cuda" else 2
    rows: list[dict[str, Any]] = []
    failed = [] if there > 1 else [_skipped("all_reduce", "bf16", "nccl", "there is one GPU")]
    for count in [2**power for power in range(1, 4) if 2**power <= there]:
        limit = min(40.0, (end - time.monotonic()) / 2)
        with tempfile.TemporaryDirectory(prefix="profile_gpu-") as folder:
            facts = {"count": count, "file": f"{folder}/meeting", "device": device.type, "seconds": limit}
            lines = [json.dumps(facts | {"rank": rank}) for rank in range(count)]
            started = [
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", line], stdout=subprocess.PIPE, text=True
                )
                for line in lines
            ]
            try:
                rows += json.loads(started[0].communicate(timeout=limit)[0])
            except subprocess.TimeoutExpired:
                failed.append(_skipped("all_reduce", "bf16", f"{count} GPUs", f"no answer in {limit:.0f} s"))
            except ValueError:
                failed.append(_skipped("all_reduce", "bf16", f"{count} GPUs", "a process failed, see stderr"))
            finally:
                for process in started:
                    process.kill()
                    process.wait()
    return rows, failed


def _worker(line: str) -> int:
    """Take part in the all-reduces of `all_reduce`; the first of the processes prints the rows."""
    import torch
    import torch.distributed as group

    facts = json.loads(line)
    cuda = facts["device"] == "cuda"
    device = torch.device(f"cuda:{facts['rank']}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    group.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{facts['file']}",
        rank=facts["rank"],
        world_size=facts["count"],
        timeout=timedelta(seconds=max(facts["seconds"], 1.0)),
    )
    rows = []
    for size in _MESSAGES if cuda else _MESSAGES[:2]:
        message = torch.ones(size // 2, dtype=torch.bfloat16, device=device)
        samples = []
        for repeat in range(25):
            group.barrier()
            if cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(10):
                group.all_reduce(message)
            if cuda:
                torch.cuda.synchronize()
            if repeat >= 5:
                samples.append((time.perf_counter() - begin) * 1e6 / 10)
        item = Item("all_reduce", "bf16", {"bytes": size, "gpus": facts["count"]})
        rows.append(
            _row(item, samples, {"kernel": "nccl" if cuda else "gloo", "timed": "eager", "calls": 10})
        )
    if facts["rank"] == 0:
        print(json.dumps(rows), flush=True)
    return 0


# --- the profile ---


def _skipped(operator: str, fmt: str, kernel: str, reason: str) -> dict[str, str]:
    return {"operator": operator, "format": fmt, "kernel": kernel, "reason": reason}


def measure_all(
    torch: Any, device: Any, seconds: float, with_all_reduce: bool, profile: dict[str, Any]
) -> None:
    """Measure until the plan or the time is at its end, and fill in `profile` as it goes."""
    end = STARTED + seconds
    rows, skipped, left_out = profile["rows"], profile["skipped"], Counter[tuple[str, str, str]]()
    if with_all_reduce:
        found, failed = all_reduce(torch, device, end)
        rows += found
        skipped += failed
    else:
        skipped.append(_skipped("all_reduce", "bf16", "nccl", "not asked for: --all-reduce"))
    bench = Bench(torch, device, end)
    profile["settings"]["dtype"] = str(bench.dtype).removeprefix("torch.")
    items = plan(small=not bench.cuda)
    reference = next(item for item in items if item.operator == "gemm")
    if bench.cuda:
        for _ in range(3):
            bench.measure(reference)  # clocks and libraries are warm from here on
    profile["clocks"]["before"] = _clocks(profile["gpu"].get("uuid"))
    told = time.monotonic()
    try:
        for number, item in enumerate(items):
            what = (item.operator, item.format)
            if time.monotonic() > end - 0.5:
                left_out[(*what, "time")] += 1
                continue
            if reason := bench.missing(item.format):
                bench.broken.setdefault((*what, "any"), reason)
            if (*what, "any") in bench.broken:
                continue
            if item.operator == "launch":
                rows += [_row(item, found.pop("samples"), found) for found in bench.launches()]
                continue
            try:
                row = bench.measure(item)
            except TooLargeError:
                left_out[(*what, "memory")] += 1
                continue
            if row is None:
                left_out[(*what, "no kernel")] += 1
                continue
            rows.append(row)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                shape = " ".join(f"{key}={value}" for key, value in item.shape.items())
                _tell(
                    f"{told - STARTED:4.0f} of {seconds:.0f} s, {number + 1} of {len(items)} shapes: "
                    f"{item.operator} {item.format} {shape}: {row['time_us']:.1f} us"
                )
        first = next((row for row in rows if row["operator"] == "gemm"), None)
        again = bench.measure(reference)
        if first and again:
            profile["drift"] = round(again["time_us"] / first["time_us"], 4)
    finally:
        skipped += [_skipped(*key, reason) for key, reason in bench.broken.items()]
        profile["left_out"] = [
            {"operator": operator, "format": fmt, "shapes": count, "reason": reason}
            for (operator, fmt, reason), count in left_out.items()
        ]
    profile["clocks"]["after"] = _clocks(profile["gpu"].get("uuid"))


def describe(torch: Any, device: Any) -> dict[str, Any]:
    """Return what the device is: name, memory, driver; unknown facts are null."""
    if device.type != "cuda":
        name = platform.processor() or platform.machine()
        return {"name": name, "kind": "cpu", "threads": torch.get_num_threads(), "count": 0, "uuid": None}
    facts = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{facts.uuid}" if hasattr(facts, "uuid") and torch.version.hip is None else None
    known = _nvidia_smi(uuid, "driver_version", "utilization.gpu", "memory.used", "power.limit")
    return {
        "name": facts.name,
        "kind": "amd" if torch.version.hip else "nvidia",
        "count": torch.cuda.device_count(),
        "memory_gib": round(facts.total_memory / 2**30, 2),
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "l2_cache_bytes": getattr(facts, "L2_cache_size", None),
        "driver": known.get("driver_version"),
        "busy_before_percent": known.get("utilization.gpu"),
        "memory_used_before_mib": known.get("memory.used"),
        "power_limit_w": known.get("power.limit"),
        "uuid": uuid,
    }


def _clocks(uuid: str | None) -> dict[str, str]:
    return (
        _nvidia_smi(uuid, "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")
        if uuid
        else {}
    )


def _nvidia_smi(uuid: str | None, *names: str) -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None or uuid is None:
        return {}
    line = [program, "-i", uuid, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))


# --- the command line ---


def _seconds(text: str) -> float:
    value = float(text)
    if not LEAST_SECONDS <= value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: must be {LEAST_SECONDS:g} to {MOST_SECONDS:g}")
    return value


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="profile_gpu.py",
        description="Measure the operators of an LLM engine on the GPU at hand; JSON on stdout.",
        epilog="python profile_gpu.py > my_gpu.json",
    )
    parser.add_argument("--seconds", type=_seconds, default=120.0, help="time in all, start included (120)")
    parser.add_argument(
        "--device", default="cuda", help="cuda (default), cuda:1 ..., or cpu with tiny shapes"
    )
    parser.add_argument(
        "--all-reduce", action="store_true", help="also sum messages over this machine's GPUs"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _device(torch: Any, name: str) -> Any:
    """Return the device of this name.

    Raises:
        UsageError: there is none.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "cpu") or (
        index and not (kind == "cuda" and index.isascii() and index.isdigit())
    ):
        raise UsageError(f"there is no device {name!r}: --device=cuda, cuda:1 ... or cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "it finds no GPU or no driver" if built else "it is built for CPUs only"
        raise UsageError(
            f"PyTorch {torch.__version__} sees no GPU: {why}. To try this on the CPU: --device=cpu"
        )
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"there is no device {name!r}: there are {torch.cuda.device_count()} GPUs, from cuda:0 on"
        )
    device = torch.device("cuda", int(index or 0))
    torch.cuda.set_device(device)
    return device


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: Any) -> None:
    _ignore_signals()  # a second one must not keep the first from being obeyed
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong usage, 130 interrupted."""
    options = _options(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if options.worker else _interrupt)
    profile: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": VERSION,
        "complete": False,
        "ended": "interrupted",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017 - also for Python 3.10
        "gpu": {},
        "software": {"python": platform.python_version(), "system": platform.platform()},
        "settings": {"seconds": options.seconds, "device": options.device},
        "clocks": {},
        "drift": None,
        "rows": [],
        "skipped": [],
        "left_out": [],
        "limits": list(LIMITS),
    }
    try:
        try:
            import torch
        except ImportError as error:
            raise UsageError(
                f"PyTorch cannot be imported by {sys.executable}: {error}. Install it (pip install torch), "
                "or run this file with a Python that has it: it needs nothing else"
            ) from None
        if options.worker:
            return _worker(options.worker)
        warnings.simplefilter("ignore")  # of attention's kernels that were only tried
        device = _device(torch, options.device)
        profile["gpu"] = describe(torch, device)
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
        profile["software"] |= versions
        _tell(
            f"measuring {profile['gpu']['name']} with PyTorch {torch.__version__} for {options.seconds:.0f} s"
        )
        with torch.no_grad():
            measure_all(torch, device, options.seconds, options.all_reduce, profile)
        profile["complete"], profile["ended"] = True, "time" if profile["left_out"] else "plan"
        code = 0
    except UsageError as error:
        _tell(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        _tell(f"interrupted: the profile has {len(profile['rows'])} rows and is marked as incomplete")
        code = EXIT_INTERRUPTED
    except RuntimeError as error:
        # An error that leaves the device unusable; what was measured before it stands.
        profile["ended"] = f"{type(error).__name__}: {_first_line(error)}"
        _tell(f"error: the device failed: {_first_line(error)}")
        code = 1
    _ignore_signals()  # what is written must be whole
    try:
        print(json.dumps(profile, indent=1), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    left = sum(part["shapes"] for part in profile["left_out"])
    spent = time.monotonic() - STARTED
    _tell(
        f"{len(profile['rows'])} shapes measured in {spent:.0f} s, {left} left out; see left_out and skipped"
    )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
