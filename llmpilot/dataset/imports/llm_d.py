"""llm-d-benchmark's universal benchmark report, versions 0.1 and 0.2 (0.2.1): YAML or JSON.

The report takes over the figures of the load generator it names, and with them that tool's own definition of
inter-token latency: of GuideLLM and AIPerf it is a mean per request, our TPOT, of the others the time between
two pieces of a stream, our ITL. Units stand beside every figure.
(llmd_benchmark_report 0.2.1: schema_v0_1.py, schema_v0_2.py, native_to_br0_1.py, native_to_br0_2.py)
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

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
)
from llmpilot.dataset.measured_words import precision
from llmpilot.dataset.measurements import AT_ONCE, CLOSED, OPEN

MEANS_PER_REQUEST = ("guidellm", "aiperf")
"""Load generators whose inter-token latency is a mean per request."""
CLIENTS = {"vllm-benchmark": "vllm-bench", "inferencemax": "inferencex", "inference-perf": "inference-perf"}
"""What a report calls a load generator -> `client` of our table; another name stays as it is."""
LATENCIES = {
    "ttft_ms": "time_to_first_token",
    "tpot_ms": "time_per_output_token",
    "itl_ms": "inter_token_latency",
    "e2e_ms": "request_latency",
}
MS = {"ms": 1.0, "s": 1e3, "ms/token": 1.0, "s/token": 1e3}
RATES_0_1 = {
    "throughput_req_s": "requests_per_sec",
    "throughput_out_tok_s": "output_tokens_per_sec",
    "throughput_total_tok_s": "total_tokens_per_sec",
}
RATES_0_2 = {
    "throughput_req_s": "request_rate",
    "throughput_out_tok_s": "output_token_rate",
    "throughput_total_tok_s": "total_token_rate",
}
ENGINES = ("vllm", "sglang", "trtllm", "tensorrt-llm", "tgi")
UNKNOWN = "unknown"
"""Stands in a report for a model that nothing named."""
MADE_OF_VLLM = "llm-d"
"""An image or tool of this name runs vLLM."""


def _recognises(file: ResultFile) -> bool:
    first = file.first
    version = str(first.get("version") or "")
    return bool(re.fullmatch(r"\d+\.\d+(\.\d+)?", version)) and (
        {"scenario", "metrics"} <= set(first) or "results" in first
    )


def _read(file: ResultFile) -> list[Row]:
    return [_row(file, one) for one in file.documents if isinstance(one, dict)]


def _row(file: ResultFile, report: Mapping[str, Any]) -> Row:
    version = str(report.get("version"))
    if version.startswith("0.1"):
        return _row_0_1(report)
    if version.startswith("0.2"):
        return _row_0_2(file, report)
    raise file.outdated(
        f"this benchmark report is of version {version}, which is not read",
        "versions 0.1 and 0.2 are: benchmark-report -b 0.2 converts a tool's results again",
    )


# --- both versions ----------------------------------------------------------------------------------------


def _latencies(given: Any, tool: str | None) -> Row:
    row: Row = {}
    for latency, name in LATENCIES.items():
        values = at(given, name)
        if not isinstance(values, dict):
            continue
        column = "tpot_ms" if latency == "itl_ms" and tool in MEANS_PER_REQUEST else latency
        scale = MS.get(str(values.get("units")))
        if scale is not None:
            row = figures(column, values, scale) | row  # what is stated as TPOT goes before
    return row


def _requests(counted: Mapping[str, Any], notes: list[str]) -> Row:
    """Return how many requests were sent; those that the end of the benchmark cut off have not failed."""
    total, failed = number(counted.get("total")), number(counted.get("failures"))
    if total is None:
        return {}
    if cut := count(counted.get("incomplete")):
        notes.append(f"{cut} requests cut off by the end are not counted")
    return requests(total - (failed or 0.0) - (cut or 0), failed)


def _client(tool: Any) -> Row:
    name = str(tool).lower() if tool else None
    return {"client": CLIENTS.get(name, name)} if name else {}


def _offered(users: Any, rate: Any, notes: list[str]) -> Row:
    """Return the load of a number of users or of a rate, each of them `inf` where it is not bounded."""
    most, per_s = count(users), number(rate)
    if per_s:
        if most:
            notes.append(f"at most {most} requests at once")
        return {"load_kind": OPEN, "request_rate": per_s}
    if most:
        return {"load_kind": CLOSED, "concurrency": most}
    unbounded = any(str(one).lower().lstrip(".") in ("inf", "infinity") for one in (users, rate))
    return {"load_kind": AT_ONCE} if unbounded else {}


def _engine(name: Any, version: Any) -> Row:
    """Return the engine that a name or an image says, and its version where it is no image's."""
    said = f"{name or ''} {version or ''}".lower()
    row: Row = {}
    if found := next((engine for engine in ENGINES if re.search(rf"\b{engine}\b", said)), None):
        row["engine"] = found
    elif MADE_OF_VLLM in said:
        row["engine"] = "vllm"
    images = [str(one) for one in (version, name) if one and "/" in str(one)]
    if images:
        row["image"] = images[0]
    if version and not images and re.match(r"v?\d", str(version)):
        row["engine_version"] = str(version).removeprefix("v")
    return row


