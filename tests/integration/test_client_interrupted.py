"""Ctrl-C from a terminal, which every process of the group hears, while the client's workers still begin."""

from pathlib import Path

import pytest
from tracked import interrupted_when, processes_of

from llmpilot.emulator import FixedTiming, Options, example_service, in_process, in_thread

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


@pytest.mark.usefixtures("workdir")
def test_conversations_under_way_end_with_their_level() -> None:
    talks = ("workload=conversations", "workload.think_time_s=0.05", "load.warmup_s=1", "load.duration_s=60")
    with in_thread(example_service(), Options(fixed=FixedTiming(ttft_ms=2, itl_ms=0.1))) as emulator:
        _, err = interrupted_when(
            lambda _: emulator.requests > 12, *CELL, *talks, f"deployment.url={emulator.url}"
        )
        running, _, _ = emulator._gauges()
    assert "interrupted: 0 levels" in err
    assert running <= 2, "nothing is sent any more"
