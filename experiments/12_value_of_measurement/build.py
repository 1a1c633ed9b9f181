"""What one measurement is worth, chosen by value of information, against always the same; errors on GPU
types left out. Each LLM is left out in turn. Run it by run.sh; figures go to results.json."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmpilot import catalog
from llmpilot.config import Gpu, build
from llmpilot.dataset import Dataset, published
from llmpilot.files import to_json, write_text
from llmpilot.predict.decision import Need, drawn_users_max
from llmpilot.predict.evaluation import on_profiles, profile_key
from llmpilot.predict.predictor import Predictor
from llmpilot.predict.scores import Outcome, grid_of, judge, mean_score, score, truth_of
from llmpilot.processes import workers
from llmpilot.recommendation.settle import RUN_HOURS, Stakes, worth_of_measuring

PAPER = Need(users=200, nttft_ms=100, itl_ms=50)
GRID = grid_of((50, 100, 200), (30, 40, 50, 75, 100), (50, 100, 200, 500, 1000))
HOURS = 730
FIXED = {"always 1 x H100": "1xH100", "always 1 x A100": "1xA100-40GB", "always 4 x T4": "4xT4"}
POLICIES = ("none", *FIXED, "any, in the mean", "most gain", "most gain less its cost", "best in hindsight")


def predictor() -> Predictor:
    node = yaml.safe_load((catalog.conf_dir() / "predictor" / "pilot.yaml").read_text(encoding="utf-8"))
    built: Predictor = build(node, "predictor")
    return built


def fold(seed: int, name: str) -> dict[str, Any]:
    """Return the outcomes of each policy for every need, and what it measured, one LLM left out."""
    data = published()
    others, own, truth = data.without(name), data.only(name), truth_of(data, name)
    fitted = predictor().fit(others, seed)
    blind = fitted.predict(truth.model, truth.profiles, truth.users)
    seeing = {}
    for key in (profile_key(gpu.name, gpu.count) for gpu in truth.profiles):
        one = own.select(on_profiles(own.table, [key]))
        knowing = predictor().fit_knowing(others, one, seed)
        seeing[key] = knowing.predict(truth.model, truth.profiles, truth.users, one.table)
    found: dict[str, Any] = {policy: [] for policy in POLICIES}
    for need in [PAPER, *GRID]:
        results = {key: judge(fitted.choose(said, need), truth, need) for key, said in seeing.items()}
        nothing = judge(fitted.choose(blind, need), truth, need)
        by_gain, by_net = _chosen(blind, need)
        for policy in POLICIES:
            measured: str | None = None
            if policy in FIXED:
                measured = FIXED[policy]
            elif policy == "most gain":
                measured = by_gain
            elif policy == "most gain less its cost":
                measured = by_net
            elif policy == "best in hindsight":
                measured = max(results, key=lambda key: results[key].efficiency)
            if policy == "any, in the mean":
                found[policy].append([(key, _plain(one)) for key, one in results.items()])
            else:
                outcome = results.get(measured, nothing) if measured else nothing
                found[policy].append([(measured if measured in results else None, _plain(outcome))])
    prices = {profile_key(gpu.name, gpu.count): gpu.cost_per_hour for gpu in truth.profiles}
    return {"seed": seed, "model": name, "prices": prices, "found": found}


def _chosen(blind: Any, need: Need) -> tuple[str | None, str | None]:
    """Return which measurement gains most, and which gains most beyond its cost; None: none gains."""

    profiles = blind.profiles
    prices = np.array([gpu.cost_per_hour for gpu in profiles])
    costs = (RUN_HOURS * prices).tolist()
    capacity = drawn_users_max(blind, need).astype(float)
    weighed = worth_of_measuring(capacity, Stakes(prices, need.users), range(len(profiles)))
    most = max(weighed, key=lambda one: (one.gain, -costs[one.option]))
    net = max(weighed, key=lambda one: one.gain * HOURS - costs[one.option])

    def named(option: int) -> str:
        return profile_key(profiles[option].name, profiles[option].count)

    return (
        named(most.option) if most.gain > 0 else None,
        named(net.option) if net.gain * HOURS > costs[net.option] else None,
    )


def _plain(outcome: Outcome) -> tuple[bool, float | None, float]:
    return outcome.success, None if np.isnan(outcome.overspend) else outcome.overspend, outcome.efficiency


def summary(folds: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Return S/O and efficiency of each policy, means over seeds, what it measured and what that cost."""
    found = {}
    for policy in POLICIES:
        by_seed = [_score(policy, [one for one in folds if one["seed"] == seed]) for seed in range(seeds)]
        picks = [pick for one in folds for choices in one["found"][policy] for pick, _ in choices]
        costs = [
            RUN_HOURS * one["prices"][pick] if pick else 0.0
            for one in folds
            for choices in one["found"][policy]
            for pick, _ in choices
        ]
        found[policy] = {
            name: {"mean": float(np.mean(values)), "sd": float(np.std(values))}
            for name, values in zip(
                ("paper_so", "paper_efficiency", "grid_so", "grid_efficiency"),
                zip(*by_seed, strict=True),
                strict=True,
            )
        } | {
            "measured": dict(Counter(pick or "none" for pick in picks).most_common(6)),
            "mean_cost": float(np.mean(costs)),
        }
    return found


