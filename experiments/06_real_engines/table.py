"""Prints results/*.json as one table in Markdown."""

import json
from pathlib import Path

print("| run | users | ok | failed | TTFT p50 (ms) | ITL p50 (ms) | E2E p50 (ms) | tokens/s |")
print("|---|---|---|---|---|---|---|---|")
files = (Path(__file__).parent / "results").glob("*.json")
for file in sorted(files, key=lambda path: (path.stem.rpartition("_")[0], int(path.stem.rpartition("_")[2]))):
    result = json.loads(file.read_text())
    for level in result["levels"]:
        figures = [level[name]["p50"] for name in ("ttft_ms", "itl_ms", "e2e_ms")]
        shown = " | ".join("-" if figure is None else f"{figure:.1f}" for figure in figures)
        counts = f"{level['users']} | {level['requests_ok']} | {level['requests_failed']}"
        print(f"| {file.stem} | {counts} | {shown} | {level['throughput_tok_s']:.0f} |")
