"""Step times of a service that nobody has measured: physics, its factors fitted on those measured.

`predict` turns facts and factors into a Calibration; `fit_factors` finds the factors.
"""

import json
from functools import cache
from math import exp, log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from llmpilot.config import Gpu, Model
from llmpilot.simulator.calibration import Calibration
from llmpilot.simulator.calibration_fit import COEFFICIENTS, LARGEST_CAP, SMALLEST_CAP, Fit
from llmpilot.sizing import GB

SHIPPED = Path(__file__).parent / "fitted" / "physics.json"
"""Fitted on the LLM-Pilot paper's measurements (IBM/LLM-performance-prediction, CDLA-Permissive-2.0)."""

Factors = dict[str, float]
GROUPS = ("flash", "encoder_decoder", "padded")
PRIORS: dict[str, tuple[float, float]] = {
    "weights": (1.1, 0.2),  # time to read the weights, over the datasheet's
    "layer.flash": (0.23, 0.4),  # host and kernel launches, a decoder layer, on Hopper [ms]
    "layer.encoder_decoder": (0.57, 0.4),
    "layer.padded": (0.3, 0.4),
    "host.hopper": (1.0, 0.02),  # the same on other architectures and their hosts, over Hopper's
    "host.ampere": (1.4, 0.4),
    "host.turing": (1.4, 0.4),
    "host.volta": (1.6, 0.4),
    "host.other": (1.4, 0.02),
    "parallel.1": (1.0, 0.001),  # what tensor parallelism makes of it
    "parallel.2": (1.3, 0.3),
    "parallel.4": (1.35, 0.3),
    "sequence.flash": (0.3, 0.4),  # a further sequence in a decode step [ms]
    "sequence.encoder_decoder": (0.4, 0.4),
    "sequence.padded": (0.6, 0.6),
    "context": (0.6, 0.5),  # and moving its KV cache, a MB a token, on H100's bandwidth [ms]
    "prefill.flash": (8.5, 0.5),
    "prefill.encoder_decoder": (22.0, 0.5),
    "prefill.padded": (9.0, 0.5),
    "prefill_host.hopper": (1.0, 0.02),
    "prefill_host.ampere": (1.8, 0.4),
    "prefill_host.turing": (1.8, 0.4),
    "prefill_host.volta": (1.8, 0.4),
    "prefill_host.other": (1.8, 0.02),
    "prefill_parallel.1": (1.0, 0.001),
    "prefill_parallel.2": (1.2, 0.3),
    "prefill_parallel.4": (1.3, 0.3),
    "request.flash": (0.9, 0.6),  # a further request in a prefill, on Hopper [ms]
    "request.encoder_decoder": (2.5, 0.6),
    "request.padded": (0.6, 0.6),
    "flops.flash": (5.0, 0.3),  # time to compute a prefill's tokens, over the datasheet's
    "flops.encoder_decoder": (8.0, 0.6),
    "flops.padded": (5.0, 0.4),
    "flops.turing": (1.0, 0.3),
    "flops.volta": (1.0, 0.3),
    "flops.ampere": (1.0, 0.3),
    "flops.hopper": (1.0, 0.3),
    "flops.other": (1.0, 0.02),
    "link": (1.6, 0.7),  # time of the all-reduces of a prefill's tokens, over the link's
    "join.flash": (0.9, 0.6),
    "join.encoder_decoder": (1.3, 0.6),
    "join.padded": (0.7, 0.6),
    "join_sequence.flash": (0.17, 0.6),
    "join_sequence.encoder_decoder": (0.35, 0.6),
    "join_sequence.padded": (0.1, 0.6),
    "cap.flash": (0.6, 0.5),  # batch weight, over what the memory holds
    "cap.encoder_decoder": (0.25, 0.7),
    "cap.padded": (0.2, 0.7),
    "activation": (60.0, 1.0),  # bytes of work space a token and hidden unit, without flash attention
    "cap_power": (1.0, 0.3),
}
"""Factor: its median and spread (log units) before any measurement was seen."""
PROFILE_SPREAD = 0.8
"""Spread of what a GPU profile allows padded models to weigh, beside its memory (log units)."""
HOST_SPREAD = 0.3
"""Spread of what a sequence costs on the hosts of one GPU type, beside its architecture (log units)."""
PAIR_SPREAD = np.array([0.08, 0.20, 0.25, 0.6, 0.25, 0.6, 0.6, 0.6])
"""How far a pair's own coefficients stray from physics (log units), in the order of COEFFICIENTS."""
OVERHEAD_MS = 12.0
"""Wait before a stream opens: 5 to 15 ms in the paper's measurements, network included."""
Vector = NDArray[np.float64]


