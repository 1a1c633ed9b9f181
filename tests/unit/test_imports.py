"""Importers of other load generators' results: against what the emulator sent while these tools ran."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from imported_results import FIXTURES, SERVED, read, row_of, written

from llmpilot.dataset.imports import (
    IMPORTERS,
    Importer,
    ImportFailedError,
    ResultFile,
    Told,
    found_files,
    imported,
)
from llmpilot.dataset.imports.gpu_names import gpu_named
from llmpilot.dataset.imports.rows import doubts
from llmpilot.dataset.measurements import CLOSED, LATENCY_COLUMNS, OPEN

GAPS, MEANS = {"itl_ms", "tpot_ms"}, {"tpot_ms"}
"""What a tool states of the time between tokens: single gaps beside means per request, or means only."""
RESULTS: dict[str, tuple[str, set[str], list[float]]] = {
    "guidellm/concurrent.json": ("guidellm", MEANS, [2, 4]),
    "aiperf/profile_export_aiperf.json": ("aiperf", GAPS, [4]),
    "aiperf/profile_export_aiperf.csv": ("aiperf-csv", GAPS, []),
    "aiperf/profile_export.jsonl": ("aiperf-records", GAPS, []),
    "vllm/closed.json": ("vllm-bench", GAPS, [4]),
    "vllm/detailed.json": ("vllm-bench", GAPS, []),
    "sglang/bench.jsonl": ("sglang-bench", GAPS, [4]),
    "inference_perf/closed/stage_0_lifecycle_metrics.json": ("inference-perf", GAPS, [2]),
    "inference_perf/closed/stage_1_lifecycle_metrics.json": ("inference-perf", GAPS, [4]),
    "inference_perf/rate/stage_0_lifecycle_metrics.json": ("inference-perf", GAPS, []),
    "llm_d/guidellm_v0.1_1.yaml": ("llm-d-benchmark", MEANS, [4]),
    "llm_d/guidellm_v0.2_1.yaml": ("llm-d-benchmark", MEANS, [4]),
    "llm_d/aiperf_v0.2.yaml": ("llm-d-benchmark", MEANS, []),
    "llm_d/vllm-benchmark_v0.1.yaml": ("llm-d-benchmark", GAPS, [4]),
    "llm_d/vllm-benchmark_v0.2.yaml": ("llm-d-benchmark", GAPS, [4]),
    "llm_d/inference-perf_v0.1.yaml": ("llm-d-benchmark", GAPS, [4]),
    "llm_d/inference-perf_v0.2.yaml": ("llm-d-benchmark", GAPS, [4]),
}
"""Result -> its format, what it states between tokens, and the users of its closed loops."""
RATES = {
    "vllm/detailed.json": 8,
    "sglang/bench.jsonl": 8,
    "inference_perf/rate/stage_0_lifecycle_metrics.json": 8,
}
TRUTHS = {
    "guidellm": "guidellm",
    "aiperf": "aiperf",
    "vllm-benchmark": "vllm",
    "inference-perf": "inference_perf",
}
"""The tool in the name of a report of llm-d-benchmark -> the folder of its own results."""


def truth_of(name: str) -> dict[str, Any]:
    folder, _, file = name.partition("/")
    if folder == "llm_d":
        folder = TRUTHS[file.rpartition("_v0.")[0]]
    found: dict[str, Any] = json.loads((FIXTURES / folder / "truth.json").read_text())
    return found


@pytest.mark.parametrize("name", RESULTS)
def test_figures_are_those_that_the_emulator_sent(name: str) -> None:
    """One answer in four paused for 200 ms: a gap of 220 ms, and 4 ms on its mean per token.

    What is allowed is the tools' own delay on a busy machine; gap and mean are 200 ms apart.
    """
    _, between, users = RESULTS[name]
    truth = truth_of(name)
    table = read(name).measurements.table
    for row in table.to_dict("records"):
        assert row["ttft_ms_p50"] == pytest.approx(truth["ttft_ms"]["p50"], abs=15)
        assert row["e2e_ms_mean"] == pytest.approx(truth["e2e_ms"]["mean"], abs=30)
        assert row["tpot_ms_p50"] == pytest.approx(20, abs=0.5)
        assert row["tpot_ms_p99"] == pytest.approx(truth["tpot_ms"]["p99"], abs=1.5)
        assert row["output_tokens"] == truth["output_tokens"]
        assert row["throughput_out_tok_s"] == pytest.approx(16 * row["throughput_req_s"], rel=0.02)
        assert pd.isna(row["in_doubt"])
        if "itl_ms" in between:
            assert row["itl_ms_p50"] == pytest.approx(20, abs=0.5)
            assert row["itl_ms_p99"] == pytest.approx(truth["itl_ms"]["p99"], abs=12)
            assert row["itl_ms_mean"] == pytest.approx(row["tpot_ms_mean"], abs=0.1)
        else:
            assert not any(pd.notna(row[name]) for name in LATENCY_COLUMNS if name.startswith("itl_ms"))
    closed = table[table["load_kind"] == CLOSED]
    assert closed["concurrency"].tolist() == users
    rates = table[table["load_kind"] == OPEN]["request_rate"].tolist()
    assert rates == ([RATES[name]] if name in RATES else [])


@pytest.mark.parametrize("name", RESULTS)
def test_each_result_is_recognised_by_its_importer_alone(name: str) -> None:
    file = ResultFile(FIXTURES / name)
    assert [one.name for one in IMPORTERS if one.recognises(file)] == [RESULTS[name][0]]


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda one: one.name)
def test_every_importer_has_a_result_and_recognises_nothing_else(importer: Importer, tmp_path: Path) -> None:
    assert importer.name in {format_ for format_, *_ in RESULTS.values()}
    for content in ("{}", "[]", "null", "[1, 2]", '"text"', '{"a": {"b": 1}}\n{"a": 2}', '{"benchmarks": 3}'):
        assert not importer.recognises(ResultFile(Path(written(tmp_path, content))))
    assert not importer.recognises(ResultFile(Path(written(tmp_path, "gpu,model\nh100,a\n", "table.csv"))))


@pytest.mark.parametrize("name", [name for name in RESULTS if not name.endswith((".csv", ".yaml"))])
def test_a_result_that_was_cut_off_is_said_to_be_damaged(name: str, tmp_path: Path) -> None:
    text = (FIXTURES / name).read_text()
    with pytest.raises(ImportFailedError, match="damaged, or was cut off"):
        found_files([written(tmp_path, text[: int(len(text) * 0.9)], Path(name).name)])


DEEP = "[" * 100_000
DAMAGED = {
    "deep.json": (DEEP, "damaged"),
    "deep_line.jsonl": ('{"a": 1}\n' + DEEP, "line 2 of 2"),
    "digits.json": ("1" * 5_000, "damaged"),
    "deep.yaml": ("[" * 3_000, "damaged"),
    "tag.yaml": ("a: !!int x", "damaged"),
    "metadata.json": ('{"benchmarks": [], "metadata": 5}', "format is not known"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_odd_content_is_one_message(name: str, tmp_path: Path) -> None:
    content, said = DAMAGED[name]
    with pytest.raises(ImportFailedError, match=said):
        found_files([written(tmp_path, content, name)])


@pytest.mark.parametrize("started", [1.7e12, 1.7e18, 1e20])
def test_a_time_beyond_our_years_is_not_what_guidellm_writes(started: float, tmp_path: Path) -> None:
    report = json.loads((FIXTURES / "guidellm/concurrent.json").read_text())
    report["benchmarks"][0]["start_time"] = started
    with pytest.raises(ImportFailedError, match="not as GuideLLM writes"):
        row_of(tmp_path, report)


def test_lines_end_with_line_feeds_alone(tmp_path: Path) -> None:
    line = (FIXTURES / "sglang/bench.jsonl").read_text().splitlines()[0]
    said = json.dumps(json.loads(line) | {"tag": "a\u2028b\x85c"}, ensure_ascii=False)
    path = tmp_path / "bench.jsonl"
    path.write_text(f"{said}\n{line}\n", encoding="utf-8", newline="\r\n")
    assert len(ResultFile(path).documents) == 2


def test_what_of_a_folder_is_no_result_after_all_stops_nothing(tmp_path: Path) -> None:
    """As inference-perf writes the server's own metrics beside its stages."""
    stage = FIXTURES / "inference_perf/closed/stage_0_lifecycle_metrics.json"
    (tmp_path / stage.name).write_text(stage.read_text())
    metrics = {"load_summary": {}, "failures": {}, "successes": {"count": 3, "request_latency": {"mean": 1}}}
    path = written(tmp_path, metrics, "summary_prometheus_metrics.json")
    found = imported(found_files([str(tmp_path)]), Told(SERVED))
    assert len(found.measurements) == 1
    assert any("the server's own metrics" in remark for remark in found.remarks)
    with pytest.raises(ImportFailedError, match="the server's own metrics"):
        imported(found_files([str(tmp_path), path]), Told(SERVED))
    (tmp_path / stage.name).unlink()
    with pytest.raises(ImportFailedError, match="the server's own metrics"):
        imported(found_files([str(tmp_path)]), Told(SERVED))


