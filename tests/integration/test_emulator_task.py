"""`task=emulate` from the command line: what it says first, how it stops, and what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from llmpilot import catalog
from llmpilot.errors import PilotError
from llmpilot.tasks import emulate

COMMAND = [sys.executable, "-m", "llmpilot", "task=emulate", "+gpu=a100", "+model=starcoder"]
FAST = ["fixed.ttft_ms=5", "fixed.itl_ms=1"]
BODY = {"model": "starcoder", "prompt": "hello", "max_tokens": 5, "ignore_eos": True}


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    process = subprocess.Popen(
        [*COMMAND, "port=0", *FAST, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"EMULATOR_API_KEY": "secret-1234"},
    )
    try:
        first = process.stdout.readline()
        yield process, first, re.search(r"http://\S+", first)[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_it_is_and_stops_cleanly(tmp_path: Path, stop: signal.Signals) -> None:
    options = ["send_log=sent.parquet", "result_file=r.json", "api_key_env=EMULATOR_API_KEY"]
    with served(tmp_path, *options) as (process, first, url):
        for word in ("EMULATOR", "bigcode/starcoder", "1 x A100-40GB", "real time"):
            assert word in first
        key = {"Authorization": "Bearer secret-1234"}
        answer = httpx.post(f"{url}/v1/completions", json=BODY | {"stream": True}, headers=key)
        assert answer.status_code == 200
        long = BODY | {"max_tokens": 8000, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=long, headers=key):
            process.send_signal(stop)  # while it is still answering
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
    assert "secret-1234" not in out + err
    assert "Traceback" not in err
    rows = pq.read_table(tmp_path / "sent.parquet").to_pylist()
    assert rows[0]["request_id"] == answer.headers["x-request-id"]
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert result["measurement"] == "simulated"
    assert result["requests"] == 2


def run(*options: str) -> None:
    with initialize_config_dir(str(catalog.conf_dir()), version_base="1.3"):
        emulate.run(compose("config", ["task=emulate", "+gpu=a100", "+model=starcoder", *options]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["port=99999"], "port"),
        (["port=true"], "port"),
        (["speed=0"], "speed"),
        (["host=''"], "host"),
        (["fixed.ttft_ms=5"], "fixed.itl_ms"),
        (["prefix_cache_tokens=100"], "has its own cache"),
        (["fixed.ttft_ms=-5", "fixed.itl_ms=1"], "fixed.ttft_ms"),
        (["+faults.resets=1"], "faults.resets"),
        (["faults.reset_share=0.6", "faults.stall_share=0.6"], "faults.error_500_share"),
        (["api_key_env=NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["send_log=times.csv"], "send_log"),
        (["max_batch_weight=0"], "max_batch_weight"),
        (["gpu.count=3"], "gpu.count"),
        (["host=no.such.name.invalid"], "host"),
    ],
)
def test_impossible_options_name_their_key(options: list[str], said: str) -> None:
    with pytest.raises(PilotError) as refused:
        run("port=0", *options)
    assert said in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_taken_port_is_an_error_with_a_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PilotError, match="port=0"):
        run(f"port={taken.getsockname()[1]}")


def test_an_engine_of_today_in_real_time(tmp_path: Path) -> None:
    """vLLM's scheduler on the real clock: a burst of prompts is cut into chunks, and no token is lost."""
    command = [sys.executable, "-m", "llmpilot", "task=emulate", "+gpu=h100", "+model=llama_3_1_8b"]
    command += ["engine=vllm", "engine.max_num_batched_tokens=512", "port=0", "result_file=r.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        first = process.stdout.readline()
        assert "vLLM" in first
        url = re.search(r"http://\S+", first)[0]
        bodies = [
            {"model": "llama_3_1_8b", "prompt": list(range(1000)), "max_tokens": n, "ignore_eos": True}
            for n in (20, 40, 60)
        ]
        with ThreadPoolExecutor() as pool:
            answers = list(
                pool.map(lambda body: httpx.post(f"{url}/v1/completions", json=body, timeout=60), bodies)
            )
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [20, 40, 60]
        shown = httpx.get(f"{url}/metrics").text
        assert re.search(r"vllm:generation_tokens_total\{.*\} 120", shown)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["requests"] == 3
