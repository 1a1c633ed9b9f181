"""A list of prices, and the price of a pod that takes a part of an instance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["on_demand", "spot", "own"]
Profile = tuple[str, int]
"""Option of the gpu group, and GPUs in the pod."""
WORDS: dict[Kind, str] = {"on_demand": "on demand", "spot": "spot", "own": "as given"}


@dataclass(frozen=True)
class KnownType:
    """What a list has to know of a GPU type: its name in results, and how many GPUs a pod may have."""

    name: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class PriceList:
    """The prices of one provider, of one date and one kind, by option of the gpu group and GPUs in the pod.

    `prices` [$ per hour of a pod]: of the cheapest instance with exactly so many GPUs; where none is sold,
    the share of the smallest larger one (`shares` names these profiles). Whole instances are all that can be
    bought there: a share is what a pod costs whose node is filled by others of its kind.
    `skipped`: accelerator -> rows of a file whose GPU type the catalogue does not have.
    """

    name: str
    provider: str
    source: str
    date: str
    kind: Kind
    region: str
    licence: str
    prices: Mapping[Profile, float]
    shares: frozenset[Profile] = frozenset()
    skipped: Mapping[str, int] = field(default_factory=dict)
    currency: str = "USD"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prices", MappingProxyType(dict(self.prices)))

    def price(self, option: str, count: int) -> float | None:
        """Return $ per hour of a pod with so many GPUs of a type; None: the list does not have it."""
        return self.prices.get((option, count))

    def of(self, option: str) -> dict[int, float]:
        """Return GPUs in the pod -> $ per hour of all pods of a GPU type, fewest GPUs first."""
        return {count: price for (name, count), price in sorted(self.prices.items()) if name == option}

    @property
    def options(self) -> tuple[str, ...]:
        """The GPU types that have a price, by option of the gpu group."""
        return tuple(sorted({option for option, _ in self.prices}))

    @property
    def label(self) -> str:
        """`AWS, on demand, us-east-1, 2026-09-24`: whose prices these are, of what kind, where and when."""
        return ", ".join(part for part in (self.provider, WORDS[self.kind], self.region, self.date) if part)

    def to_dict(self) -> dict[str, Any]:
        """Return whose prices these are as plain values, without the prices themselves."""
        return {
            "name": self.name,
            "provider": self.provider,
            "kind": self.kind,
            "region": self.region,
            "date": self.date,
            "currency": self.currency,
            "source": self.source,
            "licence": self.licence,
        }


def with_shares(
    sold: Mapping[Profile, float], types: Mapping[str, KnownType]
) -> tuple[dict[Profile, float], frozenset[Profile]]:
    """Return the prices of all counts that a pod may have, and which of these are shares of an instance.

    A count that no instance has costs its share of the smallest larger one; none is made up beyond the
    largest that is sold.
    """
    prices, shares = dict(sold), set()
    for option, kind in types.items():
        counts = sorted(count for name, count in sold if name == option)
        for count in kind.counts:
            larger = next((one for one in counts if one > count), None)
            if (option, count) not in sold and larger is not None:
                prices[option, count] = sold[option, larger] * count / larger
                shares.add((option, count))
    return prices, frozenset(shares)
