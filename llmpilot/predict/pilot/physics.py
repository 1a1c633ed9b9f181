"""Latency from first principles, about 45 factors of it fitted: reading weights, launching kernels, computing
prefills, and the queue that forms when the KV cache is full.

A closed form, so that a thousand cells take a millisecond; the simulator does the same step by step. The most
probable factors are found in log space, soft in the far errors, every LLM counting alike, each factor held by
a log-normal prior. Decode steps and prefill follow the roofline model (Williams et al., CACM 2009).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from llmpilot.predict.pilot.cells import FLASH, Cells, Known
from llmpilot.predict.prediction import Floats

KINDS = ("flash", "encoder_decoder", "padded")
MEAN_OUTPUT_TOKENS = 19.0
MEAN_INPUT_TOKENS = 118.0
"""Of the paper's workload, weighted by when the batch is full of them."""
MEDIAN_INPUT_TOKENS = 76.0
NTTFT_ERROR, ITL_ERROR = 0.25, 0.12
"""Log errors of the two metrics that count as one standard deviation."""
FIXED_MS = 5.0
"""From the client through the network to the engine's queue, and back."""
ANCHOR = "H100"
"""Host factors are relative to this GPU type's."""

PRIORS: dict[str, tuple[float, float]] = {
    "weights": (1.2, 0.2),  # time to read the weights, over the datasheet's
    "layer.flash": (0.25, 0.4),  # kernels and host, a decoder layer [ms]
    "layer.encoder_decoder": (0.5, 0.4),
    "layer.padded": (0.3, 0.4),
    "parallel.2": (0.08, 0.5),  # all-reduces of a step, a layer [ms]
    "parallel.4": (0.12, 0.5),
    "nvlink": (0.7, 0.4),  # what NVLink makes of them
    "flops": (0.4, 0.4),  # share of the datasheet's that a prefill reaches
    "prefill.flash": (1.0, 0.4),
    "prefill.encoder_decoder": (1.0, 0.4),
    "prefill.padded": (1.0, 0.4),
    "room.flash": (1.0, 0.5),  # requests that the memory holds, over its arithmetic
    "room.encoder_decoder": (0.4, 0.5),
    "room.padded": (0.3, 0.5),
    "reserve_gb": (1.0, 0.5),  # of each GPU
    "activation": (6e-4, 1.0),  # work space, a token and hidden unit [MB]
    "context.flash": (500.0, 0.5),  # tokens that a request holds memory for
    "context.encoder_decoder": (300.0, 0.5),
    "context.padded": (500.0, 0.5),
    "room_power": (1.0, 0.15),
    "sequence.flash": (0.5, 0.5),  # a further sequence in a decode step [half ms]
    "sequence.encoder_decoder": (0.5, 0.5),
    "sequence.padded": (0.5, 0.5),
    "kv_read": (1.0, 0.5),  # and reading its KV cache, over the datasheet's
    "interrupted": (1.0, 0.5),  # how soon prefills show in the median gap, as the batch turns over
    "interruption": (0.5, 0.5),  # and how much of one
    "start.flash": (0.2, 0.5),  # prefill's kernels and host, a layer [ms]
    "start.encoder_decoder": (0.5, 0.5),
    "start.padded": (0.2, 0.5),
    "turn.flash": (1.0, 0.5),  # what each request in the batch adds to a first token [ms]
    "turn.encoder_decoder": (2.0, 0.5),
    "turn.padded": (1.0, 0.5),
    "turn_parallel.2": (1.0, 0.3),
    "turn_parallel.4": (1.0, 0.3),
    "turn_prefill": (0.3, 0.7),  # and of its prefill
}
"""Factor: its median and spread (log units) before any measurement was seen."""
HOST_PRIOR = (1.4, 0.3)
"""Host time of a GPU type over the anchor's: older cards come with slower CPUs."""
ANCHOR_PRIOR = (1.0, 0.02)
OTHER_HOST = 1.2


@dataclass(frozen=True)
class Physics:
    """Fitted factors; `hosts` are those of what is `known`, in its order."""

    known: Known
    factors: dict[str, float]
    hosts: tuple[float, ...]

    def predict(self, cells: Cells) -> Floats:
        """Return the logs of nTTFT [ms per token] and ITL [ms], [n, 2]; `cells` were made with `known`."""
        return _predict(self.factors, np.array(self.hosts), cells)


