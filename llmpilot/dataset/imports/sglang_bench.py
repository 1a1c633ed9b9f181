"""sglang's bench_serving (`--output-file`, JSON lines): a row for each line.

Its ITL is the time between two pieces of a stream; of SGLang's own API (`--backend sglang`) the pieces' times
are shared among their tokens. Its TPOT is (end - first token) / (tokens - 1) of each request. All in ms.
(sglang 0.5.23: benchmark/serving.py)
"""

from collections.abc import Mapping
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
from llmpilot.dataset.imports.vllm_bench import ENGINES, load_of, results, stated
from llmpilot.dataset.measured_words import kv_precision, precision

LATENCIES = {"ttft_ms": "ttft", "itl_ms": "itl", "tpot_ms": "tpot", "e2e_ms": "e2e_latency"}
RATES = {
    "throughput_req_s": "request_throughput",
    "throughput_out_tok_s": "output_throughput",
    "throughput_total_tok_s": "total_throughput",
}
SERVER_COUNTS = {
    **{"tp": "tp_size", "pp": "pp_size", "dp": "dp_size", "ep": "ep_size"},
    **{"max_num_seqs": "max_running_requests", "max_num_batched_tokens": "chunked_prefill_size"},
    **{"max_model_len": "context_length", "spec_tokens": "speculative_num_draft_tokens"},
}
"""Our column -> the option that the server says it was started with."""
MARKS = {"mean_e2e_latency_ms", "completed", "request_throughput"}


def _recognises(file: ResultFile) -> bool:
    first = next(iter(results(file)), None)
    return isinstance(first, dict) and set(first) >= MARKS


def _read(file: ResultFile) -> list[Row]:
    return [_row(one) for one in results(file)]


def _row(result: Mapping[str, Any]) -> Row:
    row: Row = {"client": "sglang-bench", "notes": []}
    backend = str(result.get("backend") or "")
    if backend.startswith("sglang"):
        row["engine"] = "sglang"
    elif engine := ENGINES.get(backend):
        row["engine"] = engine
    if number(result.get("accept_length")):
        row["spec_decode"] = "yes"
    row |= _server(result.get("server_info"))
    for latency, name in LATENCIES.items():
        row |= figures(latency, stated(result, name))
    row |= {column: number(result[name]) for column, name in RATES.items() if name in result}
    parts = [number(result.get(f"{name}_throughput")) for name in ("input", "output")]
    if None not in parts:  # older versions do not state their sum
        row.setdefault("throughput_total_tok_s", sum(part or 0.0 for part in parts))
    row |= requests(number(result["completed"]), _failed(result)) | _lengths(result)
    hit = number(at(result, "cache_report", "cache_hit_rate_pct"))
    if hit is not None:
        row["prefix_hit_share"] = hit / 100
    return row | load_of(result, row["notes"])


def _failed(result: Mapping[str, Any]) -> float | None:
    """Return how many requests failed, which only --output-details tells."""
    errors = result.get("errors")
    return None if not isinstance(errors, list) else float(sum(bool(error) for error in errors))


def _lengths(result: Mapping[str, Any]) -> Row:
    """Return the lengths: as the random data sets draw them, else the means."""
    ratio = number(result.get("random_range_ratio"))
    nominal = [count(result.get(f"random_{name}_len")) for name in ("input", "output")]
    if str(result.get("dataset_name")).startswith("random") and ratio is not None and all(nominal):
        same = dict(zip(("input_tokens", "output_tokens"), nominal, strict=True))
        if ratio == 1:
            return {**same, "length_kind": "fixed"}
        if 0 <= ratio < 1:
            return {**same, "length_kind": "uniform", "length_min_share": ratio}
    completed = number(result["completed"]) or None

    def mean(name: str) -> dict[str, Any]:
        whole = number(result.get(name))
        return {"mean": whole / completed if whole and completed else None}

    return lengths(mean("total_input_tokens"), mean("total_output_tokens"))


def _server(info: Any) -> Row:
    """Return what an SGLang server said of itself: its arguments, its version, the room of its cache."""
    if not isinstance(info, dict):
        return {}
    if isinstance(one := at(info, "decode", 0), dict):  # a router's answer, for parts of both kinds
        return _server(one) | {"disaggregated": True}
    row: Row = {column: found for column, name in SERVER_COUNTS.items() if (found := count(info.get(name)))}
    if model := info.get("model_path") or info.get("served_model_name"):
        row["model"] = str(model)
    if version := info.get("version"):
        row["engine_version"] = str(version)
    if share := number(info.get("mem_fraction_static")):
        row["memory_share"] = share
    if quantized := info.get("quantization"):
        row["precision"], row["precision_as_stated"] = precision(str(quantized), str(model)), str(quantized)
    if kept := kv_precision(str(info.get("kv_cache_dtype") or "")):
        row["kv_precision"] = kept
    if info.get("speculative_algorithm"):
        row["spec_decode"] = "yes"
    if isinstance(off := info.get("disable_radix_cache"), bool):
        row["prefix_caching"] = not off
    if info.get("disable_cuda_graph") is True:
        row["eager"] = True
    if isinstance(spread := info.get("enable_dp_attention"), bool):
        row["attention_dp"] = spread
    if info.get("disaggregation_mode") in ("prefill", "decode"):
        row["disaggregated"] = True
    room = at(info, "max_total_num_tokens") or at(info, "internal_states", 0, "max_total_num_tokens")
    if tokens := count(room):
        row["kv_cache_tokens"] = tokens
    return row


IMPORTER = Importer(
    name="sglang-bench",
    label="sglang bench_serving",
    what="the JSON lines of --output-file",
    recognises=_recognises,
    read=_read,
)
