"""The largest rate that services sustain in open loop, predicted (LLM left out, and known), against measured.

    python open_loop.py [--models FOLDER] [--workers 2] [--services 40]

Few rows that ship were measured in open loop. Two comparisons are possible, and printed:
1. Closed loops that saturate: doubling the users adds less than 10% to the rate of requests. An open loop
   cannot go on at a higher rate than that. Beside it stands the simulated closed loop of as many users.
2. Open-loop rows at a rate that the service did not keep up with: what it delivered is the most it can.
Writes results/open_loop.json.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmpilot import catalog
from llmpilot.dataset.measurements import OPEN
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.files import to_json, write_text
from llmpilot.predict.service.fitting import fit
from llmpilot.predict.service.levels import ROUNDS, Level
from llmpilot.predict.service.simulated import simulated
from llmpilot.predict.service.sustained import sustained_rate_per_s
from llmpilot.predict.service.validation import Training, predict, training
from llmpilot.processes import workers
from llmpilot.simulator.factors import shipped_factors
from llmpilot.simulator.service_scales import service_scale
from llmpilot.simulator.step_times import OperatorStepTimes

HERE = Path(__file__).parent
SATURATED = 1.1
FULL = 0.5
KEPT_UP = 0.9
"""A service that delivers less of the rate than this does not keep up with it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", help="a folder of config.json files that the catalogue lacks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--services", type=int, default=100, help="of the first comparison, at most")
    options = parser.parse_args()
    models = catalog.models_in_folder(options.models)[0] if options.models else {}
    known = training(models)
    curves = list(saturated(known))[: options.services]
    posteriors = {}
    for family in {level.family for level, _ in curves}:
        others = np.flatnonzero(known.table.families != family)
        posteriors[family] = fit(known.table, known.tpot_ms, others).factors()
    started = time.perf_counter()
    with workers(options.workers) as run:
        levels = [level for level, _ in curves]
        left_out = [(posteriors[level.family], 1.0) for level in levels]
        everything = [(dict(shipped_factors()), exp(service_scale(level.service)[0])) for level in levels]
        found = list(run(_rates, levels + levels, left_out + everything))
        seconds = time.perf_counter() - started
        shipped = shipped_measurements()
        rows = shipped.select((shipped.table["load_kind"] == OPEN) & ~shipped.in_doubt())
        opened = predict(rows, models, "model", run, lambda text: None).table
    table = pd.DataFrame(
        {
            "engine": [level.service.settings.engine for level in levels],
            "gpu": [f"{level.service.settings.gpus} x {level.service.gpu.name}" for level in levels],
            "model": [level.service.model.hf_id for level in levels],
            "in": [level.input_tokens for level in levels],
            "out": [level.output_tokens for level in levels],
            "users": [level.users for level in levels],
            "measured": [rate for _, rate in curves],
            "capacity": [level.capacity for level in levels],
            "closed": [closed for closed, _ in found[: len(levels)]],
            "open": [rate for _, rate in found[: len(levels)]],
            "closed_known": [closed for closed, _ in found[len(levels) :]],
            "open_known": [rate for _, rate in found[len(levels) :]],
        }
    )
    print(table.round(2).to_string())
    result: dict[str, Any] = {"services": len(table), "seconds": round(seconds, 1)}
    # With fewer users than half of what can run at once, more of them may add to the rate after all.
    full = table["users"] >= FULL * table["capacity"]
    for name in ("closed", "open", "closed_known", "open_known"):
        ratio = table[name] / table["measured"]
        result[name] = {"all": _errors(ratio), "full": _errors(ratio[full])}
        print(f"{name}: {result[name]}")
        by = (ratio - 1).abs()[full].groupby(table["engine"]).agg(["size", "median"]).round(3)
        print(by.to_string())
    ratio = table["open"] / table["closed"]
    print(f"open / closed, both simulated: {_errors(ratio)}")
    result["open_of_closed_simulated"] = _errors(ratio)

    # The rate of requests: a row's lengths are means, and tokens are compared with tokens.
    delivered = opened["throughput_req_s"] / opened["request_rate"]
    opened["ratio"] = opened["predicted_throughput_out_tok_s"] / opened["throughput_out_tok_s"]
    columns = ["source", "model", "gpu", "n_gpus", "request_rate", "throughput_req_s", "ratio", "skipped"]
    print(opened[columns].round(3).to_string())
    behind = opened["ratio"][delivered < KEPT_UP].dropna()
    result["open_rows_behind"] = _errors(behind)
    print(f"open-loop rows that fell behind: {result['open_rows_behind']}, {seconds:.0f} s")
    write_text(HERE / "results" / "open_loop.json", to_json(result))


def saturated(known: Training) -> Iterator[tuple[Level, float]]:
    """Return the last level of each closed-loop curve that saturates, and its rate [requests/s]."""
    curves: dict[Any, dict[float, list[int]]] = {}
    for at, level in enumerate(known.levels):
        if np.isfinite(known.ttft_ms[at]):
            key = (id(level.service), level.input_tokens, level.output_tokens)
            curves.setdefault(key, {}).setdefault(level.users or 1.0, []).append(at)
    for curve in curves.values():
        rates = {users: np.median([_rate(known, at) for at in rows]) for users, rows in curve.items()}
        *_, before, last = [0.0, 0.0, *sorted(rates)]
        if before and last >= 1.9 * before and rates[last] < SATURATED * rates[before]:
            yield known.levels[curve[last][0]], float(rates[last])


def _rate(known: Training, at: int) -> float:
    """Return the rate of a closed loop: its users by the time that a request takes (Little's law)."""
    level = known.levels[at]
    taken_ms = known.ttft_ms[at] + known.tpot_ms[at] * (level.output_tokens - 1)
    return 1e3 * (level.users or 1.0) / float(taken_ms)


def _rates(level: Level, known: tuple[dict[str, float], float]) -> tuple[float, float]:
    """Return the simulated rates of the closed loop, and the largest one in open loop."""
    factors, scale = known
    times = OperatorStepTimes(level.service, factors).scaled(scale)
    users = level.users or 1.0
    closed = simulated(replace(level, n_requests=round(ROUNDS * users)), times)
    return 1e3 * users / float(closed.e2e_ms.mean()), sustained_rate_per_s(level, times)


def _errors(ratio: pd.Series) -> dict[str, float]:
    error = (ratio - 1).abs()
    return {
        "rows": len(ratio),
        "median": round(float(error.median()), 4),
        "mean": round(float(error.mean()), 4),
        "bias": round(float(ratio.median()), 4),
    }


if __name__ == "__main__":
    main()
