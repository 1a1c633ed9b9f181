"""AIPerf's profile export: profile_export_aiperf.json, its .csv, or profile_export.jsonl (a line a request).

AIPerf's `inter_token_latency` is (end - first token) / (tokens - 1) of each request: it is our TPOT. Its
`inter_chunk_latency`, the time between two pieces of a stream over all requests, is our ITL where a piece is
a token. The three files of one run say the same; of a folder, one is imported: the JSON, else the lines, else
the CSV.
(aiperf 0.13.0: metrics/types/inter_token_latency_metric.py, inter_chunk_latency_metric.py)
"""

import csv
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmpilot.dataset.imports.gpu_names import gpu_named
from llmpilot.dataset.imports.result_file import (
    Importer,
    ResultFile,
    Row,
    at,
    count,
    figures,
    lengths,
    number,
    requests,
    summarized,
)
from llmpilot.dataset.measurements import CLOSED, OPEN

LATENCIES = {
    "ttft_ms": ("time_to_first_token", "ttft"),
    "tpot_ms": ("inter_token_latency",),
    "itl_ms": ("inter_chunk_latency",),
    "e2e_ms": ("request_latency",),
}
"""Our latency -> AIPerf's metric, by its name of today and of before."""
RATES = {
    "throughput_req_s": "request_throughput",
    "throughput_out_tok_s": "output_token_throughput",
    "throughput_total_tok_s": "total_token_throughput",
}
MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3, "sec": 1e3}
"""AIPerf's unit -> what makes ms of it; of another one nothing is known."""
CSV_NAMES = {
    "Time to First Token": "time_to_first_token",
    "Inter Token Latency": "inter_token_latency",
    "Inter Chunk Latency": "inter_chunk_latency",
    "Request Latency": "request_latency",
    "Request Throughput": "request_throughput",
    "Output Token Throughput": "output_token_throughput",
    "Total Token Throughput": "total_token_throughput",
    "Input Sequence Length": "input_sequence_length",
    "Output Sequence Length": "output_sequence_length",
    "Request Count": "request_count",
    "Error Request Count": "error_request_count",
    "Request Error Rate": "request_error_rate",
}
EXPORT = "profile_export_aiperf"


# --- profile_export_aiperf.json ---------------------------------------------------------------------------


def _recognises_json(file: ResultFile) -> bool:
    first = file.first
    metric = first.get("request_latency")
    return (
        len(file.documents) == 1
        and isinstance(metric, dict)
        and {"unit", "avg"} <= set(metric)
        and ("input_config" in first or "aiperf_version" in first)
    )


def _read_json(file: ResultFile) -> list[Row]:
    export = file.first
    if "records" in export and not isinstance(at(export, "request_latency", "avg"), int | float):
        raise file.outdated("this export is of GenAI-Perf, AIPerf's forerunner", "run aiperf profile instead")
    row = _row(export)
    if version := export.get("aiperf_version"):
        row["client_version"] = str(version)
    if started := export.get("start_time"):
        row["date"] = str(started)[:10]
    config = export.get("input_config") or {}
    models = at(config, "endpoint", "model_names") or at(config, "models", "items") or []
    model = at(models, 0)
    if name := model.get("name") if isinstance(model, dict) else model:
        row["model"] = str(name)
    if export.get("was_cancelled"):
        row["notes"].append("the run was cancelled")
    return [row | _load(config, row["notes"]) | _gpus(export.get("telemetry_data"))]


def _row(export: Mapping[str, Any]) -> Row:
    """Return the figures of metrics by name: an object with `unit`, `avg`, `p50` ... each."""
    row: Row = {"client": "aiperf", "notes": []}
    for latency, names in LATENCIES.items():
        metric = next((found for name in names if isinstance(found := export.get(name), dict)), None)
        if metric is not None and (scale := MS.get(str(metric.get("unit")))) is not None:
            row |= figures(latency, {**metric, "mean": metric.get("avg")}, scale)
    for column, name in RATES.items():
        if (rate := number(at(export, name, "avg"))) is not None:
            row[column] = rate
    inputs, outputs = (
        {**metric, "mean": metric.get("avg")} if isinstance(metric, dict) else {}
        for metric in (export.get("input_sequence_length"), export.get("output_sequence_length"))
    )
    return row | lengths(inputs, outputs) | _requests(export)


def _requests(export: Mapping[str, Any]) -> Row:
    """Return how many requests there were; AIPerf's request_count has those that succeeded only."""
    ok, failed = number(at(export, "request_count", "avg")), number(at(export, "error_request_count", "avg"))
    if failed is None:
        summary = export.get("error_summary")
        if isinstance(summary, list):
            failed = sum(number(at(one, "count")) or 0.0 for one in summary)
    if failed is None and number(at(export, "request_error_rate", "avg")) == 0:
        failed = 0.0
    return requests(ok, failed)


def _load(config: Mapping[str, Any], notes: list[str]) -> Row:
    """Return the load of the phase that was measured: users, or a rate with or without a cap of users."""
    phases = [one for one in config.get("phases") or [] if at(one, "kind") != "warmup"]
    load = next((one for one in phases if isinstance(one, dict)), None) or config.get("loadgen") or {}
    rate = number(load.get("request_rate")) or number(load.get("rate"))
    users = count(load.get("concurrency"))
    if rate:
        if users:
            notes.append(f"at most {users} requests at once")
        return {"load_kind": OPEN, "request_rate": rate}
    return {"load_kind": CLOSED, "concurrency": users} if users else {}


