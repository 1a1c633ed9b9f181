"""How sure recommendations are, and how sure they may be: what was promised for LLMs left out, and what held.

    python calibration.py [--seeds 2] [--workers 2]      # prints the tables and writes calibration.json

Each LLM is left out in turn, and the recommender's own ranking chooses for it, over the grid of
conf/task/evaluate.yaml and at several levels of risk, with the draws at several shares of their spread. The
log loss is that of "a pod of this profile takes so many users", for every profile and load, LLMs alike.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
from setting import grid, shipped_pilot

from llmpilot.dataset import published
from llmpilot.predict.decision import Need
from llmpilot.predict.evaluation import Fold, evaluate
from llmpilot.processes import workers
from llmpilot.recommendation.calibration import SPREAD, drawn_in
from llmpilot.recommendation.ranking import drawn_users_max, rank

SPREADS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
RISKS = (0.05, 0.1, 0.2, 0.3)
LEAST = 0.002  # of a probability, for its logarithm: 500 draws know no smaller one
Floats = np.ndarray


def promises(fold: Fold, spread: float, needs: Sequence[Need]) -> tuple[Floats, Floats]:
    """Return how probable it is that a pod of a profile not measured takes so many users, and if it did."""
    said, hidden = drawn_in(fold.prediction, spread), fold.scored.any(axis=1)
    users = np.array(fold.truth.users)
    promised, held = [], []
    for limits in needs:
        most = drawn_users_max(said, limits)[:, hidden]
        promised.append((most[:, :, None] >= users).mean(axis=0).ravel())
        held.append((fold.truth.users_max(limits)[hidden][:, None] >= users).ravel())
    return np.concatenate(promised), np.concatenate(held)


def log_loss(promised: Floats, held: Floats) -> float:
    right = np.where(held, promised, 1 - promised)
    return float(-np.log(np.clip(right, LEAST, 1)).mean())


def covered(fold: Fold, spread: float) -> float:
    """Return the share of measured latencies within the 80% intervals of the draws."""
    draws = drawn_in(fold.prediction, spread).draws
    assert draws is not None
    shares = []
    for metric in ("nttft_ms", "itl_ms"):
        truth = np.log(getattr(fold.truth, metric))
        below = (draws.logs(metric) < truth).mean(axis=0)[fold.scored]
        shares.append(((below > 0.1) & (below < 0.9)).mean())
    return float(np.mean(shares))


def at_risk(folds: Sequence[Fold], spread: float, risk: float, needs: Sequence[Need]) -> dict[str, float]:
    """Return how often recommendations held, what they cost over the least, and how often there was none.

    The ranking gives pods loads between those that were measured, so the truth is taken between them as well,
    by the same straight lines: the paper's u_max would know 32 or 64 users only.
    """
    held, overspend, none = [], [], 0
    for fold in folds:
        truth, said = fold.truth, drawn_in(fold.prediction, spread)
        measured = replace(said, nttft_ms=truth.nttft_ms, itl_ms=truth.itl_ms, draws=None)
        for need in needs:
            best = rank(said, need, risk).recommended
            if best is None or best.pods is None:
                none += 1
                continue
            most = drawn_users_max(measured, need)[0]
            costs = [
                ceil(need.users / users) * gpu.cost_per_hour
                for users, gpu in zip(most.tolist(), truth.profiles, strict=True)
                if users
            ]
            held.append(bool(best.pods * most[truth.profiles.index(best.profile)] >= need.users))
            if held[-1]:
                overspend.append(best.pods * best.profile.cost_per_hour / min(costs) - 1)
    return {
        "held": float(np.mean(held)),
        "overspend": float(np.mean(overspend)),
        "overspend_median": float(np.median(overspend)),
        "nothing": none / (none + len(held)),
    }


def judged(folds: Sequence[Fold], needs: Sequence[Need]) -> dict[str, object]:
    """Return the figures of every spread, and the spread of least log loss with each LLM left out."""
    limits = list({(need.nttft_ms, need.itl_ms): need for need in needs}.values())
    folds = [fold for fold in folds if fold.scored.any()]
    names = sorted({fold.model for fold in folds})
    losses = np.array(
        [
            [
                np.mean([log_loss(*promises(f, spread, limits)) for f in folds if f.model == name])
                for name in names
            ]
            for spread in SPREADS
        ]
    )
    left_out = [SPREADS[int(np.delete(losses, at, axis=1).mean(axis=1).argmin())] for at in range(len(names))]
    rows = {}
    for spread, loss in zip(SPREADS, losses, strict=True):
        rows[str(spread)] = {
            "log_loss": float(loss.mean()),
            "within_80": float(np.mean([covered(fold, spread) for fold in folds])),
            "risk": {str(risk): at_risk(folds, spread, risk, needs) for risk in RISKS},
        }
    return {"spreads": rows, "least_log_loss_without": dict(zip(names, left_out, strict=True))}


def show(title: str, found: dict[str, object]) -> None:
    risks = " | ".join(f"risk {risk:g}: held, overspent" for risk in RISKS)
    print(f"\n{title}\n\n| spread | log loss | within 80% | {risks} |\n|---|---|---|{'---|' * len(RISKS)}")
    for spread, row in found["spreads"].items():  # type: ignore[attr-defined]
        cells = " | ".join(
            f"{one['held']:.1%}, {one['overspend_median']:.0%}" for one in row["risk"].values()
        )
        mark = " (taken)" if float(spread) == SPREAD else ""
        print(f"| {spread}{mark} | {row['log_loss']:.3f} | {row['within_80']:.0%} | {cells} |")
    print("least log loss without each LLM:", found["least_log_loss_without"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    pilot, needs, seeds, found = shipped_pilot(), grid(), range(42, 42 + options.seeds), {}
    with workers(options.workers) as run:
        for title, measured in (("zero-shot", ()), ("1 x H100 measured", ("1xH100",))):
            folds = list(evaluate(pilot, published(), needs, seeds, measured=measured, run=run))
            found[title] = judged(folds, needs)
            show(title, found[title])
    result = {"seeds": list(seeds), **found}
    Path("calibration.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
