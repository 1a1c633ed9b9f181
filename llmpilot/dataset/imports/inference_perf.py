"""kubernetes-sigs/inference-perf: stage_N_lifecycle_metrics.json, or the summary where there is no stage.

Its `time_per_output_token` is (last - first token) / (tokens - 1) of each request: our TPOT. Its
`inter_token_latency` is the time between two tokens over all requests, where tokens of one piece come 0 s
apart: our ITL. Its `normalized_time_per_output_token` is (end - start) / tokens, first token and all: no
column of ours. Latencies are in seconds. What was served, and the load where a stage does not say it, stands
in config.yaml beside the reports. (inference-perf 0.7.0: reportgen/base.py)
"""

import re
from collections.abc import Mapping
from typing import Any

from llmpilot.dataset.imports.result_file import (
    Importer,
    ImportFailedError,
    ResultFile,
    Row,
    at,
    count,
    figures,
    lengths,
    number,
    requests,
)
from llmpilot.dataset.measurements import CLOSED, OPEN

LATENCIES = {
    "ttft_ms": "time_to_first_token",
    "itl_ms": "inter_token_latency",
    "tpot_ms": "time_per_output_token",
    "e2e_ms": "request_latency",
}
RATES = {
    "throughput_req_s": "requests_per_sec",
    "throughput_out_tok_s": "output_tokens_per_sec",
    "throughput_total_tok_s": "total_tokens_per_sec",
}
SERVERS = ("vllm", "sglang", "tgi")
STAGE = re.compile(r"(.*)stage_(-?\d+)_lifecycle_metrics\.json")
SUMMARY = "summary_lifecycle_metrics.json"


def _recognises(file: ResultFile) -> bool:
    return {"load_summary", "successes", "failures"} <= set(file.first)


def _read(file: ResultFile) -> list[Row]:
    report = file.first
    found, failed = report["successes"], report["failures"]
    if not isinstance(at(found, "latency"), dict):
        raise file.outdated(
            "this report has no latencies: it is of the server's own metrics, or of a version not read",
            "import stage_N_lifecycle_metrics.json of inference-perf 0.1 or newer",
        )
    row: Row = {"client": "inference-perf", "notes": []}
    for latency, name in LATENCIES.items():
        row |= figures(latency, _statistics(found["latency"].get(name)), 1e3)
    for column, name in RATES.items():
        if (rate := number(at(found, "throughput", name))) is not None:
            row[column] = rate
    inputs, outputs = (
        _statistics(found.get(counted) or found.get(before))
        for counted, before in (("prompt_tokens", "prompt_len"), ("output_tokens", "output_len"))
    )
    row |= lengths(inputs, outputs)
    cached, total = number(inputs.get("cached")), number(inputs.get("total"))
    if cached and total:  # 0 is also what a server that says nothing of its cache gets
        row["prefix_hit_share"] = min(1.0, cached / total)
    row |= requests(number(found.get("count")), number(at(failed, "count")))
    return [row | _config(file, report, row["notes"])]


def _statistics(given: Any) -> dict[str, Any]:
    """Return statistics under our names: inference-perf calls the 50th percentile `median`."""
    return {**given, "p50": given.get("median", given.get("p50"))} if isinstance(given, dict) else {}


def _config(file: ResultFile, report: Mapping[str, Any], notes: list[str]) -> Row:
    """Return the model, the server and the load: as the report and config.yaml beside it say them."""
    config = _beside(file)
    row: Row = {}
    if model := at(config, "server", "model_name"):
        row["model"] = str(model)
    if (kind := at(config, "server", "type")) in SERVERS:
        row["engine"] = kind
    stages = at(config, "load", "stages")
    number_of = STAGE.fullmatch(file.name)
    index = int(number_of[2]) if number_of else 0
    one_stage = number_of is not None or (isinstance(stages, list) and len(stages) == 1)
    stage = at(stages, index) if one_stage else None
    summary = report["load_summary"]
    users = count(summary.get("concurrency")) or count(at(stage, "concurrency_level"))
    if users:
        return row | {"load_kind": CLOSED, "concurrency": users}
    rate = number(summary.get("requested_rate")) or number(at(stage, "rate"))
    if rate and at(config, "load", "type") != "concurrent":
        return row | {"load_kind": OPEN, "request_rate": rate}
    if not one_stage:
        notes.append("a summary of all stages, whose loads differ")
    return row


def _beside(file: ResultFile) -> Mapping[str, Any]:
    """Return config.yaml of the report's folder; empty where there is none that can be read."""
    for name in ("config.yaml", "config.yml"):
        beside = file.path.with_name(name)
        if beside.is_file():
            try:
                return ResultFile(beside).first
            except ImportFailedError:
                return {}
    return {}


def _superseded(file: ResultFile) -> list[str]:
    """Return the summary's name: it mixes the stages, each of which is a row of its own."""
    found = STAGE.fullmatch(file.name)
    return [f"{found[1]}{SUMMARY}"] if found else []


IMPORTER = Importer(
    name="inference-perf",
    label="inference-perf",
    what="stage_N_lifecycle_metrics.json or summary_lifecycle_metrics.json",
    recognises=_recognises,
    read=_read,
    supersedes=_superseded,
)
