"""Writes the published measurements as they ship: build.py COLLECTED.parquet DOUBTS.csv SHIPPED.parquet."""

import sys
from pathlib import Path

import pandas as pd

from llmpilot.dataset.doubts import with_doubts
from llmpilot.dataset.measured_file import read_measurements, save_measurements
from llmpilot.dataset.measurements import Measurements

COMMITS = {
    "aiconfigurator-silicon": "095f58a5",
    "docs/source/developer-guide/perf-overview.md @03e27c7d": "03e27c7d",
}
"""By source or by path, where whoever collected the rows noted it."""
LLMSERVINGSIM = {
    "RTX4090/Llama-3.1-8B": {"kv_cache_tokens": 41408, "max_model_len": 32768},
    "RTXPRO6000/Qwen3-30B-A3B-Instruct-2507": {"ep": 2},
}
"""What the meta.json beside that source's requests says besides."""
DERIVED = ("check", "tpot_over_floor", "notes")
"""Not facts of the source, or read into columns: they do not ship."""


def shipped(collected: Measurements, reasons: dict[str, str]) -> Measurements:
    table = with_doubts(collected, reasons).table.copy()
    paths = table["source_path"].fillna("")
    for run, settings in LLMSERVINGSIM.items():
        for name, value in settings.items():
            table.loc[paths.str.contains(f"examples/{run}/"), name] = value
    # Its vLLM 0.19 has both by default; the one meta.json that holds the resolved configuration says so.
    ours = table["source"] == "llmservingsim-bench"
    table.loc[ours, ["chunked_prefill", "prefix_caching"]] = True
    commits = table["source_path"].map(COMMITS).fillna(table["source"].map(COMMITS))
    # Both LLMs of these rows are bf16 as published, and their TPOT is above the time that bf16 takes to read.
    unstated = table["precision"].isna() & table["flag"].str.contains("precision_not_given").eq(True)
    return Measurements(
        table.assign(
            commit=commits,
            measurement="published",
            precision=table["precision"].mask(unstated, "bf16"),
            **dict.fromkeys(DERIVED),
        )
    )


def main(collected: str, doubts: str, target: str) -> None:
    reasons = pd.read_csv(doubts).set_index("source_row")["reason"].to_dict()
    found = shipped(read_measurements(Path(collected), extra="refuse"), reasons)
    save_measurements(found, Path(target))
    table = found.table
    print(f"{len(found)} rows, {Path(target).stat().st_size / 1e3:.0f} kB")
    for source, rows in table.groupby("source"):
        doubt = found.in_doubt()[rows.index]
        hard = found.in_doubt(model_based=False, judged=False)[rows.index]
        print(f"{source:30} {len(rows):5} rows, {doubt.sum():4} in doubt, {hard.sum():4} by what rows say")
    print(f"closed loop, today's engines, comparable: {found.closed_loop_today().sum()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
