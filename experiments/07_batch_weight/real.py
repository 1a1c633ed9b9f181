"""On a real llama.cpp server: the tuner's weight beside the best of all weights that are served differently.

python experiments/07_batch_weight/real.py RESULT_FILE       (in a scratch folder: pip install xllamacpp gguf)
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from hydra import compose as compose_config
from hydra import initialize_config_dir

from llmpilot import catalog, cli
from llmpilot.engine.tiny_model import write_gguf
from llmpilot.files import to_json, write_text
from llmpilot.tasks.cell import Cell, compose
from llmpilot.tune import Services, Tuner, measure
from llmpilot.tune.plan import REPEAT
from llmpilot.workload import fit, from_lengths

SLOTS = 32
INPUT, OUTPUT = (8, 40), (4, 24)
HEAVIEST = INPUT[1] + OUTPUT[1]
USERS = 32
PAIRED_SEEDS = (100, 101, 102, 103)
CONFIG = [
    "task=tune", "+gpu=a100", "+model=starcoder", "engine=llamacpp", "deployment=process",
    "engine.model_path=tiny.gguf", "engine.threads=1", "deployment.client.calibrate=false",
    "workload=file", "workload.model=short.parquet", "load.users=[32]", "load.duration_s=4",
    "load.warmup_s=1", f"tuner.users={USERS}", f"tuner.upper={SLOTS * HEAVIEST}", "tuner.trials=5",
    "tuner.patience=3", "tuner.repeats=2", "tuner.contenders=2",
]  # fmt: skip


def whole(cell: Cell, services: Services, weight: int, seed: int) -> dict[str, Any]:
    settings = Tuner(users=USERS)
    outcome = measure(
        services, cell.traffic, settings, weight, sla=cell.sla, cost_per_hour=1.0, seed=seed, question=REPEAT
    )
    figures = outcome.figures
    return {
        "max_batch_weight": weight,
        "seed": seed,
        "feasible": outcome.feasible,
        "e2e_ms_p50": figures["e2e_ms_p50"],
        "throughput_tok_s": figures["throughput_tok_s"],
        "deployments": outcome.deployments,
        "seconds": outcome.seconds,
    }


def spread(values: Sequence[float]) -> float:
    return stdev(values) / fmean(values)


def main(result_file: Path) -> None:
    rng = np.random.default_rng(5)
    shapes = [rng.integers(low, high + 1, 5000) for low, high in (INPUT, OUTPUT)]
    shapes[0][0], shapes[1][0] = INPUT[1], OUTPUT[1]
    fit(lambda: [from_lengths(*shapes)]).save("short.parquet")
    write_gguf(Path("tiny.gguf"))
    assert cli.run([*CONFIG, "result_file=tuned.json"]) == 0
    tuned = json.loads(Path("tuned.json").read_text(encoding="utf-8"))
    with initialize_config_dir(str(catalog.conf_dir()), version_base="1.3"):
        cell = compose(compose_config("config", overrides=CONFIG))

    services = Services(lambda weight: replace(cell, max_batch_weight=weight).start())
    sweep = [whole(cell, services, slots * HEAVIEST, cell.seed) for slots in range(1, SLOTS + 1)]
    best = min(sweep, key=lambda row: row["e2e_ms_p50"])["max_batch_weight"]
    chosen = tuned["best_max_batch_weight"]
    # Each in turn with the same requests: whatever else the machine does, it does to both.
    paired = [
        [whole(cell, services, weight, seed)["e2e_ms_p50"] for weight in (chosen, best)]
        for seed in PAIRED_SEEDS
    ]
    services.discard()
    ratios = [one / other for one, other in paired]
    summary = {
        "tuner": {
            key: tuned[key]
            for key in ("best_max_batch_weight", "deployments", "seconds", "noise", "stopped_because")
        }
        | {"trials": len(tuned["trials"])},
        "sweep": {
            "best_max_batch_weight": best,
            "deployments": sum(row["deployments"] for row in sweep),
            "seconds": round(sum(row["seconds"] for row in sweep), 1),
        },
        "deployments_tuner_over_sweep": tuned["deployments"] / len(sweep),
        "e2e_p50_chosen_over_best": {
            "mean": fmean(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "pairs": len(ratios),
        },
        "spread_over_seeds": {
            "chosen": spread([one for one, _ in paired]),
            "best": spread([other for _, other in paired]),
        },
        "e2e_p50_one_slot_over_best": sweep[0]["e2e_ms_p50"] / min(row["e2e_ms_p50"] for row in sweep),
    }
    write_text(result_file, to_json({"summary": summary, "trials": tuned["trials"], "sweep": sweep}))
    print(to_json(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
