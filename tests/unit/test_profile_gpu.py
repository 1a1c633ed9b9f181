"""The stand-alone profiler, as far as it goes without PyTorch: its plan, its arguments, what it says."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot import profile_gpu
from llmpilot.profile_gpu import BYTES, FORMATS, SCHEMA, Item, plan, work

STAND_IN = """
import os, signal, time
__version__ = "0.0"
class version:
    cuda = hip = None
class cuda:
    is_available = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 0)
"""


def run_alone(folder: Path, *arguments: str, torch: str | None) -> subprocess.CompletedProcess[str]:
    """Run a copy of the file in a folder of its own, beside a stand-in for PyTorch or one that is missing."""
    shutil.copy(profile_gpu.__file__, folder / "profile_gpu.py")
    (folder / "torch.py").write_text("raise ImportError('no PyTorch here')" if torch is None else torch)
    line = [sys.executable, "profile_gpu.py", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_plan_measures_every_operator_and_format_early() -> None:
    items = plan()
    kinds = {(item.operator, item.format) for item in items}
    assert {(operator, fmt) for operator, formats in FORMATS.items() for fmt in formats} < kinds
    assert {operator for operator, _ in kinds} == {
        *("launch", "copy", "gemm", "decode_attention", "prefill_attention", "experts")
    }
    assert {(item.operator, item.format) for item in items[: 2 * len(kinds)]} == kinds
    assert len({str(item) for item in items}) == len(items)
    assert len(plan(small=True)) < 30


@given(st.integers(100, 1400))
def test_wherever_the_time_ends_all_operators_have_had_their_share(end: int) -> None:
    whole = Counter((item.operator, item.format) for item in plan())
    done = Counter((item.operator, item.format) for item in plan()[:end])
    gemms = [done["gemm", fmt] for fmt in FORMATS["gemm"]]
    assert max(gemms) - min(gemms) <= 1
    for kind, shapes in whole.items():
        assert done[kind] >= min(shapes, 10, end // 15)


def test_every_shape_of_the_plan_is_possible() -> None:
    for item in plan() + plan(small=True):
        assert all(size > 0 for key, size in item.shape.items() if key != "context")
        if "n_kv_heads" in item.shape:
            assert item.shape["n_heads"] % item.shape["n_kv_heads"] == 0
        if item.operator == "gemm" and item.shape["k"] > 256:  # what scales in blocks need
            assert item.shape["k"] % 512 == 0
            assert item.shape["n"] % 128 == 0


def test_work_counts_what_a_shape_needs_at_least() -> None:
    gemm = {"m": 2, "n": 3, "k": 5}
    assert work(Item("gemm", "bf16", gemm), 0) == (60, (15 + 10) * 2 + 12)
    assert work(Item("gemm", "fp8", gemm), 0) == (60, (15 + 10) * 1 + 12)
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
    # Per position, head and dimension: multiply and add, for keys and for values.
    assert work(Item("decode_attention", "bf16", heads | {"sequences": 3, "context": 10}), 0) == (
        3 * 10 * 4 * 8 * 4,
        3 * 10 * 2 * 8 * 2 * 2,
    )
    chunk = heads | {"chunks": 1, "tokens": 4, "context": 0}
    pairs = 1 + 2 + 3 + 4
    assert work(Item("prefill_attention", "bf16", chunk), 0)[0] == pairs * 4 * 8 * 4
    behind = heads | {"chunks": 1, "tokens": 4, "context": 6}
    assert work(Item("prefill_attention", "bf16", behind), 0)[0] == (7 + 8 + 9 + 10) * 4 * 8 * 4
    moe = {"n_experts": 8, "per_token": 2, "d_model": 16, "width": 4, "tokens": 5}
    assert work(Item("experts", "bf16", moe), 6) == (5 * 2 * 3 * 16 * 4 * 2, 6 * 3 * 16 * 4 * BYTES["bf16"])
    assert work(Item("launch", "bf16", {"kernels": 1}), 0) == (0, 0)


def test_without_pytorch_it_says_what_to_do(tmp_path: Path) -> None:
    ran = run_alone(tmp_path, torch=None)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "pip install torch" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ran = run_alone(tmp_path, torch=STAND_IN)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "sees no GPU: it is built for CPUs only" in ran.stderr
    assert "--device=cpu" in ran.stderr
    fine = STAND_IN.replace("lambda: False", "lambda: True").replace("lambda: 0", "lambda: 2")
    assert "there are 2 GPUs" in run_alone(tmp_path, "--device=cuda:2", torch=fine).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds=nan"], "must be 2 to 3600"),
        (["--seconds=0"], "must be 2 to 3600"),
        (["--seconds=long"], "invalid"),
        (["--device=tpu"], "there is no device 'tpu'"),
        (["--device=cuda:one"], "there is no device"),
        (["--device=cpu:1"], "there is no device"),
        (["more"], "unrecognized arguments"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    ran = run_alone(tmp_path, *arguments, torch=STAND_IN)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_interrupted_profile_is_whole_and_says_that_it_is_incomplete(tmp_path: Path) -> None:
    during = STAND_IN + "get_num_threads = lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(30)\n"
    ran = run_alone(
        tmp_path, "--device=cpu", torch=during + "device = lambda name: type('D', (), {'type': name})\n"
    )
    profile = json.loads(ran.stdout)
    assert ran.returncode == 130
    assert (profile["schema"], profile["complete"], profile["ended"]) == (SCHEMA, False, "interrupted")
    assert "marked as incomplete" in ran.stderr


def test_a_device_that_fails_leaves_what_was_measured(tmp_path: Path) -> None:
    broken = STAND_IN + "def get_num_threads():\n    raise RuntimeError('illegal address\\nat line 1')\n"
    ran = run_alone(
        tmp_path, "--device=cpu", torch=broken + "device = lambda name: type('D', (), {'type': name})\n"
    )
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["ended"] == "RuntimeError: illegal address"
    assert "error: the device failed: illegal address" in ran.stderr