def _gpus(telemetry: Any) -> Row:
    """Return the GPUs that AIPerf saw, where its telemetry was on and they are all of one type."""
    endpoints = at(telemetry, "endpoints")
    found = [
        str(at(gpu, "gpu_name"))
        for endpoint in (endpoints.values() if isinstance(endpoints, dict) else ())
        for gpu in (at(endpoint, "gpus") or {}).values()
    ]
    if len(set(found)) != 1:
        return {}
    return {"gpu": gpu_named(found[0]), "gpu_as_stated": found[0], "n_gpus": len(found)}


# --- profile_export_aiperf.csv ----------------------------------------------------------------------------


def _recognises_csv(file: ResultFile) -> bool:
    return file.path.suffix.lower() == ".csv" and file.text.startswith("Metric,avg,")


def _read_csv(file: ResultFile) -> list[Row]:
    """Read the tables of the CSV: rounded to two digits, and without load, model and date."""
    export: dict[str, dict[str, Any]] = {}
    header: list[str] = []
    for line in csv.reader(file.text.splitlines()):
        if not line:
            header = []
        elif not header:
            header = line
        elif header[0] == "Metric" and (found := re.fullmatch(r"(.*?)(?: \(([^()]*)\))?", line[0])):
            name = CSV_NAMES.get(found[1])
            if name is not None:
                values = dict(zip(header[1:], line[1:], strict=False))
                export[name] = {"unit": found[2], "avg": values.get("Value"), **values}
    row = _row(export)
    row["notes"].append("a CSV has figures rounded to two digits")
    return [row]


# --- profile_export.jsonl ---------------------------------------------------------------------------------


def _recognises_lines(file: ResultFile) -> bool:
    first = file.first
    return (
        isinstance(first.get("metadata"), dict)
        and isinstance(first.get("metrics"), dict)
        and {"request_start_ns", "benchmark_phase"} <= set(first["metadata"])
    )


def _read_lines(file: ResultFile) -> list[Row]:
    """Compute the figures from those of single requests, the warm-up's left out."""
    measured = [
        one
        for one in file.documents
        if isinstance(one, dict) and at(one, "metadata", "benchmark_phase") != "warmup"
    ]
    good = [one for one in measured if not one.get("error") and isinstance(one.get("metrics"), dict)]
    row: Row = {"client": "aiperf", "notes": []}
    for latency, names in LATENCIES.items():
        row |= summarized(latency, [value for one in good for value in _values_ms(one["metrics"], names)])
    times = [
        (number(at(one, "metadata", "request_start_ns")), number(at(one, "metadata", "request_end_ns")))
        for one in good
    ]
    ends = [(start, end) for start, end in times if start is not None and end is not None]
    seconds = (max(end for _, end in ends) - min(start for start, _ in ends)) / 1e9 if ends else 0.0
    tokens = {name: _tokens(good, f"{name}_sequence_length") for name in ("input", "output")}
    if seconds > 0:
        row["throughput_req_s"] = len(good) / seconds
        if tokens["output"]:
            row["throughput_out_tok_s"] = sum(tokens["output"]) / seconds
        if tokens["input"] and tokens["output"]:
            row["throughput_total_tok_s"] = (sum(tokens["input"]) + sum(tokens["output"])) / seconds
    if ends:
        row["date"] = str(np.datetime64(int(min(start for start, _ in ends)), "ns"))[:10]
    row |= lengths(*(_described(values) for values in tokens.values()))
    return [row | requests(len(good), len(measured) - len(good))]


def _values_ms(metrics: Mapping[str, Any], names: tuple[str, ...]) -> list[float]:
    """Return a request's value of a metric, or its values, in ms."""
    metric = next((found for name in names if isinstance(found := metrics.get(name), dict)), {})
    scale = MS.get(str(metric.get("unit")))
    if scale is None:
        return []
    values = metric.get("value")
    listed = values if isinstance(values, list) else [values]
    return [found * scale for value in listed if (found := number(value)) is not None]


def _tokens(records: list[Any], name: str) -> list[float]:
    found = (number(at(one, "metrics", name, "value")) for one in records)
    return [value for value in found if value is not None]


def _described(values: list[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)} if values else {}


JSON = Importer(
    name="aiperf",
    label="AIPerf",
    what="profile_export_aiperf.json",
    recognises=_recognises_json,
    read=_read_json,
    supersedes=lambda file: [f"{EXPORT}.csv", "profile_export.jsonl"],
)
LINES = Importer(
    name="aiperf-records",
    label="AIPerf",
    what="profile_export.jsonl, a line a request",
    recognises=_recognises_lines,
    read=_read_lines,
    supersedes=lambda file: [f"{EXPORT}.csv"],
)
CSV = Importer(
    name="aiperf-csv",
    label="AIPerf",
    what="profile_export_aiperf.csv",
    recognises=_recognises_csv,
    read=_read_csv,
)
