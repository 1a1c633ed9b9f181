"""Whether a challenger becomes champion: S/O over measured services of today with each LLM left out, limits
on TPOT and TTFT, on the same terms.

A champion that was scored on other terms is scored again on those of the challenger: what is kept of it are
the rows that it was fitted to, and they are fitted again by today's code. What an older version of LLM-Pilot
would have made of them is not known.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import llmpilot
from llmpilot.dataset import Measurements
from llmpilot.prices import PriceList


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger becomes champion, and why."""

    moved: bool
    why: str


def terms_of(
    data: Measurements, prices: PriceList, rule: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """Return a hash of all that a score depends on but what was learned from: equal terms, comparable scores.

    `rule` is the rule of decision, `settings` are the limits and loads that it is asked for.
    """
    terms = {
        "data": data.content_hash,
        "prices": [[option, count, price] for (option, count), price in sorted(prices.prices.items())],
        "version": llmpilot.__version__,
        "rule": dict(rule),
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:16]


def compare(challenger: float, champion: float, version: str) -> Verdict:
    """Return who wins; a tie keeps the champion."""
    better = challenger > champion
    relation = "better than" if better else "not better than"
    return Verdict(
        better,
        f"S/O {challenger:.4f} on today's services is {relation} the champion's {champion:.4f} (version "
        f"{version}), same data and settings",
    )
