"""The characterization table: its columns, its types, and the facts of what it names. No I/O."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llmpilot.config import Gpu, Model
from llmpilot.dataset.facts import (
    fingerprint,
    keyed,
    known_gpus,
    known_models,
    prices_for,
    single,
    speed_facts,
)
from llmpilot.errors import PilotError

WHOLE = ("count", "users")
WHOLE_OR_NULL = ("requests", "max_batch_weight")
NUMBERS = (
    "nttft_ms",
    "itl_ms",
    "ttft_ms",
    "e2e_ms",
    "nttft_ms_p95",
    "itl_ms_p95",
    "throughput_tok_s",
    "failure_rate",
)
TEXTS = ("engine", "workload", "measurement", "hardware", "source", "run_id")
COLUMNS = ("model", "gpu", *WHOLE, *NUMBERS, *WHOLE_OR_NULL, *TEXTS)
KEYS = ("model", "gpu", "count", "users")
REQUIRED = (*KEYS, "nttft_ms", "itl_ms", "measurement")
"""No row may lack these; the other columns may be null, or not be there at all."""
ORDER = ("model", "gpu", "count", "users", "run_id")
MEASUREMENTS = ("published", "measured", "simulated")


class DatasetError(PilotError):
    """A table of characterizations cannot be used."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """One row per model, GPU profile, users and run, with the facts of every model and GPU type named.

    `table` has the columns COLUMNS and is sorted by model, gpu, count, users, run_id. Texts are objects,
    null is None; `requests` and `max_batch_weight` are Int64, null is NA; in floats, null is NaN:

    - model, gpu, count: keys of `models` and `gpus`, and how many such GPUs the model was sharded over.
    - users: concurrent closed-loop users.
    - nttft_ms [ms per input token], itl_ms, ttft_ms, e2e_ms [ms]: medians over the successful requests;
      nttft_ms_p95, itl_ms_p95: 95th percentiles.
    - throughput_tok_s: output tokens per second.
    - failure_rate: share of the `requests` that failed; `requests` counts them all.
    - max_batch_weight [tokens]: null where it is not known.
    - measurement: published, measured or simulated; hardware: what a server that we started ran on.
    - source, run_id: where the row comes from; run_id is null for what is published.

    Raises:
        DatasetError: columns or facts are missing, or a value is impossible.
    """

    table: pd.DataFrame
    models: dict[str, Model]
    gpus: dict[str, Gpu]

    def __post_init__(self) -> None:
        table = _typed(self.table)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "models", _named(table["model"], self.models, "model"))
        gpus = {key: single(gpu) for key, gpu in self.gpus.items()}
        object.__setattr__(self, "gpus", _named(table["gpu"], gpus, "gpu"))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def profiles(self) -> int:
        """How many pairs of a model and a GPU profile there are."""
        return len(self.table[["model", "gpu", "count"]].drop_duplicates())

    @property
    def content_hash(self) -> str:
        """SHA-256 over rows and speed facts: the same for the same content, whatever its order and prices."""
        rows = sorted(json.dumps(row) for row in _plain_rows(self.table))
        content = {
            "columns": COLUMNS,
            "rows": rows,
            "models": {key: speed_facts(model) for key, model in self.models.items()},
            "gpus": {key: speed_facts(gpu) for key, gpu in self.gpus.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def select(self, mask: Any) -> "Dataset":
        """Return the rows where `mask` [n rows, boolean] is true, with the facts of what is left."""
        return Dataset(self.table[np.asarray(mask, dtype=bool)], self.models, self.gpus)

    def only(self, model: str) -> "Dataset":
        """Return one model's rows; none, where the table does not name it."""
        return self.select(self.table["model"] == model)

    def without(self, model: str) -> "Dataset":
        """Return all rows but one model's."""
        return self.select(self.table["model"] != model)


