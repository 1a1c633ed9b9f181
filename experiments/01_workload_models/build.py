"""Fit the four shipped workload models on the raw data, and measure how faithful and how fast they are."""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llmpilot.workload import PARAMETERS, Requests, TraceColumns, WorkloadModel, fit, from_lengths, read_trace
from llmpilot.workload import figure as pictures
from llmpilot.workload.faithfulness import Faithfulness, faithfulness, ks_distance, row_sample
from llmpilot.workload.requests import DTYPES, encode
from llmpilot.workload.shipped import FOLDER

HERE = Path(__file__).parent
COMMAND = "experiments/01_workload_models/run.sh DATA_DIR"
SEED = 42
MILLION = 1_000_000
Chunks = Callable[[], Iterable[Requests]]

ABOUT = {
    "paper": {
        "description": "the 929 requests that the paper replays in all of its measurements, exactly",
        "source": "https://github.com/IBM/LLM-performance-prediction",
        "licence": "CDLA-Permissive-2.0",
    },
    "production": {
        "description": "8,497,715 production requests at IBM, from the published histogram of 46,526 cells",
        "source": "https://github.com/fmperf-project/fmperf",
        "licence": "Apache-2.0",
    },
    "azure_code": {
        "description": "one hour of code completion, Azure LLM inference trace 2023",
        "source": "https://github.com/Azure/AzurePublicDataset",
        "licence": "CC-BY-4.0",
    },
    "azure_conv": {
        "description": "one hour of conversations, Azure LLM inference trace 2023",
        "source": "https://github.com/Azure/AzurePublicDataset",
        "licence": "CC-BY-4.0",
    },
}
MAX_BINS = {"paper": 64, "production": 24, "azure_code": 64, "azure_conv": 64}


def paper(data: Path) -> Chunks:
    """One request per sample_id: its token counts are the same in every successful answer."""
    columns = ["status", "sample_id", "input_tokens", "output_tokens"]
    table = pq.read_table(data / "llm-pilot" / "requests.parquet", columns=columns).to_pandas()
    lengths = table[table["status"] == 200].groupby("sample_id")[["input_tokens", "output_tokens"]]
    if (lengths.nunique() > 1).any(axis=None):
        raise SystemExit("a sample_id has several token counts: the data is not what it was")
    first = lengths.first()
    requests = from_lengths(first["input_tokens"].to_numpy(), first["output_tokens"].to_numpy())
    return lambda: [requests]


def production(data: Path) -> Chunks:
    """Every cell of the published histogram as often as it was counted: all probabilities are whole
    multiples of the least one, which is thus one request."""
    table = pq.read_table(data / "workload" / "ibm_production_histogram.parquet").to_pandas()
    table = table.rename(columns={"is_greedy": "greedy"})
    ratios = (table["probability"] / table["probability"].min()).to_numpy()
    counts = np.rint(ratios).astype(np.int64)
    if np.abs(ratios - counts).max() > 1e-6:
        raise SystemExit("the probabilities are no whole multiples of the least: the data is not what it was")
    cells = Requests(**{name: table[name].to_numpy().astype(DTYPES[name]) for name in PARAMETERS})

    def chunks() -> Iterator[Requests]:
        step = 2_000
        for start in range(0, len(cells), step):
            rows = np.arange(start, min(start + step, len(cells)))
            yield cells.take(np.repeat(rows, counts[rows]))

    return chunks


def azure(which: str) -> Callable[[Path], Chunks]:
    columns = TraceColumns(input_tokens="ContextTokens", output_tokens="GeneratedTokens")

    def read(data: Path) -> Chunks:
        path = data / "workload" / f"azure_2023_{which}.csv"
        return lambda: (requests for requests, _ in read_trace(path, columns))

    return read


READ = {"paper": paper, "production": production, "azure_code": azure("code"), "azure_conv": azure("conv")}


