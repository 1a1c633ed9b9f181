"""Prints results/*.json as one table in Markdown; what each run ran on is in its name."""

import json
from pathlib import Path

COLUMNS = ("ttft_ms", "nttft_ms", "itl_ms", "e2e_ms")

print("| run | users | ok | failed | TTFT p50 (ms) | nTTFT p50 | ITL p50 | E2E p50 | tokens/s |")
print("|---|---|---|---|---|---|---|---|---|")
files = (Path(__file__).parent / "results").glob("*.json")
for file in sorted(files, key=lambda path: (path.stem.rpartition("_")[0], int(path.stem.rpartition("_")[2]))):
    for level in json.loads(file.read_text())["levels"]:
        figures = [level[name]["p50"] for name in COLUMNS]
        shown = " | ".join("-" if figure is None else f"{figure:.1f}" for figure in figures)
        counts = f"{level['users']} | {level['requests_ok']} | {level['requests_failed']}"
        print(f"| {file.stem} | {counts} | {shown} | {level['throughput_tok_s']:.0f} |")
