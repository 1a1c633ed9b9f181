"""The task `profile` and its script on the CPU; most of it needs PyTorch, and skips itself without."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from llmpilot import profile_gpu
from llmpilot.tasks.profile import SCRIPT

SECONDS = 40  # at most: the small plan ends long before


def needs_torch() -> Any:
    reason = "profiling needs PyTorch: pip install torch (its CPU build will do)"
    return pytest.importorskip("torch", reason=reason)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llmpilot", "task=profile", *arguments]


def test_without_pytorch_the_cure_is_the_file_to_copy(workdir: Path) -> None:
    (workdir / "torch.py").write_text("raise ImportError('no PyTorch here')")
    environment = os.environ | {"PYTHONPATH": f"{workdir}:{os.environ.get('PYTHONPATH', '')}"}
    line = command("output=my_gpu.json", "device=cpu")
    ran = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 2
    assert "PyTorch" in ran.stderr
    assert str(SCRIPT) in ran.stderr
    assert not (workdir / "my_gpu.json").exists()


def test_the_script_can_be_had_from_the_package(workdir: Path) -> None:
    ran = subprocess.run(command("script=there/p.py"), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (workdir / "there" / "p.py").read_bytes() == SCRIPT.read_bytes()
    assert "python p.py > my_gpu.json" in ran.stdout


@pytest.mark.parametrize(
    "option", ["device=tpu", "seconds=0", "seconds=nan", "output=.", "script=.", "all_reduce=2"]
)
def test_nonsense_is_refused(workdir: Path, option: str) -> None:
    ran = subprocess.run(command(option), capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert option.partition("=")[0] in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_small_plan_is_measured_and_every_row_has_its_times(workdir: Path) -> None:
    needs_torch()
    line = command("device=cpu", f"seconds={SECONDS}", "output=my_cpu.json", "result_file=r.json")
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    profile = json.loads((workdir / "my_cpu.json").read_text())
    assert (profile["schema"], profile["schema_version"]) == (profile_gpu.SCHEMA, profile_gpu.VERSION)
    assert profile["complete"]
    operators = {row["operator"] for row in profile["rows"]}
    assert operators == {"launch", "copy", "gemm", "decode_attention", "prefill_attention", "experts"}
    for row in profile["rows"]:
        assert 0 < row["p10"] <= row["time_us"] <= row["p90"] < math.inf
        assert row["repeats"] >= 5
    skipped = {(one["operator"], one["format"]) for one in profile["skipped"]}
    assert {("gemm", "nvfp4"), ("gemm", "fp8_block"), ("all_reduce", "bf16")} <= skipped
    planned = {(item.operator, item.format) for item in profile_gpu.plan(small=True)}
    assert {(row["operator"], row["format"]) for row in profile["rows"]} | skipped >= planned
    result = json.loads((workdir / "r.json").read_text())
    assert result["rows"] == len(profile["rows"])
    assert "gpu.profile=my_cpu.json" in ran.stdout


def test_its_own_time_is_kept_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    needs_torch()
    begin = time.monotonic()
    line = [sys.executable, str(SCRIPT), "--device=cpu", "--seconds=2"]
    ran = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path)
    profile = json.loads(ran.stdout)
    spent = time.monotonic() - begin
    left = sum(one["shapes"] for one in profile["left_out"] if one["reason"] == "time")
    assert left > 0
    assert profile["ended"] == "time"
    assert spent < 60


def test_two_processes_sum_messages(tmp_path: Path) -> None:
    needs_torch()
    line = [sys.executable, str(SCRIPT), "--device=cpu", f"--seconds={2 * SECONDS}", "--all-reduce"]
    ran = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path)
    rows = [row for row in json.loads(ran.stdout)["rows"] if row["operator"] == "all_reduce"]
    assert [row["gpus"] for row in rows] == [2, 2]
    assert all(row["time_us"] > 0 for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_measured(workdir: Path, number: signal.Signals) -> None:
    needs_torch()
    process = subprocess.Popen(
        command("device=cpu", "seconds=300", "output=my_cpu.json"), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for text in process.stderr:
        if text.startswith("measuring"):
            break
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    profile = json.loads((workdir / "my_cpu.json").read_text())
    assert not profile["complete"]
    assert list(workdir.glob(".my_cpu*")) == []


def test_a_profile_changes_what_is_simulated_and_the_first_line_says_how(run: Run, workdir: Path) -> None:
    rows = [
        {"operator": "gemm", "format": "bf16", "timed": "graph", **item.shape, "time_us": 1e6}
        for item in profile_gpu.plan()
        if (item.operator, item.format) == ("gemm", "bf16")
    ]
    facts = {"schema": profile_gpu.SCHEMA, "schema_version": profile_gpu.VERSION, "complete": True}
    gpu = {"name": "NVIDIA H100 80GB HBM3", "kind": "nvidia"}
    (workdir / "slow.json").write_text(json.dumps(facts | {"gpu": gpu, "rows": rows}))
    line = ["+gpu=h100", "+model=llama_3_1_8b", "engine=vllm", "tuner=none", "load.users=[1]"]
    line += ["load.duration_s=20", "workload=fixed", "workload.input_tokens=64", "workload.output_tokens=8"]
    ran = run(*line, "gpu.profile=slow.json", "result_file=slow.result.json")
    assert ran.code == 0, ran.err
    assert "slow.json (NVIDIA H100 80GB HBM3): gemm in bf16" in ran.out
    assert run(*line, "result_file=fast.result.json").code == 0
    times = [json.loads(Path(f"{name}.result.json").read_text())["levels"][0] for name in ("slow", "fast")]
    assert times[0]["itl_ms"]["p50"] > 3 * times[1]["itl_ms"]["p50"]


def test_a_profile_that_cannot_be_used_is_one_message(run: Run, workdir: Path) -> None:
    (workdir / "bad.json").write_text("{}")
    for engine, words in (("vllm", "bad.json: schema"), ("tgis", "without operators")):
        ran = run("+gpu=h100", "+model=llama_3_1_8b", f"engine={engine}", "gpu.profile=bad.json")
        assert ran.code == 2
        assert words in ran.err
        assert "Traceback" not in ran.err
    ran = run("+gpu=h100", "+model=llama_3_1_8b", "gpu.profile=bad.json", "result_file=bad.json")
    assert "would overwrite gpu.profile" in ran.err
