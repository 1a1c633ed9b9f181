"""`vllm bench serve --save-result` (and --save-detailed, --append-result; benchmark_serving.py before 0.10).

Its ITL is the time between two pieces of a stream, whatever they hold; its TPOT is (end - first token) /
(tokens - 1) of each request. Times are in ms, those of --save-detailed, a value for each request, in seconds.
(vllm 0.32.0: benchmarks/serve.py, benchmarks/lib/endpoint_request_func.py)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmpilot.dataset.imports.result_file import (
    Importer,
    ResultFile,
    Row,
    count,
    figures,
    lengths,
    number,
    requests,
    summarized,
)
from llmpilot.dataset.measurements import AT_ONCE, CLOSED, OPEN

LATENCIES = {"ttft_ms": "ttft", "itl_ms": "itl", "tpot_ms": "tpot", "e2e_ms": "e2el"}
RATES = {
    "throughput_req_s": "request_throughput",
    "throughput_out_tok_s": "output_throughput",
    "throughput_total_tok_s": "total_token_throughput",
}
ENGINES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm", "tgi": "tgi"}
"""Backends that are one engine's own way of asking; the others (openai, openai-chat) are anybody's."""
METADATA = {
    **{"gpu": "gpu", "version": "engine_version", "engine_version": "engine_version"},
    **{"precision": "precision", "tensor_parallel_size": "tp", "tp": "tp", "pp": "pp", "dp": "dp"},
}
"""What --metadata KEY=VALUE often says -> our column."""
COUNTED = ("tp", "pp", "dp")
MARKS = {"completed", "request_throughput", "total_input_tokens"}


def _recognises(file: ResultFile) -> bool:
    first = next(iter(results(file)), None)
    return (
        isinstance(first, dict)
        and set(first) >= MARKS
        and bool({"model_id", "endpoint_type", "num_prompts"} & set(first))
        and "mean_e2e_latency_ms" not in first
    )


def results(file: ResultFile) -> list[Any]:
    """Return the results of a file that has one, one a line, or a list of them."""
    return [
        one for document in file.documents for one in (document if isinstance(document, list) else [document])
    ]


def _read(file: ResultFile) -> list[Row]:
    return [_row(file, one) for one in results(file)]


def _row(file: ResultFile, result: Mapping[str, Any]) -> Row:
    if "total_output_tokens" not in result:
        raise file.outdated(
            "this is a benchmark of embeddings or of pooling: it has no tokens that come one by one",
            "import benchmarks of text generation only",
        )
    row: Row = {"client": "vllm-bench", "notes": []}
    if model := result.get("model_id"):
        row["model"] = str(model)
    if date := str(result.get("date") or "")[:8]:
        row["date"] = date
    if engine := ENGINES.get(str(result.get("backend") or result.get("endpoint_type"))):
        row["engine"] = engine
    if result.get("spec_decode_acceptance_length") is not None:
        row["spec_decode"] = "yes"
    for key, column in METADATA.items():
        if value := result.get(key):
            row[column] = count(value) if column in COUNTED else str(value)
    row |= _of_each_request(result)
    for latency, name in LATENCIES.items():
        row |= figures(latency, stated(result, name))
    row |= {column: number(result[name]) for column, name in RATES.items() if name in result}
    completed, asked = number(result["completed"]), number(result.get("num_prompts"))
    failed = number(result.get("failed"))
    if failed is None and asked is not None and completed is not None:
        failed = max(0.0, asked - completed)
    row |= requests(completed, failed) | _lengths(result, completed)
    return row | load_of(result, row["notes"])


def stated(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the statistics [ms] that a result has of a latency by its name in the result."""
    found = {
        "mean": result.get(f"mean_{name}_ms"),
        "p50": result.get(f"median_{name}_ms", result.get(f"p50_{name}_ms")),
    }
    return found | {quantile: result.get(f"{quantile}_{name}_ms") for quantile in ("p90", "p95", "p99")}


def _of_each_request(result: Mapping[str, Any]) -> Row:
    """Return the figures of what a result has of each request [s]: all with --save-detailed.

    Without it versions of today keep the `latencies` alone, 0 for requests that failed.
    """
    ttfts, itls = result.get("ttfts"), result.get("itls")
    if not isinstance(ttfts, list) or not isinstance(itls, list) or len(ttfts) != len(itls):
        alone = result.get("latencies")
        whole = [one for one in alone if one] if isinstance(alone, list) else []
        return summarized("e2e_ms", whole, 1e3)
    errors = result.get("errors") or [""] * len(ttfts)
    good = [at for at, (ttft, error) in enumerate(zip(ttfts, errors, strict=False)) if ttft and not error]
    latencies = result.get("latencies") or [ttft + sum(gaps) for ttft, gaps in zip(ttfts, itls, strict=True)]
    tokens = result.get("output_lens") or []
    tpots = [
        (latencies[at] - ttfts[at]) / (tokens[at] - 1) for at in good if at < len(tokens) and tokens[at] > 1
    ]
    return {
        **summarized("ttft_ms", [ttfts[at] for at in good], 1e3),
        **summarized("itl_ms", [gap for at in good for gap in itls[at]], 1e3),
        **summarized("tpot_ms", tpots, 1e3),
        **summarized("e2e_ms", [latencies[at] for at in good], 1e3),
    }


def _lengths(result: Mapping[str, Any], completed: float | None) -> Row:
    def described(each: str, total: str) -> dict[str, Any]:
        values: Sequence[Any] = result.get(each) or ()
        found = [value for value in values if value]  # those of failed requests are 0
        ends = {"min": min(found), "max": max(found)} if found else {}
        whole = number(result.get(total))
        return {"mean": whole / completed if whole and completed else None, **ends}

    return lengths(
        described("input_lens", "total_input_tokens"), described("output_lens", "total_output_tokens")
    )


def load_of(result: Mapping[str, Any], notes: list[str]) -> Row:
    """Return the load: `max_concurrency` users, `request_rate` a second, or all prompts at once."""
    rate, most = number(result.get("request_rate")), count(result.get("max_concurrency"))
    if rate is not None and rate > 0:
        if most:
            notes.append(f"at most {most} requests at once")
        return {"load_kind": OPEN, "request_rate": rate}
    if most:
        return {"load_kind": CLOSED, "concurrency": most}
    return {"load_kind": AT_ONCE} if "request_rate" in result else {}


IMPORTER = Importer(
    name="vllm-bench",
    label="vllm bench serve",
    what="the JSON of --save-result, --save-detailed or --append-result",
    recognises=_recognises,
    read=_read,
)