def _same(values: list[Any]) -> Any:
    """Return the one value that all have, or None."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _hardware(
    accelerators: Sequence[Mapping[str, Any]], replicas: Sequence[int], roles: Sequence[str]
) -> Row:
    """Return the GPUs of a service whose parts are so many replicas of an accelerator's group each."""
    row: Row = {}
    counts = [count(one.get("count")) for one in accelerators]
    if word := _same([one.get("model") for one in accelerators]):
        row |= {"gpu": gpu_named(str(word)), "gpu_as_stated": str(word)}
    if accelerators and all(counts):
        row["n_gpus"] = sum(one * times for one, times in zip(counts, replicas, strict=True) if one)
    if {"prefill", "decode"} <= set(roles):
        return row | {"disaggregated": True}
    sizes: dict[str, int | None] = {
        size: _same([count(at(one, "parallelism", size)) for one in accelerators])
        for size in ("tp", "pp", "dp", "ep")
    }
    if (tp := sizes["tp"]) is not None:
        row |= {"tp": tp, "pp": sizes["pp"] or 1, "dp": (sizes["dp"] or 1) * sum(replicas)}
        row["n_gpus"] = row["tp"] * row["pp"] * row["dp"]
        if sizes["ep"]:
            row["ep"] = sizes["ep"]
    return row


# --- version 0.1 ------------------------------------------------------------------------------------------


def _row_0_1(report: Mapping[str, Any]) -> Row:
    scenario, metrics = report.get("scenario") or {}, report.get("metrics") or {}
    tool = at(scenario, "load", "name")
    row: Row = {"notes": [], **_client(tool)}
    arguments = at(scenario, "load", "args") or {}
    models = (at(scenario, "model", "name"), at(arguments, "server", "model_name"))
    model = next((one for one in models if one and one != UNKNOWN), None)
    if model is not None:
        row["model"] = str(model)
    if word := at(scenario, "model", "quantization"):
        row |= {"precision": precision(str(word), str(model)), "precision_as_stated": str(word)}
    engines = at(scenario, "platform", "engine") or [{}]
    row |= _engine(at(engines, 0, "name"), at(engines, 0, "version"))
    accelerators = [one for one in at(scenario, "host", "accelerator") or [] if isinstance(one, dict)]
    roles = [str(one) for one in at(scenario, "host", "type") or []]
    row |= _hardware(accelerators, [1] * len(accelerators), roles)
    if started := number(at(metrics, "time", "start")):
        row["date"] = datetime.fromtimestamp(started, UTC).date().isoformat()
    row |= _latencies(metrics.get("latency"), str(tool))
    for column, name in RATES_0_1.items():
        if (rate := number(at(metrics, "throughput", name))) is not None:
            row[column] = rate
    counted = metrics.get("requests") or {}
    row |= lengths(counted.get("input_length") or {}, counted.get("output_length") or {})
    row |= _requests(counted, row["notes"])
    return row | _load_0_1(arguments, at(scenario, "load", "metadata", "stage"), row["notes"])


