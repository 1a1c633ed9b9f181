"""Rebuild the shipped calibrations: pairs on three levels, on all, and the physics with its folds.

PYTHONPATH=. python experiments/02_simulator_accuracy/build.py DATA_DIR
"""

import sys
import time
from pathlib import Path

from llmpilot.files import to_json, write_text
from llmpilot.processes import workers
from llmpilot.simulator import accuracy, physics
from llmpilot.simulator.calibration import SHIPPED, THREE_LEVELS, write_calibrations
from llmpilot.simulator.recordings import read_recordings

SOURCE = (
    "Fitted by experiments/02_simulator_accuracy/run.sh on IBM/LLM-performance-prediction,\n"
    "licence CDLA-Permissive-2.0; {levels}. Milliseconds, and tokens for max_batch_weight."
)


def main(data: Path) -> None:
    started = time.perf_counter()
    pairs = accuracy.by_pair(read_recordings(data / "llm-pilot" / "requests.parquet"))
    with workers(2) as run:
        tables = accuracy.refit(
            pairs, run, lambda text: print(f"{time.perf_counter() - started:6.0f} s  {text}")
        )
    few, full = SOURCE.format(levels="users 1, 8, 64"), SOURCE.format(levels="all levels")
    write_calibrations(THREE_LEVELS, list(tables.three_levels.values()), few)
    write_calibrations(SHIPPED, list(tables.all_levels.values()), full)
    contents = {
        "source": full.replace("\n", " "),
        "factors": tables.factors,
        "unseen_llm": tables.unseen_llm,
        "unseen_gpu": tables.unseen_gpu,
    }
    write_text(physics.SHIPPED, to_json(contents))
    print(f"{time.perf_counter() - started:6.0f} s  written to {SHIPPED.parent}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
