"""GPU power and memory as NVML's reference describes it: against a stand-in, for want of a GPU."""

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmpilot.deploy.nvml import Gpus, local_gpus


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The stand-in's state; it is imported as the real binding would be."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "nvml_stand_in")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield importlib.import_module("pynvml").state
    sys.modules.pop("pynvml", None)


def test_sums_over_the_gpus_and_lets_go_of_the_driver(driver: SimpleNamespace) -> None:
    with local_gpus() as gpus:
        assert isinstance(gpus, Gpus)
        assert str(gpus) == "2 x NVIDIA L4"
        assert gpus.power_w() == pytest.approx(141.5)
        assert gpus.memory_gb() == pytest.approx(6)
        assert driver.running == 1
    assert driver.running == 0


@pytest.mark.parametrize(
    ("visible", "memory_gb"),
    [("1", 4), ("1,0", 6), ("GPU-1", 4), ("0,-1,1", 2), ("0,7", 2), (" 0 , GPU-1abc", 6)],
)
def test_only_visible_gpus_count(
    driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str, memory_gb: float
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with local_gpus() as gpus:
        assert isinstance(gpus, Gpus)
        assert gpus.memory_gb() == pytest.approx(memory_gb)


@pytest.mark.parametrize("visible", ["", "-1", "none", "9"])
def test_no_visible_gpu_is_said(
    driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with local_gpus() as gpus:
        assert gpus == "no GPU is visible"


def test_a_figure_that_a_gpu_does_not_have_is_unknown(driver: SimpleNamespace) -> None:
    driver.power = False
    with local_gpus() as gpus:
        assert isinstance(gpus, Gpus)
        assert math.isnan(gpus.power_w())
        assert gpus.memory_gb() == pytest.approx(6)


def test_without_a_driver_it_says_so(driver: SimpleNamespace) -> None:
    driver.driver = False
    with local_gpus() as gpus:
        assert gpus == "no driver answers: Driver Not Loaded"


def test_without_the_binding_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with local_gpus() as gpus:
        assert gpus == "nvidia-ml-py is not installed"


def test_an_error_of_the_measurement_passes_through(driver: SimpleNamespace) -> None:
    with pytest.raises(KeyError), local_gpus():
        raise KeyError
    assert driver.running == 0
