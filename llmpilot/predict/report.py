"""What an evaluation found, as the fields of `result_file` and as tables that other code can score."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from llmpilot.predict.decision import Choice, Need
from llmpilot.predict.evaluation import Fold
from llmpilot.predict.scores import Score, mean_score, score

NOTHING = "nothing"


def summary(folds: Sequence[Fold], settings: int) -> dict[str, Any]:
    """Return the scores. A fold's needs are the single setting and the grid, `settings` of them in all, then
    the same again counting failures."""
    seeds = sorted({fold.seed for fold in folds})
    plain, strict = _scores(folds, seeds, 0, settings), _scores(folds, seeds, settings, settings)
    return {
        "seeds": seeds,
        "paper": plain["paper"],
        "grid": plain["grid"],
        "with_failures": strict,
        "mape": {name: _mean([fold.errors()[name] for fold in folds]) for name in ("nttft", "itl")},
        "per_model": [
            _of_model([fold for fold in folds if fold.model == name], settings)
            for name in sorted({fold.model for fold in folds})
        ],
    }


def predictions_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """Return a row per seed, LLM, GPU profile and users: what was predicted without the LLM, and whether the
    cell was given away as measured."""
    rows = [
        {
            "seed": fold.seed,
            "model": fold.model,
            "hf_id": fold.truth.model.hf_id,
            "gpu": gpu.name,
            "count": gpu.count,
            "users": users,
            "nttft_ms": fold.prediction.nttft_ms[i, j],
            "itl_ms": fold.prediction.itl_ms[i, j],
            "predicted": bool(fold.scored[i, j]),
        }
        for fold in folds
        for i, gpu in enumerate(fold.prediction.profiles)
        for j, users in enumerate(fold.prediction.users)
    ]
    return pd.DataFrame(rows)


def recommendations_table(folds: Sequence[Fold], needs: Sequence[Need]) -> pd.DataFrame:
    """Return a row per seed, LLM and need: what was recommended, null for nothing, and what became of it."""
    rows = [
        {
            "seed": fold.seed,
            "model": fold.model,
            **asdict(need),
            "gpu": choice.profile.name if choice else None,
            "count": choice.profile.count if choice else None,
            "pods": choice.pods if choice else None,
            "cost_per_hour": choice.cost_per_hour if choice else None,
            **asdict(outcome),
        }
        for fold in folds
        for need, choice, outcome in zip(needs, fold.choices, fold.outcomes, strict=True)
    ]
    return pd.DataFrame(rows)


def _scores(folds: Sequence[Fold], seeds: list[int], first: int, settings: int) -> dict[str, Any]:
    single, grids = [], []
    for seed in seeds:
        of_seed = [fold for fold in folds if fold.seed == seed]
        scores = [score([fold.outcomes[first + at] for fold in of_seed]) for at in range(settings)]
        single.append(scores[0])
        grids.append(mean_score(scores[1:]))
    return {"paper": _over_seeds(single), "grid": _over_seeds(grids)}


def _over_seeds(scores: Sequence[Score]) -> dict[str, float | None]:
    means = {name: _finite(value) for name, value in asdict(mean_score(scores)).items()}
    return means | {"so_score_sd": float(np.std([one.so_score for one in scores]))}


def _of_model(folds: list[Fold], settings: int) -> dict[str, Any]:
    grid = [outcome for fold in folds for outcome in fold.outcomes[1:settings]]
    overspends = [fold.outcomes[0].overspend for fold in folds if fold.outcomes[0].success]
    chosen = Counter(_in_words(fold.choices[0]) for fold in folds)
    return {
        "model": folds[0].model,
        "recommended": dict(chosen.most_common()),
        "paper_success_rate": float(np.mean([fold.outcomes[0].success for fold in folds])),
        "paper_overspend": float(np.mean(overspends)) if overspends else None,
        "grid_success_rate": float(np.mean([outcome.success for outcome in grid])),
        "grid_efficiency": float(np.mean([outcome.efficiency for outcome in grid])),
        "nttft_mape": _mean([fold.errors()["nttft"] for fold in folds]),
        "itl_mape": _mean([fold.errors()["itl"] for fold in folds]),
    }


def _in_words(choice: Choice | None) -> str:
    return NOTHING if choice is None else f"{choice.pods} x ({choice.profile.label})"


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    values = np.concatenate(parts)
    return _finite(float(values.mean())) if len(values) else None


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
