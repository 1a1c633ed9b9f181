"""What a served recommender is made of: a folder of JSON, and of the rows that it was fitted to; no code."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpilot.config import Gpu, Model, parse
from llmpilot.dataset import Measurements, read_table, save_measurements
from llmpilot.errors import ConfigError, PilotError
from llmpilot.files import to_json, write_text
from llmpilot.predict.service.knowledge import Knowledge
from llmpilot.prices import PriceList

FACTS_FILE, KNOWLEDGE_FILE = "bundle.json", "knowledge.json"
ROWS_FILE, MODELS_FILE = "measurements.parquet", "models.json"
FORMAT = 2
TRAIN = "train and register one: python -m llmpilot task=train"


@dataclass(frozen=True)
class Bundle:
    """What is known of services' speed, the GPU types by option of the gpu group, and their prices."""

    knowledge: Knowledge
    gpus: Mapping[str, Gpu]
    prices: PriceList

    def save(self, folder: Path) -> None:
        """Write it all to a folder; the facts last, as the mark that all is there."""
        folder.mkdir(parents=True, exist_ok=True)
        knowledge = to_json(self.knowledge.to_dict())
        write_text(folder / KNOWLEDGE_FILE, knowledge)
        facts = {
            "format": FORMAT,
            "fitted_on": self.knowledge.origin.rows_hash,
            "knowledge": _hash(knowledge),
            "gpus": {option: gpu.model_dump(mode="json") for option, gpu in self.gpus.items()},
            "prices": _prices_as_json(self.prices),
        }
        write_text(folder / FACTS_FILE, to_json(facts))


@dataclass(frozen=True)
class Rows:
    """What a recommender was fitted to. `models` are LLMs that the catalogue lacks, by Hugging Face id."""

    measurements: Measurements
    models: Mapping[str, Model]

    def save(self, folder: Path) -> None:
        """Write them to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_measurements(self.measurements, folder / ROWS_FILE)
        facts = {hf_id: model.model_dump(mode="json") for hf_id, model in self.models.items()}
        write_text(folder / MODELS_FILE, to_json(facts))


def load_bundle(folder: Path) -> Bundle:
    """Return what `Bundle.save` wrote.

    Raises:
        ConfigError: the folder holds no such thing, or one of another version or damaged.
    """
    with _what_is_damaged(folder):
        facts = _json(folder / FACTS_FILE)
        if facts["format"] != FORMAT:
            raise ConfigError(
                f"this recommender was trained by another version of LLM-Pilot: its format is "
                f"{facts['format']}, and this version reads {FORMAT}",
                given=folder,
                cure=TRAIN,
            )
        knowledge = (folder / KNOWLEDGE_FILE).read_text(encoding="utf-8")
        if _hash(knowledge) != facts["knowledge"]:
            raise ValueError(f"{KNOWLEDGE_FILE} is not the one that {FACTS_FILE} was written with")
        return Bundle(
            knowledge=Knowledge.from_dict(json.loads(knowledge)),
            gpus={option: parse(Gpu, gpu, "gpus") for option, gpu in facts["gpus"].items()},
            prices=_prices_of(facts["prices"]),
        )


def load_rows(folder: Path) -> Rows:
    """Return what `Rows.save` wrote.

    Raises:
        ConfigError: the folder holds no such thing, or it is damaged.
    """
    with _what_is_damaged(folder):
        facts = _json(folder / MODELS_FILE)
        models = {hf_id: parse(Model, model, "models") for hf_id, model in facts.items()}
        return Rows(Measurements(read_table(folder / ROWS_FILE)), models)


@contextmanager
def _what_is_damaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        given = f"{folder}: {error}"
        raise ConfigError("this folder holds no recommender", given=given, cure=TRAIN) from None
    except PilotError as error:
        if error.cure == TRAIN:
            raise
        given = f"{folder}: {error.wrong}"
        raise ConfigError("this folder holds no recommender", given=given, cure=TRAIN) from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _prices_as_json(prices: PriceList) -> dict[str, Any]:
    by_type = {
        option: {str(count): price for count, price in prices.of(option).items()} for option in prices.options
    }
    shares = [[option, count] for option, count in sorted(prices.shares)]
    return {"whose": prices.to_dict(), "prices": by_type, "shares": shares}


def _prices_of(facts: Mapping[str, Any]) -> PriceList:
    prices = {
        (option, int(count)): float(price)
        for option, counts in facts["prices"].items()
        for count, price in counts.items()
    }
    shares = frozenset((str(option), int(count)) for option, count in facts["shares"])
    return PriceList(**facts["whose"], prices=prices, shares=shares)
