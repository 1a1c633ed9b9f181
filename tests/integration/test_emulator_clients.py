"""Public clients against the emulator; each test skips itself where its client is not installed.

The OpenAI SDK: pip install openai. GuideLLM and schemathesis pull much in: give each an environment of its
own, and set GUIDELLM and SCHEMATHESIS to their executables (or put them on PATH).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from llmpilot.emulator import FixedTiming, Options, ProcessEmulator, in_process

TTFT_MS, ITL_MS, TOKENS = 60.0, 10.0, 24


@pytest.fixture
def emulator() -> Iterator[ProcessEmulator]:
    with emulating() as running:
        yield running


def emulating() -> AbstractContextManager[ProcessEmulator]:
    return in_process(options=Options(fixed=FixedTiming(ttft_ms=TTFT_MS, itl_ms=ITL_MS)))


def executable(name: str) -> str:
    found = shutil.which(os.environ.get(name.upper(), name))
    if found is None:
        pytest.skip(f"{name} is not installed: pip install {name}, or set {name.upper()} to its executable")
    return found


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(
        command,
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TERM": "dumb"},
    )
    assert result.returncode == 0, f"{result.stdout[-5000:]}\n{result.stderr[-5000:]}"
    return result.stdout


def test_openai_sdk(emulator: ProcessEmulator) -> None:
    openai = pytest.importorskip("openai", reason="pip install openai")
    client = openai.OpenAI(base_url=f"{emulator.url}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["bigcode/starcoder"]
    fixed = {"model": "starcoder", "max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
    chat = fixed | {"messages": [{"role": "user", "content": "hello"}]}

    whole = client.chat.completions.create(**chat)
    assert whole.usage.completion_tokens == TOKENS
    assert whole.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) == TOKENS + 1
    assert all(chunk.choices[0].delta.content for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == TOKENS

    whole = client.completions.create(**fixed, prompt=[1, 2, 3], n=2)
    assert [len(choice.text) for choice in whole.choices] == [4 * TOKENS] * 2
    assert whole.usage.prompt_tokens == 3
    stream = client.completions.create(**fixed, prompt="hello", stream=True)
    assert len("".join(chunk.choices[0].text for chunk in stream)) == 4 * TOKENS

    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="starcoder", prompt="x", temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x")


TOKENIZER = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained("tokenizer")
"""


def test_guidellm(tmp_path: Path) -> None:
    """It measures what the emulator has sent; the load tester's own error is its own affair."""
    guidellm = executable("guidellm")
    run([str(Path(guidellm).with_name("python")), "-c", TOKENIZER], tmp_path)
    prompts = [json.dumps({"prompt": f"one {k} two", "output_tokens_count": TOKENS}) for k in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    command = [guidellm, "run", "--disable-console"]
    command += ["--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=32"]
    command += ["--tokenizer", "kind=huggingface_auto,model=tokenizer"]
    command += ["--data", "kind=json_file,path=prompts.jsonl", "--output", "kind=json,path=report.json"]
    with emulating() as emulator:
        backend = f"kind=openai_http,target={emulator.url},model=bigcode/starcoder"
        run([*command, "--backend", backend], tmp_path)
    gaps_ms = np.concatenate([np.diff(t.values.to_numpy()) for t in emulator.truth()["sent_ns"]]) / 1e6
    (benchmark,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["benchmarks"]
    measured = {
        name: values["successful"]
        for name, values in benchmark["metrics"].items()
        if isinstance(values, dict) and "successful" in values
    }
    assert measured["output_token_count"]["median"] == TOKENS
    assert measured["time_to_first_token_ms"]["median"] >= TTFT_MS
    assert gaps_ms.min() <= measured["inter_token_latency_ms"]["median"] <= gaps_ms.max()
    assert benchmark["metrics"]["request_totals"]["errored"] == 0


def test_schemathesis(tmp_path: Path) -> None:
    """Limits between two fields (min_tokens <= max_tokens, ...) are not in the schema: what it accepts may
    be refused, but only in the documented ways."""
    schemathesis = executable("schemathesis")
    with in_process(options=Options(fixed=FixedTiming(ttft_ms=0, itl_ms=0))) as emulator:
        command = [schemathesis, "run", f"{emulator.url}/openapi.json", "--max-examples", "40", "--seed", "1"]
        run([*command, "--exclude-checks", "positive_data_acceptance"], tmp_path)
