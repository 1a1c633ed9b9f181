"""What measured services say of the ones near them: errors of the service model are alike within an LLM.

The error of a level (log of measured over predicted time per output token) is a Gaussian process: a part that
an LLM has in common everywhere, parts that it has on an engine or on a GPU type, and parts that change
smoothly with users, lengths and GPUs. For an LLM that nobody measured it gives no correction, and says how
far off such predictions are; each measured level of the LLM corrects what lies near it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from llmpilot.predict.service.levels import Level
from llmpilot.simulator.service_settings import generation
from llmpilot.simulator.step_model import Numbers

FAMILY, ENGINE, GPU, BOTH, SERVICE, NOISE = 0.002, 0.002, 0.004, 0.010, 0.005, 0.002
"""Variances (log units squared): of what errors share within an LLM, within it on an engine, on a GPU type,
on both, within a service; and of what they share with nothing."""
USERS, GPUS, LENGTHS = 1.5, 1.5, 2.0
"""How many doublings apart errors are still alike."""
MOST = 0.5
"""An error beyond it (log units) is another thing than a somewhat faster service: it counts as this."""
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Where levels stand to each other [n]: what they have in common, and how far apart they are."""

    family: NDArray[np.str_]
    engine: NDArray[np.str_]
    gpu: NDArray[np.str_]
    service: NDArray[np.str_]
    users: Numbers
    gpus: Numbers
    lengths: Numbers

    def __len__(self) -> int:
        return len(self.users)

    def taken(self, rows: Codes) -> "Places":
        """Return some of them."""
        return Places(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def places(levels: Sequence[Level]) -> Places:
    """Return where levels stand to each other."""
    services = [level.service for level in levels]
    shape = [
        (
            *(s.settings.tensor_parallel, s.settings.data_parallel, s.settings.expert_parallel),
            s.model.formats.model_dump_json(),
        )
        for s in services
    ]
    return Places(
        np.array([level.family for level in levels]),
        np.array([generation(s.settings) for s in services]),
        np.array([f"{s.gpu.name} {s.model.formats.model_dump_json()}" for s in services]),
        np.array([str(one) for one in shape]),
        np.log2([level.users or min(level.at_once or level.capacity, level.capacity) for level in levels]),
        np.log2([float(s.settings.gpus) for s in services]),
        np.log2([[level.input_tokens, level.output_tokens] for level in levels]).reshape(-1, 2),
    )


@dataclass(frozen=True)
class Nearby:
    """Errors measured at `known` places: `mean_and_variance` says what they mean elsewhere."""

    known: Places
    factor: tuple[Numbers, bool]
    solved: Numbers

    def mean_and_variance(self, asked: Places) -> tuple[Numbers, Numbers]:
        """Return the expected error [n] at each place, and its variance [n], noise included (log units)."""
        if not len(self.known):
            return np.zeros(len(asked)), np.full(len(asked), TOTAL)
        across = alikeness(asked, self.known)
        explained = (across * cho_solve(self.factor, across.T).T).sum(1)
        return across @ self.solved, np.maximum(TOTAL - explained, NOISE)


TOTAL = FAMILY + ENGINE + GPU + BOTH + SERVICE + NOISE


def nearby(known: Places, errors: Numbers) -> Nearby:
    """Return what measured errors [n] at places say of others."""
    covariance = alikeness(known, known) + NOISE * np.eye(len(known))
    factor = cho_factor(covariance) if len(known) else (np.zeros((0, 0)), True)
    clipped = np.clip(errors, -MOST, MOST)
    return Nearby(known, factor, cho_solve(factor, clipped) if len(known) else clipped)


def alikeness(a: Places, b: Places) -> Numbers:
    """Return how alike errors are [len(a), len(b)]."""
    family, engine = _same(a.family, b.family), _same(a.engine, b.engine)
    gpu, service = _same(a.gpu, b.gpu), _same(a.service, b.service)
    users = (a.users[:, None] - b.users[None]) ** 2
    gpus = (a.gpus[:, None] - b.gpus[None]) ** 2
    lengths = ((a.lengths[:, None] - b.lengths[None]) ** 2).sum(-1)
    over_users = np.exp(-users / (2 * LENGTHS**2))
    smooth = np.exp(-users / (2 * USERS**2) - gpus / (2 * GPUS**2) - lengths / (2 * LENGTHS**2))
    both = engine & gpu
    found = (
        FAMILY
        + ENGINE * engine
        + GPU * gpu * over_users
        + smooth * (BOTH * both + SERVICE * (both & service))
    )
    return np.asarray(family * found)


def _same(a: NDArray[np.str_], b: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return where texts are equal [len(a), len(b)], by numbers: long texts compare slowly."""
    codes = np.unique(np.concatenate([a, b]), return_inverse=True)[1]
    return np.asarray(codes[: len(a), None] == codes[None, len(a) :])