def fit_physics(cells: Cells, log_latencies: Floats, weights: Floats, known: Known) -> Physics:
    """Return the most probable factors, given the cells' logs of nTTFT and ITL [n, 2].

    `weights` [n] say how much each cell counts; `cells` were made with `known`.
    """
    types = sorted(known.types)
    priors = PRIORS | {f"host.{name}": ANCHOR_PRIOR if name == ANCHOR else HOST_PRIOR for name in types}
    centre = np.log([median for median, _ in priors.values()])
    spread = np.array([spread for _, spread in priors.values()])
    scale = np.array([NTTFT_ERROR, ITL_ERROR])
    importance = np.sqrt(weights)[:, None]

    def unpack(x: Floats) -> tuple[dict[str, float], Floats]:
        shared, hosts = np.split(np.exp(x), [len(PRIORS)])
        return dict(zip(PRIORS, shared.tolist(), strict=True)), _host_factors(hosts, types, known.types)

    def residuals(x: Floats) -> Floats:
        errors = (_predict(*unpack(x), cells) - log_latencies) / scale
        soft = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([(soft * importance).ravel(), (x - centre) / spread])

    solution = least_squares(residuals, centre, x_scale=spread, max_nfev=40, xtol=1e-4, ftol=1e-5)
    factors, hosts = unpack(solution.x)
    return Physics(known, factors, tuple(hosts.tolist()))


def _host_factors(values: Floats, types: list[str], architectures: dict[str, str]) -> Floats:
    """Return the factors in the order of `Known.hosts`: an architecture's is the mean of its GPU types'."""
    logs = np.log(values)
    of_architectures = [
        float(np.mean([log for name, log in zip(types, logs, strict=True) if architectures[name] == one]))
        for one in sorted(set(architectures.values()))
    ]
    return np.asarray(np.exp(np.concatenate([logs, of_architectures, [np.log(OTHER_HOST)]])))


def _by_kind(factors: dict[str, float], name: str, cells: Cells) -> Floats:
    return np.array([factors[f"{name}.{kind}"] for kind in KINDS])[cells.kind]


def _by_count(two: float, four: float, one: float, gpus: Floats) -> Floats:
    """Return what holds for 1, 2, and 4 or more GPUs; more than 4 as for 4, no engine is known better."""
    return np.select([gpus < 2, gpus < 4], [one, two], four)


def _predict(factors: dict[str, float], hosts: Floats, cells: Cells) -> Floats:
    f, n, u = factors, cells.gpus, cells.users
    host = hosts[cells.host]
    bandwidth = n * cells.bandwidth_gb_s
    out = MEAN_OUTPUT_TOKENS

    # A decode step of one sequence: reading the weights or launching the kernels, whichever is slower.
    read_ms = 1e3 * f["weights"] * cells.read_gb / bandwidth
    launch_ms = cells.layers * _by_kind(f, "layer", cells) * host
    reduce_ms = cells.layers * _by_count(f["parallel.2"], f["parallel.4"], 0.0, n)
    reduce_ms = reduce_ms * np.where(cells.nvlink > 0, f["nvlink"], 1.0)
    step_ms = (read_ms**4 + launch_ms**4) ** 0.25 + reduce_ms
    # The prefill of one mean prompt.
    compute_ms = MEAN_INPUT_TOKENS * 2 * cells.parameters_b / (n * cells.tflops * f["flops"])
    compute_ms = compute_ms * _by_kind(f, "prefill", cells)

    # How many requests run at once: all users, or as many as the memory holds.
    room_mb = 1e3 * np.maximum(n * (0.95 * cells.memory_gb - f["reserve_gb"]) - cells.weights_gb, 0.5)
    work_mb = f["activation"] * cells.d_model * np.where(cells.kind == FLASH, 0.5, 1.0)
    tokens = _by_kind(f, "context", cells)
    held_mb = tokens * (cells.kv_mb_per_token + work_mb)
    room = np.maximum(1.0, _by_kind(f, "room", cells) * (room_mb / held_mb) ** f["room_power"])
    batch = (u**-3.0 + room**-3.0) ** (-1 / 3)
    joining = batch / out  # requests that join in one step

    sequence_ms = 0.5 * _by_kind(f, "sequence", cells) * host
    sequence_ms = sequence_ms + f["kv_read"] * 300 * cells.kv_mb_per_token / bandwidth
    decode_ms = step_ms + (batch - 1) * sequence_ms
    seen = (1 - np.exp(-f["interrupted"] * joining)) * f["interruption"]
    itl_ms = decode_ms + seen * joining * compute_ms

    start_ms = (
        (1.2 * cells.layers * _by_kind(f, "start", cells) * host + reduce_ms) ** 3 + compute_ms**3
    ) ** (1 / 3)
    turn_ms = (
        _by_kind(f, "turn", cells) * host * _by_count(f["turn_parallel.2"], f["turn_parallel.4"], 1.0, n)
    )
    start_ms = start_ms + FIXED_MS + (batch - 1) * (turn_ms + f["turn_prefill"] * compute_ms)
    # Those who wait, wait for whole generations to pass: steps with their prefills.
    generation_ms = out * (1.3 * decode_ms + joining * compute_ms) + start_ms
    ttft_ms = start_ms + np.maximum(u / batch - 1, 0) * generation_ms
    return np.log(np.column_stack([ttft_ms / MEDIAN_INPUT_TOKENS, itl_ms]))


def weights_of(names: NDArray[np.object_]) -> Floats:
    """Return weights [n] that let every LLM count alike; their mean is 1."""
    _, index, counts = np.unique(names, return_inverse=True, return_counts=True)
    return np.asarray(len(names) / len(counts) / counts[index], dtype=float)
