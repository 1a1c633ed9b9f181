"""Which models and GPU types are the same: by the facts that decide their speed, not by their names.

Prices, datasheets and remarks are no such facts: they may change without making another GPU of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.prices import PriceList

NOT_OF_A_MODEL = {"name", "hf_id", "aliases", "quantize_to", "source"}
NOT_OF_A_GPU = {"name", "count", "price_per_hour", "counts", "price_source", "datasheet"}

PAPER_PRICES = "paper"
"""The list of the LLM-Pilot paper's prices, of 2023."""

Named = TypeVar("Named", Model, Gpu)


def speed_facts(thing: Model | Gpu) -> dict[str, Any]:
    """Return the facts that decide the speed of an LLM, or of one GPU of a type; not its name."""
    return thing.model_dump(exclude=NOT_OF_A_MODEL if isinstance(thing, Model) else NOT_OF_A_GPU)


def fingerprint(thing: Model | Gpu) -> str:
    """Return a hash that two models, or two GPU types, share exactly when their speed facts are equal."""
    return hashlib.sha256(json.dumps(speed_facts(thing), sort_keys=True).encode()).hexdigest()


def single(gpu: Gpu) -> Gpu:
    """Return the profile with one GPU of this type; with the fewest that are sold, where that is more."""
    return gpu.model_copy(update={"count": min(gpu.possible_counts)})


def keyed(things: Iterable[Named], known: Mapping[str, Named]) -> dict[tuple[str, str], tuple[str, Named]]:
    """Return (name, fingerprint) -> (key, facts): one key per name and set of facts.

    The catalogue's names mean the catalogue's facts; other facts under such a name, and several sets of
    facts under one name, are told apart by `name@` and the first digits of their fingerprint. The keys do
    not depend on the order of the things.
    """
    found: dict[str, dict[str, Named]] = {}
    for thing in sorted(things, key=lambda thing: json.dumps(thing.model_dump(), sort_keys=True)):
        found.setdefault(thing.name, {}).setdefault(fingerprint(thing), thing)
    keys = {}
    for name, versions in found.items():
        ours = known.get(name)
        for print_, thing in versions.items():
            as_in_catalogue = ours is not None and fingerprint(ours) == print_
            alone = ours is None and len(versions) == 1
            key = name if as_in_catalogue or alone else f"{name}@{print_[:8]}"
            # Prices and remarks may differ between runs: the catalogue's are the current ones.
            keys[name, print_] = key, ours if ours is not None and as_in_catalogue else thing
    return keys


def known_models() -> dict[str, Model]:
    """Return the catalogue's models by name."""
    return {model.name: model for model in catalog.models().values()}


def known_gpus(prices: PriceList | None = None) -> dict[str, Gpu]:
    """Return the catalogue's GPU types by name, at the prices of a list or the default one."""
    return {gpu.name: single(gpu) for gpu in catalog.gpus(prices=prices).values()}


def prices_for(names: Iterable[str]) -> PriceList:
    """Return the one list at which measurements on these GPU types are judged, by their names.

    Measurements on the paper's GPU types are judged at the paper's prices, which decide what is best in its
    evaluation; where any other is among them, all are judged at the default list's.
    """
    paper = catalog.price_list(PAPER_PRICES)
    there = {gpu.name for gpu in catalog.gpus(paper.options).values()}
    return paper if set(names) <= there else catalog.price_list()
