"""What a served recommender is made of: a folder of JSON, CSV, Parquet and XGBoost's own files, no code."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from llmpilot.config import Gpu, Model, parse
from llmpilot.dataset import Dataset, load, save
from llmpilot.dataset.facts import fingerprint
from llmpilot.errors import ConfigError
from llmpilot.files import to_json, write_text
from llmpilot.predict.pilot.fitted import FittedPilot, load_pilot
from llmpilot.recommendation.trust import Evidence

FACTS_FILE, DATASET_FILE, PILOT_FOLDER = "bundle.json", "dataset.parquet", "pilot"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A predictor fitted on all rows of `data`, and the GPU profiles, with prices, that it chooses from.

    `recipe` are the predictor's settings, with which it can be fitted on other data.
    """

    fitted: FittedPilot
    data: Dataset
    profiles: tuple[Gpu, ...]
    heaviest_request_tokens: int
    workload: str
    recipe: dict[str, Any]

    @cached_property
    def users(self) -> tuple[int, ...]:
        """The user counts that were measured, rising: latencies are predicted there."""
        return tuple(sorted({int(users) for users in self.data.table["users"]}))

    @cached_property
    def evidence(self) -> Evidence:
        """What the predictor learned from."""
        return Evidence(
            models=self.data.models,
            gpus=self.data.gpus,
            counts=tuple(sorted({int(count) for count in self.data.table["count"]})),
            engines=tuple(sorted({str(name) for name in self.data.table["engine"].dropna()})),
            out_of_fold=self.fitted.out_of_fold,
        )

    def measured(self, model: Model) -> pd.DataFrame | None:
        """Return the rows of this very model, under the GPU types' own names; None: it was not measured."""
        key = self._by_facts.get(fingerprint(model))
        if key is None:
            return None
        rows = self.data.table[self.data.table["model"] == key]
        return rows.assign(gpu=[self.data.gpus[gpu].name for gpu in rows["gpu"]])

    @cached_property
    def _by_facts(self) -> dict[str, str]:
        return {fingerprint(model): key for key, model in self.data.models.items()}

    def save(self, folder: Path) -> None:
        """Write it all to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.fitted.save(folder / PILOT_FOLDER)
        save(self.data, folder / DATASET_FILE)
        facts = {
            "format": FORMAT,
            "workload": self.workload,
            "heaviest_request_tokens": self.heaviest_request_tokens,
            "recipe": self.recipe,
            "profiles": [profile.model_dump() for profile in self.profiles],
        }
        write_text(folder / FACTS_FILE, to_json(facts))


def load_bundle(folder: Path) -> Bundle:
    """Return what `Bundle.save` wrote.

    Raises:
        PilotError: the folder holds no such thing, or one of another version or damaged.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, this version reads {FORMAT}")
        return Bundle(
            fitted=load_pilot(folder / PILOT_FOLDER),
            data=load(folder / DATASET_FILE),
            profiles=tuple(parse(Gpu, profile, "profiles") for profile in facts["profiles"]),
            heaviest_request_tokens=int(facts["heaviest_request_tokens"]),
            workload=str(facts["workload"]),
            recipe=dict(facts["recipe"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "this folder holds no recommender",
            given=f"{folder}: {error}",
            cure="train and register one: python -m llmpilot task=train",
        ) from None
