"""A recommender over few GPU types, and how to ask it."""

from typing import Any

import pandas as pd

from llmpilot import catalog
from llmpilot.predict.service.knowledge import shipped_knowledge
from llmpilot.serving.bundle import Bundle
from llmpilot.serving.recommender import Recommender

GPUS = ("l4", "h100")
QUESTION = {"model": "llama_3_1_8b", "requests_per_s": 20, "ttft_ms": 1000, "itl_ms": 50}
FEW = QUESTION | {"prices": '{"h100": {"1": 3}, "l4": {"1": 1}}'}
"""The same of two profiles only."""
FACTS = {"parameters_b": 8.03, "n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8}


def small_bundle() -> Bundle:
    """Return what ships, for two GPU types at the default prices."""
    prices = catalog.price_list()
    return Bundle(shipped_knowledge(), catalog.gpus(GPUS, prices), prices)


def ask(recommender: Recommender, *rows: dict[str, Any], task: str = "auto") -> list[dict[str, Any]]:
    """Return the answers to rows."""
    return recommender.answer(recommender.known.read(pd.DataFrame(rows, dtype=object), task))