def group(model: Model) -> str:
    """Return how TGIS runs the model: flash attention, encoder-decoder, or a padded decoder."""
    if model.encoder_decoder:
        return "encoder_decoder"
    return "flash" if model.flash_attention else "padded"


def predict(factors: Factors, model: Model, gpu: Gpu) -> Calibration:
    """Return the calibration that physics gives for one pair; figures to five digits, the same everywhere."""
    kind, n = group(model), gpu.count
    arch = gpu.architecture if f"host.{gpu.architecture}" in factors else "other"
    host = factors[f"host.{arch}"]

    decoder_gb = (model.active_parameters_b - model.encoder_parameters_b) * model.weight_bytes_per_parameter
    read_ms = factors["weights"] * decoder_gb / (n * gpu.bandwidth_gb_s) * 1e3
    launch_ms = factors[f"layer.{kind}"] * model.n_layers * host * _of_count(factors, "parallel", n)
    # Launches hide behind reading where that takes longer, and the other way round, but not quite.
    decode_ms = sqrt(sqrt(read_ms**4 + launch_ms**4))

    kv_mb = model.kv_bytes_per_token / 1e6
    moving_ms = factors["context"] * kv_mb / min(n, model.kv_shards) * sqrt(3350 / gpu.bandwidth_gb_s)
    sequence_ms = factors[f"sequence.{kind}"] * host * factors.get(_sequence_host(gpu), 1.0)
    prefill_ms = (
        factors[f"prefill.{kind}"]
        * factors[f"prefill_host.{arch}"]
        * _of_count(factors, "prefill_parallel", n)
    ) * sqrt(model.n_layers / 32)

    input_b = model.encoder_parameters_b or model.active_parameters_b
    compute_ms = 2 * input_b / (n * gpu.tflops_fp16) * factors[f"flops.{kind}"] * factors[f"flops.{arch}"]
    layers = model.n_encoder_layers or model.n_layers
    ring_gb = 2 * layers * model.d_model * 2 * 2 * (n - 1) / n / GB
    link_ms = factors["link"] * ring_gb / (gpu.link_gb_s / 2) * 1e3

    values = {
        "decode_ms": decode_ms,
        "decode_ms_per_sequence": sequence_ms + moving_ms,
        "prefill_ms": prefill_ms,
        "prefill_ms_per_request": factors[f"request.{kind}"] * host,
        "prefill_ms_per_token": compute_ms + link_ms,
        "join_ms": factors[f"join.{kind}"] * host,
        "join_ms_per_sequence": factors[f"join_sequence.{kind}"] * host,
        "max_batch_weight": _cap(factors, model, gpu),
    }
    rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
    return Calibration(gpu=gpu.name, model=model.name, count=n, request_overhead_ms=OVERHEAD_MS, **rounded)


def _of_count(factors: Factors, name: str, count: int) -> float:
    """Return what tensor parallelism makes of a time; between counts that were measured, by their logs."""
    below, above = (1, 2) if count <= 2 else (2, 4)
    share = log2(min(count, 4) / below) if count < 4 else 1.0
    less, more = factors[f"{name}.{below}"], factors[f"{name}.{above}"]
    return less if share == 0 else more if share == 1 else less * (more / less) ** share


