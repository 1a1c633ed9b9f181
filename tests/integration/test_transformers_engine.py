"""engine=transformers for real: PyTorch on this machine's CPU, a tiny random model, the whole way."""

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Run
from real_servers import alike, measure_level, require_every_token, waits_per_service

from llmpilot import catalog
from llmpilot.config import Model
from llmpilot.deploy.process import (
    ProcessDeployment,
    ProcessEndpoint,
    ServerDiedError,
    ServerOutOfMemoryError,
)
from llmpilot.engine.tiny_model import write_hf
from llmpilot.engine.transformers import TransformersEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install torch"
)

GPU = catalog.gpus()["h200"]
INPUT, OUTPUT = 24, 16
HEAVIEST = INPUT + OUTPUT
ENGINE = TransformersEngine(device="cpu", threads=1, max_num_seqs=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    write_hf(folder)
    return catalog.build_model({"config": str(folder), "name": "tiny"})


@pytest.fixture(scope="module")
def served(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEndpoint]:
    """A server under a weight of four requests, for all tests that do it no harm."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ProcessDeployment().start(
        ENGINE, model, GPU, 4 * HEAVIEST, heaviest_request_tokens=HEAVIEST, log_path=log
    ) as endpoint:
        yield endpoint
        endpoint.raise_if_ended()


def post(served: ProcessEndpoint, **fields: object) -> httpx.Response:
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4} | fields
    return httpx.post(f"{served.url}/v1/completions", json=body, trust_env=False, timeout=60)


def gauge(served: ProcessEndpoint, name: str) -> float:
    page = httpx.get(served.url + ENGINE.metrics.path, trust_env=False).text
    line = next(line for line in page.splitlines() if line.startswith(f"{name}{{"))
    return float(line.rpartition(" ")[2])


def test_ladder_under_a_small_batch_weight(served: ProcessEndpoint) -> None:
    """Exact token counts at 1, 4 and 16 users; beyond the four that fit, users wait."""
    for users in (1, 4, 16):
        rows = alike((INPUT, OUTPUT))
        records = measure_level(served, users, rows, warmup_s=0.2, duration_s=1.5, drain_s=60)
        served.raise_if_ended()
        level = require_every_token(records, users, OUTPUT, "token_ids")
    # Twelve others go before, four at a time: three times another's service. Without a cap there is no wait.
    assert waits_per_service(level) > 1.2


def test_same_prompt_gets_the_same_tokens_alone_and_in_company(served: ProcessEndpoint) -> None:
    alone = post(served, max_tokens=8, return_token_ids=True, prompt=[5, 6, 7, 8]).json()
    both = post(served, max_tokens=8, return_token_ids=True, prompt=[[9] * 20, [5, 6, 7, 8]]).json()
    assert both["choices"][1]["token_ids"] == alone["choices"][0]["token_ids"]
    assert alone["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
    assert alone["choices"][0]["prompt_token_ids"] == [5, 6, 7, 8]
    assert all(0 <= token < 512 for token in alone["choices"][0]["token_ids"])


def test_stream_says_what_the_whole_answer_says(served: ProcessEndpoint) -> None:
    whole = post(served, return_token_ids=True).json()
    streamed = post(served, stream=True, return_token_ids=True, stream_options={"include_usage": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["token_ids"][0] for choice in choices] == whole["choices"][0]["token_ids"]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_chat_and_text_are_answered(served: ProcessEndpoint) -> None:
    said = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5}
    chat = httpx.post(f"{served.url}/v1/chat/completions", json=said, trust_env=False).json()
    assert chat["usage"]["completion_tokens"] == 5
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert post(served, prompt="eight chars", max_tokens=2).json()["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 2}, "n must be 1"),
        ({"prompt": [1, 512]}, "out of vocabulary"),
        ({"max_tokens": HEAVIEST}, "maximum context length"),
        ({"model": "other"}, "does not exist"),
    ],
)
def test_refusals_are_openai_errors(served: ProcessEndpoint, fields: dict[str, object], said: str) -> None:
    refused = post(served, **fields)
    assert refused.status_code in (400, 404)
    assert said in refused.json()["error"]["message"]
    assert httpx.get(f"{served.url}/nothing", trust_env=False).status_code == 404


def test_clients_that_leave_give_their_place_back(served: ProcessEndpoint) -> None:
    async def leave() -> None:
        body = json.dumps({"model": "tiny", "prompt": [1] * 4, "max_tokens": 30, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n"
        host, port = served.url.removeprefix("http://").split(":")
        for _ in range(20):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
            await reader.read(16)
            writer.close()

    asyncio.run(leave())
    assert post(served, max_tokens=HEAVIEST - 3).status_code == 200
    for _ in range(200):
        if gauge(served, ENGINE.metrics.running) == 0:
            break
    names = ENGINE.metrics
    assert (gauge(served, names.running), gauge(served, names.waiting)) == (0, 0)
    assert gauge(served, names.kv_use or "") == 0
    assert gauge(served, names.tokens or "") > 0


def test_too_large_a_weight_is_an_outcome(model: Model, tmp_path: Path) -> None:
    with (
        pytest.raises(ServerOutOfMemoryError, match=r"ran out of memory: .*can't allocate memory"),
        ProcessDeployment().start(
            ENGINE, model, GPU, 10**13, heaviest_request_tokens=HEAVIEST, log_path=tmp_path / "server.log"
        ),
    ):
        pass


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said(model: Model, tmp_path: Path) -> None:
    engine = ENGINE.model_copy(update={"device": "cuda"})
    with (
        pytest.raises(ServerDiedError, match="finds no CUDA device"),
        ProcessDeployment().start(
            engine, model, GPU, 400, heaviest_request_tokens=HEAVIEST, log_path=tmp_path / "server.log"
        ),
    ):
        pass


def test_command_line_from_end_to_end(run: Run) -> None:
    write_hf("tiny")
    ran = run(
        *("engine=transformers", "deployment=process", "+gpu=h200", "+model=hf", "model.config=tiny"),
        *("model.name=tiny", "model.weights=dummy", "engine.threads=1", "engine.device=cpu"),
        *("max_batch_weight=2048", "load.users=[1,4]", "load.duration_s=2", "load.warmup_s=0.3"),
        *("deployment.client.calibrate=false", "result_file=r.json"),
    )
    assert ran.code == 0, ran.err
    assert "MEASURED" in ran.out
    result = json.loads(Path("r.json").read_text())
    assert (result["engine"], result["measurement"]) == ("transformers", "measured")
    assert all(level["requests_ok"] > 0 and level["failure_rate"] == 0 for level in result["levels"])


def test_several_gpus_are_wrong_usage(run: Run) -> None:
    ran = run("engine=transformers", "deployment=process", "+gpu=h200", "gpu.count=2", "+model=starcoder")
    assert ran.code == 2
    assert "gpu.count=1" in ran.err
