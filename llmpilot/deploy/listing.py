"""The models that a service lists, in whatever shape. What it says is advice: the first answer decides."""

import json
from typing import Any, NamedTuple

from llmpilot.deploy.served_text import shown
from llmpilot.errors import did_you_mean

Facts = dict[str, Any]
NAMES = ("id", "name", "model")
LISTS = ("data", "models")
SHOWN = 12


class Listing(NamedTuple):
    """What a server lists: facts by a model's name, and in words what it answered when it was asked."""

    models: dict[str, Facts]
    said: str = ""

    @property
    def names(self) -> list[str]:
        """The names that are one model's each: `openai/*` stands for many."""
        return [name for name in self.models if "*" not in name]

    @property
    def shown(self) -> str:
        """The names, as they can be shown."""
        more = len(self.models) - SHOWN
        return shown(", ".join(list(self.models)[:SHOWN])) + (f" and {more} more" if more > 0 else "")

    def facts_of(self, model: str) -> Facts:
        """Return what the server says of a model; of one that it calls otherwise, what all its models are."""
        if model in self.models:
            return self.models[model]
        owners = {str(facts.get("owned_by", "")) for facts in self.models.values()}
        if len(self.models) == 1:
            return next(iter(self.models.values()))
        return {"owned_by": owners.pop()} if len(owners) == 1 else {}

    def hint(self, model: str) -> str:
        """Return which models there are, first the one that may be meant; "" if none is known."""
        if not self.models:
            return ""
        return f"{did_you_mean(model, self.names)}it lists {self.shown}"


def read_listing(text: str) -> dict[str, Facts]:
    """Return the models in an answer: OpenAI's list, a bare one, one of names, or Ollama's."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(said, dict):
        said = next((said[key] for key in LISTS if isinstance(said.get(key), list)), None)
    if not isinstance(said, list):
        return {}
    found: dict[str, Facts] = {}
    for entry in said:
        if isinstance(entry, str) and entry:
            found.setdefault(entry, {})
        elif isinstance(entry, dict):
            name = next((entry[key] for key in NAMES if isinstance(entry.get(key), str) and entry[key]), None)
            if name is not None:
                found.setdefault(name, entry)
    return found
