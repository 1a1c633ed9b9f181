"""Run other load generators against the emulator and keep their results, small, as fixtures of the importers.

    python run.py --out ../../tests/imports [--only guidellm,aiperf]

Beside each tool's results lies `truth.json`: what the emulator sent, in the tools' own statistics. One in
four answers pauses for 200 ms in its middle, so that gaps and means per request differ.
"""

import argparse
import json
import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from peers import run
from peers import tokenizer as tokenizer_of_characters

from llmpilot.emulator import Faults, FixedTiming, Options, example_service, in_process
from llmpilot.emulator.tokens import TEXTS

TTFT_MS, ITL_MS, TOKENS, USERS, RATE, REQUESTS = 50.0, 20.0, 16, 4, 8.0, 60
PAUSES = Faults(stall_share=0.25, stall_s=0.2, seed=1)
SECONDS = 8
RECORDS = 12
"""Of a file with a line per request, kept."""


MAKE_TOKENIZER = """
import json, sys
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
words = ["<unk>", "<s>", "</s>", *json.loads(sys.argv[2])]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".{1,4}"), "isolated")
tokenizer.decoder = decoders.Fuse()
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
    clean_up_tokenization_spaces=False,
)
fast.save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Ask:
    """The server, and the folder for what a tool writes."""

    url: str
    model: str
    folder: Path

    @property
    def reports(self) -> Path:
        """Where llm-d-benchmark's reports of the tool's results lie."""
        return self.folder / "reports"


Kept = dict[str, Any]
"""File name -> what is kept of it: text, or an object that is written as JSON."""


def tokenizer(program: str, folder: Path) -> str:
    """Make a tokenizer with a program's own Python whose tokens are the emulator's; return its folder."""
    path = folder / "tokenizer"
    python = Path(program).parent / "python"
    run([str(python), "-c", MAKE_TOKENIZER, str(path), json.dumps([text.decode() for text in TEXTS])])
    return str(path)


def convert(tool: str, result: Path, ask: Ask) -> None:
    """Make reports of a result with llm-d-benchmark's own converter, where it is installed."""
    if program := shutil.which("benchmark-report"):
        for version in ("0.1", "0.2"):
            try:
                run(
                    [
                        program,
                        "-w",
                        tool,
                        "-b",
                        version,
                        str(result),
                        str(ask.reports / f"{tool}_v{version}.yaml"),
                    ]
                )
            except RuntimeError as error:
                print(f"llm-d: {tool} {version}: {error}")


def guidellm(program: str, ask: Ask) -> Kept:
    out = ask.folder / "out.json"
    command = [program, "run", "--disable-console", "--output", f"kind=json,path={out}"]
    backend = f"kind=openai_http,target={ask.url},model={ask.model},request_format=/v1/completions"
    command += ["--backend", backend, "--profile", "kind=concurrent,streams=2"]
    command += ["--override", "profile.streams", f"2,{USERS}"]
    command += ["--constraint", f"kind=max_duration,seconds={SECONDS}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={TOKENS}"]
    # Its prompts are of an English text, which only a tokenizer of characters knows whole.
    made = tokenizer_of_characters(program, ask.folder)
    command += ["--tokenizer", f"kind=huggingface_auto,model={made}"]
    run(command)
    convert("guidellm", out, ask)
    return {"concurrent.json": _thinned(json.loads(out.read_text()))}


GUIDELLM_METRICS = (
    *("request_totals", "requests_per_second", "request_concurrency", "request_latency"),
    *("prompt_token_count", "output_token_count", "time_to_first_token_ms", "time_per_output_token_ms"),
    *("inter_token_latency_ms", "output_tokens_per_second", "tokens_per_second"),
)
GUIDELLM_PARTS = ("type_", "config", "metrics", "start_time", "end_time", "duration")


def _thinned(report: dict[str, Any]) -> dict[str, Any]:
    """Return GuideLLM's report without its requests, and of its metrics what tells of latency and load."""
    for at, benchmark in enumerate(report["benchmarks"]):
        kept = {name: benchmark[name] for name in GUIDELLM_PARTS}
        kept["config"] = {name: kept["config"][name] for name in ("run_index", "strategy", "backend")}
        metrics = {name: benchmark["metrics"][name] for name in GUIDELLM_METRICS}
        for name, statuses in metrics.items():
            if name != "request_totals":
                metrics[name] = {"successful": statuses["successful"]}
                metrics[name]["successful"].pop("pdf", None)
        report["benchmarks"][at] = kept | {"metrics": metrics}
    return report


