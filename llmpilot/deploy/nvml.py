"""Power and memory of this machine's NVIDIA GPUs, through NVML. The only file that knows of it.

The library comes with the driver; its Python binding `pynvml` (PyPI: nvidia-ml-py) is optional. Written from
NVML's reference (docs.nvidia.com/deploy/nvml-api, device queries) and the functions of nvidia-ml-py 13; it
has never met a real GPU.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

MILLIWATTS, GB = 1e3, 1e9


class Gpus:
    """The GPUs that a server on this machine may use."""

    def __init__(self, nvml: ModuleType, handles: list[Any]) -> None:
        self._nvml, self._handles = nvml, handles

    def power_w(self) -> float:
        """Return what all of them draw together [W]; NaN if one does not say."""
        milliwatts = [self._ask("nvmlDeviceGetPowerUsage", handle) for handle in self._handles]
        return math.nan if None in milliwatts else sum(milliwatts) / MILLIWATTS

    def memory_gb(self) -> float:
        """Return the memory in use on all of them together [GB], whoever uses it; NaN if one does not say.

        What the driver keeps for itself counts as used, as in NVML's first memory query.
        """
        memories = [self._ask("nvmlDeviceGetMemoryInfo", handle) for handle in self._handles]
        return math.nan if None in memories else sum(memory.used for memory in memories) / GB

    def __str__(self) -> str:
        names = [self._ask("nvmlDeviceGetName", handle) for handle in self._handles]
        # Old bindings give bytes.
        texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        return ", ".join(f"{count} x {name}" for name, count in Counter(texts).items())

    def _ask(self, function: str, handle: Any) -> Any:
        """Return NVML's answer, None where this GPU or driver has none."""
        try:
            return getattr(self._nvml, function)(handle)
        except (self._nvml.NVMLError, AttributeError):
            return None


@contextmanager
def local_gpus() -> Iterator[Gpus | str]:
    """Yield the GPUs of this machine, or why nothing is known of any."""
    nvml = _begun()
    try:
        yield nvml if isinstance(nvml, str) else _visible(nvml)
    finally:
        if not isinstance(nvml, str):
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _begun() -> ModuleType | str:
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"no driver answers: {error}"
    return nvml


def _visible(nvml: ModuleType) -> Gpus | str:
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is not None:
            handles = _chosen(nvml, handles, [word.strip() for word in wanted.split(",")])
    except nvml.NVMLError as error:
        return f"the GPUs cannot be listed: {error}"
    return Gpus(nvml, handles) if handles else "no GPU is visible"


def _chosen(nvml: ModuleType, handles: list[Any], wanted: list[str]) -> list[Any]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, by number or by the beginning of their UUID.

    CUDA stops at the first name that is none. Numbers are NVML's, by PCI bus: on a machine of mixed GPUs
    CUDA counts so only with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    chosen: list[Any] = []
    for name in wanted:
        if name.isdigit():
            named = handles[int(name) : int(name) + 1]
        else:
            named = [handle for handle in handles if name and _uuid(nvml, handle).startswith(name)]
        if len(named) != 1:
            break
        chosen += named
    return chosen


def _uuid(nvml: ModuleType, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)
