"""Stands in for NVIDIA's binding where there is no GPU: two of them, made to fail by way of `state`."""
# ruff: noqa: N802 - its names are NVML's

from types import SimpleNamespace

state = SimpleNamespace(driver=True, power=True, running=0, names=["NVIDIA L4", "NVIDIA L4"])


class NVMLError(Exception):
    """NVML's own."""


def nvmlInit() -> None:
    if not state.driver:
        raise NVMLError("Driver Not Loaded")
    state.running += 1


def nvmlShutdown() -> None:
    state.running -= 1


def nvmlDeviceGetCount() -> int:
    return len(state.names)


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return state.names[handle]


def nvmlDeviceGetUUID(handle: int) -> bytes:
    return f"GPU-{handle}abc".encode()


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    if not state.power:
        raise NVMLError("Not Supported")
    return 70_000 + 1_500 * handle


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=24_000_000_000, used=2_000_000_000 * (handle + 1), free=0)
