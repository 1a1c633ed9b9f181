"""Print the tables of README.md from what task=evaluate and choose.py wrote beside it."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    today = json.loads((HERE / "today_runpod.json").read_text(encoding="utf-8"))
    chosen = json.loads((HERE / "chosen.json").read_text(encoding="utf-8"))
    print("\n\n".join([scores(today), by_llm(today), promises(today), risks(today), nested(chosen)]))
    for name in ("where_something_can", "rule"):
        print(f"\n{name}: {today[name]}")
    for one in chosen["properties"]:
        print(one)


def scores(today: dict[str, Any]) -> str:
    rows = {
        "TPOT": today["tpot"],
        "TPOT and TTFT": today["tpot_ttft"],
        "TPOT, one level of the LLM known": today["one_measured_tpot"],
        "TPOT and TTFT, one level of the LLM known": today["one_measured"],
        "TPOT, one level of each pair of lengths known": today["one_measured_of_lengths_tpot"],
        "TPOT and TTFT, one level of each pair of lengths known": today["one_measured_of_lengths"],
        **{
            f"TPOT, the cheapest by expectation with a margin of {one['margin']:g}": one["tpot"]
            for one in today["margins"]
        },
    }
    return table(
        ["limits on", "settings", "kept", "overspend, mean", "median", "S/O"],
        [
            [
                title,
                f"{one['settings']:,}",
                percent(one["kept"]),
                percent(one["overspend"]),
                percent(one["overspend_median"]),
                f"{one['so_score']:.3f}",
            ]
            for title, one in rows.items()
        ],
    )


def by_llm(today: dict[str, Any]) -> str:
    rows = []
    for one in today["per_model"]:
        both = one["tpot_ttft"]
        rows.append(
            [one["model"], f"{both['settings']:,}", percent(both["kept"]), percent(both["overspend"])]
            + [f"{part['so_score']:.3f}" for part in (both, one["one_measured"])]
        )
    means = [
        sum(one[kind]["so_score"] for one in today["per_model"]) / len(rows)
        for kind in ("tpot_ttft", "one_measured")
    ]
    rows.append(["mean over the LLMs", "", "", "", *(f"{mean:.3f}" for mean in means)])
    heading = "by LLM, limits on TPOT and TTFT"
    return table([heading, "settings", "kept", "overspend", "S/O", "one level known"], rows)


def promises(today: dict[str, Any]) -> str:
    return table(
        ["what was promised, of what was recommended", "recommendations", "promised", "came to"],
        [
            [
                f"{one['from']:.0%} to {one['to']:.0%}",
                f"{one['recommendations']:,}",
                percent(one["promised"]),
                percent(one["kept"]),
            ]
            for one in today["promises"]
        ],
    )


def risks(today: dict[str, Any]) -> str:
    rows = []
    for one in today["risks"]:
        both = one["tpot_ttft"]
        rows.append(
            [
                "none (weighed)" if one["risk"] is None else f"{one['risk']:g}",
                percent(one["promised"]),
                percent(one["came_to"]),
                f"+{percent(one['came_at'])}, median +{percent(one['came_at_median'])}",
                percent(both["kept"]),
                percent(both["overspend"]),
                f"{both['so_score']:.3f}",
                f"{one['tpot']['so_score']:.3f}",
            ]
        )
    names = ["promised", "came to", "at", "kept", "overspend", "S/O", "S/O, TPOT"]
    return table(["limits on TPOT and TTFT, by `evaluate.risk`", *names], rows)


def nested(chosen: dict[str, Any]) -> str:
    rows = [[f"nested: {name}", *figures(one)] for name, one in chosen["nested"].items()]
    for one in chosen["alone"]:
        kind, first, second = one["rule"]
        rule = f"worth {first:g}, least certainty {second:g}" if kind == "weighed" else f"risk {first:g}"
        plain = one["spread"] == 1 and one["tails"] == "normal"
        drawn = "" if plain else f"; spreads x {one['spread']:g}, {one['tails']}"
        if kind == "risk" or not plain or (first in (0.7, 0.75, 0.8, 1.0) and second in (0.0, 0.5, 0.7)):
            rows.append([rule + drawn, *figures(one)])
    names = ["TPOT: kept", "overspend", "S/O", "TPOT and TTFT: kept", "overspend", "S/O"]
    return table(["", *names], rows)


def figures(one: dict[str, Any]) -> list[str]:
    found = []
    for kind in ("tpot", "tpot_ttft"):
        part = one[kind]
        found += [percent(part["kept"]), percent(part["overspend"]), f"{part['so_score']:.3f}"]
    return found


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float) -> str:
    return f"{value:.1%}"


if __name__ == "__main__":
    main()
