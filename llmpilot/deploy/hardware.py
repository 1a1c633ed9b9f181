"""What this machine really is: what a server that is started here runs on, whatever a GPU profile says."""

import os
import platform
import shutil
import subprocess
from collections import Counter
from pathlib import Path

QUERY = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def local_hardware() -> str:
    """Return the GPUs of this machine (`2 x NVIDIA L4`), or its processor (`cpu: 2 x AMD EPYC 7B13`).

    Servers may use less of it: CUDA_VISIBLE_DEVICES is heeded where it names whole numbers.
    """
    names = _gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [int(number) for number in visible.split(",") if number.strip().isdigit()]
        names = [names[number] for number in chosen if number < len(names)]
    if names:
        return ", ".join(f"{count} x {name}" for name, count in Counter(names).items())
    return f"cpu: {os.cpu_count() or 1} x {_processor()}"


def _gpus() -> list[str]:
    if shutil.which(QUERY[0]) is None:
        return []
    try:
        asked = subprocess.run(QUERY, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [line.strip() for line in asked.stdout.splitlines() if line.strip()] if not asked.returncode else []
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