def aiperf(program: str, ask: Ask) -> Kept:
    command = [program, "profile", "--model", ask.model, "--url", ask.url, "--endpoint-type", "completions"]
    command += ["--streaming", "--concurrency", str(USERS), "--request-count", str(REQUESTS)]
    command += ["--synthetic-input-tokens-mean", "64", "--synthetic-input-tokens-stddev", "0"]
    command += ["--output-tokens-mean", str(TOKENS), "--output-tokens-stddev", "0"]
    command += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{TOKENS}"]
    command += ["--use-server-token-count", "--tokenizer", tokenizer(program, ask.folder)]
    command += ["--ui-type", "none", "--artifact-dir", str(ask.folder / "aiperf")]
    run(command)
    folder = next((ask.folder / "aiperf").rglob("profile_export_aiperf.json")).parent
    convert("aiperf", folder / "profile_export_aiperf.json", ask)
    lines = (folder / "profile_export.jsonl").read_text().splitlines()
    return {
        "profile_export_aiperf.json": json.loads((folder / "profile_export_aiperf.json").read_text()),
        "profile_export_aiperf.csv": (folder / "profile_export_aiperf.csv").read_text(),
        "profile_export.jsonl": "".join(_thin(line) for line in lines[:RECORDS]),
    }


def _thin(line: str) -> str:
    """Return one of AIPerf's records without what its HTTP client and the server's usage say again."""
    record = json.loads(line)
    beside = ("http_", "usage_", "osl_", "effective_", "active_")
    record["metrics"] = {
        name: value for name, value in record["metrics"].items() if not name.startswith(beside)
    }
    return json.dumps(record) + "\n"


def vllm(program: str, ask: Ask) -> Kept:
    base = [program, "bench", "serve", "--backend", "openai", "--base-url", ask.url, "--model", ask.model]
    base += ["--tokenizer", tokenizer(program, ask.folder), "--dataset-name", "random", "--ignore-eos"]
    base += ["--random-input-len", "64", "--random-output-len", str(TOKENS), "--save-result"]
    base += ["--result-dir", str(ask.folder), "--num-prompts", str(REQUESTS)]
    closed = ["--max-concurrency", str(USERS), "--percentile-metrics", "ttft,tpot,itl,e2el"]
    closed += ["--metric-percentiles", "50,90,95,99", "--result-filename", "closed.json"]
    run([*base, *closed, "--metadata", "tp=2", "version=0.32.0"])
    rate = ["--request-rate", str(RATE), "--save-detailed", "--result-filename", "detailed.json"]
    run([*base, *rate])
    convert("vllm-benchmark", ask.folder / "closed.json", ask)
    kept = {name: json.loads((ask.folder / name).read_text()) for name in ("closed.json", "detailed.json")}
    detailed = kept["detailed.json"]
    detailed["generated_texts"] = []
    for name in ("ttfts", "itls", "latencies", "start_times", "queue_times"):
        detailed[name] = _rounded(detailed[name])
    return kept


def _rounded(values: Any) -> Any:
    """Return seconds to the microsecond."""
    return [_rounded(one) for one in values] if isinstance(values, list) else round(values, 6)


def sglang(program: str, ask: Ask) -> Kept:
    out = ask.folder / "bench.jsonl"
    base = [*program.split(), "--backend", "sglang-oai", "--base-url", ask.url, "--model", ask.model]
    base += ["--tokenizer", tokenizer(program.partition(" ")[0], ask.folder), "--dataset-name", "random-ids"]
    base += ["--random-input-len", "64", "--random-output-len", str(TOKENS), "--random-range-ratio", "1"]
    base += ["--num-prompts", str(REQUESTS), "--output-file", str(out)]
    run([*base, "--max-concurrency", str(USERS)])
    run([*base, "--request-rate", str(RATE)])
    return {"bench.jsonl": out.read_text()}