def merge(*datasets: Dataset) -> Dataset:
    """Return all rows of all data sets; a cell measured twice stays two rows, told apart by their runs.

    Models and GPU types are the same where name and speed facts are. Other facts under a name of the
    catalogue, or several sets of facts under one name, become `name@<digits of their hash>`.
    """
    models = keyed((model for one in datasets for model in one.models.values()), known_models())
    used = {one.gpus[key].name for one in datasets for key in set(one.table["gpu"])}
    known = known_gpus(prices_for(used))
    gpus = keyed((gpu for one in datasets for gpu in one.gpus.values()), known)

    def renamed(one: Dataset) -> pd.DataFrame:
        model_keys = {key: models[model.name, fingerprint(model)][0] for key, model in one.models.items()}
        gpu_keys = {key: gpus[gpu.name, fingerprint(gpu)][0] for key, gpu in one.gpus.items()}
        return one.table.assign(model=one.table["model"].map(model_keys), gpu=one.table["gpu"].map(gpu_keys))

    rows = [row for one in datasets for row in renamed(one).to_dict("records")]
    return Dataset(frame_of(rows), dict(models.values()), dict(gpus.values()))


def frame_of(rows: Sequence[Mapping[Any, Any]]) -> pd.DataFrame:
    """Return rows as a frame that has all columns, even without any row."""
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all columns, in their order and type, sorted and checked."""
    if missing := [name for name in REQUIRED if name not in table.columns]:
        raise DatasetError(
            f"columns are missing: {', '.join(missing)}",
            given=f"columns {', '.join(map(str, table.columns)) or 'none'}",
            cure=f"a table of characterizations needs at least {', '.join(REQUIRED)}",
        )
    if unknown := [str(name) for name in table.columns if name not in COLUMNS]:
        raise DatasetError(
            f"these are no columns of a table of characterizations: {', '.join(unknown)}",
            cure=f"leave them out; the columns are {', '.join(COLUMNS)}",
        )
    typed = {}
    for name in COLUMNS:
        values = table[name] if name in table.columns else pd.Series(None, index=table.index, dtype=object)
        try:
            typed[name] = _column(name, values)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"the column {name} holds what it cannot: {error}") from None
    sorted_ = pd.DataFrame(typed).sort_values(list(ORDER), na_position="first", kind="stable")
    sorted_ = sorted_.reset_index(drop=True)
    _check(sorted_)
    return sorted_


def _column(name: str, values: pd.Series) -> pd.Series:
    if name in NUMBERS:
        return pd.to_numeric(values).astype("float64")
    if name in WHOLE:
        whole = pd.to_numeric(values).astype("float64")
        if not np.array_equal(whole, np.floor(whole)):
            raise ValueError("not whole numbers")
        return whole.astype("int64")
    if name in WHOLE_OR_NULL:
        return pd.to_numeric(values).astype("Int64")
    return values.astype(object).where(values.notna(), None).astype(object)


def _check(table: pd.DataFrame) -> None:
    """Refuse what no measurement can be, naming the first row of that kind."""
    latencies = ("ttft_ms", "e2e_ms", "nttft_ms_p95", "itl_ms_p95")
    wrong = {name: table[name].isna() for name in REQUIRED}
    for name in (*latencies, "throughput_tok_s"):
        wrong[name] = wrong.get(name, False) | (table[name] < 0) | np.isinf(table[name])
    for name in ("nttft_ms", "itl_ms"):  # which predictors learn the logs of
        wrong[name] |= (table[name] <= 0) | np.isinf(table[name])
    for name in WHOLE:
        wrong[name] = table[name] < 1
    wrong["failure_rate"] = ~table["failure_rate"].fillna(0.0).between(0.0, 1.0)
    wrong["measurement"] = ~table["measurement"].isin(MEASUREMENTS)
    for name, bad in wrong.items():
        if bad.any():
            row = table[bad].iloc[0]
            cell = " ".join(f"{key}={row[key]}" for key in KEYS)
            raise DatasetError(
                f"{int(bad.sum())} rows have an impossible {name}", given=f"{name}={row[name]} in {cell}"
            )


def _named(column: pd.Series, facts: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the facts of what the column names, sorted by key."""
    names = sorted(set(column))
    if absent := [name for name in names if name not in facts]:
        raise DatasetError(
            f"the table names a {what} without its facts: {absent[0]}",
            given=f"facts of {', '.join(facts) or 'none'}",
        )
    return {name: facts[name] for name in names}


def _plain_rows(table: pd.DataFrame) -> list[list[Any]]:
    """Return the rows as JSON values: null for every kind of missing, floats as Python's shortest repr."""
    columns = [table[name].astype(object).where(table[name].notna(), None).tolist() for name in COLUMNS]
    return [list(row) for row in zip(*columns, strict=True)]
