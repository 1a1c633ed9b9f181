"""The paper's own data, where somebody has them; and its methods, as conf/ has them, on few LLMs."""

import os
from pathlib import Path

import pytest
import yaml

from llmpilot import catalog
from llmpilot.config import build
from llmpilot.dataset import Dataset, published
from llmpilot.predict.predictor import Predictor

FOLDER = Path(os.environ.get("LLMPILOT_PUBLISHED_DATA", "nowhere"))
needs_data = pytest.mark.skipif(
    "LLMPILOT_PUBLISHED_DATA" not in os.environ,
    reason="set LLMPILOT_PUBLISHED_DATA to the folder of the paper's requests.parquet and published/",
)


def predictor(name: str, **changes: object) -> Predictor:
    """Return the predictor of this name in conf/, with changes."""
    values = yaml.safe_load((catalog.conf_dir() / "predictor" / f"{name}.yaml").read_text(encoding="utf-8"))
    built = build(values | changes, "predictor")
    assert isinstance(built, Predictor)
    return built


def four_llms() -> Dataset:
    """Return what was published of four: enough to leave one out, and then another for hyperparameters."""
    data = published()
    return data.select(data.table["model"].isin(["flan_t5_xl", "llama_7b", "llama_13b", "starcoder"]))