def inference_perf(program: str, ask: Ask) -> Kept:
    made = tokenizer(program, ask.folder)

    def report(name: str, load: dict[str, Any]) -> Path:
        config = {
            "api": {"type": "completion", "streaming": True},
            "data": {
                "type": "random",
                "input_distribution": {"min": 64, "max": 64, "mean": 64, "std_dev": 0, "total_count": 500},
                "output_distribution": {
                    "min": TOKENS,
                    "max": TOKENS,
                    "mean": TOKENS,
                    "std_dev": 0,
                    "total_count": 500,
                },
            },
            "load": {"num_workers": 1, "interval": 1.0, **load},
            "server": {"type": "vllm", "model_name": ask.model, "base_url": ask.url, "ignore_eos": True},
            "tokenizer": {"pretrained_model_name_or_path": made},
            "report": {"request_lifecycle": {"use_server_output_tokens": True}},
            "storage": {"local_storage": {"path": str(ask.folder / name)}},
        }
        file = ask.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        run([program, "--config_file", str(file)])
        return next((ask.folder / name).rglob("summary_lifecycle_metrics.json")).parent

    stages = [{"num_requests": REQUESTS // 2, "concurrency_level": users} for users in (2, USERS)]
    closed = report("closed", {"type": "concurrent", "stages": stages})
    convert("inference-perf", closed / "stage_1_lifecycle_metrics.json", ask)
    rate = report("rate", {"type": "poisson", "stages": [{"rate": RATE, "duration": SECONDS}]})
    return {
        f"{name}/{file.name}": json.loads(file.read_text()) if file.suffix == ".json" else file.read_text()
        for name, folder in (("closed", closed), ("rate", rate))
        for file in sorted(folder.iterdir())
        if re.match(r"config|stage_\d+_lifecycle|summary_lifecycle", file.name)
    }


TOOLS: dict[str, tuple[str, Callable[[str, Ask], Kept]]] = {
    "guidellm": ("guidellm", guidellm),
    "aiperf": ("aiperf", aiperf),
    "vllm": ("vllm", vllm),
    "sglang": ("", sglang),
    "inference_perf": ("inference-perf", inference_perf),
}


def what_was_sent(truth: pa.Table) -> dict[str, Any]:
    """Return the emulator's own figures over whole answers [ms], and how many there are."""
    ttft, gaps, tpot, e2e, inputs = [], [], [], [], []
    for row in truth.to_pylist():
        sent_ms = np.array(row["sent_ns"]) / 1e6
        if len(sent_ms) == TOKENS and row["outcome"] == "ok":
            ttft.append(sent_ms[0] - row["arrived_ns"] / 1e6)
            gaps.append(np.diff(sent_ms))
            tpot.append((sent_ms[-1] - sent_ms[0]) / (TOKENS - 1))
            e2e.append(sent_ms[-1] - row["arrived_ns"] / 1e6)
            inputs.append(row["input_tokens"])
    figures = {"ttft_ms": ttft, "itl_ms": np.concatenate(gaps), "tpot_ms": tpot, "e2e_ms": e2e}
    return {
        "requests": len(ttft),
        "input_tokens": float(np.mean(inputs)),
        "output_tokens": TOKENS,
        **{name: statistics(np.array(values)) for name, values in figures.items()},
    }


def statistics(values: Any) -> dict[str, float]:
    found = {"mean": float(values.mean())}
    found |= {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 95, 99)}
    return {name: round(value, 3) for name, value in found.items()}


def anonymous(text: str, ask: Ask) -> str:
    """Return the text without this machine's names: its address, its folders, its users."""
    host_and_port = ask.url.removeprefix("http://")
    names = [(str(ask.folder), "/results"), (ask.url, "http://emulator"), (host_and_port, "emulator")]
    names += [
        (socket.gethostname(), "client"),
        (platform.platform(), platform.system()),
        (str(Path.home()), "/home/user"),
        (str(Path.cwd()), "/home/user"),
    ]
    for name, word in names:
        text = text.replace(name, word)
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(TOOLS))
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        executable, tool = TOOLS[name]
        program = os.environ.get("SGLANG_BENCH") if name == "sglang" else shutil.which(executable)
        if not program:
            print(f"{name} is not installed: skipped")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            options = Options(fixed=FixedTiming(ttft_ms=TTFT_MS, itl_ms=ITL_MS), faults=PAUSES)
            with in_process(options=options) as emulator:
                ask = Ask(emulator.url, example_service().model_id, Path(scratch))
                ask.reports.mkdir()
                kept = tool(program, ask)
            truth = what_was_sent(emulator.truth())  # which is there once the server has stopped
            shutil.rmtree(arguments.out / name, ignore_errors=True)
            for file, content in {**kept, "truth.json": truth}.items():
                write(arguments.out / name / file, content, ask)
            for report in ask.reports.iterdir():
                content = yaml.safe_load(report.read_text())
                write(arguments.out / "llm_d" / report.name, yaml.safe_dump(_small(content)), ask)
            print(name, json.dumps(truth))


def write(path: Path, content: Any, ask: Ask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content
    if not isinstance(content, str):
        text = re.sub(r"\[[^][{}]*\]", _on_one_line, json.dumps(content, indent=1)) + "\n"
    path.write_text(anonymous(text, ask))


def _on_one_line(values: re.Match[str]) -> str:
    return " ".join(values[0].split())


def _small(report: Any) -> Any:
    """Return a report without the tool's own configuration, which is long, and without series over time."""
    if isinstance(report, dict):
        return {key: _small(one) for key, one in report.items() if key not in ("native", "time_series")}
    return report


if __name__ == "__main__":
    main()