def test_a_folder_gives_each_measurement_once() -> None:
    found = read("")
    table = found.measurements.table
    assert len(table) == 10
    assert table["source_row"].is_unique
    by_client = table.groupby("client").size().to_dict()
    assert by_client == {"guidellm": 2, "aiperf": 1, "vllm-bench": 2, "sglang-bench": 2, "inference-perf": 3}
    reasons = " ".join(found.remarks)
    assert "profile_export_aiperf.csv is of the same run as profile_export_aiperf.json" in reasons
    assert "the same measurement as" in reasons
    assert "truth.json" in reasons


def test_a_file_is_taken_once_whatever_it_is_called(tmp_path: Path) -> None:
    text = (FIXTURES / "sglang/bench.jsonl").read_text()
    paths = [written(tmp_path, text, name) for name in ("a.jsonl", "b.jsonl")]
    found = found_files([*paths, str(tmp_path), f"{tmp_path}/*.jsonl"])
    assert [file.name for file, _ in found.files] == ["a.jsonl"]
    assert any("is the same file as" in remark for remark in found.remarks)


def test_what_the_user_says_stands_before_what_a_file_says() -> None:
    row = read("vllm/closed.json", engine="vllm", engine_version="0.10.1").measurements.table.iloc[0]
    assert (row["engine_version"], row["tp"], row["n_gpus"]) == ("0.10.1", 2, 2)
    assert "the file says engine_version 0.32.0" in row["notes"]
    assert (row["source"], row["client"], row["measurement"]) == (
        "vllm bench serve",
        "vllm-bench",
        "measured",
    )
    assert row["source_path"].endswith("vllm/closed.json")


