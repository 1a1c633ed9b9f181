"""How often the interval of `load.search` holds the truth, and what the search costs.

Services are made up, of known boundary: the margin (ln of limit / figure) falls by `steepness` for each
e-fold of load and is 0 at the most that they take, and each window adds normal noise of a known standard
deviation. All is drawn by seed, so each run prints the same.
"""

import argparse
import json
from math import exp, inf, log
from pathlib import Path

import numpy as np

from llmpilot.boundary import MOST_MARGIN
from llmpilot.search import Range, Seen, conclude, next_step, stated

RANGES = {
    "users, 1 to 1,024": Range(first=1, last=1024, until=0.05, repeats=2, whole=True),
    "requests/s, 0.5 to 64": Range(first=0.5, last=64.0, until=0.05, repeats=2, whole=False),
}
NOISES = (0.0, 0.02, 0.1, 0.3)


def one(within: Range, noise: float, random: np.random.Generator) -> tuple[bool, int, int]:
    """Return whether the interval held the truth, and how many levels and windows were measured."""
    most = exp(random.uniform(log(within.first * 1.5), log(within.last / 1.5)))
    steepness = random.uniform(0.3, 3)
    seen: list[Seen] = []
    while (step := next_step(seen, within)) is not None:
        margin = steepness * log(most / step.level) + random.normal() * noise / step.windows**0.5
        seen.append(Seen(step.level, float(np.clip(margin, -MOST_MARGIN, MOST_MARGIN)), step.windows))
    low, high = stated(conclude(seen, within), seen, within)["interval"]
    truth = int(most) if within.whole else most
    return low <= truth <= (inf if high is None else high), len({one.level for one in seen}), len(seen)


def main() -> None:
    """Print the table, and write it as JSON beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=200)
    services = parser.parse_args().services
    rows = []
    print("| loads | noise | interval holds the truth | levels: mean, most | windows: mean, most |")
    print("|---|---|---|---|---|")
    for name, within in RANGES.items():
        for noise in NOISES:
            random = np.random.default_rng(21)
            held, levels, windows = zip(*(one(within, noise, random) for _ in range(services)), strict=True)
            row = {
                "loads": name,
                "noise": noise,
                "held": float(np.mean(held)),
                "levels_mean": float(np.mean(levels)),
                "levels_most": max(levels),
                "windows_mean": float(np.mean(windows)),
                "windows_most": max(windows),
            }
            rows.append(row)
            print(
                f"| {name} | {noise:.0%} | {row['held']:.1%} "
                f"| {row['levels_mean']:.1f}, {row['levels_most']} "
                f"| {row['windows_mean']:.1f}, {row['windows_most']} |",
                flush=True,
            )
    text = json.dumps({"services": services, "rows": rows}, indent=1)
    (Path(__file__).parent / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