def _load_0_1(arguments: Mapping[str, Any], stage: Any, notes: list[str]) -> Row:
    """Return the load: its arguments are the load generator's own."""
    if isinstance(found := at(arguments, "load", "stages", stage), dict):  # inference-perf's
        users = found.get("concurrency_level")
        return _offered(users, None if users else found.get("rate"), notes)
    guidellms = at(arguments, "benchmarks", stage) if stage is not None else None
    if isinstance(guidellms, dict):
        return _offered(guidellms.get("profile.streams"), guidellms.get("profile.rate"), notes)
    for users, rate in (("max_concurrency", "request_rate"), ("concurrency", "qps"), ("streams", "rate")):
        if users in arguments or rate in arguments:
            return _offered(arguments.get(users), arguments.get(rate), notes)
    return {}


# --- version 0.2 ------------------------------------------------------------------------------------------


def _row_0_2(file: ResultFile, report: Mapping[str, Any]) -> Row:
    aggregate = at(report, "results", "request_performance", "aggregate")
    if not isinstance(aggregate, dict):
        raise file.outdated(
            "this benchmark report has no results.request_performance.aggregate",
            "import the report of a load generator, not of a component alone",
        )
    load = at(report, "scenario", "load", "standardized") or {}
    tool = str(load.get("tool")).lower()
    row: Row = {"notes": [], **_client(load.get("tool"))}
    if version := load.get("tool_version"):
        row["client_version"] = str(version)
    parts = [
        part
        for one in at(report, "scenario", "stack") or []
        if at(part := at(one, "standardized"), "kind") == "inference_engine" and isinstance(part, dict)
    ]
    row |= _stack(parts)
    times = (at(report, "run", "time", name) for name in ("start", "end"))
    if moment := next((one for one in times if one), None):
        row["date"] = str(moment)[:10]
    row |= _latencies(aggregate.get("latency"), tool)
    for column, name in RATES_0_2.items():
        if (rate := number(at(aggregate, "throughput", name, "mean"))) is not None:
            row[column] = rate
    counted = aggregate.get("requests") or {}
    row |= lengths(counted.get("input_length") or {}, counted.get("output_length") or {})
    row |= _requests(counted, row["notes"])
    return row | _offered(load.get("concurrency"), _rate(tool, load), row["notes"])


def _rate(tool: str, load: Mapping[str, Any]) -> Any:
    """Return the rate of a load; of users in a closed loop, inference-perf states one that means nothing."""
    closed = tool == "inference-perf" and count(load.get("concurrency"))
    return None if closed else load.get("rate_qps")


def _stack(parts: Sequence[Mapping[str, Any]]) -> Row:
    """Return the service that the report's inference engines are, together."""
    row: Row = {}
    if (model := _same([at(part, "model", "name") for part in parts])) and model != UNKNOWN:
        row["model"] = str(model)
    if parts:
        row |= _engine(*(_same([part.get(name) for part in parts]) for name in ("tool", "tool_version")))
    accelerators = [part.get("accelerator") or {} for part in parts]
    replicas = [count(part.get("replicas")) or 1 for part in parts]
    return row | _hardware(accelerators, replicas, [str(part.get("role")) for part in parts])


IMPORTER = Importer(
    name="llm-d-benchmark",
    label="llm-d-benchmark",
    what="a benchmark report of version 0.1 or 0.2, YAML or JSON",
    recognises=_recognises,
    read=_read,
)
