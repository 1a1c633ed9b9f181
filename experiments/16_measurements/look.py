"""What the shipped measurements are, and how far they agree: `python look.py results.json`."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from llmpilot.dataset import Measurements, shipped_measurements
from llmpilot.files import to_json, write_text

CELL = (
    *("model", "gpu", "n_gpus", "tp", "ep", "attention_dp", "precision", "input_tokens", "output_tokens"),
    *("length_kind", "concurrency"),
)


def main(target: str) -> None:
    shipped = shipped_measurements()
    table = shipped.table
    found = {
        "rows": len(shipped),
        "in_doubt": int(shipped.in_doubt().sum()),
        "in_doubt_by_what_rows_say": int(shipped.in_doubt(model_based=False, judged=False).sum()),
        "closed_loop_today": int(shipped.closed_loop_today().sum()),
        "sources": {str(source): _counts(rows) for source, rows in table.groupby("source")},
        "tpot_differs_by": _noise(shipped),
        "a100_tokens_until_batches_queue": _a100_memory(table),
        "deepseek_v3_rows_named_r1_by_the_source": _named_r1(table),
        "ttft_over_tpot_llama_70b_1024_1024": _stream_interval(table),
        "sglang_deepseek_fp4_ttft_ms": _cold_start(table),
        "mi300x_ms_per_token_by_batch": _cliff(table),
    }
    write_text(Path(target), to_json(found))
    print(to_json(found), end="")


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    figures = [name for name in rows if str(name).split("_ms_")[0] in ("ttft", "itl", "tpot", "e2e")]
    return {
        "rows": len(rows),
        "load": {str(kind): int(n) for kind, n in rows["load_kind"].value_counts().items()},
        "engines": {str(kind): int(n) for kind, n in rows["engine"].value_counts().items()},
        "engine_version_unknown": int(rows["engine_version"].isna().sum()),
        "latencies": {
            str(name): int(rows[name].notna().sum()) for name in figures if rows[name].notna().any()
        },
        "llms": int(rows["model"].nunique()),
        "gpus": sorted(rows["gpu"].unique()),
    }


def _noise(shipped: Measurements) -> dict[str, Any]:
    """Return how far the largest TPOT of a cell is above the least: repeats, versions, engines."""
    table = shipped.table
    copies = table["in_doubt"].fillna("").str.contains("the same measurement")
    rows = table[(table["source"] == "aiconfigurator-silicon") & table["disaggregated"].ne(True) & ~copies]
    known = rows[rows["engine_version"].notna()]
    repeats = known.groupby([*CELL, "engine", "engine_version"], dropna=False)["tpot_ms_unspec"]
    versions = known.groupby([*CELL, "engine"], dropna=False)
    engines = rows.groupby([*CELL], dropna=False)
    return {
        "repeats": _spread(repeats.max(), repeats.min(), repeats.size() > 1),
        "versions": _across(versions, "engine_version"),
        "engines": _across(engines, "engine"),
    }


def _across(groups: Any, name: str) -> dict[str, Any]:
    """Return the spread over the medians of each of `name` in a group."""
    spread = groups.apply(
        lambda rows: rows.groupby(name)["tpot_ms_unspec"].median().agg(["min", "max", "size"])
    )
    return _spread(spread["max"], spread["min"], spread["size"] > 1)


def _spread(most: pd.Series, least: pd.Series, several: pd.Series) -> dict[str, Any]:
    ratio = (most / least - 1)[several]
    quantiles = {f"p{q}": round(float(ratio.quantile(q / 100)), 3) for q in (50, 90)}
    return {"cells": int(several.sum()), **quantiles}


def _a100_memory(table: pd.DataFrame) -> dict[str, Any]:
    """Return for Llama-2-70B on four A100 the tokens of the largest batch that still runs at once.

    A batch that does not takes over 1.5 times as long as half of it: its second half waits. Its KV cache has
    320 KB a token: beside 138 GB of weights, four GPUs of 40 GB hold some 20,000 tokens, of 80 GB 500,000.
    """
    rows = table[
        (table["source"] == "argonne-LLM-Inference-Bench")
        & (table["gpu"] == "a100")
        & (table["model"] == "meta-llama/Llama-2-70b-hf")
        & (table["n_gpus"] == 4)
        & (table["engine"] == "trtllm")
        & table["output_tokens"].notna()
        & table["concurrency"].isin([16, 32, 64])
    ]
    times = rows.pivot_table(index="input_tokens", columns="concurrency", values="e2e_ms_mean")
    runs, queues = [], []
    for tokens, row in times.iterrows():
        for half, whole in ((16, 32), (32, 64)):
            held = int(whole * 2 * float(str(tokens)))
            if row[whole] > 1.5 * row[half]:
                queues.append(held)
                break
            runs.append(held)
    # At long lengths the batch of 16 queues already, and tells nothing of larger ones.
    runs_at_once = max(held for held in runs if held < min(queues))
    return {"largest_that_runs": runs_at_once, "least_that_queues": min(queues)}


def _named_r1(table: pd.DataFrame) -> dict[str, int]:
    rows = table[table["model"] == "deepseek-ai/DeepSeek-V3"]
    named = rows["source_row"].str.contains("dsr1|deepseek_r1")
    copies = rows["in_doubt"].fillna("").str.contains("the same measurement")
    return {"rows": len(rows), "named_r1": int(named.sum()), "copies_of_r1_rows": int(copies.sum())}


def _stream_interval(table: pd.DataFrame) -> dict[str, float]:
    rows = table[
        (table["model"] == "meta-llama/Llama-3.1-70B")
        & (table["input_tokens"] == 1024)
        & (table["output_tokens"] == 1024)
        & table["concurrency"].isin([4, 8])
    ]
    size = rows["n_gpus"].map(lambda n: "8 GPUs" if n == 8 else "1 to 4 GPUs")
    ratio = (rows["ttft_ms_unspec"] / rows["tpot_ms_unspec"]).groupby([rows["engine"], size]).median()
    return {" on ".join(map(str, key)): round(float(value), 1) for key, value in ratio.items()}


def _cold_start(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    rows = table[
        table["model"].str.contains("DeepSeek")
        & (table["engine"] == "sglang")
        & (table["precision"] == "nvfp4")
        & table["disaggregated"].ne(True)
        & (table["n_gpus"] == 4)
    ]
    lengths = rows["input_tokens"].map("{:.0f}".format) + "/" + rows["output_tokens"].map("{:.0f}".format)
    medians = rows.groupby([lengths, "concurrency"])["ttft_ms_unspec"].median().round(0)
    found: dict[str, dict[str, float]] = {}
    for (length, users), value in medians.items():
        found.setdefault(str(length), {})[f"{users:g}"] = float(value)
    return found


def _cliff(table: pd.DataFrame) -> dict[str, float]:
    rows = table[
        (table["source"] == "argonne-LLM-Inference-Bench")
        & (table["gpu"] == "mi300x")
        & (table["model"] == "meta-llama/Llama-2-7b-hf")
        & (table["n_gpus"] == 1)
        & (table["input_tokens"] == 512)
        & (table["output_tokens"] == 512)
    ]
    times = (rows["e2e_ms_mean"] / rows["output_tokens"]).groupby(rows["concurrency"]).median()
    return {f"{batch:g}": round(float(value), 1) for batch, value in times.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
