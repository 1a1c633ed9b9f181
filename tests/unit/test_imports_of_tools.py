"""What importers read of single tools: loads, what was served, older layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from imported_results import FIXTURES, SERVED, row_of, written

from llmpilot.dataset.imports import ImportFailedError, Told, found_files, imported
from llmpilot.dataset.measurements import AT_ONCE, CLOSED, OPEN


def test_guidellm_strategies_are_loads(tmp_path: Path) -> None:
    report = json.loads((FIXTURES / "guidellm/concurrent.json").read_text())
    loads = {
        (CLOSED, 1): {"type_": "synchronous"},
        (CLOSED, 7): {"type_": "concurrent", "streams": 7},
        (CLOSED, 64): {"type_": "throughput", "max_concurrency": 64},
        (AT_ONCE, None): {"type_": "throughput"},
        (OPEN, 2.5): {"type_": "poisson", "rate": 2.5},
        (OPEN, 3): {"type_": "constant", "rate": 3, "max_concurrency": 9},
    }
    for (kind, size), strategy in loads.items():
        report["benchmarks"] = report["benchmarks"][:1]
        report["benchmarks"][0]["config"]["strategy"] = strategy
        row = row_of(tmp_path, report)
        assert (row["load_kind"], row.get("concurrency", row.get("request_rate"))) == (kind, size)
    assert "at most 9 requests at once" in row["notes"]


def test_reports_of_the_first_guidellm_are_refused(tmp_path: Path) -> None:
    old = {"benchmarks": [{"mode": "synchronous", "results": [], "completed_request_rate": 1.0}]}
    with pytest.raises(ImportFailedError, match="before 0\\.2"):
        row_of(tmp_path, old)


def test_details_of_each_request_give_what_vllm_did_not_state(tmp_path: Path) -> None:
    detailed = json.loads((FIXTURES / "vllm/detailed.json").read_text())
    row = row_of(tmp_path, detailed)
    assert row["ttft_ms_p99"] == pytest.approx(detailed["p99_ttft_ms"])
    assert row["itl_ms_p90"] >= row["itl_ms_p50"]
    bare = {name: value for name, value in detailed.items() if not isinstance(value, list)}
    assert "itl_ms_p90" not in row_of(tmp_path, bare)


def test_an_appended_vllm_file_has_a_row_for_each_line(tmp_path: Path) -> None:
    result = json.loads((FIXTURES / "vllm/closed.json").read_text())
    other = result | {"mean_ttft_ms": 99.0, "request_rate": 3.0, "max_concurrency": None}
    path = written(tmp_path, "\n".join(json.dumps(one) for one in (result, other)))
    table = imported(found_files([path]), Told(SERVED)).measurements.table
    assert table["load_kind"].tolist() == [CLOSED, OPEN]


SGLANG_SAYS = {
    **{"model_path": "Qwen/Qwen3-8B", "version": "0.5.2", "tp_size": 2, "dp_size": 1, "quantization": "fp8"},
    **{"kv_cache_dtype": "auto", "mem_fraction_static": 0.85, "max_running_requests": 256},
    **{"disable_radix_cache": True, "speculative_algorithm": None, "chunked_prefill_size": 8192},
    "internal_states": [{"max_total_num_tokens": 120000}],
}


def test_an_sglang_server_says_what_it_is(tmp_path: Path) -> None:
    line = json.loads((FIXTURES / "sglang/bench.jsonl").read_text().splitlines()[0])
    line |= {"server_info": SGLANG_SAYS, "random_range_ratio": 0.5}
    found = imported(found_files([written(tmp_path, line, "one.jsonl")]), Told({"gpu": "h100"}))
    row = found.measurements.table.iloc[0]
    assert (row["model"], row["engine"], row["engine_version"]) == ("Qwen/Qwen3-8B", "sglang", "0.5.2")
    assert (row["tp"], row["n_gpus"], row["precision"], row["prefix_caching"]) == (2, 2, "fp8", False)
    assert (row["kv_cache_tokens"], row["max_num_seqs"], row["memory_share"]) == (120000, 256, 0.85)
    assert (row["length_kind"], row["length_min_share"], row["input_tokens"]) == ("uniform", 0.5, 64)


def test_a_router_of_sglang_answers_for_both_its_parts(tmp_path: Path) -> None:
    line = json.loads((FIXTURES / "sglang/bench.jsonl").read_text().splitlines()[0])
    line |= {"server_info": {"prefill": [SGLANG_SAYS], "decode": [SGLANG_SAYS]}}
    del line["total_throughput"]
    row = row_of(tmp_path, line, "one.jsonl")
    assert (row["disaggregated"], row["engine_version"]) == (True, "0.5.2")
    assert row["throughput_total_tok_s"] == line["input_throughput"] + line["output_throughput"]


def test_aiperf_names_the_gpus_that_its_telemetry_saw(tmp_path: Path) -> None:
    export = json.loads((FIXTURES / "aiperf/profile_export_aiperf.json").read_text())
    gpus = {f"gpu_{i}": {"gpu_index": i, "gpu_name": "NVIDIA H100 80GB HBM3"} for i in range(2)}
    export["telemetry_data"] = {"endpoints": {"localhost:9400": {"gpus": gpus}}}
    found = imported(found_files([written(tmp_path, export)]), Told())
    row = found.measurements.table.iloc[0]
    assert (row["gpu"], row["gpu_as_stated"], row["n_gpus"]) == ("h100", "NVIDIA H100 80GB HBM3", 2)
    assert row["model"] == "bigcode/starcoder"


@pytest.mark.parametrize(
    ("unit", "ms"), [("ms", 7), ("s", 7000), ("sec", 7000), ("us", 0.007), ("ticks", None)]
)
def test_aiperf_states_its_units(unit: str, ms: float | None, tmp_path: Path) -> None:
    export = json.loads((FIXTURES / "aiperf/profile_export_aiperf.json").read_text())
    export["time_to_first_token"] = {"unit": unit, "avg": 7.0, "p50": 7.0}
    assert row_of(tmp_path, export).get("ttft_ms_p50") == (None if ms is None else pytest.approx(ms))
    line = json.loads((FIXTURES / "aiperf/profile_export.jsonl").read_text().splitlines()[-1])
    line["metrics"]["time_to_first_token"] = {"unit": unit, "value": 7.0}
    found = row_of(tmp_path, json.dumps(line), "profile_export.jsonl").get("ttft_ms_p50")
    assert found == (None if ms is None else pytest.approx(ms))


def stack(role: str, replicas: int, count: int, tp: int) -> dict[str, Any]:
    accelerator = {
        "model": "NVIDIA-H100-80GB-HBM3",
        "count": count,
        "parallelism": {"tp": tp, "pp": 1, "dp": 1},
    }
    engine = {"kind": "inference_engine", "tool": "llm-d", "tool_version": "ghcr.io/llm-d/llm-d-cuda:0.3.1"}
    part = {
        "role": role,
        "replicas": replicas,
        "model": {"name": "Qwen/Qwen3-32B"},
        "accelerator": accelerator,
    }
    return {"metadata": {"label": role}, "standardized": engine | part}


def test_an_llm_d_report_says_what_was_served(tmp_path: Path) -> None:
    report = yaml.safe_load((FIXTURES / "llm_d/vllm-benchmark_v0.2.yaml").read_text())
    report["scenario"]["stack"] = [stack("aggregate", 2, 4, 4)]
    found = imported(found_files([written(tmp_path, report)]), Told())
    row = found.measurements.table.iloc[0]
    assert (row["model"], row["gpu"], row["engine"]) == ("Qwen/Qwen3-32B", "h100", "vllm")
    assert (row["n_gpus"], row["tp"], row["dp"]) == (8, 4, 2)
    assert row["image"] == "ghcr.io/llm-d/llm-d-cuda:0.3.1"
    report["scenario"]["stack"] = [stack("prefill", 2, 1, 1), stack("decode", 1, 4, 4)]
    row = imported(found_files([written(tmp_path, report)]), Told()).measurements.table.iloc[0]
    assert (row["disaggregated"], row["n_gpus"]) == (True, 6)


@pytest.mark.parametrize("version", ["0.3", "1.0"])
def test_reports_of_versions_to_come_are_refused(version: str, tmp_path: Path) -> None:
    report = yaml.safe_load((FIXTURES / "llm_d/vllm-benchmark_v0.2.yaml").read_text())
    with pytest.raises(ImportFailedError, match=f"version {version}"):
        row_of(tmp_path, report | {"version": version})


def test_a_summary_of_stages_has_no_load(tmp_path: Path) -> None:
    summary = json.loads((FIXTURES / "inference_perf/closed/summary_lifecycle_metrics.json").read_text())
    row = row_of(tmp_path, summary, "summary_lifecycle_metrics.json")
    assert "load_kind" not in row
    assert "loads differ" in row["notes"]


OF_BEFORE: dict[str, Any] = {
    "load_summary": {"count": 7786, "requested_rate": 129.78, "achieved_rate": 39.342},
    "successes": {
        "count": 7786,
        "latency": {
            "request_latency": {"mean": 11.407, "median": 12.612, "p90": 12.771, "p99": 12.789},
            "normalized_time_per_output_token": {"mean": 0.0965, "median": 0.0978},
            **{"time_per_output_token": None, "time_to_first_token": None, "inter_token_latency": None},
        },
        "throughput": {"output_tokens_per_sec": 4825.5, "requests_per_sec": 37.626},
        "prompt_len": {"mean": 135.8, "min": 130.0, "max": 150.0},
        "output_len": {"mean": 128.2, "min": 0.0, "max": 191.0},
    },
    "failures": {"count": 0, "request_latency": None, "prompt_len": None},
}
"""As inference-perf of 2025 wrote it of answers that were not streamed (demos/kubecon-na-2025, shortened)."""


def test_an_inference_perf_report_of_before_whose_answers_were_not_streamed(tmp_path: Path) -> None:
    row = row_of(tmp_path, OF_BEFORE, "stage_3_lifecycle_metrics.json")
    assert (row["e2e_ms_p50"], row["e2e_ms_p90"]) == (12612, 12771)
    assert (row["input_tokens"], row["output_tokens"], row["length_kind"]) == (135.8, 128.2, "mean")
    assert (row["load_kind"], row["request_rate"], row["failures"]) == (OPEN, 129.78, 0)
    assert not any(name.startswith(("ttft_ms", "itl_ms", "tpot_ms")) for name in row)
    assert "lacking engine, engine_version, precision, n_gpus, ttft_ms, itl_ms, tpot_ms" in row["notes"]


def test_an_aiperf_export_of_before_names_load_and_model_elsewhere(tmp_path: Path) -> None:
    export = json.loads((FIXTURES / "aiperf/profile_export_aiperf.json").read_text())
    export["input_config"] = {"endpoint": {"model_names": ["my-model"]}, "loadgen": {"request_rate": 5.0}}
    found = imported(found_files([written(tmp_path, export)]), Told({"gpu": "h100"}))
    row = found.measurements.table.iloc[0]
    assert (row["model"], row["load_kind"], row["request_rate"]) == ("my-model", OPEN, 5)


def test_a_guidellm_report_of_before_keeps_its_strategy_elsewhere(tmp_path: Path) -> None:
    report = json.loads((FIXTURES / "guidellm/concurrent.json").read_text())
    benchmark = report["benchmarks"][0]
    totals = benchmark["metrics"].pop("request_totals")
    del benchmark["config"]
    benchmark |= {"args": {"strategy": {"type_": "constant", "rate": 3.0}}, "request_totals": totals}
    report |= {"benchmarks": [benchmark], "metadata": {}}
    row = row_of(tmp_path, report)
    assert (row["load_kind"], row["request_rate"]) == (OPEN, 3)
    assert row["n_requests"] == totals["successful"] + totals["errored"]
