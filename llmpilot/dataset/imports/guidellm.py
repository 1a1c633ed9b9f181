"""GuideLLM's report (`--output kind=json` or `yaml`; `--output-path` before 0.7): a row for each benchmark.

GuideLLM's `inter_token_latency_ms` is (last - first token) / (tokens - 1) of each request: it is our TPOT.
Its statistics weigh each request by its tokens. Its `time_per_output_token_ms` has the wait for the first
token in it and is (end - start) / tokens: no column of ours. No gaps between single tokens are stated.
(guidellm 0.8.1: schemas/base/request_stats.py, benchmark/schemas/metrics.py)
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

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
from llmpilot.dataset.measurements import AT_ONCE, CLOSED, OPEN

LATENCIES = {
    "ttft_ms": ("time_to_first_token_ms", 1.0),
    "tpot_ms": ("inter_token_latency_ms", 1.0),
    "e2e_ms": ("request_latency", 1e3),
}
"""Our latency -> GuideLLM's metric, and what makes ms of it."""
RATES = {
    "throughput_req_s": "requests_per_second",
    "throughput_out_tok_s": "output_tokens_per_second",
    "throughput_total_tok_s": "tokens_per_second",
}


def _recognises(file: ResultFile) -> bool:
    benchmarks = file.first.get("benchmarks")
    if not isinstance(benchmarks, list):
        return False
    if at(file.first, "metadata", "guidellm_version") is not None:
        return True
    kinds = [at(one, "type_") for one in benchmarks]
    return "generative_benchmark" in kinds or any(_is_of_0_1(one) for one in benchmarks)


def _is_of_0_1(benchmark: Any) -> bool:
    """Whether a benchmark is of the first versions, which kept single requests only."""
    return isinstance(benchmark, dict) and {"mode", "results", "completed_request_rate"} <= set(benchmark)


def _read(file: ResultFile) -> list[Row]:
    report = file.first
    rows = []
    for benchmark in report["benchmarks"]:
        if _is_of_0_1(benchmark) or not isinstance(at(benchmark, "metrics"), dict):
            raise file.outdated(
                "this report is of a GuideLLM before 0.2, which is not read",
                "run guidellm 0.2 or newer: its reports have the statistics of each latency",
            )
        rows.append(_row(report, benchmark))
    return rows


def _row(report: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Row:
    metrics = benchmark["metrics"]
    row: Row = {"client": "guidellm", "notes": []}
    if version := at(report, "metadata", "guidellm_version"):
        row["client_version"] = str(version)
    if started := number(benchmark.get("start_time")) or number(at(benchmark, "run_stats", "start_time")):
        row["date"] = datetime.fromtimestamp(started, UTC).date().isoformat()
    if model := _model(report, benchmark):
        row["model"] = model
    for latency, (name, scale) in LATENCIES.items():
        row |= figures(latency, _statistics(metrics, name), scale)
    for column, name in RATES.items():
        mean = number(_statistics(metrics, name).get("mean"))
        if mean is not None:
            row[column] = mean
    row |= lengths(_statistics(metrics, "prompt_token_count"), _statistics(metrics, "output_token_count"))
    row |= _requests(benchmark, row)
    return row | _load(benchmark, metrics, row["notes"])


def _statistics(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a metric's statistics over the requests that succeeded."""
    found = at(metrics, name, "successful")
    if not isinstance(found, dict) or not count(found.get("count")):
        return {}
    return {name: found.get(name) for name in ("mean", "min", "max")} | (found.get("percentiles") or {})


def _requests(benchmark: Mapping[str, Any], row: Row) -> Row:
    """Return how many requests were sent; those that the end of the benchmark cut off have not failed."""
    totals = next(
        (
            found
            for keys in (
                ("metrics", "request_totals"),
                ("request_totals",),
                ("run_stats", "requests_made"),
                ("scheduler_metrics", "requests_made"),
            )
            if isinstance(found := at(benchmark, *keys), dict)
        ),
        {},
    )
    if cut := count(totals.get("incomplete")):
        row["notes"].append(f"{cut} requests cut off by the end are not counted")
    return requests(number(totals.get("successful")), number(totals.get("errored")))


def _load(benchmark: Mapping[str, Any], metrics: Mapping[str, Any], notes: list[str]) -> Row:
    """Return the load that GuideLLM's strategy puts on the service."""
    found = at(benchmark, "config", "strategy") or at(benchmark, "args", "strategy")
    found = found or at(benchmark, "scheduler", "strategy") or {}
    strategy = found if isinstance(found, dict) else {"type_": found}
    kind = strategy.get("type_") or strategy.get("kind")
    rate, most = number(strategy.get("rate")), count(strategy.get("max_concurrency"))
    if kind == "synchronous":
        return {"load_kind": CLOSED, "concurrency": 1}
    if kind == "concurrent" and (streams := count(strategy.get("streams")) or most):
        return {"load_kind": CLOSED, "concurrency": streams}
    if kind == "throughput":
        return {"load_kind": CLOSED, "concurrency": most} if most else {"load_kind": AT_ONCE}
    if kind in ("constant", "poisson", "async") and rate:
        if most:
            notes.append(f"at most {most} requests at once")
        return {"load_kind": OPEN, "request_rate": rate}
    if users := number(_statistics(metrics, "request_concurrency").get("mean")):
        notes.append(f"{users:.2f} requests in flight on average")
    return {"load_kind": str(kind)} if kind else {}


def _model(report: Mapping[str, Any], benchmark: Mapping[str, Any]) -> str | None:
    places = (
        (benchmark, "config", "backend", "model"),
        (report, "config", "backend", "model"),
        (report, "config", "spec", "backend", "model"),
        (report, "args", "backend_kwargs", "model"),
        (report, "args", "model"),
        (benchmark, "worker", "backend_model"),
    )
    found = (at(*place) for place in places)
    return next((one for one in found if isinstance(one, str) and one), None)


IMPORTER = Importer(
    name="guidellm",
    label="GuideLLM",
    what="the JSON or YAML report of guidellm 0.2 or newer",
    recognises=_recognises,
    read=_read,
)