def speed(model: WorkloadModel) -> dict[str, float]:
    """Seconds for a million requests, and the peak memory of streaming them [MB]."""
    started = time.perf_counter()
    model.sample(MILLION, SEED)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    stream = model.stream(SEED)
    for _ in range(0, MILLION, 50_000):
        stream.take(50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds_per_million": round(seconds, 2), "streaming_peak_mb": round(peak / 1e6, 1)}


def held_out(trace: Requests, max_bins: int) -> dict[str, float]:
    """KS distances to the odd rows: of a model fitted on the even rows, and of the even rows themselves."""
    even, odd = trace.take(slice(0, None, 2)), trace.take(slice(1, None, 2))
    samples = encode(fit(lambda: [even], max_bins).sample(MILLION, SEED))
    found = {}
    for p, name in enumerate(PARAMETERS[:2]):
        found[f"{name}_model"] = round(ks_distance(samples[p], encode(odd)[p]), 4)
        found[f"{name}_rows"] = round(ks_distance(encode(even)[p], encode(odd)[p]), 4)
    return found


def build(name: str, data: Path) -> tuple[dict[str, Any], Faithfulness]:
    chunks = READ[name](data)
    model = fit(chunks, MAX_BINS[name], {"name": name, "command": COMMAND, **ABOUT[name]})
    path = FOLDER / f"{name}.parquet"
    model.save(path)
    model = WorkloadModel.load(path)
    trace = row_sample(chunks(), MILLION, SEED)
    compared = faithfulness(trace, model, SEED, MILLION)
    samples = model.sample(MILLION, SEED)
    tokens = {}
    for column in PARAMETERS[:2]:
        ours, theirs = getattr(samples, column), getattr(trace, column)
        tokens[column] = {
            "mean": [round(float(theirs.mean()), 2), round(float(ours.mean()), 2)],
            **{f"p{q}": [int(np.percentile(x, q)) for x in (theirs, ours)] for q in (50, 90, 99)},
        }
    result = {
        "rows": model.rows,
        "cells": len(model.weights),
        "bytes": path.stat().st_size,
        "max_bins": MAX_BINS[name],
        "content_hash": model.content_hash,
        "longest": model.longest(),
        "heaviest_weight": model.heaviest_weight,
        "tokens_trace_and_model": tokens,
        "ks_joint": {key: round(value, 4) for key, value in compared.ks_joint.items()},
        "ks_independent": {key: round(value, 4) for key, value in compared.ks_independent.items()},
        "constant": compared.constant,
        "correlation_difference_joint": round(compared.difference_joint, 4),
        "correlation_difference_independent": round(compared.difference_independent, 4),
        **speed(model),
    }
    if name.startswith("azure"):
        result["held_out_ks"] = held_out(trace, MAX_BINS[name])
    return result, compared


def readme(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Shipped workload models",
        "",
        "What LLM-Pilot's own code computed from published data; the data itself is not here. Rebuilt by",
        f"`{COMMAND}`, which also wrote this page. Source and licence are in each file's metadata, too.",
        "",
        "| model | source | licence | requests | cells | bytes | input tokens: mean, p50, p90, p99, largest "
        "| output tokens: the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        about = ABOUT[name]
        tokens = [
            ", ".join(f"{found['tokens_trace_and_model'][c][k][1]:g}" for k in ("mean", "p50", "p90", "p99"))
            + f", {largest}"
            for c, largest in zip(PARAMETERS[:2], found["longest"], strict=True)
        ]
        cells = [name, about["source"], about["licence"], f"{found['rows']:,}", f"{found['cells']:,}"]
        lines.append("| " + " | ".join([*cells, f"{found['bytes']:,}", *tokens]) + " |")
    lines += ["", "Token figures are of a million samples with seed 42.", ""]
    lines += [f"- `{name}`: {about['description']}." for name, about in ABOUT.items()]
    lines += ["", "The text of CDLA-Permissive-2.0 is in LICENSE-CDLA-Permissive-2.0.md beside this page."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder that holds llm-pilot/ and workload/")
    data = parser.parse_args().data
    results: dict[str, dict[str, Any]] = {}
    for name in READ:
        results[name], compared = build(name, data)
        if name == "production":
            pictures.save(compared, "IBM production traffic, the paper's Figure 3", HERE / "production.png")
        print(name, json.dumps(results[name]))
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (FOLDER / "README.md").write_text(readme(results))
    licence = (data / "llm-pilot" / "LICENSE-DATA.md").read_text()
    (FOLDER / "LICENSE-CDLA-Permissive-2.0.md").write_text(licence)


if __name__ == "__main__":
    main()
