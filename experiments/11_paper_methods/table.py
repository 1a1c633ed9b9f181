"""Prints results/*.json beside published.json as one table in Markdown."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


published = json.loads((HERE / "published.json").read_text())
columns = ("method", "seeds", "S/O", "published", "grid S/O", "published", "S/O with failures")
print(f"| {' | '.join(columns)} | MAPE nTTFT / ITL | published |")
print("|---" * 9 + "|")
for name, theirs in published.items():
    file = HERE / "results" / f"{name}.json"
    if not file.is_file():
        continue
    ours = json.loads(file.read_text())
    paper = f"{figure(ours['paper']['so_score'])} ± {figure(ours['paper']['so_score_sd'])}"
    grid = f"{figure(ours['grid']['so_score'])} ± {figure(ours['grid']['so_score_sd'])}"
    mape = " / ".join(figure(ours["mape"][metric]) for metric in ("nttft", "itl"))
    said = " / ".join(figure(theirs.get("mape", {}).get(metric)) for metric in ("nttft", "itl"))
    print(
        f"| {name} | {len(ours['seeds'])} | {paper} | {figure(theirs['paper']['so_score'])} | {grid} "
        f"| {figure(theirs.get('grid', {}).get('so_score'))} "
        f"| {figure(ours['with_failures']['paper']['so_score'])} | {mape} | {said} |"
    )
