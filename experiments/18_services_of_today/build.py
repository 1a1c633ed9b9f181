"""Fit the service model to the shipped rows, and judge it with each LLM, GPU type, ... left out.

    python build.py [--models FOLDER] [--workers 2]

writes llmpilot/simulator/fitted/services.json (what simulated services and recommendations know of speed),
accuracy.json beside it (how far off services are that nobody measured), results/*.json and a figure.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib

from llmpilot import catalog
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.files import to_json, write_text
from llmpilot.predict.service.learning import fit_knowledge
from llmpilot.predict.service.validation import Prediction, predict
from llmpilot.processes import workers
from llmpilot.simulator.factors import SHIPPED
from llmpilot.tasks.validate_measurements import summary

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEFT_OUT = ("model", "gpu", "configuration", "level", "other_levels", "engine_version", None)
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", help="a folder of config.json files that the catalogue lacks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="judge one way of leaving out only")
    options = parser.parse_args()
    models = catalog.models_in_folder(options.models)[0] if options.models else {}
    shipped = shipped_measurements()
    rows = shipped.select(shipped.closed_loop_today() & ~shipped.in_doubt())
    (HERE / "results").mkdir(exist_ok=True)
    with workers(options.workers) as run:
        knowledge = fit_knowledge(shipped, models, print, run)
        write_text(SHIPPED, to_json(knowledge.to_dict()))
        for left_out in LEFT_OUT:
            name = left_out or "nothing"
            if options.only and options.only != name:
                continue
            started = time.perf_counter()
            found = predict(rows, models, left_out, run, lambda text: None)
            result = summary(found) | {"seconds": round(time.perf_counter() - started, 1)}
            write_text(HERE / "results" / f"{name}.json", to_json(result))
            errors = result["errors"]
            said = " ".join(
                f"{metric} {one['median']:.1%} / {one['mean']:.1%} (in 80%: {one['within_80']:.0%})"
                for metric, one in errors.items()
            )
            print(f"{name}: {result['rows']} rows, {said}; {result['seconds']:.0f} s", flush=True)
            if left_out == "model":
                write_text(SHIPPED.with_name("accuracy.json"), to_json(_accuracy(result)))
                _draw(found, HERE / "results" / "predicted.png")


def _accuracy(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": "median error with the LLM left out, on published rows of vLLM, SGLang and TensorRT-LLM",
        "rows": result["rows"],
    } | {metric: one for metric, one in result["errors"].items() if metric != "throughput"}


def _draw(found: Prediction, path: Path) -> None:
    judged = found.judged[found.judged["metric"] == "tpot"]
    engines = found.table["engine"].to_numpy()[judged["row"]]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharex=True, sharey=True, constrained_layout=True)
    for axis, engine in zip(axes, ("vllm", "trtllm", "sglang"), strict=True):
        part = judged[engines == engine]
        axis.plot([2, 200], [2, 200], color="0.6", linewidth=1)
        axis.scatter(part["measured"], part["predicted"], s=6, alpha=0.5)
        axis.set(
            xscale="log", yscale="log", title=f"{engine}, {len(part)} levels", xlabel="measured TPOT [ms]"
        )
    axes[0].set_ylabel("predicted, LLM left out [ms]")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
