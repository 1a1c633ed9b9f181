"""How other load generators are asked for the same load, and where their figures are found.

Each peer takes its program and what is asked, and returns `reported`, `requests` and `requests_per_s` as
the tool states them. Prompts are synthetic, of a tokenizer made on the spot.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENS = 64


@dataclass(frozen=True)
class Ask:
    """The load that every tool is asked for, and a folder for its files."""

    url: str
    model: str
    users: int
    seconds: float
    folder: Path


Peer = Callable[[str, Ask], dict[str, Any]]

MAKE_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
special = ["<unk>", "<s>", "</s>"]
printable = [chr(code) for code in range(33, 127)] + ["\u0120"]  # the last is how ByteLevel writes a space
words = {token: i for i, token in enumerate(special + printable)}
tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
)
fast.save_pretrained(sys.argv[1])
"""


def tokenizer(program: str, folder: Path) -> str:
    """Make a tokenizer of single characters with the peer's own Python, and return its folder.

    It must know whatever text a peer makes up: GuideLLM cuts its prompts to length by encoding and decoding
    them, leaves unknown words out, and fails every request whose prompt is then empty.
    """
    path = folder / "tokenizer"
    python = Path(program).resolve().parent / "python"
    run([str(python if python.exists() else sys.executable), "-c", MAKE_TOKENIZER, str(path)])
    return str(path)


def run(command: list[str], timeout_s: float = 300) -> None:
    """Run a command; raise with the end of its output when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stdout[-400:]}")


def guidellm(program: str, ask: Ask) -> dict[str, Any]:
    out = ask.folder / "guidellm.json"
    command = [program, "run", "--disable-console", "--output", f"kind=json,path={out}"]
    backend = f"kind=openai_http,target={ask.url},model={ask.model},request_format=/v1/completions"
    command += ["--backend", backend, "--profile", f"kind=concurrent,streams={ask.users}"]
    command += ["--constraint", f"kind=max_duration,seconds={ask.seconds:.0f}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens={TOKENS},output_tokens={TOKENS}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer(program, ask.folder)}"]
    run(command)
    metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]
    good = {name: metrics[name]["successful"] for name in metrics if "successful" in (metrics[name] or {})}

    def of(name: str) -> dict[str, float]:
        return {"p50": good[name]["percentiles"]["p50"], "p99": good[name]["percentiles"]["p99"]}

    return {
        "requests": good["time_to_first_token_ms"]["count"],
        "requests_per_s": good["requests_per_second"]["mean"],
        "reported": {"ttft_ms": of("time_to_first_token_ms"), "itl_ms": of("inter_token_latency_ms")},
    }


def aiperf(program: str, ask: Ask) -> dict[str, Any]:
    command = [program, "profile", "--model", ask.model, "--url", ask.url, "--endpoint-type", "completions"]
    command += ["--streaming", "--concurrency", str(ask.users), "--benchmark-duration", f"{ask.seconds:.0f}"]
    command += ["--synthetic-input-tokens-mean", str(TOKENS), "--synthetic-input-tokens-stddev", "0"]
    command += ["--output-tokens-mean", str(TOKENS), "--output-tokens-stddev", "0"]
    command += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{TOKENS}"]
    # By its own count of our tokenizer of characters, it would take one token for several.
    command += [
        "--use-server-token-count",
        "--tokenizer",
        tokenizer(program, ask.folder),
        "--ui-type",
        "none",
    ]
    command += ["--artifact-dir", str(ask.folder / "aiperf")]
    run(command)
    found = next((ask.folder / "aiperf").rglob("profile_export_aiperf.json"))
    figures = json.loads(found.read_text())

    def of(name: str) -> dict[str, float]:
        return {"p50": figures[name]["p50"], "p99": figures[name]["p99"]}

    return {
        "requests": figures["request_count"]["avg"],
        "requests_per_s": figures["request_throughput"]["avg"],
        "reported": {"ttft_ms": of("time_to_first_token"), "itl_ms": of("inter_token_latency")},
    }


def vllm(program: str, ask: Ask) -> dict[str, Any]:
    requests = int(ask.users * ask.seconds / 1.31)
    command = [program, "bench", "serve", "--backend", "openai", "--base-url", ask.url, "--model", ask.model]
    command += ["--tokenizer", tokenizer(program, ask.folder), "--dataset-name", "random", "--ignore-eos"]
    command += ["--random-input-len", str(TOKENS), "--random-output-len", str(TOKENS)]
    command += ["--max-concurrency", str(ask.users), "--num-prompts", str(requests)]
    command += ["--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99"]
    command += ["--save-result", "--result-dir", str(ask.folder), "--result-filename", "vllm.json"]
    run(command)
    figures = json.loads((ask.folder / "vllm.json").read_text())

    def of(name: str) -> dict[str, float]:
        return {"p50": figures[f"p50_{name}_ms"], "p99": figures[f"p99_{name}_ms"]}

    return {
        "requests": figures["completed"],
        "requests_per_s": figures["request_throughput"],
        "reported": {"ttft_ms": of("ttft"), "itl_ms": of("itl")},
    }


PEERS: dict[str, Peer] = {"guidellm": guidellm, "aiperf": aiperf, "vllm": vllm}
