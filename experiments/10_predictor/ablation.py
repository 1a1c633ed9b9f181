"""What each part of the pilot predictor brings: the nested evaluation with parts left out.

    python ablation.py [--seeds 2] [--workers 2]      # prints the table and writes ablation.json

Every variant is judged at the paper's setting and over the grid of conf/task/evaluate.yaml. Nothing was
chosen by this table; it says what would be lost.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from setting import grid, shipped_pilot

from llmpilot.dataset import Dataset, published
from llmpilot.predict.decision import Need
from llmpilot.predict.evaluation import evaluate
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.predict.prediction import Prediction, Query
from llmpilot.predict.predictor import Fitted, Predictor
from llmpilot.predict.report import summary
from llmpilot.processes import workers


class FaceValue(Fitted):
    """A fitted predictor whose uncertainty is thrown away: the median is taken for the truth."""

    def __init__(self, inner: Fitted) -> None:
        self.inner = inner

    def answer(self, query: Query) -> Prediction:
        return replace(self.inner.answer(query), draws=None)


class WithoutDraws(Predictor):
    inner: Pilot

    def fit(self, data: Dataset, seed: int) -> Fitted:
        return FaceValue(self.inner.fit(data, seed))


def variants(default: Pilot) -> dict[str, Predictor]:
    def seeing(*views: list[str]) -> Pilot:
        return Pilot(**default.model_dump() | {"views": list(views)})

    both, nothing = ["closed_form", "simulator"], seeing([])
    return {
        "all of it": default,
        "only the view of the closed form": seeing(["closed_form"]),
        "only the view of closed form and simulator": seeing(both),
        "only the view of the simulator": seeing(["simulator"]),
        "no physics": nothing,
        "no decision layer (the median taken for the truth)": WithoutDraws(name="face_value", inner=default),
        "neither": WithoutDraws(name="neither", inner=nothing),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    needs = [Need(200, 100.0, 50.0), *grid()]
    both = [*needs, *(need.counting_failures() for need in needs)]
    seeds, data, rows = range(42, 42 + options.seeds), published(), {}
    print("| variant | paper S/O | grid S/O | grid efficiency | MAPE nTTFT / ITL |\n|---|---|---|---|---|")
    with workers(options.workers) as run:
        for name, predictor in variants(shipped_pilot()).items():
            found = summary(list(evaluate(predictor, data, both, seeds, run=run)), len(needs))
            rows[name] = {key: found[key] for key in ("paper", "grid", "with_failures", "mape")}
            paper, over, mape = found["paper"], found["grid"], found["mape"]
            print(
                f"| {name} | {paper['so_score']:.3f} | {over['so_score']:.3f} | {over['efficiency']:.3f} "
                f"| {mape['nttft']:.1%} / {mape['itl']:.1%} |",
                flush=True,
            )
    result = {"seeds": list(seeds), "variants": rows}
    Path("ablation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
