"""Teach a small network what the simulator answers, and write it to llmpilot/predict/pilot/distilled.json.

Services are drawn around what physics says of the catalogue's models and GPU profiles, every coefficient
astray at random; each is loaded like the paper's (120 s from a cold start) in virtual time. No measured
latency is used. An eighth of the services is kept to say how far the network is off.

    python distil.py [--services 1500] [--workers 2] [--simulated FOLDER]
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neural_network import MLPRegressor

from llmpilot import catalog
from llmpilot.predict.pilot.simulated import NETWORK, inputs_of, reference_of
from llmpilot.simulator import Outcome, physics, simulate_closed
from llmpilot.simulator.calibration_fit import COEFFICIENTS, LARGEST_CAP, SMALLEST_CAP
from llmpilot.workload import load_workload

USERS = (1, 2, 4, 8, 16, 32, 64, 128)
ASTRAY = np.array([0.4, 0.5, 0.4, 0.5, 0.5, 0.5, 0.5, 0.8])
"""Spread of each coefficient around physics (log units), in the order of COEFFICIENTS."""
INPUTS = [f"input_{number}" for number in range(11)]
COLUMNS = ["service", *INPUTS, "users", "nttft_ms", "itl_ms", "requests"]
FEWEST_REQUESTS = 5
WINDOW_MS, PATIENCE_MS = 120e3, 30e3


def simulate(worker: int, services: int) -> pd.DataFrame:
    workload = load_workload({"name": "paper", "model": "shipped:paper"})
    models, profiles = list(catalog.models().values()), catalog.gpu_profiles()
    factors, rows = physics.shipped_factors(), []
    for seed in range(10_000 * worker, 10_000 * worker + services):
        rng = np.random.default_rng(seed)
        model, gpu = models[rng.integers(len(models))], profiles[rng.integers(len(profiles))]
        said = physics.predict(factors, model, gpu)
        off = np.exp(rng.standard_normal(len(COEFFICIENTS)) * ASTRAY).tolist()
        values = {name: getattr(said, name) * times for name, times in zip(COEFFICIENTS, off, strict=True)}
        values["max_batch_weight"] = min(max(values["max_batch_weight"], SMALLEST_CAP), LARGEST_CAP)
        service = replace(said, **values).service(model, gpu)
        inputs = inputs_of([service])[0].tolist()
        for users in USERS:
            done = simulate_closed(
                service, workload.stream(0), users, WINDOW_MS, PATIENCE_MS, keep_load=False
            )
            ok = done.outcome == Outcome.OK
            gaps_ms = done.gap_us[np.repeat(ok, np.diff(done.gap_offsets))] / 1e3
            ttft_ms = (done.first_token_us - done.sent_us)[ok] / 1e3 - service.request_overhead_ms
            if ok.sum() >= FEWEST_REQUESTS and len(gaps_ms):
                nttft_ms = np.median(ttft_ms / done.requests.input_tokens[ok])
                rows.append([seed, *inputs, users, nttft_ms, np.median(gaps_ms), int(ok.sum())])
    return pd.DataFrame(rows, columns=COLUMNS)


def teach(table: pd.DataFrame) -> tuple[dict[str, object], str]:
    table = table[(table["nttft_ms"] > 0) & (table["itl_ms"] > 0)]
    inputs = np.column_stack([table[INPUTS].to_numpy(), np.log2(table["users"].to_numpy(float))])
    outputs = np.log(table[["nttft_ms", "itl_ms"]].to_numpy()) - reference_of(inputs)
    services = np.sort(table["service"].unique())
    kept = table["service"].isin(services[::8]).to_numpy()
    mean, scale = inputs[~kept].mean(0), inputs[~kept].std(0) + 1e-9
    middle, spread = outputs[~kept].mean(0), outputs[~kept].std(0)
    network = MLPRegressor(
        hidden_layer_sizes=(64, 64),
        activation="tanh",
        alpha=1e-4,
        batch_size=256,
        learning_rate_init=2e-3,
        max_iter=400,
        n_iter_no_change=400,
        random_state=0,
    )
    # Two passes: the second, slower one settles.
    network.fit((inputs[~kept] - mean) / scale, (outputs[~kept] - middle) / spread)
    network.set_params(warm_start=True, learning_rate_init=2e-4, max_iter=100)
    network.fit((inputs[~kept] - mean) / scale, (outputs[~kept] - middle) / spread)
    errors = np.abs(network.predict((inputs[kept] - mean) / scale) * spread + middle - outputs[kept])
    said = (
        f"{len(services)} services, {len(table)} levels; on every eighth service, not learned from, "
        f"|log error|: nTTFT mean {errors[:, 0].mean():.4f}, p95 {np.quantile(errors[:, 0], 0.95):.4f}; "
        f"ITL mean {errors[:, 1].mean():.4f}, p95 {np.quantile(errors[:, 1], 0.95):.4f}"
    )
    layers = [
        {"weights": _short(weights), "bias": _short(bias)}
        for weights, bias in zip(network.coefs_, network.intercepts_, strict=True)
    ]
    file = {
        "source": "experiments/10_predictor/distil.py: simulated services, no measured latency",
        "accuracy": said,
        "input_mean": _short(mean),
        "input_scale": _short(scale),
        "output_mean": _short(middle),
        "output_scale": _short(spread),
        "layers": layers,
    }
    return file, said


def _short(values: np.ndarray) -> list[object]:
    return [float(f"{v:.6g}") if np.ndim(v) == 0 else _short(v) for v in values]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, default=1500, help="a worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--simulated", type=Path, default=Path("simulated_services"))
    options = parser.parse_args()
    options.simulated.mkdir(exist_ok=True)
    missing = [w for w in range(options.workers) if not (options.simulated / f"{w}.parquet").exists()]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        tables = pool.map(simulate, missing, [options.services] * len(missing))
        for worker, table in zip(missing, tables, strict=True):
            table.to_parquet(options.simulated / f"{worker}.parquet")
    files = sorted(options.simulated.glob("*.parquet"))
    network, said = teach(pd.concat([pd.read_parquet(file) for file in files], ignore_index=True))
    NETWORK.write_text(json.dumps(network) + "\n", encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
