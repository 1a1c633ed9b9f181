"""Find a pair's calibration from recorded levels: least squares on log errors, through the simulator."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu, Model
from llmpilot.simulator.calibration import Calibration
from llmpilot.simulator.recordings import Recording, Summary
from llmpilot.simulator.replay import replay

Vector = NDArray[np.float64]

COEFFICIENTS = (
    "decode_ms",
    "decode_ms_per_sequence",
    "prefill_ms",
    "prefill_ms_per_request",
    "prefill_ms_per_token",
    "join_ms",
    "join_ms_per_sequence",
    "max_batch_weight",
)
"""What is fitted, in log space."""
SPREAD = np.array([1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.5, 2.0]) / 0.7
"""How far each may lie from the start, in log units (one standard deviation of the prior)."""
TOLERANCES = {
    "itl_ms_step": 0.02,
    "itl_ms_p50": 0.04,
    "itl_ms_p95": 0.12,
    "ttft_ms_p50": 0.06,
    "ttft_ms_p95": 0.25,
    "throughput_tok_s": 0.04,
}
"""The statistics that are fitted, and the relative error of each that counts as one."""
CAPS = (1_500.0, 2_700.0, 4_500.0, 8_000.0, 14_000.0, 30_000.0, 200_000.0)
"""Batch weights to start from: a cap that does not bind gives the fit no slope to follow."""
SMALLEST_CAP = 1_300.0
"""The heaviest request of the paper's list must fit, or TGIS refuses to start [tokens]."""
LARGEST_CAP = 400_000.0
LOST = 20.0
"""Stands for the error of a level at which nothing succeeded."""


@dataclass(frozen=True)
class Fit:
    """A fitted calibration, its loss, and the loss's curvature over the log coefficients [8 x 8]."""

    calibration: Calibration
    loss: float
    curvature: Vector


def usable(recording: Recording) -> bool:
    """Whether a level may be fitted on: one that lost many requests tells little of the service."""
    lost = recording.failure_rate - float(recording.unanswered.mean())
    return lost <= 0.2


def fit_pair(
    recordings: Iterable[Recording],
    model: Model,
    gpu: Gpu,
    start: Calibration | None = None,
    max_iterations: int = 14,
) -> Fit:
    """Return the calibration of one pair under which the simulator best repeats the recorded levels.

    Without `start`, begins from the slowest-load gaps and the datasheet, under several caps. Levenberg's
    damped steps on robust residuals (they grow as the square root of large errors, because a queue that
    forms in one of the two only makes errors of any size), derivatives by differences.
    """
    levels = [recording for recording in recordings if usable(recording)]
    starts = [start] if start is not None else _starts(levels, model, gpu)
    centre = _log(starts[-1] if start is None else start)

    def residuals(x: Vector) -> Vector:
        calibration = _unlog(x, starts[0])
        errors = [_errors(calibration, level, model, gpu) for level in levels]
        return np.concatenate([*errors, (x - centre) / SPREAD])

    points = [(_log(s), residuals(_log(s))) for s in starts]
    points.sort(key=lambda point: float(point[1] @ point[1]))
    if len(points) > 1:
        points = [_descend(residuals, x, f, 3)[:2] for x, f in points[:3]]
    x, f = min(points, key=lambda point: float(point[1] @ point[1]))
    x, f, jacobian = _descend(residuals, x, f, max_iterations)
    data = jacobian[: -len(x)]
    return Fit(_unlog(x, starts[0]), float(f @ f), data.T @ data)


def curvature_of(
    calibration: Calibration, recordings: Iterable[Recording], model: Model, gpu: Gpu, width: float = 0.04
) -> Vector:
    """Return the curvature of the levels' loss over a calibration's log coefficients [8 x 8].

    By differences of `width`: simulated statistics jump a little with every change.
    """
    levels = [recording for recording in recordings if usable(recording)]

    def residuals(x: Vector) -> Vector:
        return np.concatenate([_errors(_unlog(x, calibration), level, model, gpu) for level in levels])

    x = _log(calibration)
    here = residuals(x)
    jacobian = np.column_stack([(residuals(x + step) - here) / width for step in width * np.eye(len(x))])
    return np.asarray(jacobian.T @ jacobian)


def _starts(levels: list[Recording], model: Model, gpu: Gpu) -> list[Calibration]:
    lightest = min(levels, key=lambda level: level.users)
    step_ms = lightest.truth.itl_ms_step
    prefill_gflop = 2 * (model.encoder_parameters_b or model.active_parameters_b)  # a token
    first = Calibration(
        model=model.name,
        gpu=gpu.name,
        count=gpu.count,
        decode_ms=step_ms,
        decode_ms_per_sequence=0.02 * step_ms,
        prefill_ms=step_ms,
        prefill_ms_per_request=0.05 * step_ms,
        prefill_ms_per_token=prefill_gflop / (gpu.count * gpu.tflops_fp16 * 0.35),
        join_ms=0.05 * step_ms,
        join_ms_per_sequence=0.01 * step_ms,
        max_batch_weight=CAPS[0],
        request_overhead_ms=float(np.median([level.overhead_ms for level in levels])),
    )
    return [replace(first, max_batch_weight=cap) for cap in CAPS]


def _log(calibration: Calibration) -> Vector:
    return np.log([getattr(calibration, name) for name in COEFFICIENTS])


def _unlog(x: Vector, like: Calibration) -> Calibration:
    values = dict(zip(COEFFICIENTS, np.exp(x).tolist(), strict=True))
    values["max_batch_weight"] = min(max(values["max_batch_weight"], SMALLEST_CAP), LARGEST_CAP)
    return replace(like, **values)


def _errors(calibration: Calibration, recording: Recording, model: Model, gpu: Gpu) -> Vector:
    simulated = replay(calibration.service(model, gpu), recording)
    return _robust(
        np.array([_log_ratio(simulated, recording.truth, name) / t for name, t in TOLERANCES.items()])
    )


def _log_ratio(simulated: Summary, truth: Summary, name: str) -> float:
    if not simulated[name] > 0:
        return LOST
    return float(np.log(simulated[name] / truth[name])) if truth[name] > 0 else 0.0


def _robust(errors: Vector) -> Vector:
    return np.sign(errors) * 2.0 * (np.sqrt(1.0 + np.abs(errors)) - 1.0)


def _descend(
    residuals: Callable[[Vector], Vector], x: Vector, f: Vector, max_iterations: int
) -> tuple[Vector, Vector, Vector]:
    damping = 1.0
    jacobian = np.zeros((len(f), len(x)))
    for iteration in range(max_iterations):
        # Simulated statistics jump a little with every change: differences must be larger than that.
        width = 0.08 if iteration < 8 else 0.04
        for column in range(len(x)):
            nudged = x.copy()
            nudged[column] += width
            jacobian[:, column] = (residuals(nudged) - f) / width
        gain = 0.0
        for _ in range(5):
            curvature = jacobian.T @ jacobian
            damped = curvature + damping * np.diag(np.maximum(np.diag(curvature), 1e-2))
            step = np.clip(np.linalg.solve(damped, -jacobian.T @ f), -1.0, 1.0)
            tried = residuals(x + step)
            gain = float(f @ f - tried @ tried)
            if gain > 0:
                x, f, damping = x + step, tried, max(damping / 4, 1e-3)
                break
            damping *= 4
        if gain < 0.01 * float(f @ f):
            break
    return x, f, jacobian
