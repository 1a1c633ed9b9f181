"""The prices that a row brings: a list that ships, by name, or its own, $ per hour as JSON."""

from collections.abc import Mapping
from typing import Any

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.prices import PriceList, shipped
from llmpilot.serving.cells import is_missing, json_object

EXAMPLE = '{"h100": {"1": 2.5, "8": 19}}, or {"h100": 2.5} for each GPU'
OWN = "the request"


def prices_in(
    value: Any, default: PriceList, gpus: Mapping[str, Gpu], options: Mapping[str, str]
) -> PriceList:
    """Return the prices that a cell names or holds; the default ones where it is empty.

    `options` are GPU types' options by all their names. No file is read: who asks is not who serves.

    Raises:
        ConfigError: no such list, or JSON that holds no prices.
    """
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return default
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        return _named(value.strip(), default)
    given = json_object(value, "prices") if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not given:
        raise ConfigError("column prices is not possible", given=value, cure=f"{EXAMPLE}; or a list by name")
    prices: dict[tuple[str, int], float] = {}
    for name, said in given.items():
        option = options.get(str(name).lower())
        if option is None:
            raise ConfigError(
                f"column prices: there is no GPU type {name!r}",
                given=name,
                cure=f"{did_you_mean(str(name).lower(), options)}there are {', '.join(gpus)}",
            )
        if isinstance(said, Mapping):
            prices |= {(option, _count(count, name)): _price(price, name) for count, price in said.items()}
        else:
            each = _price(said, name)
            prices |= {(option, count): count * each for count in gpus[option].possible_counts}
    return PriceList(
        name=OWN, provider=OWN, source=OWN, date="", kind="own", region="", licence="", prices=prices
    )


def _named(name: str, default: PriceList) -> PriceList:
    if name == default.name:
        return default
    if name not in shipped():
        raise ConfigError(
            f"column prices: there is no price list {name!r}",
            given=name,
            cure=f"{did_you_mean(name, shipped())}there are {', '.join(shipped())}; or {EXAMPLE}",
        )
    return catalog.price_list(name)


def _count(count: Any, gpu: Any) -> int:
    if not str(count).isdecimal() or not 1 <= int(count) <= 1024:
        raise ConfigError(f"column prices: {gpu} cannot have {count!r} GPUs", given=count, cure=EXAMPLE)
    return int(count)


def _price(price: Any, gpu: Any) -> float:
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 < price < 1e6:
        raise ConfigError(f"column prices: {gpu} has no price", given=price, cure=EXAMPLE)
    return float(price)
