"""Compute how well each published pair's calibration is known: llmpilot/predict/pilot/curvatures.json.

    python curvatures.py PATH/requests.parquet      # about a minute on 2 cores

The physics under the pilot predictor is fitted on the shipped calibrations of the LLMs that may be seen,
each coefficient weighed by the curvature of its pair's loss there.
"""

import json
import sys
from pathlib import Path

from llmpilot.predict.pilot.simulated import CURVATURES
from llmpilot.processes import workers
from llmpilot.simulator import accuracy
from llmpilot.simulator.calibration import shipped_calibrations
from llmpilot.simulator.calibration_fit import curvature_of
from llmpilot.simulator.recordings import Recording, read_recordings


def curvature(levels: list[Recording]) -> dict[str, object]:
    model, gpu = accuracy.facts_of(levels[0].pair)
    calibration = shipped_calibrations()[model.name, gpu.name, gpu.count]
    found = curvature_of(calibration, levels, model, gpu)
    rows = [[float(f"{value:.5g}") for value in row] for row in found]
    return {"model": model.name, "gpu": gpu.name, "count": gpu.count, "curvature": rows}


def main() -> None:
    pairs = accuracy.by_pair(read_recordings(Path(sys.argv[1])))
    with workers(2) as run:
        rows = list(run(curvature, pairs.values()))
    file = {
        "source": "experiments/10_predictor/curvatures.py on IBM/LLM-performance-prediction",
        "licence": "CDLA-Permissive-2.0",
        "pairs": sorted(rows, key=lambda row: (row["model"], row["gpu"], row["count"])),
    }
    CURVATURES.write_text(json.dumps(file) + "\n", encoding="utf-8")
    print(f"{len(rows)} pairs")


if __name__ == "__main__":
    main()
