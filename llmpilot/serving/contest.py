"""Whether a challenger becomes champion: the mean S/O over the grid, each LLM left out, on the same terms.

A champion that was scored on other terms is scored again, on those of the challenger.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ConfigDict, InstanceOf

import llmpilot
from llmpilot.dataset import Dataset
from llmpilot.dataset.facts import fingerprint
from llmpilot.predict.decision import Need
from llmpilot.predict.pilot.fitted import FittedPilot
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.predict.predictor import Predictor


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger becomes champion, and why."""

    moved: bool
    why: str


def terms_of(data: Dataset, needs: Sequence[Need], seeds: Sequence[int], measured: Sequence[str]) -> str:
    """Return a hash of all that a score depends on but the predictor: equal terms, comparable scores."""
    terms = {
        "data": data.content_hash,
        "prices": {key: gpu.price_per_hour for key, gpu in data.gpus.items()},
        "version": llmpilot.__version__,
        "needs": [[repr(value) for value in asdict(need).values()] for need in needs],
        "seeds": list(seeds),
        "measured": sorted(measured),
    }
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:16]


def compare(challenger: float, champion: float, version: str) -> Verdict:
    """Return who wins; a tie keeps the champion."""
    better = challenger > champion
    relation = "better than" if better else "not better than"
    return Verdict(
        better,
        f"grid S/O {challenger:.4f} is {relation} the champion's {champion:.4f} (version {version}), "
        "same data and settings",
    )


class Earlier(Predictor):
    """A champion's settings on the champion's own data, scored on today's: what it knew is not more.

    `now` are the fingerprints of all of today's LLMs. The one that a fold leaves out is left out of the
    champion's data, too.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = "champion"
    recipe: Pilot
    then: InstanceOf[Dataset]
    now: frozenset[str]

    def fit(self, data: Dataset, seed: int) -> FittedPilot:
        """Learn from the champion's rows of LLMs that are not left out of `data`."""
        left_out = self.now - {fingerprint(model) for model in data.models.values()}
        kept = {key for key, model in self.then.models.items() if fingerprint(model) not in left_out}
        return self.recipe.fit(self.then.select([key in kept for key in self.then.table["model"]]), seed)


def earlier(recipe: dict[str, Any], then: Dataset, today: Dataset) -> Earlier:
    """Return a champion's predictor as it is to be scored on today's data."""
    now = frozenset(fingerprint(model) for model in today.models.values())
    return Earlier(recipe=Pilot(**recipe), then=then, now=now)