def _score(policy: str, folds: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    """Return S/O and efficiency at the paper's setting, and their means over the grid."""
    lists = [[[_outcome(*one) for _, one in choices] for choices in fold["found"][policy]] for fold in folds]
    scores = []
    for setting in range(1 + len(GRID)):
        per_model = [choices[setting] for choices in lists]
        width = max(len(outcomes) for outcomes in per_model)
        # "Any": each of the profiles in turn, an LLM with fewer of them begins again.
        scores.append(mean_score(score([o[i % len(o)] for o in per_model]) for i in range(width)))
    grid = mean_score(scores[1:])
    return scores[0].so_score, scores[0].efficiency, grid.so_score, grid.efficiency


def _outcome(success: bool, overspend: float | None, efficiency: float) -> Outcome:
    return Outcome(success, float("nan") if overspend is None else overspend, efficiency)


# --- GPU types and counts left out -----------------------------------------------------------------------


def left_out(name: str, hidden: str) -> tuple[str, str, list[list[float]]]:
    """Return the log errors [rows, 2] of one LLM on a GPU type, or 4 GPUs, with neither in the training."""
    data = published()
    others = data.without(name)
    away = _hidden(others, hidden)
    truth = data.only(name)
    rows = truth.select(_hidden(truth, hidden))
    if not len(rows):
        return name, hidden, []
    # Medians only are judged: the forests that find the spread may be as small as they can.
    quick = predictor().model_copy(update={"fold_trees": 1})
    fitted = quick.fit(others.select(~away), 0)
    table = rows.table
    profiles: list[Gpu] = [
        rows.gpus[gpu].model_copy(update={"count": int(count)})
        for gpu, count in table[["gpu", "count"]].drop_duplicates().itertuples(index=False)
    ]
    users = tuple(sorted({int(u) for u in table["users"]}))
    said = fitted.predict(truth.models[name], profiles, users)
    errors = []
    for row in table.itertuples():
        p = next(i for i, gpu in enumerate(profiles) if (gpu.name, gpu.count) == (row.gpu, row.count))
        u = users.index(row.users)
        errors.append(
            [float(np.log(row.nttft_ms / said.nttft_ms[p, u])), float(np.log(row.itl_ms / said.itl_ms[p, u]))]
        )
    return name, hidden, errors


def _hidden(data: Dataset, hidden: str) -> Any:
    return (data.table["count"] == 4) if hidden == "most_gpus" else (data.table["gpu"] == hidden)


def left_out_summary(parts: list[tuple[str, str, list[list[float]]]]) -> dict[str, Any]:
    """Return the median relative error of each (LLM, GPU type) pair, and the median of these."""
    by: dict[str, list[list[float]]] = {}
    for _, hidden, errors in parts:
        if errors:
            by.setdefault(hidden, []).append(np.expm1(np.median(np.abs(np.array(errors)), axis=0)).tolist())
    types = {hidden: np.median(rows, axis=0).tolist() for hidden, rows in by.items()}
    every = np.median([row for hidden, rows in by.items() if hidden != "most_gpus" for row in rows], axis=0)
    return {
        "gpu_types": {"nttft": round(float(every[0]), 4), "itl": round(float(every[1]), 4)},
        "most_gpus": dict(zip(("nttft", "itl"), (round(v, 4) for v in types["most_gpus"]), strict=True)),
        "by_type": {
            name: dict(zip(("nttft", "itl"), (round(v, 4) for v in values), strict=True))
            for name, values in types.items()
            if name != "most_gpus"
        },
    }


def _jobs(seeds: int) -> Iterator[tuple[int, str]]:
    for seed in range(seeds):
        for name in sorted(published().models):
            yield seed, name


def main(results: Path, shipped: Path, seeds: int) -> None:
    data = published()
    pairs = [(name, hidden) for hidden in (*data.gpus, "most_gpus") for name in data.models]
    with workers(2) as run:
        parts = list(run(left_out, *zip(*pairs, strict=True)))
        errors = left_out_summary(parts)
        write_text(shipped, to_json({key: errors[key] for key in ("gpu_types", "most_gpus")}))
        print(json.dumps(errors, indent=2), flush=True)
        folds = []
        for one in run(fold, *zip(*_jobs(seeds), strict=True)):
            print(f"seed {one['seed']} without {one['model']}", flush=True)
            folds.append(one)
    found = {"policies": summary(folds, seeds), "left_out": errors, "seeds": seeds}
    write_text(results, to_json(found))
    for policy, figures in found["policies"].items():
        shown = " ".join(
            f"{figures[key]['mean']:.3f} +- {figures[key]['sd']:.3f}" for key in ("paper_so", "grid_so")
        )
        print(f"{policy:26s} paper, grid S/O {shown}, ${figures['mean_cost']:.2f} {figures['measured']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
