"""The profiler's way on a GPU, with stand-ins for torch.cuda: graphs replay nothing, events read the clock.

It shows that this way is walked to its end and that what cannot be captured or run is told apart; no speed.
Needs PyTorch, and skips itself without.
"""

import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from llmpilot import profile_gpu

torch = pytest.importorskip(
    "torch", reason="profiling needs PyTorch: pip install torch (its CPU build will do)"
)
Profiled = Callable[..., dict[str, Any]]


class Graph:
    """Replays nothing, but takes a moment."""

    refused = False

    def capture_begin(self, pool: Any) -> None:
        if Graph.refused:
            raise RuntimeError("operation not permitted when stream is capturing")

    def capture_end(self) -> None: ...

    def replay(self) -> None:
        time.sleep(1e-4)


class Event:
    """A moment on the host's clock."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Profiled]:
    """Profile a GPU of some compute capability whose tensors are the CPU's."""
    device = SimpleNamespace(type="cuda", index=0)
    facts = SimpleNamespace(name="Stand-in", total_memory=2**33, multi_processor_count=3, L2_cache_size=2**20)
    stand_ins = {
        "Stream": lambda _device: None,
        "stream": lambda _stream: nullcontext(),
        "CUDAGraph": Graph,
        "Event": Event,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "graph_pool_handle": lambda: (0, 0),
        "set_sync_debug_mode": lambda _mode: None,
        "mem_get_info": lambda _device: (2**31, 2**32),
        "get_device_properties": lambda _device: facts,
        "device_count": lambda: 1,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("empty", "ones", "rand"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, _real=real, device=None, **how: _real(*size, **how))
    monkeypatch.setattr(profile_gpu, "_device", lambda _torch, _name: device)
    monkeypatch.setattr(profile_gpu, "SAMPLING_S", 1e-3)
    monkeypatch.setattr(Graph, "refused", False)
    small = profile_gpu.plan(small=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(capability: tuple[int, int], *more: profile_gpu.Item) -> dict[str, Any]:
        facts.major, facts.minor = capability
        monkeypatch.setattr(profile_gpu, "plan", lambda **_: [*small, *more])
        monkeypatch.setattr(profile_gpu, "STARTED", time.monotonic())
        capsys.readouterr()
        assert profile_gpu.main(["--seconds=100"]) == 0
        profile: dict[str, Any] = json.loads(capsys.readouterr().out)
        return profile

    with warnings.catch_warnings():
        yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_shapes_are_timed_in_graphs(profiled: Profiled) -> None:
    profile = profiled((9, 0))
    timed = {row["operator"]: row["timed"] for row in profile["rows"]}
    assert timed.pop("launch") == "eager"
    assert set(timed) == {"copy", "gemm", "decode_attention", "prefill_attention", "experts"}
    assert set(timed.values()) == {"graph"}
    launches = [(row["kernel"], row["timed"]) for row in profile["rows"] if row["operator"] == "launch"]
    assert launches == [("add_", "eager"), ("add_", "graph"), ("replay of a graph of one add_", "eager")]
    assert profile["drift"] > 0


def test_what_cannot_be_captured_is_launched_one_by_one(
    profiled: Profiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "refused", True)
    profile = profiled((9, 0))
    assert {row["timed"] for row in profile["rows"]} == {"eager"}


def test_formats_that_the_hardware_lacks_are_skipped_with_the_reason(profiled: Profiled) -> None:
    profile = profiled((7, 5))
    reasons = {(one["operator"], one["format"]): one["reason"] for one in profile["skipped"]}
    assert reasons["gemm", "fp8"] == "compute capability 7.5 has no fp8"
    assert reasons["gemm", "nvfp4"] == "compute capability 7.5 has no nvfp4"
    assert profile["settings"]["dtype"] == "float16"


def test_shapes_beyond_the_memory_and_kernels_that_are_not_there_are_told_apart(profiled: Profiled) -> None:
    huge = profile_gpu.Item("gemm", "bf16", {"n": 2**16, "k": 2**16, "m": 1})
    profile = profiled((9, 0), huge)
    left_out = {(one["operator"], one["format"]): one["reason"] for one in profile["left_out"]}
    assert left_out["gemm", "bf16"] == "memory"
    assert left_out["experts", "fp8"] == "no kernel"
    kernels = {one["kernel"] for one in profile["skipped"]}
    assert {"sdpa cudnn", "scaled_grouped_mm rowwise"} <= kernels
