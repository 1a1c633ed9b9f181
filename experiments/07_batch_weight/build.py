"""How few deployments find the largest batch weight that survives, and what a too large one loses.

PYTHONPATH=. python experiments/07_batch_weight/build.py RESULT_FILE [DATA_DIR]
"""

import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from math import ceil, log
from pathlib import Path
from statistics import median
from typing import Any

from llmpilot import catalog, metrics
from llmpilot.config import Gpu, Load, Model, Sla
from llmpilot.engine.tgis import TgisEngine
from llmpilot.files import to_json, write_text
from llmpilot.loadtest import open_traffic, run_level
from llmpilot.processes import workers
from llmpilot.simulator import accuracy
from llmpilot.simulator.calibration import shipped_calibrations
from llmpilot.simulator.recordings import CATALOGUE
from llmpilot.sizing import plan_memory
from llmpilot.tune import Bounds, Services, Tuner, measure
from llmpilot.tune.plan import FEASIBLE, Seen, Step, boundary, next_step
from llmpilot.workload import load_workload

USERS = 128
SEEDS = (42, 43, 44)
SLA, ENGINE = Sla(), TgisEngine()
LOAD = Load(arrival="closed", users=[USERS], duration_s=120, warmup_s=10)
SEARCH = Tuner(question="feasible", users=USERS)
Pair = tuple[str, str, int]


def facts_of(pair: Pair) -> tuple[Model, Gpu]:
    name, gpu_name, count = pair
    gpu = next(gpu for gpu in catalog.gpus().values() if gpu.name == gpu_name)
    return catalog.models([name])[name], gpu.model_copy(update={"count": count})


def level(model: Model, gpu: Gpu, weight: int) -> dict[str, Any]:
    """Measure 128 users under a weight: failures, and the latency of those that survived; mean of 3 seeds."""
    workload = load_workload({"name": "paper", "model": "shipped:paper"})
    found = []
    for seed in SEEDS:
        records = run_level(ENGINE.service(model, gpu, weight), open_traffic(LOAD, workload, seed), USERS)
        found.append(metrics.summarize(records, SLA))
    e2e = [one["e2e_ms"]["p50"] for one in found if one["e2e_ms"]["p50"] is not None]
    return {
        "max_batch_weight": weight,
        "unfinished": sum(one["failures"].get("unfinished", 0) for one in found),
        "failure_rate": sum(one["failure_rate"] for one in found) / len(found),
        "out_of_memory": sum(one["failures"].get("out_of_memory", 0) for one in found),
        "e2e_ms_p50": sum(e2e) / len(e2e) if e2e else None,
        "throughput_tok_s": sum(one["throughput_tok_s"] for one in found) / len(found),
    }


def search(pair: Pair) -> dict[str, Any]:
    """Find the boundary by the tuner's own plan and trials, without a database; compare what it costs."""
    model, gpu = facts_of(pair)
    workload = load_workload({"name": "paper", "model": "shipped:paper"})
    traffic = open_traffic(LOAD, workload, SEEDS[0])
    most = plan_memory(model, gpu, memory_utilization=1.0, reserve_gb_per_gpu=0.0)
    bounds = Bounds(traffic.heaviest_request_tokens, most.kv_capacity_tokens)
    capacity = ENGINE.memory(model, gpu).kv_capacity_tokens
    services = Services(lambda weight: nullcontext(ENGINE.service(model, gpu, weight)), ENGINE.reweighted)
    seen: list[Seen] = []
    seconds = 0.0
    while isinstance(step := next_step(seen, SEARCH, bounds, SEEDS[0]), Step):
        assert step.weight is not None
        outcome = measure(
            services,
            traffic,
            SEARCH,
            step.weight,
            sla=SLA,
            cost_per_hour=gpu.cost_per_hour,
            seed=SEEDS[0],
            question=FEASIBLE,
        )
        seconds += outcome.seconds
        seen.append(
            Seen(len(seen), FEASIBLE, step.weight, SEEDS[0], outcome.feasible, outcome.reason, outcome.value)
        )
    held, failed = boundary(seen)
    assert held is not None, pair
    return {
        "model": model.name,
        "gpu": gpu.label,
        "capacity_tokens": capacity,
        "upper_tokens": bounds.upper,
        "found_tokens": held,
        "error": held / capacity - 1,
        "limit": next((one.reason for one in seen if one.weight == failed and one.feasible is False), None),
        "trials": len(seen),
        "deployments": services.deployments,
        "service_seconds": round(seconds, 1),
        "grid_deployments": ceil(log(bounds.upper / bounds.lower) / log(1 + SEARCH.tolerance)) + 1,
        "too_large": level(model, gpu, bounds.upper),
        "tuned": level(model, gpu, held),
    }