def test_what_is_lacking_is_in_the_notes() -> None:
    found = read("guidellm/concurrent.json")
    row = found.measurements.table.iloc[0]
    assert "from GuideLLM 0.8.1" in row["notes"]
    assert "lacking engine, engine_version, precision, n_gpus, itl_ms" in row["notes"]
    assert found.lacking()["itl_ms"] == 2


@pytest.mark.parametrize("column", ["model", "gpu"])
def test_a_file_that_does_not_say_what_was_served_needs_to_be_told(column: str) -> None:
    told = {name: value for name, value in SERVED.items() if name != column}
    with pytest.raises(ImportFailedError) as error:
        imported(found_files([str(FIXTURES / "sglang/bench.jsonl")]), Told(told))
    assert f"+{column}=" in error.value.cure


# --- odd and empty results --------------------------------------------------------------------------------


def test_results_without_a_request_that_succeeded_are_left_out(tmp_path: Path) -> None:
    nothing = {
        "completed": 0,
        "failed": 60,
        "mean_ttft_ms": 0.0,
        "mean_tpot_ms": 0.0,
        "request_throughput": 0.0,
    }
    result = json.loads((FIXTURES / "vllm/closed.json").read_text())
    with pytest.raises(ImportFailedError, match="no request succeeded"):
        row_of(tmp_path, result | nothing)
    path = written(tmp_path, "\n".join(json.dumps(one) for one in (result, result | nothing)))
    found = imported(found_files([path]), Told(SERVED))
    assert len(found.measurements) == 1
    assert "no request succeeded" in found.remarks[-1]


def test_requests_of_one_token_have_no_time_between_tokens(tmp_path: Path) -> None:
    result = json.loads((FIXTURES / "vllm/closed.json").read_text())
    zeros = {
        f"{statistic}_{name}_ms": 0.0 for statistic in ("mean", "median", "p99") for name in ("itl", "tpot")
    }
    row = row_of(tmp_path, result | zeros | {"total_output_tokens": result["completed"]})
    assert not any(name.startswith(("itl_ms", "tpot_ms")) for name in row)


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"itl_ms_mean": 5.0, "tpot_ms_mean": 20.0}, "miscounted"),
        ({"ttft_ms_p50": 0.0}, "not streamed"),
        ({"ttft_ms_p50": 900.0, "e2e_ms_p50": 2.0}, "not one unit"),
        ({"tpot_ms_mean": 0.0, "output_tokens": 16}, "whole answers"),
        (
            {"load_kind": CLOSED, "concurrency": 64, "throughput_req_s": 10.0, "e2e_ms_mean": 0.9},
            "0.009 requests at once, not 64 users",
        ),
        ({"itl_ms_p50": 20.0, "itl_ms_mean": 21.0, "tpot_ms_mean": 21.0, "ttft_ms_p50": 50.0}, None),
    ],
)
def test_figures_that_cannot_be_are_in_doubt(figures: dict[str, Any], reason: str | None) -> None:
    found = doubts(figures)
    assert found == [] if reason is None else any(reason in one for one in found)


def test_pieces_of_several_tokens_flag_the_gaps_and_leave_the_rest_sound(tmp_path: Path) -> None:
    result = json.loads((FIXTURES / "vllm/closed.json").read_text())
    row = row_of(tmp_path, result | {"mean_itl_ms": 3 * result["mean_tpot_ms"]})
    assert row["flag"] == "ITL is of pieces of 3.0 tokens, not of tokens"
    assert "in_doubt" not in row
    row = row_of(tmp_path, result | {"median_itl_ms": 0.0})
    assert "several tokens came at once" in row["flag"]
    alone = {name: value for name, value in result.items() if not name.endswith("tpot_ms")}
    assert "several tokens" in row_of(tmp_path, alone | {"median_itl_ms": 0.0})["in_doubt"]


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("NVIDIA-H100-80GB-HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("Tesla T4", "t4"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA A10G", "NVIDIA A10G"),
    ],
)
def test_drivers_names_of_gpus(word: str, option: str) -> None:
    assert gpu_named(word) == option