def _cap(factors: Factors, model: Model, gpu: Gpu) -> float:
    kind = group(model)
    room_gb = max(0.5, gpu.count * (0.95 * gpu.memory_gb - 0.5) - model.weight_bytes / GB)
    working = 0.0 if kind == "flash" else factors["activation"] * model.d_model
    tokens = room_gb * GB / (model.kv_bytes_per_token + working)
    cap: float = factors[f"cap.{kind}"] * 1e4 * (tokens / 1e4) ** factors["cap_power"]
    if kind != "flash":
        cap *= factors.get(_profile(gpu), 1.0)
    return min(max(cap, SMALLEST_CAP), LARGEST_CAP)


def _profile(gpu: Gpu) -> str:
    return f"cap_profile.{gpu.count}x{gpu.name}"


def _sequence_host(gpu: Gpu) -> str:
    return f"sequence_host.{gpu.name}"


def fit_factors(pairs: list[tuple[Model, Gpu, Fit]]) -> Factors:
    """Return the most probable factors, given pairs' own calibrations and how well each is known.

    A pair's log coefficients stray from physics by PAIR_SPREAD, and from what was fitted by the inverse
    of the fit's curvature; every LLM counts alike. Least squares, soft in the far errors. Of no pairs, the
    priors' medians.
    """
    if not pairs:
        return {name: median for name, (median, _) in PRIORS.items()}
    priors = PRIORS | {
        _profile(gpu): (1.0, PROFILE_SPREAD) for model, gpu, _ in pairs if not model.flash_attention
    }
    priors |= {_sequence_host(gpu): (1.0, HOST_SPREAD) for _, gpu, _ in pairs}
    names = list(priors)
    centre = np.log([median for median, _ in priors.values()])
    spread = np.array([spread for _, spread in priors.values()])
    counts: dict[str, int] = {}
    for model, _, _ in pairs:
        counts[model.name] = counts.get(model.name, 0) + 1
    mean_count = len(pairs) / len(counts)
    whitened = [
        (
            model,
            gpu,
            _coefficients(fit.calibration),
            _whitener(fit) * (mean_count / counts[model.name]) ** 0.5,
        )
        for model, gpu, fit in pairs
    ]

    def residuals(x: Vector) -> Vector:
        factors = dict(zip(names, np.exp(x).tolist(), strict=True))
        parts = [
            whitener @ (_coefficients(predict(factors, model, gpu)) - found)
            for model, gpu, found, whitener in whitened
        ]
        return np.concatenate([*parts, (x - centre) / spread])

    def slopes(x: Vector) -> Vector:
        at, width = residuals(x), 1e-2 * spread  # far wider than the rounding of predictions
        return np.column_stack([(residuals(x + step) - at) / step.max() for step in np.diag(width)])

    solution = least_squares(residuals, centre, jac=slopes, x_scale=spread, loss="soft_l1", max_nfev=8)
    return {name: float(f"{exp(value):.5g}") for name, value in zip(names, solution.x.tolist(), strict=True)}


def _coefficients(calibration: Calibration) -> Vector:
    return np.log([max(getattr(calibration, name), 1e-4) for name in COEFFICIENTS])


def _whitener(fit: Fit) -> Vector:
    """Return the square root of the inverse of (what the fit leaves open + what physics leaves open)."""
    known = fit.curvature + 1e-2 * np.eye(len(COEFFICIENTS))
    covariance = np.linalg.inv(known) + np.diag(PAIR_SPREAD**2)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(covariance)).T)


@cache
def shipped_factors() -> Factors:
    """Return the factors that come with the package, fitted on all pairs of the published measurements."""
    return dict(read_factors(SHIPPED)["factors"])


def read_factors(path: Path) -> dict[str, Any]:
    """Return a file of factors: `factors`, and those found without one LLM or GPU type in `unseen_*`."""
    return dict(json.loads(path.read_text(encoding="utf-8")))
