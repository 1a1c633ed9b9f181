"""Ctrl-C from a terminal, which every process of the group hears, while the client's workers still begin."""

from pathlib import Path

import pytest
from tracked import interrupted_when, processes_of

from llmpilot.emulator import FixedTiming, Options, example_service, in_process

CELL = ("+gpu=a100", "+model=starcoder", "engine=openai", "deployment=external", "load.users=[2]")


def worker_importing(session: int) -> bool:
    """Whether a worker has begun its imports."""
    workers = [pid for pid, command in processes_of(session).items() if "loadtest.worker" in command]
    try:
        return any("_multiarray_umath" in (Path("/proc") / str(pid) / "maps").read_text() for pid in workers)
    except OSError:
        return False


@pytest.mark.usefixtures("workdir")
def test_workers_at_their_imports_say_nothing() -> None:
    with in_process(example_service(), Options(fixed=FixedTiming(ttft_ms=5, itl_ms=1))) as emulator:
        _, err = interrupted_when(worker_importing, *CELL, f"deployment.url={emulator.url}")
    assert err.splitlines()[-1].startswith("interrupted")
