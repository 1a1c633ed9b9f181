"""What the simulator says, fast: its physics fitted on the LLMs that may be seen, its load tests distilled.

The simulator needs about 25 ms for a level of load; a request over a hundred profiles has no such time. A
small network (two hidden layers) has learned what the simulator answers, from thousands of simulated
services, none of them a measured one. experiments/10_predictor teaches it, and says how far it is off.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.predict.pilot.cells import Rows
from llmpilot.predict.prediction import Floats
from llmpilot.simulator import TgisService, physics
from llmpilot.simulator.calibration import shipped_calibrations
from llmpilot.simulator.calibration_fit import Fit

NETWORK = Path(__file__).parent / "distilled.json"
CURVATURES = Path(__file__).parent / "curvatures.json"
"""How well each published pair's calibration is known (computed from IBM/LLM-performance-prediction,
CDLA-Permissive-2.0)."""

Pair = tuple[str, str, int]

MEAN_INPUT_TOKENS, MEAN_CONTEXT_TOKENS = 118, 130
SEQUENCES = (1, 4, 16, 64)
REQUESTS = (1, 4, 16)
LEAST_MS = 1e-4


@dataclass(frozen=True)
class Network:
    """A network of tanh layers between standardized inputs [n, k] and outputs [n, 2]."""

    input_mean: Floats
    input_scale: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    output_mean: Floats
    output_scale: Floats

    def __call__(self, inputs: Floats) -> Floats:
        """Return the outputs."""
        signal = (inputs - self.input_mean) / self.input_scale
        *hidden, (weights, bias) = self.layers
        for hidden_weights, hidden_bias in hidden:
            signal = np.tanh(signal @ hidden_weights + hidden_bias)
        return np.asarray((signal @ weights + bias) * self.output_scale + self.output_mean)


def inputs_of(services: Sequence[TgisService]) -> Floats:
    """Return what decides services' load tests, but for the load, [service, input]: logs of step times and of
    the cap, and whether it counts padding."""
    facts = np.array([_facts_of(service) for service in services])
    return np.column_stack([np.log(np.maximum(facts[:, :-1], LEAST_MS)), facts[:, -1]])


def _facts_of(service: TgisService) -> list[float]:
    times, rule = service.step_times, service.rule
    kv_ms = times.kv_ms_per_token * MEAN_CONTEXT_TOKENS
    tokens = MEAN_INPUT_TOKENS
    return [
        *(times.decode_ms(n) + n * kv_ms for n in SEQUENCES),
        *(times.prefill_ms(tokens * n, n, 2.0 * tokens**2 * n) for n in REQUESTS),
        times.join_ms + times.join_ms_per_sequence,
        times.join_ms + times.join_ms_per_sequence * 32,
        float(rule.max_batch_weight),
        float(rule.padded),
    ]


def reference_of(inputs: Floats) -> Floats:
    """Return the logs that the network's outputs are relative to, [n, 2]: a prefill per token, a step."""
    return np.column_stack([inputs[:, len(SEQUENCES)] - np.log(76.0), inputs[:, 0]])


@dataclass(frozen=True)
class SimulatorPhysics:
    """The simulator's physics with factors fitted on some of the published pairs."""

    factors: dict[str, float]

    def predict(self, rows: Rows) -> Floats:
        """Return the logs of nTTFT [ms per token] and ITL [ms], [n, 2]."""
        return self._say(self._inputs(rows), rows.users)

    def queue(self, rows: Rows) -> Floats:
        """Return the logs of nTTFT over that of a single user, [n]."""
        inputs = self._inputs(rows)
        alone = self._say(inputs, np.ones(len(rows)))
        return np.asarray((self._say(inputs, rows.users) - alone)[:, 0])

    def _inputs(self, rows: Rows) -> Floats:
        services = [physics.predict(self.factors, *pair).service(*pair) for pair in rows.pairs]
        return inputs_of(services)[rows.pair]

    def _say(self, inputs: Floats, users: Floats) -> Floats:
        inputs = np.column_stack([inputs, np.log2(users)])
        return np.asarray(_network()(inputs) + reference_of(inputs))


def fit_simulator(pairs: Iterable[tuple[Model, Gpu]]) -> SimulatorPhysics:
    """Return the physics fitted on those of the pairs that were published; on none, its priors."""
    wanted = frozenset((model.name, gpu.name, gpu.count) for model, gpu in pairs)
    known = _published_fits()
    return SimulatorPhysics(_factors(frozenset(wanted & known.keys())))


@lru_cache(maxsize=256)
def _factors(pairs: frozenset[Pair]) -> dict[str, float]:
    known = _published_fits()
    return physics.fit_factors([known[pair] for pair in sorted(pairs)])


@cache
def _published_fits() -> dict[Pair, tuple[Model, Gpu, Fit]]:
    """Return the published pairs' calibrations with their curvatures."""
    models = {model.name: model for model in catalog.models().values()}
    gpus = {gpu.name: gpu for gpu in catalog.gpus().values()}
    fits = {}
    for row in json.loads(CURVATURES.read_text(encoding="utf-8"))["pairs"]:
        pair = (row["model"], row["gpu"], row["count"])
        fit = Fit(shipped_calibrations()[pair], float("nan"), np.array(row["curvature"]))
        fits[pair] = (models[pair[0]], gpus[pair[1]].model_copy(update={"count": pair[2]}), fit)
    return fits


@cache
def _network() -> Network:
    file = json.loads(NETWORK.read_text(encoding="utf-8"))
    arrays = {
        name: np.array(file[name]) for name in ("input_mean", "input_scale", "output_mean", "output_scale")
    }
    layers = tuple((np.array(layer["weights"]), np.array(layer["bias"])) for layer in file["layers"])
    return Network(layers=layers, **arrays)
