"""How much later than a simulated first token a client sees it: the numbers that come with the package.

`predict.service.first_token` fits them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmpilot.simulator.factors import SHIPPED
from llmpilot.simulator.step_model import StepModel

Key = tuple[str, str, str]
"""Client, engine and GPU architecture."""
ANY_CLIENT = ""
"""Stands for whatever client a load test has: the numbers fitted to all of them."""
MEDIANS = (10.0, 1.0, 1.0)
"""The priors', which hold where nothing is fitted."""


@dataclass(frozen=True)
class FirstToken:
    """TTFT as a client states it: `offset_ms` + `scale` x simulated TTFT + `lag_tokens` x TPOT."""

    offset_ms: float = MEDIANS[0]
    scale: float = MEDIANS[1]
    lag_tokens: float = MEDIANS[2]

    def ttft_ms(self, simulated_ttft_ms: Any, tpot_ms: Any) -> Any:
        """Return what the client states [ms], of arrays or numbers."""
        return self.offset_ms + self.scale * simulated_ttft_ms + self.lag_tokens * tpot_ms

    def later_ms(self, simulated_ttft_ms: Any, tpot_ms: Any) -> Any:
        """Return how much later than simulated a first token is beside `offset_ms` [ms], and with it the end
        of its answer; below zero where `scale` is below one."""
        return (self.scale - 1.0) * simulated_ttft_ms + self.lag_tokens * tpot_ms


def overhead_of(key: Key, fitted: Mapping[Key, FirstToken]) -> FirstToken:
    """Return a key's numbers, or those of its client and engine anywhere, or the priors'."""
    return fitted.get(key) or fitted.get((*key[:2], "")) or FirstToken()


def first_tokens_of(content: Mapping[str, Any]) -> dict[Key, FirstToken]:
    """Return the numbers in a file like the shipped one."""
    found = {}
    for text, values in content["first_tokens"].items():
        client, engine, architecture = text.split(" | ")
        found[client, engine, architecture] = FirstToken(*values)
    return found


def shipped_first_token(service: StepModel) -> FirstToken:
    """Return what any client sees of a service's time to the first token beside queue and prefill."""
    key = (ANY_CLIENT, service.settings.engine, service.gpu.architecture)
    return overhead_of(key, _shipped())


@cache
def _shipped() -> dict[Key, FirstToken]:
    content: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return first_tokens_of(content)
