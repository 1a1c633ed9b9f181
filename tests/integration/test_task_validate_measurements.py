"""The task `validate` on tables of measurements: what it predicts, how far off that is, and its errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Run
from tracked import interrupted_when, two_workers, with_a_worker_killed

from llmpilot.dataset.measurements import CLOSED
from llmpilot.dataset.shipped import shipped_measurements

LEFT_OUT = ["model", "gpu", "engine_version", "configuration", "level", "other_levels"]
PREDICTED = ["ttft_ms", "tpot_ms", "e2e_ms", "throughput_out_tok_s"]
COLUMNS = [f"predicted_{name}{end}" for name in PREDICTED for end in ("", "_low", "_high")]
METRICS = {"tpot", "ttft", "e2e", "throughput"}
ERRORS = {"rows", "median", "mean", "bias", "within_80"}
GROUP = {"engine", "gpu", "model", "source", "rows", "within_80"} | {
    f"{metric}_{figure}" for metric in METRICS for figure in ("median", "bias")
}
UNKNOWN: list[dict[str, Any]] = [
    {"model": "acme/Nothing-7B"},
    {"gpu": "abacus"},
    {"engine": "tgis"},
    {"concurrency": 1e6},
]
REASONS = {
    "unknown model acme/Nothing-7B": 1,
    "unknown GPU type abacus": 1,
    "engine tgis is not simulated from operators": 1,
    "more than 200,000 prompts or parts of prompts to simulate": 1,
}
ROW = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "n_gpus": 1,
    "engine": "vllm",
    "engine_version": "0.11.0",
    "client": "vllm-bench",
    "input_tokens": 300,
    "output_tokens": 100,
    "load_kind": CLOSED,
    "concurrency": 16,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def small() -> pd.DataFrame:
    """Twelve published rows of few users."""
    table = shipped_measurements().table
    rows = table[(table["client"] == "vllm-bench") & (table["concurrency"] <= 8) & table["in_doubt"].isna()]
    return rows.head(12).reset_index(drop=True)


@pytest.fixture
def given(workdir: Path) -> pd.DataFrame:
    """A table in the working directory: published rows, some that cannot be simulated, an odd column."""
    rows = small()
    others = pd.concat([rows.iloc[:1].assign(**change) for change in UNKNOWN])
    table = pd.concat([rows.iloc[:5], others, rows.iloc[5:]], ignore_index=True)
    table["of_ones_own"] = [f"row {at}" for at in range(len(table))]
    table.to_parquet(workdir / "rows.parquet", index=False)
    return pd.read_parquet(workdir / "rows.parquet")


def validated(run: Run, *arguments: str) -> tuple[dict[str, Any], pd.DataFrame]:
    done = run(
        *("task=validate", "measurements=rows.parquet", "workers=1", "result_file=r.json"),
        *("predictions_file=p.parquet", *arguments),
    )
    assert done.code == 0, done.err
    return json.loads(Path("r.json").read_text()), pd.read_parquet("p.parquet")


def write(*changes: dict[str, Any]) -> None:
    pd.DataFrame([ROW | change for change in changes]).to_parquet("rows.parquet", index=False)


@pytest.mark.parametrize("left_out", ["null", *LEFT_OUT])
def test_every_row_is_predicted_or_says_why_not(run: Run, given: pd.DataFrame, left_out: str) -> None:
    result, predictions = validated(run, f"left_out={left_out}")
    assert set(result) == {"rows", "skipped", "errors", "by"}
    assert result["rows"] == len(given) - len(UNKNOWN)
    assert result["skipped"] == REASONS
    assert {"tpot", "ttft"} <= set(result["errors"]) <= METRICS
    assert all(set(one) == ERRORS for one in result["errors"].values())
    assert all(set(one) == GROUP for one in result["by"])
    assert sum(one["rows"] for one in result["by"]) == result["rows"]

    assert list(predictions.columns) == [*given.columns, *COLUMNS, "skipped"]
    pd.testing.assert_frame_equal(predictions[given.columns.tolist()], given)
    skipped = predictions["skipped"].notna()
    assert skipped.tolist() == [5 <= at < 5 + len(UNKNOWN) for at in range(len(given))]
    assert predictions.loc[skipped, COLUMNS].isna().all(axis=None)
    for name in PREDICTED:
        low, value, high = (
            predictions.loc[~skipped, f"predicted_{name}{end}"] for end in ("_low", "", "_high")
        )
        assert np.all((low > 0) & (low < value) & (value < high))


def test_the_errors_are_those_of_the_predictions_file(run: Run, given: pd.DataFrame) -> None:
    """Counted here from the file alone: these rows state means of both latencies."""
    result, predictions = validated(run, "left_out=model")
    kept = predictions[predictions["skipped"].isna()]
    for metric in ("tpot", "ttft"):
        measured, found = kept[f"{metric}_ms_mean"], result["errors"][metric]
        ratio = kept[f"predicted_{metric}_ms"] / measured
        inside = measured.between(kept[f"predicted_{metric}_ms_low"], kept[f"predicted_{metric}_ms_high"])
        assert found["rows"] == len(kept) == len(given) - len(UNKNOWN)
        assert found["median"] == pytest.approx((ratio - 1).abs().median(), abs=1e-4)
        assert found["mean"] == pytest.approx((ratio - 1).abs().mean(), abs=1e-4)
        assert found["bias"] == pytest.approx(ratio.median(), abs=1e-4)
        assert found["within_80"] == pytest.approx(inside.mean(), abs=1e-4)


@pytest.mark.usefixtures("given")
def test_what_is_left_out_is_not_known(run: Run) -> None:
    """Rows that predictions rest on come out closer than the same rows left out."""
    known = validated(run)[0]["errors"]["tpot"]
    unknown = validated(run, "left_out=model")[0]["errors"]["tpot"]
    assert known["mean"] < unknown["mean"]


def test_measurements_that_are_as_predicted_have_no_error(run: Run) -> None:
    """And a service that is a quarter slower than predicted is off by a fifth."""
    loads = [{"concurrency": users} for users in (1, 8, 32)]
    write(*({"tpot_ms_mean": 7.0} | load for load in loads))
    _, predictions = validated(run)
    for slower, error in ((1.0, 0.0), (1.25, 0.2)):
        measured = [
            {
                "ttft_ms_mean": slower * row["predicted_ttft_ms"],
                "tpot_ms_mean": slower * row["predicted_tpot_ms"],
                "e2e_ms_mean": slower * row["predicted_e2e_ms"],
                "throughput_out_tok_s": slower * row["predicted_throughput_out_tok_s"],
            }
            for _, row in predictions.iterrows()
        ]
        write(*(load | figures for load, figures in zip(loads, measured, strict=True)))
        result, _ = validated(run)
        assert set(result["errors"]) == METRICS
        for one in result["errors"].values():
            assert one["median"] == pytest.approx(error, abs=1e-4)
            assert one["mean"] == pytest.approx(error, abs=1e-4)
            assert one["bias"] == pytest.approx(1 - error, abs=1e-4)
            assert slower > 1 or one["within_80"] == 1.0


def test_each_figure_is_compared_with_the_statistic_that_the_row_has(run: Run) -> None:
    statistics = ["mean", "unspec", "p50", "p90", "p99"]
    spread = {"length_kind": "uniform", "length_min_share": 0.2}
    write(
        *(spread | {f"ttft_ms_{one}": 50.0, f"e2e_ms_{one}": 900.0} for one in statistics),
        # The mean is judged where there are several.
        spread | {f"{latency}_ms_{one}": 900.0 for latency in ("ttft", "e2e") for one in statistics},
    )
    result, predictions = validated(run)
    assert result["errors"]["ttft"]["rows"] == result["errors"]["e2e"]["rows"] == len(statistics) + 1
    for metric in ("ttft", "e2e"):
        found = dict(zip([*statistics, "all"], predictions[f"predicted_{metric}_ms"], strict=True))
        assert found["mean"] == found["unspec"] == found["all"]
        assert found["p50"] < found["p90"] < found["p99"]
        assert found["mean"] < found["p99"]


def test_rows_that_state_nothing_are_predicted_all_the_same(run: Run) -> None:
    write({"tpot_ms_mean": None}, {"concurrency": 2}, {"output_tokens": 1})
    result, predictions = validated(run)
    assert (result["rows"], result["errors"], result["by"]) == (3, {}, [])
    assert predictions["predicted_ttft_ms"].notna().all()
    assert predictions["predicted_e2e_ms"].notna().all()
    # There is no time between tokens of a single one.
    assert predictions["predicted_tpot_ms"].notna().tolist() == [True, True, False]


@pytest.mark.parametrize("load_kind", ["request rate", "offline batch", "all requests at once"])
def test_loads_of_every_kind_are_predicted(run: Run, load_kind: str) -> None:
    load = {"load_kind": load_kind, "concurrency": None, "n_requests": 50, "request_rate": 5.0}
    write(load | {"throughput_out_tok_s": 400.0})
    result, predictions = validated(run, "left_out=model")
    assert set(result["errors"]) == {"throughput"}
    assert predictions["predicted_throughput_out_tok_s"][0] > 100


def test_tables_of_few_columns_and_of_other_words_and_kinds_are_read(run: Run) -> None:
    names = ["model", "gpu", "engine", "input_tokens", "output_tokens", "concurrency"]
    table = pd.DataFrame([ROW])[names].assign(gpu="H100-SXM", engine="vLLM", tpot_ms_mean=7.0)
    table.to_csv("rows.csv", index=False)
    done = run(
        "task=validate", "measurements=rows.csv", "workers=1", "predictions_file=p.parquet", "left_out=model"
    )
    assert done.code == 0, done.err
    predictions = pd.read_parquet("p.parquet")
    assert predictions["gpu"].tolist() == ["H100-SXM"]
    assert predictions["predicted_tpot_ms"][0] > 0


def test_a_table_of_predictions_is_judged_again(run: Run) -> None:
    write({"tpot_ms_mean": 7.0})
    first, predictions = validated(run)
    Path("p.parquet").rename("rows.parquet")
    again, repeated = validated(run)
    assert again == first
    pd.testing.assert_frame_equal(repeated, predictions)


def test_models_that_the_catalogue_lacks_come_from_a_folder(run: Run, workdir: Path) -> None:
    folder = workdir / "configs"
    folder.mkdir()
    (folder / "acme--Mine-1B.json").write_text(json.dumps(CONFIG))
    (folder / "acme--Odd-1B.json").write_text(
        json.dumps(CONFIG | {"architectures": ["OddForCausalLM"], "model_type": "odd"})
    )
    write({"model": "acme/Mine-1B", "tpot_ms_mean": 3.0}, {"model": "acme/Odd-1B"}, {"tpot_ms_mean": 7.0})
    without, _ = validated(run)
    assert without["skipped"] == {"unknown model acme/Mine-1B": 1, "unknown model acme/Odd-1B": 1}
    result, predictions = validated(run, f"models={folder}", "left_out=model")
    assert result["skipped"] == {"unknown model acme/Odd-1B": 1}
    assert predictions["predicted_tpot_ms"].notna().tolist() == [True, False, True]
    # A seventh of the other's parameters.
    assert predictions["predicted_tpot_ms"][0] < 0.5 * predictions["predicted_tpot_ms"][2]


def test_a_table_without_a_row_to_simulate_is_counted(run: Run) -> None:
    write({"engine": "tgis", "tpot_ms_mean": 7.0}, {"engine": "tgis"})
    result, predictions = validated(run, "left_out=gpu")
    assert result == {
        "rows": 0,
        "skipped": {"engine tgis is not simulated from operators": 2},
        "errors": {},
        "by": [],
    }
    assert len(predictions) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["measurements=absent.parquet"], "there is no such file"),
        (["measurements=notes.txt"], "neither a Parquet nor a CSV file"),
        (["measurements=broken.parquet"], "the file cannot be read"),
        (["measurements=empty.parquet"], "the table has no rows"),
        (["measurements=folder"], "neither a Parquet nor a CSV file"),
        (["measurements=nameless.parquet"], "model"),
        (["measurements=figureless.parquet"], "no column holds a figure that was measured"),
        (["measurements=impossible.parquet"], "impossible concurrency"),
        (["models=absent"], "is no folder"),
        (["models=folder"], "has no files called org--name.json"),
        (["predictions_file=p.csv"], "predictions_file=p.parquet"),
        (["predictions_file=rows.parquet"], "predictions_file would overwrite measurements"),
        (["predictions_file=rows.parquet/p.parquet"], "predictions_file"),
        (
            ["predictions_file=p.parquet", "result_file=p.parquet"],
            "result_file would overwrite predictions_file",
        ),
        (["data=requests.parquet"], "one at a time"),
        (["left_out=everything"], "left_out"),
        (["workers=0"], "workers"),
    ],
)
def test_wrong_usage_is_one_message_and_nothing_is_lost(
    run: Run, given: pd.DataFrame, arguments: list[str], expected: str
) -> None:
    Path("folder").mkdir()
    Path("notes.txt").write_text("no table")
    Path("broken.parquet").write_text("no table")
    given.iloc[:0].to_parquet("empty.parquet")
    given.drop(columns="model").to_parquet("nameless.parquet")
    given[["model", "gpu", "engine", "concurrency"]].to_parquet("figureless.parquet")
    given.assign(concurrency=-1.0).to_parquet("impossible.parquet")
    before = {path: path.read_bytes() for path in Path().glob("*.parquet")}
    done = run("task=validate", "measurements=rows.parquet", "result_file=r.json", *arguments)
    assert done.code == 2, done.err
    assert expected in done.err
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    assert done.out == ""
    assert {path: path.read_bytes() for path in Path().glob("*.parquet")} == before
    assert not Path("r.json").exists()


COMMAND = ["task=validate", "measurements=rows.parquet", "left_out=model", "workers=2", "result_file=r.json"]


@pytest.mark.usefixtures("given")
def test_two_processes_find_what_one_does(run: Run) -> None:
    write({"tpot_ms_mean": 7.0}, {"engine": "tgis"})
    alone, predictions = validated(run, "left_out=model")
    together, same = validated(run, "left_out=model", "workers=2")
    assert together == alone
    pd.testing.assert_frame_equal(same, predictions)


@pytest.mark.usefixtures("given")
def test_ctrl_c_leaves_no_process_and_no_half_a_result() -> None:
    Path("p.parquet").write_text("what was there")
    out, err = interrupted_when(two_workers, *COMMAND, "predictions_file=p.parquet")
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert Path("p.parquet").read_text() == "what was there"
    assert not Path("r.json").exists()


@pytest.mark.usefixtures("given")
def test_a_killed_worker_is_one_message() -> None:
    assert "use one: workers=1" in with_a_worker_killed(*COMMAND)
