"""What makes two studies one: all that decides what their trials mean; and what tells two apart, by key."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmpilot.secrets import redact_tree
from llmpilot.tune.plan import Bounds
from llmpilot.tune.settings import COST, Tuner

MOST_SHOWN = 4


class Identity:
    """Of a service, its load and the question asked of it: `hash`, and `keys`: each with its value as text.

    `facts` are those of the service and its load, nested, without a max batch weight. The ladder of load, the
    price and the SLA's latencies decide only what has to do with them.
    """

    def __init__(self, facts: Mapping[str, Any], settings: Tuner, bounds: Bounds) -> None:
        decisive = {name: dict(part) if isinstance(part, dict) else part for name, part in facts.items()}
        if settings.objective != COST:
            decisive["load"].pop("users")
            decisive["gpu"].pop("price_per_hour")
            decisive["gpu"].pop("price_source", None)
        if settings.objective in ("e2e_ms.p50", "throughput_tok_s"):
            decisive["sla"] = {"max_failure_rate": facts["sla"]["max_failure_rate"]}
        decisive["tuner"] = settings.identity() | {"bounds": [bounds.lower, bounds.upper, bounds.step]}
        self.hash = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        self.keys = dict(_flat(redact_tree(decisive)))


def differences(keys: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return which keys differ from those of a study, with both values; "" where none does."""
    found = [
        f"{key}={keys.get(key, 'nothing')}, in the study {others.get(key, 'nothing')}"
        for key in (*keys, *(key for key in others if key not in keys))
        if keys.get(key) != others.get(key)
    ]
    more = [f"and {len(found) - MOST_SHOWN} more keys"] if len(found) > MOST_SHOWN else []
    return "; ".join(found[:MOST_SHOWN] + more)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), "null" if value is None else str(value)
