"""The facts of many (model, GPU profile, users) cells as columns: what physics and trees compute on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmpilot.config import Gpu, Model
from llmpilot.dataset import Dataset
from llmpilot.predict.prediction import Floats

FLASH, ENCODER_DECODER, PADDED = 0, 1, 2
"""How an engine of TGIS's kind batches a model; indices of every factor that depends on it."""


@dataclass(frozen=True)
class Rows:
    """What to predict or learn from: (model, GPU profile) pairs, and n rows that are a pair under a load.

    `pair` [n] are indices into `pairs`, `users` [n] the users.
    """

    pairs: tuple[tuple[Model, Gpu], ...]
    pair: NDArray[np.int64]
    users: Floats

    def __len__(self) -> int:
        return len(self.users)

    def select(self, mask: NDArray[np.bool_]) -> "Rows":
        """Return the rows where `mask` [n] is true."""
        return Rows(self.pairs, self.pair[mask], self.users[mask])

    def followed_by(self, others: "Rows") -> "Rows":
        """Return these rows, and then the others."""
        pair = np.concatenate([self.pair, others.pair + len(self.pairs)])
        return Rows(self.pairs + others.pairs, pair, np.concatenate([self.users, others.users]))


def dataset_rows(data: Dataset) -> Rows:
    """Return a data set's rows, in their order."""
    keys = data.table[["model", "gpu", "count"]]
    codes, distinct = pd.factorize(pd.MultiIndex.from_frame(keys))
    pairs = tuple(
        (data.models[model], data.gpus[gpu].model_copy(update={"count": int(count)}))
        for model, gpu, count in distinct
    )
    return Rows(pairs, codes, data.table["users"].to_numpy(float))


def grid_rows(model: Model, profiles: Sequence[Gpu], users: Sequence[int]) -> Rows:
    """Return one model on every profile under every load, profile by profile."""
    return Rows(
        tuple((model, gpu) for gpu in profiles),
        np.repeat(np.arange(len(profiles)), len(users)),
        np.tile(np.asarray(users, dtype=float), len(profiles)),
    )


@dataclass(frozen=True)
class Known:
    """The GPU types of a data set, type -> architecture: what can have a host factor of its own."""

    types: dict[str, str]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of host factors: GPU types, their architectures, and `other` for all else."""
        return (*sorted(self.types), *sorted(set(self.types.values())), "other")

    def host(self, gpu: Gpu) -> int:
        """Return the index of the GPU type among `hosts`, or of its architecture, or of the last."""
        hosts = self.hosts
        for name in (gpu.name, gpu.architecture):
            if name in hosts:
                return hosts.index(name)
        return len(hosts) - 1


def known_of(data: Dataset) -> Known:
    """Return what a data set knows."""
    return Known({gpu.name: gpu.architecture for gpu in data.gpus.values()})


@dataclass(frozen=True)
class Cells:
    """One entry a cell, all arrays [n]. Sizes are GB, 1e9 parameters, MB per token; rates GB/s and TFLOPs."""

    kind: NDArray[np.int64]
    parameters_b: Floats
    layers: Floats
    d_model: Floats
    kv_mb_per_token: Floats
    weights_gb: Floats
    read_gb: Floats
    """Weights that a decode step of one sequence reads."""
    host: NDArray[np.int64]
    """Index into the host factors."""
    gpus: Floats
    memory_gb: Floats
    bandwidth_gb_s: Floats
    tflops: Floats
    nvlink: Floats
    users: Floats

    def __len__(self) -> int:
        return len(self.users)

    def select(self, mask: NDArray[np.bool_]) -> "Cells":
        """Return the cells where `mask` [n] is true."""
        return Cells(*(getattr(self, field.name)[mask] for field in fields(self)))


def kind_of(model: Model) -> int:
    """Return FLASH, ENCODER_DECODER or PADDED."""
    if model.encoder_decoder:
        return ENCODER_DECODER
    return FLASH if model.flash_attention else PADDED


def _model_columns(model: Model) -> tuple[float, ...]:
    active = model.active_parameters_b
    return (
        kind_of(model),
        active,
        model.n_layers,
        model.d_model,
        model.kv_bytes_per_token / 1e6,
        model.weight_bytes / 1e9,
        (active - model.encoder_parameters_b) * model.weight_bytes_per_parameter,
    )


def _gpu_columns(gpu: Gpu, known: Known) -> tuple[float, ...]:
    return (
        known.host(gpu),
        gpu.count,
        gpu.memory_gb,
        gpu.bandwidth_gb_s,
        gpu.tflops_fp16,
        float(gpu.link in ("nvlink", "infinity-fabric")),
    )


def cells_of(rows: Rows, known: Known) -> Cells:
    """Return the facts of each row."""
    facts = np.array(
        [(*_model_columns(model), *_gpu_columns(gpu, known)) for model, gpu in rows.pairs], dtype=float
    )
    columns = np.column_stack([facts.reshape(-1, 13)[rows.pair], rows.users]).T
    whole = (0, 7)
    return Cells(*(column.astype(np.int64) if at in whole else column for at, column in enumerate(columns)))
