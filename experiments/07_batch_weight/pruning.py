"""What measuring less saves: the same studies with and without a short cut, on the simulator.

For a latency, the first part of the measurement answers whether a weight is feasible; for the cost, hopeless
trials do not climb their ladder to its end.

python experiments/07_batch_weight/pruning.py RESULT_FILE
"""

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from hydra import compose as compose_config
from hydra import initialize_config_dir

from llmpilot import catalog
from llmpilot.config import parse
from llmpilot.files import to_json, write_text
from llmpilot.processes import workers
from llmpilot.simulator.calibration import shipped_calibrations
from llmpilot.tasks import tune
from llmpilot.tasks.cell import compose
from llmpilot.tune import Tuner

EVERY = 11  # of the 66 pairs that were measured
SHORT_CUTS = {
    "e2e_ms.p50": ("tuner.first_part=1", "tuner.first_part=0.25"),
    "cost_per_million_output_tokens": ("tuner.prune_beyond=null", "tuner.prune_beyond=0.5"),
}
Case = tuple[tuple[str, str, int], str]


def study(case: Case, setting: str) -> dict[str, Any]:
    (model, gpu_name, count), objective = case
    gpu = next(option for option, gpu in catalog.gpus().items() if gpu.name == gpu_name)
    typed = [f"+gpu={gpu}", f"+model={model}", f"gpu.count={count}", "engine=tgis"]
    with tempfile.TemporaryDirectory() as folder:
        typed += [
            "task=tune",
            f"tuner.objective={objective}",
            f"tuner.storage=sqlite:///{folder}/o.db",
            setting,
        ]
        with initialize_config_dir(str(catalog.conf_dir()), version_base="1.3"):
            cfg = compose_config("config", overrides=typed)
        tuning = tune.prepare(cfg, compose(cfg), parse(Tuner, cfg.tuner, "tuner"))
        tuning.tracker.problem = "this is not tracked"
        result = tune.conclude(tuning, tune.search(tuning, None))
    return {
        "seconds": result["seconds"],
        "trials": len(result["trials"]),
        "proposals": sum(row["question"] == "best" for row in result["trials"]),
        "given_up": sum(row["pruned"] for row in result["trials"]),
        "best_max_batch_weight": result["best_max_batch_weight"],
        "value": result["value"],
        "noise": result["noise"],
    }


def compare(case: Case) -> dict[str, Any]:
    pair, objective = case
    without, with_it = (study(case, setting) for setting in SHORT_CUTS[objective])
    return {"pair": list(pair), "objective": objective, "without": without, "with": with_it}


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total = {way: sum(row[way]["seconds"] for row in rows) for way in ("without", "with")}
    values = [row["with"]["value"] / row["without"]["value"] - 1 for row in rows]
    return {
        "studies": len(rows),
        "trials": {way: sum(row[way]["trials"] for row in rows) for way in total},
        "proposals": sum(row["with"]["proposals"] for row in rows),
        "given_up": sum(row["with"]["given_up"] for row in rows),
        "service_seconds": {way: round(seconds) for way, seconds in total.items()},
        "saved": 1 - total["with"] / total["without"],
        "value_with_against_without": {"median": median(values), "least": min(values), "most": max(values)},
        "same_weight": sum(
            row["with"]["best_max_batch_weight"] == row["without"]["best_max_batch_weight"] for row in rows
        ),
    }


def main(result_file: Path) -> None:
    cases = [(pair, objective) for objective in SHORT_CUTS for pair in list(shipped_calibrations())[::EVERY]]
    with workers(2) as run:
        rows = list(run(compare, cases))
    summary = {
        objective: summary_of([row for row in rows if row["objective"] == objective])
        for objective in SHORT_CUTS
    }
    write_text(result_file, to_json({"summary": summary, "studies": rows}))
    print(to_json(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
