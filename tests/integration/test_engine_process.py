"""`deployment=process` with a server of our own: why one failed is said, and none is left behind."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from dummy_server import LOST_PORT, DummyEngine

from llmpilot import catalog
from llmpilot.config import Load
from llmpilot.deploy.external import ServiceError
from llmpilot.deploy.process import (
    ProcessDeployment,
    ProcessEndpoint,
    ServerDiedError,
    ServerOutOfMemoryError,
)
from llmpilot.errors import DoesNotFitError, PilotError
from llmpilot.loadtest import Traffic, run_level
from llmpilot.workload import fit, from_lengths

MODEL, GPU = catalog.models()["starcoder"], catalog.gpus()["a100"]
PATIENCE_S = 30


def start(
    *modes: tuple[str, ...], log: Path | None = None, engine: DummyEngine | None = None, **settings: float
) -> AbstractContextManager[ProcessEndpoint]:
    deployment = ProcessDeployment.model_validate({"stop_grace_s": 5} | settings)
    engine = engine or DummyEngine(*modes)
    return deployment.start(engine, MODEL, GPU, 96, heaviest_request_tokens=48, log_path=log)


def pids(log: Path) -> list[int]:
    lines = log.read_text().splitlines()
    return [int(line.rpartition("pid ")[2]) for line in lines if ", pid " in line]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        # A process that nobody has waited for yet (as init does in its own time) is dead as well.
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def all_gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, processes))


def test_serves_a_level_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "server.log"
    with start(("child",), log=log) as endpoint:
        assert (endpoint.model, endpoint.dialect, endpoint.simulated) == ("dummy", "llamacpp", False)
        assert endpoint.metrics == DummyEngine.metrics
        assert endpoint.gpus_known
        load = Load(arrival="closed", users=[2], warmup_s=0.1, duration_s=0.5, drain_s=5)
        workload = fit(lambda: [from_lengths([8], [4])])
        rows = from_lengths(np.full(10_000, 8), np.full(10_000, 4))
        records = run_level(endpoint, Traffic(load, workload, 1, rows), 2)
        endpoint.raise_if_ended()
        assert records.server is not None, "a server without its metrics is measured all the same"
        processes = pids(log)
        assert len(processes) == 2
        assert all(map(alive, processes))
    assert (records.failure == "").sum() > 0
    assert all_gone(processes)
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]


def test_log_without_a_place_stays_only_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with start(()):
        assert list(tmp_path.glob(".llmpilot/servers/dummy-*.log"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ServerDiedError), start(("says:no",)):
        pass
    assert list(tmp_path.glob(".llmpilot/servers/dummy-*.log"))


def test_early_death_says_why(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerDiedError, match="ended, with exit code 1") as died,
        start(("says:error: unknown architecture",), log=log),
    ):
        pass
    assert "error: unknown architecture" in str(died.value)
    assert str(log) in died.value.cure
    assert died.value.exit_code == 1
    with (
        pytest.raises(ServerDiedError, match="killed by signal 9, as the kernel does"),
        start(("killed",), log=log),
    ):
        pass
    assert all_gone(pids(log))


def test_death_of_the_first_request_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerDiedError, match="RuntimeError: that was too much"),
        start(("fragile",), log=tmp_path / "server.log"),
    ):
        pass


def test_running_out_of_memory_is_an_outcome(tmp_path: Path) -> None:
    said = "says:ERROR [gpu.py:7] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    with (
        pytest.raises(
            ServerOutOfMemoryError, match=r"ran out of memory: CUDA out of memory\. Tried to allocate 2 GiB"
        ) as outcome,
        start((said,), log=tmp_path / "server.log"),
    ):
        pass
    assert isinstance(outcome.value, DoesNotFitError)
    assert outcome.value.outcome == "out_of_memory"


@pytest.mark.parametrize(
    ("mode", "error"), [("dies_of_memory", ServerOutOfMemoryError), ("dies", ServerDiedError)]
)
def test_later_death_says_why(tmp_path: Path, mode: str, error: type[PilotError]) -> None:
    with start((mode,), log=tmp_path / "server.log") as endpoint:
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{endpoint.url}/die", trust_env=False)
        assert endpoint.server is not None
        deadline = time.monotonic() + PATIENCE_S
        while endpoint.server.exit_code is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(error):
            endpoint.raise_if_ended()


@pytest.mark.parametrize("mode", ["mute", "loading"])
def test_not_ready_in_time(tmp_path: Path, mode: str) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerDiedError, match=r"not ready after 0\.5 s .*ready_timeout_s"),
        start((mode,), log=log, ready_timeout_s=0.5),
    ):
        pass
    assert all_gone(pids(log))


def test_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(PilotError, match=f"port {port} cannot be used"),
            start((), log=tmp_path / "server.log", port=port),
        ):
            pass


def test_free_port_that_is_lost_is_replaced(tmp_path: Path) -> None:
    engine = DummyEngine((f"says:{LOST_PORT}",), ())
    with start(engine=engine, log=tmp_path / "server.log") as endpoint:
        assert endpoint.url.endswith(f":{engine.ports[1]}")
    with (
        pytest.raises(ServiceError, match="couldn't bind"),
        start((f"says:{LOST_PORT}",), log=tmp_path / "server.log"),
    ):
        pass


def test_stubborn_server_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with start(("stubborn", "child"), log=log, stop_grace_s=0.2):
        processes = pids(log)
    assert all_gone(processes)


def test_interruption_stops_it(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    processes = []

    def measure() -> None:
        with start(("child",), log=log):
            processes.extend(pids(log))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure()
    assert len(processes) == 2
    assert all_gone(processes)


OURS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dummy_server import DummyEngine
from llmpilot import catalog
from llmpilot.deploy.process import ProcessDeployment
deployment = ProcessDeployment(stop_grace_s=1)
model, gpu = catalog.models()["starcoder"], catalog.gpus()["a100"]
modes = ("child", "stubborn")
with deployment.start(
    DummyEngine(modes), model, gpu, 96, heaviest_request_tokens=48, log_path=Path(sys.argv[2])
):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans_when_we_are_killed(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "server.log"
    command = [sys.executable, "-c", OURS, str(Path(__file__).parent), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as us:
        assert us.stdout is not None
        assert us.stdout.readline() == "ready\n"
        processes = pids(log)
        assert len(processes) == 2
        us.send_signal(number)
    assert all_gone(processes)


def test_log_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUMMY_TOKEN", "hf_very-secret")
    log = tmp_path / "server.log"
    with start(("tells",), log=log):
        pass
    assert "my token is ***" in log.read_text()


def test_worker_processes_get_no_server(tmp_path: Path) -> None:
    with start((), log=tmp_path / "server.log") as endpoint:
        there = pickle.loads(pickle.dumps(endpoint))
    assert (there.server, there.started_by, there.url) == (None, None, endpoint.url)
    there.raise_if_ended()
