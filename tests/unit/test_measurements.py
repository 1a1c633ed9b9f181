"""The table of measurements: what it takes, what it refuses, and what it makes of a source's own words."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.dataset import (
    Measurements,
    MeasurementsError,
    joined,
    measurements_of,
    published,
    read_measurements,
    save_measurements,
    shipped_measurements,
)
from llmpilot.dataset.conversion import to_dataset, to_measurements
from llmpilot.dataset.doubts import with_doubts
from llmpilot.dataset.measured_notes import command_facts
from llmpilot.dataset.measurements import COLUMNS, NUMBERS, YES_OR_NO

ROW: dict[str, Any] = {
    "model": "Qwen/Qwen3-32B",
    "gpu": "h100",
    "n_gpus": 2,
    "tp": 2,
    "engine": "vllm",
    "precision": "fp8",
    "input_tokens": 1024,
    "output_tokens": 128,
    "load_kind": "closed concurrency",
    "concurrency": 16,
    "ttft_ms_p50": 85.5,
    "tpot_ms_mean": 12.25,
}


def table(*rows: dict[str, Any], **same: Any) -> pd.DataFrame:
    return pd.DataFrame([ROW | same | row for row in rows or ({},)])


def test_all_columns_are_there_in_their_order_and_type() -> None:
    found = Measurements(table(disaggregated=False)).table
    assert list(found.columns) == list(COLUMNS)
    assert {str(found[name].dtype) for name in NUMBERS} == {"float64"}
    assert found["disaggregated"][0] is False
    assert found["kv_precision"][0] is None
    assert np.isnan(found["dp"][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_gpus": 1.5}, "n_gpus"),
        ({"n_gpus": 0}, "n_gpus"),
        ({"concurrency": 0}, "concurrency"),
        ({"tpot_ms_mean": -1.0}, "tpot_ms_mean"),
        ({"ttft_ms_p99": np.inf}, "ttft_ms_p99"),
        ({"failures": 1.2}, "failures"),
        ({"length_min_share": -0.1}, "length_min_share"),
        ({"precision": "fp12"}, "precision"),
        ({"measurement": "guessed"}, "measurement"),
        ({"prefix_caching": "perhaps"}, "prefix_caching"),
        ({"model": None}, "model"),
        ({"tp": "two"}, "tp"),
    ],
)
def test_impossible_values_name_their_first_row(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MeasurementsError, match=said) as caught:
        Measurements(table({}, change))
    assert "row 1" in str(caught.value)


def test_unknown_columns_are_refused_unless_they_are_named() -> None:
    wrong = table(tpot_ms_avg=3.0)
    with pytest.raises(MeasurementsError, match="did you mean 'tpot_ms_"):
        Measurements(wrong)
    assert Measurements(wrong, ("tpot_ms_avg",)).table["tpot_ms_avg"].tolist() == [3.0]
    with pytest.raises(MeasurementsError, match="tpot_ms_avg"):
        measurements_of(wrong, extra="refuse")
    kept = measurements_of(wrong)
    assert kept.extra == ("tpot_ms_avg",)
    assert list(kept.table.columns) == [*COLUMNS, "tpot_ms_avg"]


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (("model",), "columns are missing: model"),
        (("gpu", "model"), "columns are missing: model, gpu"),
        (("load_kind", "concurrency"), "what the load was"),
        (("ttft_ms_p50", "tpot_ms_mean"), "no column holds a figure"),
    ],
)
def test_files_that_lack_what_no_table_may_lack_are_refused_by_name(
    tmp_path: Path, drop: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "rows.csv"
    table().drop(columns=list(drop)).to_csv(file, index=False)
    with pytest.raises(MeasurementsError, match=said) as caught:
        read_measurements(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["rows.txt", "absent.parquet", "damaged.parquet", "empty.csv"])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.txt").write_text("model,gpu\n")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(MeasurementsError, match=name):
        read_measurements(tmp_path / name)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_files_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    measured = Measurements(
        table({"spec_decode": "none"}, {"prefix_caching": True, "mine": "a"}, ttft_ms_p90=0.1 + 0.2),
        ("mine",),
    )
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        save_measurements(measured, file)
    else:
        measured.table.to_csv(file, index=False)
    pd.testing.assert_frame_equal(
        read_measurements(file).table[list(COLUMNS)], measured.table[list(COLUMNS)], check_exact=True
    )


def test_the_words_of_sources_become_ours_and_are_kept() -> None:
    found = measurements_of(
        table(
            {"engine": "TensorRT-LLM", "gpu": "H100", "precision": "fp16 (paper default)"},
            {"engine": "sglang", "gpu": "Gaudi 9", "precision": "fp4"},
            {"model": "openai/gpt-oss-120b", "precision": "fp4"},
            {"precision": None, "notes": "family=InferenceX; gemm_quant=fp8_block; moe_quant=; moe_tp=0.0"},
        )
    ).table
    assert found["engine"].tolist() == ["trtllm", "sglang", "vllm", "vllm"]
    assert found["gpu"].tolist() == ["h100", "Gaudi 9", "h100", "h100"]
    assert found["gpu_as_stated"].tolist() == ["H100", None, None, None]
    assert found["precision"].tolist() == ["bf16", "nvfp4", "mxfp4", "fp8"]
    assert found["precision_as_stated"].tolist() == ["fp16 (paper default)", "fp4", "fp4", None]
    assert found["client"].tolist() == [None, None, None, "inferencex"]
    assert found["length_kind"][3] == "uniform"
    assert found["length_min_share"][3] == 0.8
    assert np.isnan(found["moe_tp"][3])


def test_what_columns_do_not_say_follows_from_those_that_do() -> None:
    found = measurements_of(
        table(
            {"concurrency": 4},
            {"request_rate": 2.5},
            {"request_rate": "inf"},
            {"load_kind": "Poisson"},
            {"load_kind": "conversations"},
            load_kind=None,
            n_gpus=None,
            concurrency=None,
            dp=2,
        )
    ).table
    kinds = found["load_kind"].tolist()
    assert kinds[:3] == ["closed concurrency", "request rate", "all requests at once"]
    assert kinds[3:] == ["request rate", "conversations"]
    assert found["request_rate"].isna().tolist() == [True, False, True, True, True]
    assert found["n_gpus"].tolist() == [4] * 5


def test_gpus_are_tensor_times_pipeline_times_data_parallel() -> None:
    found = measurements_of(
        table(
            {"tp": 8, "dp": 8, "n_gpus": 8, "notes": "cmd=x --tp-size 8 --dp-size 8 --enable-dp-attention"},
            {"tp": 8, "dp": 1, "n_gpus": 8, "notes": "cmd=x --tp-size 8 --enable-dp-attention"},
            {"tp": None, "dp": 4, "n_gpus": 4, "flag": "attention_dp;"},
            {"tp": 2, "n_gpus": 4, "ep": 1, "moe_tp": 4},
            {"tp": 2, "n_gpus": 4},
        )
    ).table
    assert found["tp"].tolist() == [1, 8, 1, 2, 2]
    assert found["dp"].tolist()[:4] == [8, 1, 4, 2]
    assert np.isnan(found["dp"][4])
    assert found["attention_dp"].tolist() == [True, False, True, True, None]


def test_words_and_numbers_of_odd_files_are_read() -> None:
    odd = pd.DataFrame(
        {
            " model ": ["a/b", "a/b"],
            "gpu": ["h200", "h200"],
            "concurrency": ["8", " 16 "],
            "tpot_ms_p50": ["nan", "1e1"],
            "disaggregated": ["False", ""],
            "spec_decode": ["none", None],
            "n_gpus": ["", "N/A"],
            "source_row": [3.0, np.nan],
        }
    )
    found = measurements_of(odd).table
    assert found["concurrency"].tolist() == [8, 16]
    assert found["tpot_ms_p50"].tolist()[1] == 10
    assert found["disaggregated"].tolist() == [False, None]
    assert found["spec_decode"].tolist() == ["none", None]
    assert found["n_gpus"].isna().all()
    assert found["source_row"].tolist() == ["3", None]


def test_a_yes_or_no_in_numbers_is_saved(tmp_path: Path) -> None:
    numbers = [0, 1, -0.0, 1.0]
    odd = pd.DataFrame([ROW] * 4).assign(disaggregated=numbers, attention_dp=numbers[::-1])
    for made in (measurements_of(odd), Measurements(odd)):
        save_measurements(made, tmp_path / "odd.parquet")
        found = read_measurements(tmp_path / "odd.parquet").table
        assert found["disaggregated"].tolist() == [False, True, False, True]
        assert found["attention_dp"].tolist() == [True, False, True, False]


ODD = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-3, 10**12),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(
        ["nan", "True", "1,000", "-tp", "fp4", "inf", b"x", [1], pd.NA, pd.Timestamp("2025-01-01")]
    ),
)


@given(st.dictionaries(st.sampled_from(COLUMNS), ODD, max_size=4))
@settings(deadline=None)
def test_whatever_a_row_says_is_read_or_refused_with_its_place(odd: dict[str, Any]) -> None:
    rows = [ROW | {"notes": "family=InferenceX; cmd=vllm serve a/b -tp 2", "flag": "attention_dp;"}] * 2
    given_rows = pd.DataFrame([rows[0], rows[1] | odd], dtype=object)
    refused, found = "", None
    try:
        found = measurements_of(given_rows)
    except MeasurementsError as error:
        refused = str(error)
    if found is None:
        assert "row 0" in refused or "row 1" in refused
    else:
        assert len(found) == 2
        pd.testing.assert_frame_equal(measurements_of(found.table).table, found.table)


def test_a_table_without_rows_stays_one() -> None:
    assert len(measurements_of(table().iloc[:0])) == 0
    assert len(joined()) == 0


def test_commands_say_settings() -> None:
    vllm = command_facts(
        "export VLLM_USE_DEEP_GEMM=0 vllm serve a/b -tp 4 --enable-expert-parallel "
        "--max-num-batched-tokens 4096 --max-num-seqs=512 --kv-cache-dtype fp8_e4m3 "
        '--speculative-config={"method":"mtp","num_speculative_tokens":1}'
        " --no-enable-prefix-caching --reasoning-parser x"
    )
    assert {name: vllm[name] for name in ("tp", "ep", "max_num_batched_tokens", "max_num_seqs")} == {
        "tp": 4,
        "ep": 4,
        "max_num_batched_tokens": 4096,
        "max_num_seqs": 512,
    }
    assert (vllm["kv_precision"], vllm["spec_decode"], vllm["spec_tokens"]) == ("fp8", "yes", 1)
    assert vllm["prefix_caching"] is False
    assert vllm["server_options"].startswith("VLLM_USE_DEEP_GEMM=0 -tp 4 --enable-expert-parallel")
    assert "reasoning" not in vllm["server_options"]
    sglang = command_facts(
        "python3 -m sglang.launch_server --model-path a/b --tp-size 8 --enable-dp-attention"
    )
    assert sglang == {
        "tp": 8,
        "attention_dp": True,
        "checkpoint": "a/b",
        "server_options": "--tp-size 8 --enable-dp-attention",
    }


def test_a_command_corrects_what_it_contradicts_and_flags_it() -> None:
    found = measurements_of(
        table(n_gpus=1, tp=1, pp=1, flag="", notes="label=; cmd=vllm serve a/b -pp 2")
    ).table
    assert (found["n_gpus"][0], found["pp"][0], found["flag"][0]) == (2, 2, "corrected_from_command;")


def test_doubts_are_reasons_of_their_kind() -> None:
    rows = Measurements(
        table(
            {"source_row": "a", "tpot_ms_mean": 20.0, "engine_version": "1"},
            {"source_row": "b", "tpot_ms_mean": 10.0, "engine_version": "2"},
            {"source_row": "c", "tpot_ms_mean": 20.0, "engine_version": "1"},
            {"source_row": "d", "concurrency": 32},
            {"source_row": "e", "concurrency": 64},
        )
    )
    found = with_doubts(rows, {"d": "flat (model-based); few (judged)"})
    reasons = found.table["in_doubt"].tolist()
    assert reasons[0] is None
    assert "1.6 times faster than row a" in reasons[1]
    assert reasons[2] == "the same measurement as row a"
    assert reasons[3:] == ["model-based: flat; judged: few", None]
    assert found.in_doubt().tolist() == [False, True, True, True, False]
    assert found.in_doubt(model_based=False).tolist() == [False, True, True, True, False]
    assert found.in_doubt(model_based=False, judged=False).tolist() == [False, True, True, False, False]
    assert found.closed_loop_today().tolist() == [True, False, False, True, True]


def test_the_figure_is_by_the_first_statistic_that_a_row_has() -> None:
    rows = Measurements(table({}, {"tpot_ms_mean": None, "tpot_ms_p50": 3.0}, {"tpot_ms_mean": None}))
    assert rows.figure("tpot_ms", ("mean", "p50")).tolist()[:2] == [12.25, 3.0]
    assert rows.figure("tpot_ms").isna().tolist() == [False, False, True]


def test_joined_tables_keep_their_rows_and_columns() -> None:
    both = joined(Measurements(table(mine=1), ("mine",)), Measurements(table(gpu="h200")))
    assert both.table["gpu"].tolist() == ["h100", "h200"]
    assert both.extra == ("mine",)


def test_what_ships_is_all_that_was_collected() -> None:
    shipped = shipped_measurements()
    found = shipped.table
    assert found["source"].value_counts().to_dict() == {
        "aiconfigurator-silicon": 3303,
        "argonne-LLM-Inference-Bench": 2523,
        "tensorrt-llm-perf-overview": 254,
        "gpustack-performance-lab": 220,
        "splitwise-sim": 181,
        "dstack-benchmarks": 165,
        "llmservingsim-bench": 4,
    }
    assert set(found["licence"]) == {"Apache-2.0", "BSD-3-Clause", "MIT"}
    assert set(found["measurement"]) == {"published"}
    assert set(found["engine"]) == {"vllm", "sglang", "trtllm"}
    assert found["precision"].notna().all()
    assert found["commit"].eq("095f58a5").sum() == 3303
    assert found["client"].value_counts()["inferencex"] == 1592
    stated = found["in_doubt"].fillna("")
    assert stated.str.contains("claims more GPUs than a node has").sum() == 55
    assert stated.str.contains("below the time to read weights").sum() == 13
    assert not (found["n_gpus"] > 8)[shipped.closed_loop_today()].any()
    assert 2000 < shipped.closed_loop_today().sum() < 2403


def test_nothing_that_ships_is_a_yes_or_no_of_another_kind() -> None:
    found = shipped_measurements().table
    for name in YES_OR_NO:
        assert set(found[name].dropna().map(type)) <= {bool}


def test_what_the_paper_measured_survives_exactly() -> None:
    theirs = to_measurements(published())
    assert len(theirs) == 528
    assert set(theirs.table["engine"]) == {"tgis"}
    assert set(theirs.table["workload"]) == {"paper"}
    assert set(theirs.table["gpu"]) == {"t4", "v100", "a10", "a100", "h100"}
    assert "bigcode/starcoder" in set(theirs.table["model"])
    for name, ours in (("nttft_ms", "nttft_ms_p50"), ("itl_ms", "itl_ms_p50"), ("failure_rate", "failures")):
        assert theirs.table[ours].equals(published().table[name].rename(ours))
    assert to_dataset(theirs).content_hash == published().content_hash


def test_rows_that_are_no_characterizations_are_left_out_of_the_data_set() -> None:
    both = joined(to_measurements(published()), shipped_measurements())
    assert to_dataset(both).content_hash == published().content_hash


def test_a_csv_gives_back_what_was_written(tmp_path: Path) -> None:
    written = measurements_of(
        table(
            {"engine_version": "0.20", "tpot_ms_mean": 0.1 + 0.2, "disaggregated": False, "source_row": "7"}
        )
    )
    save_measurements(written, tmp_path / "table.csv")
    found = read_measurements(tmp_path / "table.csv")
    assert found.content_hash == written.content_hash
    assert "kv_precision" not in (tmp_path / "table.csv").read_text()
