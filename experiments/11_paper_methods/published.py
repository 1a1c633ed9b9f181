"""Scores the paper's published predictions with our own code: python published.py FOLDER > published.json

FOLDER holds expected_*.csv of IBM/LLM-performance-prediction.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from llmpilot.dataset import published
from llmpilot.predict.decision import Need, choose
from llmpilot.predict.paper.published import FILES, MEASURED_FIRST, REFERENCES, published_predictions
from llmpilot.predict.paper.static import policies
from llmpilot.predict.scores import grid_of, judge, mean_score, score, truth_of

PAPER = Need(users=200, nttft_ms=100, itl_ms=50)
GRID = grid_of([50, 100, 200], [30, 40, 50, 75, 100], [50, 100, 200, 500, 1000])


def main(folder: Path) -> None:
    data = published()
    truths = {llm: truth_of(data, llm) for llm in data.models}
    expected = pd.read_csv(folder / "expected_recommendation_scores.csv", index_col=0)
    results = {}
    for name, file in FILES.items():
        predictions = published_predictions(folder, name, data)

        def scored(need: Need, predictions=predictions):
            chosen = {llm: choose(said, need) for llm, said in predictions.items()}
            return score([judge(choice, truths[llm], need) for llm, choice in chosen.items()])

        paper, grid = scored(PAPER), mean_score(scored(need) for need in GRID)
        errors: dict[str, list[np.ndarray]] = {"nttft": [], "itl": []}
        for llm, said in predictions.items():
            profiles = [gpu.label.removesuffix("-40GB") for gpu in said.profiles]
            new = ~np.isin(profiles, REFERENCES if name in MEASURED_FIRST else ())
            errors["nttft"].append(np.abs(said.nttft_ms / truths[llm].nttft_ms - 1)[new].ravel())
            errors["itl"].append(np.abs(said.itl_ms / truths[llm].itl_ms - 1)[new].ravel())
        results[name] = {
            "stated_so_score": float(expected.loc[file, "so_score"]),
            "paper": vars(paper),
            "grid": vars(grid),
            "mape": {metric: float(np.concatenate(parts).mean()) for metric, parts in errors.items()},
        }
    best = policies(list(truths.values()), PAPER)[0]
    results["static"] = {
        "stated_so_score": float(expected.loc["Static policy", "so_score"]),
        "policy": f"{best.pods} pods of {best.count} x {best.gpu}",
        "paper": vars(best.score),
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
