"""How good recommendations are over other settings than the grid of conf/task/evaluate.yaml, and what the
weight of certainty (CERTAINTY_WORTH) and the width of the draws (SPREAD) make of them.

    python grids.py [--seeds 2] [--workers 2]      # prints the tables and writes grids.json

Each LLM is left out in turn. The nested figure of a grid is by the weight that scores best on the other LLMs
over the other grids, anew for each LLM left out: neither its measurements nor the grid had a say.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from setting import grid, shipped_pilot

from llmpilot.dataset import published
from llmpilot.predict import decision
from llmpilot.predict.decision import Need, choose
from llmpilot.predict.evaluation import Fold, evaluate
from llmpilot.predict.pilot.residuals import SPREAD
from llmpilot.predict.prediction import Draws, Prediction
from llmpilot.predict.scores import Outcome, grid_of, judge, mean_score, score
from llmpilot.processes import workers

WORTHS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)
SPREADS = (0.6, 0.7, 0.8, 0.9, 1.0)
RANDOM_SETTINGS, SEED = 100, 11


def grids() -> dict[str, list[Need]]:
    """Return settings by name: the published grid, others, and limits drawn at random (log-uniform)."""
    rng = np.random.default_rng(SEED)
    users = np.exp(rng.uniform(np.log(20), np.log(3000), RANDOM_SETTINGS)).astype(int)
    nttft_ms, itl_ms = (
        np.exp(rng.uniform(np.log(low), np.log(high), RANDOM_SETTINGS))
        for low, high in ((30, 300), (25, 110))
    )
    drawn = [Need(int(n), float(a), float(b)) for n, a, b in zip(users, nttft_ms, itl_ms, strict=True)]
    return {
        "published": grid(),
        "shifted": grid_of([35, 70, 140, 280], [25, 35, 45, 60, 85], [30, 75, 150, 350, 700, 2000]),
        "dense": grid_of([45, 65, 90, 125, 180], [33, 38, 43, 48, 55, 65, 80], [80, 300]),
        "tight": grid_of([25, 40, 60], [22, 28, 34], [40, 250, 900]),
        "loose": grid_of([150, 300, 600], [70, 110, 150], [40, 250, 900]),
        "random": drawn,
    }


def drawn_to(said: Prediction, spread: float) -> Prediction:
    """Return the prediction with draws of another spread."""
    assert said.draws is not None
    share, logs = spread / SPREAD, []
    for metric in ("nttft_ms", "itl_ms"):
        median = np.log(getattr(said, metric))
        logs.append(median + share * (said.draws.logs(metric) - median))
    return replace(said, draws=Draws.of_logs(*logs))


def covered(fold: Fold, spread: float) -> float:
    """Return the share of measured latencies within the 80% intervals of the draws."""
    draws, shares = drawn_to(fold.prediction, spread).draws, []
    assert draws is not None
    for metric in ("nttft_ms", "itl_ms"):
        below = (draws.logs(metric) < np.log(getattr(fold.truth, metric))).mean(axis=0)[fold.scored]
        shares.append(((below > 0.1) & (below < 0.9)).mean())
    return float(np.mean(shares))


Outcomes = dict[tuple[int, str], list[Outcome]]
"""By seed and LLM, in the order of the settings."""


def judged(folds: Sequence[Fold], needs: Sequence[Need], spread: float, worth: float) -> Outcomes:
    decision.CERTAINTY_WORTH = worth
    found = {}
    for fold in folds:
        said = drawn_to(fold.prediction, spread)
        found[fold.seed, fold.model] = [judge(choose(said, need), fold.truth, need) for need in needs]
    return found


def so_score(outcomes: Outcomes, without: str | None = None) -> float:
    """Return S/O, the mean over seeds and settings."""
    seeds = sorted({seed for seed, _ in outcomes})
    of_seed = [[own for (s, llm), own in outcomes.items() if s == seed and llm != without] for seed in seeds]
    return mean_score([score(setting) for llms in of_seed for setting in zip(*llms, strict=True)]).so_score


def nested(by_worth: dict[float, dict[str, Outcomes]], name: str) -> float:
    """Return the S/O over one grid, the weight chosen for each LLM on the other LLMs and grids."""
    some = by_worth[WORTHS[0]]
    taken: Outcomes = {}
    for llm in sorted({llm for _, llm in some[name]}):
        means = {
            worth: np.mean([so_score(found[other], llm) for other in some if other != name])
            for worth, found in by_worth.items()
        }
        best = max(means, key=lambda worth: means[worth])
        taken |= {key: own for key, own in by_worth[best][name].items() if key[1] == llm}
    return so_score(taken)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    seeds, settings, served = range(42, 42 + options.seeds), grids(), decision.CERTAINTY_WORTH
    with workers(options.workers) as run:
        folds = list(evaluate(shipped_pilot(), published(), [], seeds, run=run))
    by_worth = {w: {n: judged(folds, needs, SPREAD, w) for n, needs in settings.items()} for w in WORTHS}
    scores = {str(w): {n: so_score(own) for n, own in found.items()} for w, found in by_worth.items()}
    scores["nested"] = {name: nested(by_worth, name) for name in settings}
    spreads = {}
    for spread in SPREADS:
        row = {name: so_score(judged(folds, needs, spread, served)) for name, needs in settings.items()}
        spreads[str(spread)] = {"within_80": float(np.mean([covered(f, spread) for f in folds])), **row}
    for title, rows in (("certainty worth", scores), ("spread", spreads)):
        columns = list(next(iter(rows.values())))
        print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for key, row in rows.items():
            print(f"| {key} | {' | '.join(f'{value:.3f}' for value in row.values())} |")
    result = {"seeds": list(seeds), "served": served, "certainty_worth": scores, "spread": spreads}
    Path("grids.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
