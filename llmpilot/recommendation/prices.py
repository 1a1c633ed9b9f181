"""A user's own prices of GPU profiles, from a CSV or YAML file: they replace the catalogue's."""

import csv
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import PositiveFloat, PositiveInt

from llmpilot import catalog
from llmpilot.config import Facts, Gpu, parse
from llmpilot.console import note
from llmpilot.errors import ConfigError, did_you_mean

COLUMNS = ("gpu", "count", "price_per_hour")
EXAMPLE = "a CSV file with the header gpu,count,price_per_hour, or YAML: {a100: {1: 2.5, 2: 5.0}}"


class Price(Facts):
    """One row: the price of a pod with `count` GPUs of a type [$ per hour]."""

    gpu: str
    count: PositiveInt
    price_per_hour: PositiveFloat


def profiles_at(prices: Path | None, names: Sequence[str] | None = None) -> tuple[list[Gpu], int]:
    """Return every GPU profile that can be bought, and how many of them are at a price of the user's file.

    A price of the file replaces the catalogue's, and makes a profile of a count that the catalogue has no
    price for; all other profiles keep the catalogue's prices. `names` restricts to options of the gpu group,
    and with them the file's prices: a remark names those left out.

    Raises:
        ConfigError: unknown names, or a file that cannot be used.
    """
    if names is not None and not names:
        raise ConfigError(
            "no GPU type is left to choose from", given="catalog=[]", cure="catalog=[a100,h100]"
        )
    gpus = catalog.gpus(None if names is None else list(dict.fromkeys(names)))
    given_prices = {} if prices is None else read_prices(prices)
    own = {key: price for key, price in given_prices.items() if key[0] in gpus}
    if unused := list(dict.fromkeys(option for option, _ in given_prices if option not in gpus)):
        note(f"prices left out of {prices}, not in catalog=: {', '.join(unused)}", style="yellow")
    profiles = []
    for option, gpu in gpus.items():
        given = {count: price for (name, count), price in own.items() if name == option}
        table = dict(sorted((gpu.price_per_hour | given).items()))
        source = f"{prices}; others: {gpu.price_source}" if given else gpu.price_source
        for count in table:
            facts = {"price_per_hour": table, "price_source": source, "count": count}
            profiles.append(gpu.model_copy(update=facts))
    if not profiles:
        raise ConfigError(
            f"no price of {', '.join(gpus)} is known",
            given=f"catalog=[{', '.join(gpus)}]",
            cure=f"prices=FILE gives one: {EXAMPLE}",
        )
    return profiles, len(own)


def read_prices(path: Path) -> dict[tuple[str, int], float]:
    """Return (option of the gpu group, count) -> $ per hour of a pod.

    GPU types may be named as on the command line (a100) or as in results (A100-40GB), in any case.

    Raises:
        ConfigError: no such file, another form, an unknown GPU type, a GPU type or a profile named twice.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(
            f"the prices cannot be read: {reason}", given=f"prices={path}", cure=EXAMPLE
        ) from None
    rows = _rows_of_yaml(text, path) if path.suffix in (".yaml", ".yml") else _rows_of_csv(text, path)
    known = {name.lower(): option for option, gpu in catalog.gpus().items() for name in (option, gpu.name)}
    found: dict[tuple[str, int], float] = {}
    for row in rows:
        price = parse(Price, row, "prices")
        option = known.get(price.gpu.strip().lower())
        if option is None:
            cure = f"{did_you_mean(price.gpu.lower(), known)}there are {', '.join(catalog.options('gpu'))}"
            raise ConfigError(f"there is no GPU type {price.gpu!r}", given=f"prices={path}", cure=cure)
        if (option, price.count) in found:
            raise ConfigError(
                f"{price.count} x {price.gpu} has two prices", given=f"prices={path}", cure="keep one of them"
            )
        found[option, price.count] = price.price_per_hour
    if not found:
        raise ConfigError("there is no price in the file", given=f"prices={path}", cure=EXAMPLE)
    return found


def _rows_of_csv(text: str, path: Path) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    table = csv.DictReader(lines, skipinitialspace=True)
    header = [(name or "").strip() for name in table.fieldnames or []]
    if sorted(header) != sorted(COLUMNS):
        raise ConfigError(
            "this is no table of prices", given=f"prices={path}: {', '.join(header) or 'empty'}", cure=EXAMPLE
        )
    table.fieldnames = header
    return [{str(key): value for key, value in row.items()} for row in table]


def _rows_of_yaml(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.load(text, _EachKeyOnce)
    except _TwiceError as error:
        key, line = error.args
        given = f"prices={path}, line {line}"
        raise ConfigError(f"{key} stands twice in the prices", given=given, cure="keep one of them") from None
    except yaml.YAMLError as error:
        raise ConfigError("this is not YAML", given=f"prices={path}: {error}", cure=EXAMPLE) from None
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return content
    if isinstance(content, dict) and all(isinstance(counts, dict) for counts in content.values()):
        return [
            {"gpu": str(gpu), "count": count, "price_per_hour": price}
            for gpu, counts in content.items()
            for count, price in counts.items()
        ]
    raise ConfigError("this is no table of prices", given=f"prices={path}", cure=EXAMPLE)


class _TwiceError(Exception):
    """A key that stands twice in a mapping, and the line of the second."""


class _EachKeyOnce(yaml.SafeLoader):
    """Of a key that stands twice, YAML's own loader takes the last silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _TwiceError(key.value, key.start_mark.line + 1)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)