def published_failures(data: Path) -> dict[Pair, dict[str, float]]:
    """Return pair -> share of the published requests at 128 users that failed, and that ran out of memory."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["model", "gpu", "n_gpus", "users", "status", "error"]
    table = pq.read_table(data / "llm-pilot" / "requests.parquet", columns=columns)
    table = table.filter(pc.equal(table["users"], USERS))
    memory = pc.match_substring(pc.fill_null(table["error"], ""), "memory", ignore_case=True)
    counts: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    keys = zip(*(table[name].to_pylist() for name in ("model", "gpu", "n_gpus")), strict=True)
    for key, status, lost in zip(keys, table["status"].to_pylist(), memory.to_pylist(), strict=True):
        count = counts[key]
        count[0], count[1], count[2] = count[0] + 1, count[1] + (status != 200), count[2] + lost
    named = {}
    for key, (sent, failed, lost) in counts.items():
        model, gpu = accuracy.facts_of((CATALOGUE[key[0]], key[1].lower(), key[2]))
        named[model.name, gpu.name, gpu.count] = {"failed": failed / sent, "out_of_memory": lost / sent}
    return named


def main(result_file: Path, data: Path | None) -> None:
    started = time.perf_counter()
    published = published_failures(data) if data else {}
    pairs = list(shipped_calibrations())
    with workers(2) as run:
        rows = list(run(search, pairs))
    for pair, row in zip(pairs, rows, strict=True):
        row["published_at_128_users"] = published.get(pair)
    by_memory = [row for row in rows if "out_of_memory" in str(row["limit"])]
    losing = [row for row in rows if row["too_large"]["out_of_memory"]]
    costs = [
        row["tuned"]["e2e_ms_p50"] / row["too_large"]["e2e_ms_p50"] - 1
        for row in losing
        if row["too_large"]["e2e_ms_p50"] is not None
    ]
    same = [
        abs(row["tuned"]["e2e_ms_p50"] / row["too_large"]["e2e_ms_p50"] - 1)
        for row in rows
        if row not in losing
    ]
    summary = {
        "pairs": len(rows),
        "trials": {
            "median": median(row["trials"] for row in rows),
            "most": max(row["trials"] for row in rows),
        },
        "deployments_with_live_weight": {
            "median": median(row["deployments"] for row in rows),
            "most": max(row["deployments"] for row in rows),
        },
        "service_seconds": {
            "median": median(row["service_seconds"] for row in rows),
            "most": max(row["service_seconds"] for row in rows),
        },
        "grid_deployments": {
            "least": min(row["grid_deployments"] for row in rows),
            "median": median(row["grid_deployments"] for row in rows),
        },
        "limited_by_memory": len(by_memory),
        "largest_error_where_memory_limits": max(abs(row["error"]) for row in by_memory),
        "limited_by_unfinished_requests": [
            f"{row['model']} on {row['gpu']}" for row in rows if row not in by_memory
        ],
        "above_capacity": sum(row["error"] > 0 for row in rows),
        "pairs_out_of_memory_when_too_large": len(losing),
        "pairs_out_of_memory_when_tuned": sum(row["tuned"]["out_of_memory"] > 0 for row in rows),
        "pairs_that_leave_requests_unfinished_when_tuned": sum(
            row["tuned"]["unfinished"] > 0 for row in rows
        ),
        "requests_lost_when_too_large": {
            "median": median(row["too_large"]["failure_rate"] for row in losing),
            "most": max(row["too_large"]["failure_rate"] for row in losing),
        },
        "throughput_tuned_over_too_large": median(
            row["tuned"]["throughput_tok_s"] / max(1e-9, row["too_large"]["throughput_tok_s"])
            for row in losing
        ),
        "e2e_p50_tuned_against_survivors_of_too_large": {
            "median": median(costs) if costs else None,
            "least": min(costs, default=None),
            "most": max(costs, default=None),
        },
        "largest_difference_where_nothing_is_lost": max(same, default=None),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if published:
        out = {p for p, share in published.items() if share["out_of_memory"] > 0.01}
        mine = {p for p, row in zip(pairs, rows, strict=True) if row in losing}
        summary["published_pairs_out_of_memory_at_128_users"] = len(out)
        summary["of_these_simulated_too"] = len(out & mine)
        summary["simulated_but_not_published"] = len(mine - out)
    write_text(result_file, to_json({"summary": summary, "pairs": rows}))
    print(to_json(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
