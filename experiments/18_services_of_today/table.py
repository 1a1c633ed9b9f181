"""Print the table of README.md from what build.py wrote into results/."""

import json
from pathlib import Path

TITLES = {
    "model": "LLM left out",
    "gpu": "GPU type left out",
    "engine_version": "engine version left out",
    "configuration": "LLM and GPU type known, configuration left out",
    "level": "level of load left out",
    "other_levels": "one level of the LLM's curve known, its other levels",
}


def main() -> None:
    print("| median / mean error | TPOT | in 80% | TTFT | E2E | in 80% |\n|---|---|---|---|---|---|")
    for name, title in TITLES.items():
        file = Path(__file__).parent / "results" / f"{name}.json"
        if not file.exists():
            continue
        errors = json.loads(file.read_text(encoding="utf-8"))["errors"]
        tpot, ttft, e2e = (errors[metric] for metric in ("tpot", "ttft", "e2e"))
        cells = [
            f"{tpot['median']:.1%} / {tpot['mean']:.1%}",
            f"{tpot['within_80']:.0%}",
            f"{ttft['median']:.0%} / {ttft['mean']:.0%}",
            f"{e2e['median']:.1%} / {e2e['mean']:.1%}",
            f"{e2e['within_80']:.0%}",
        ]
        print(f"| {title} | {' | '.join(cells)} |")
    file = Path(__file__).parent / "results" / "model.json"
    by_model: dict[str, list[tuple[int, float, float]]] = {}
    for one in json.loads(file.read_text(encoding="utf-8"))["by"]:
        if one["tpot_median"] is not None:
            by_model.setdefault(one["model"], []).append((one["rows"], one["tpot_median"], one["within_80"]))
    print("\n| LLM left out | rows | median TPOT error, mean over its services | in 80% |\n|---|---|---|---|")
    for model, parts in sorted(by_model.items()):
        rows = sum(n for n, *_ in parts)
        if rows >= 20:
            error, within = (sum(part[0] * part[i] for part in parts) / rows for i in (1, 2))
            print(f"| {model} | {rows} | {error:.1%} | {within:.0%} |")


if __name__ == "__main__":
    main()
