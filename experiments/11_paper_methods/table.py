"""Prints results/*.json beside published.json as one table in Markdown."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = (
    "method",
    "seeds",
    "S",
    "O",
    "S/O",
    "published",
    "grid S/O",
    "published",
    "S/O, failures <= 1%",
    "grid S/O, failures <= 1%",
    "MAPE nTTFT / ITL",
)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def so_score(scores: dict[str, Any]) -> str:
    spread = f" ± {scores['so_score_sd']:.3f}" if scores["so_score_sd"] else ""
    return figure(scores["so_score"]) + spread


def row(ours: dict[str, Any], published: dict[str, Any]) -> list[str]:
    paper, grid, failures, mape = (ours[key] for key in ("paper", "grid", "with_failures", "mape"))
    errors = [mape["nttft"], mape["itl"]]
    return [
        ours["predictor"],
        str(len(ours["seeds"])),
        figure(paper["success_rate"]),
        figure(paper["overspend"]),
        so_score(paper),
        figure(published["paper"]["so_score"]),
        so_score(grid),
        figure(published.get("grid", {}).get("so_score")),
        so_score(failures["paper"]),
        so_score(failures["grid"]),
        " / ".join("-" if error is None else f"{error:.0%}" for error in errors),
    ]


published = json.loads((HERE / "published.json").read_text())
print(f"| {' | '.join(COLUMNS)} |")
print("|---" * len(COLUMNS) + "|")
for name, theirs in published.items():
    file = HERE / "results" / f"{name}.json"
    if file.is_file():
        print(f"| {' | '.join(row(json.loads(file.read_text()), theirs))} |")
