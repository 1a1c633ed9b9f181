"""What a request and an answer look like, in MLflow's words.

A request has no schema there. MLflow drops columns that a schema does not name, so that a misspelt one would
go unnoticed; it refuses whole numbers where a frame has them and the schema has floats; and it cannot read
CSV into columns that may hold text or a list. The model checks its columns itself (`rows.COLUMNS`), and says
what is wrong with them and how to mend it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from llmpilot.config import LATENCIES

TEXTS = (
    *("task", "model", "workload", "gpu", "engine", "precision", "binding", "prices"),
    *("trust", "trust_sentence", "reason", "serve"),
)
NUMBERS = (
    *("requests_per_s", "users", "think_time_s", "count", "pods", "gpus", "p_sla"),
    *("cost_per_hour", "cost_per_month", "cost_per_million_output_tokens"),
    *("users_per_pod", "requests_per_s_per_pod"),
    *(f"{latency}{part}" for latency in LATENCIES for part in ("", "_low", "_high")),
)
LISTS = ("ranking", "alternatives", "latencies")
"""Of objects: `Option.to_dict` and `Forecast.to_dict`, as in the result_file of task=recommend."""


def signature() -> Any:
    """Return the signature: of answers, and of the parameter `task`."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = []
    columns += [ColSpec(DataType.string, name, required=False) for name in TEXTS]
    columns += [ColSpec(DataType.double, name, required=False) for name in NUMBERS]
    anything = AnyType()  # type: ignore[no-untyped-call]
    columns += [ColSpec(anything, name, required=False) for name in LISTS]
    params = ParamSchema([ParamSpec("task", DataType.string, "auto")])
    return ModelSignature(outputs=Schema(columns), params=params)


def input_example(model: str) -> pd.DataFrame:
    """Return one question for a recommendation."""
    return pd.DataFrame([{"model": model, "requests_per_s": 20.0, "ttft_ms": 1000.0, "itl_ms": 50.0}])


def answers_as_table(answers: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row for each answer, with every column that any of them has; None where it has none."""
    columns = [name for name in (*TEXTS, *NUMBERS, *LISTS) if any(name in answer for answer in answers)]
    rows = [[answer.get(name) for name in columns] for answer in answers]
    return pd.DataFrame(rows, columns=columns, dtype=object)
