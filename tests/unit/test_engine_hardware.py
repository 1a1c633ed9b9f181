"""What the machine is, by nvidia-smi where there is one."""

from pathlib import Path

import pytest

from llmpilot.deploy.hardware import local_hardware


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nvidia-smi, the only program on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA L4\necho NVIDIA L4\necho NVIDIA T4\n")
    program.chmod(0o755)
    return program


def test_gpus(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_hardware() == "2 x NVIDIA L4, 1 x NVIDIA T4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert local_hardware() == "1 x NVIDIA T4, 1 x NVIDIA L4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_hardware().startswith("cpu: ")


def test_no_gpu(smi: Path) -> None:
    smi.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert local_hardware().startswith("cpu: ")
    smi.unlink()
    assert " x " in local_hardware()
