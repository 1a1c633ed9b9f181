"""What a request and an answer look like, in MLflow's words."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from llmpilot.config import Model
from llmpilot.serving.rows import FACTS

TEXTS = ("model", "model_facts", "gpus", "gpu", "task")
NUMBERS = ("users", "nttft_ms", "itl_ms", "risk", "count")
ANSWER_TEXTS = ("task", "model", "gpu", "reason")
ANSWER_NUMBERS = ("users", "count", "nttft_ms", "itl_ms")
RECOMMENDED_TEXTS = ("trust", "ranking")
RECOMMENDED_NUMBERS = ("pods", "cost_per_hour", "users_per_pod", "p_sla")
PREDICTED_NUMBERS = ("nttft_ms_low", "nttft_ms_high", "itl_ms_low", "itl_ms_high")


def signature() -> Any:
    """Return the signature. No column is required: which are needed depends on the row.

    MLflow would refuse whole numbers for floats, and nothing says so but its message; numbers go in as they
    are, and what is none is refused by the model itself, which says how to mend it.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    def columns(names: Iterable[str], kind: DataType | AnyType) -> list[ColSpec | TensorSpec]:
        return [ColSpec(kind, name, required=False) for name in names]

    texts = [*TEXTS, *(name for name in FACTS if Model.model_fields[name].annotation is str)]
    inputs = columns(texts, DataType.string)
    anything = AnyType()  # type: ignore[no-untyped-call]
    inputs += columns((*NUMBERS, *(name for name in FACTS if name not in texts)), anything)
    outputs = columns((*ANSWER_TEXTS, *RECOMMENDED_TEXTS), DataType.string)
    outputs += columns((*ANSWER_NUMBERS, *RECOMMENDED_NUMBERS, *PREDICTED_NUMBERS), DataType.double)
    params = ParamSchema([ParamSpec("task", DataType.string, "auto")])
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=params)


def input_example(model: str) -> pd.DataFrame:
    """Return one question for a recommendation."""
    return pd.DataFrame([{"model": model, "users": 500.0, "nttft_ms": 100.0, "itl_ms": 50.0}])
