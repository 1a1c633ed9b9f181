"""Find the list that `prices=` names: one that ships, or a file in one of three forms."""

import csv
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import PositiveFloat, PositiveInt

from llmpilot.config import Facts, parse
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.prices import skypilot
from llmpilot.prices.price_list import Kind, KnownType, PriceList, Profile, with_shares

LISTS = Path(__file__).parent / "lists"
COLUMNS = ("gpu", "count", "price_per_hour")
EXAMPLE = (
    "a CSV file with the header gpu,count,price_per_hour, or YAML: {a100: {1: 2.5, 2: 5.0}}, or a vms.csv of "
    "SkyPilot's catalogue"
)


class Price(Facts):
    """One row: the price of a pod with `count` GPUs of a type [$ per hour]."""

    gpu: str
    count: PositiveInt
    price_per_hour: PositiveFloat


class Sheet(Facts):
    """A file with a list of prices and whose they are: the form of those that ship, open to users as well.

    `prices`: option of the gpu group -> GPUs -> $ per hour of the cheapest instance with so many.
    """

    provider: str
    source: str
    date: str
    kind: Literal["on_demand", "spot"]
    region: str
    licence: str
    currency: Literal["USD"] = "USD"
    prices: dict[str, dict[PositiveInt, PositiveFloat]]


def shipped() -> list[str]:
    """Return the names of the lists that ship with LLM-Pilot."""
    return sorted(file.stem for file in LISTS.glob("*.yaml"))


def find(
    prices: str | Path, types: Mapping[str, KnownType], kind: str | None = None, region: str | None = None
) -> PriceList:
    """Return the list of that name, or the one in the file of that path.

    `types` are the GPU types of the catalogue. `kind` (on_demand, spot) and `region` choose among the rows of
    a file in SkyPilot's format; of any other list they are a check.

    Raises:
        ConfigError: no such list or file, one in another form, an unknown GPU type, a profile named twice, or
            a list of another kind or region.
    """
    if kind not in (None, "on_demand", "spot"):
        raise ConfigError(
            f"there is no prices_kind {kind!r}", given=f"prices_kind={kind}", cure="on_demand or spot"
        )
    name = str(prices)
    if name in shipped():
        found = _sheet(name, _yaml_of((LISTS / f"{name}.yaml").read_text(encoding="utf-8"), name), types)
        return _as_asked(found, kind, region)
    path = Path(prices).expanduser()
    if path.suffix == "" and not path.exists():
        raise ConfigError(
            f"there is no price list {name!r}",
            given=f"prices={name}",
            cure=f"{did_you_mean(name, shipped())}there are {', '.join(shipped())}; or a file: {EXAMPLE}",
        )
    return _from_file(path, types, kind, region)


def _from_file(path: Path, types: Mapping[str, KnownType], kind: str | None, region: str | None) -> PriceList:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(
            f"the prices cannot be read: {reason}", given=f"prices={path}", cure=EXAMPLE
        ) from None
    if path.suffix in (".yaml", ".yml"):
        content = _yaml_of(text, str(path))
        if isinstance(content, dict) and "prices" in content:
            return _as_asked(_sheet(str(path), content, types), kind, region)
        return _as_asked(_own(path, _rows_of_yaml(content, path), types), kind, region)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    table = csv.DictReader(lines, skipinitialspace=True)
    header = [(name or "").strip() for name in table.fieldnames or []]
    table.fieldnames = header
    if set(header) >= skypilot.NEEDED:
        found, skipped, where = skypilot.sold(table, spot=kind == "spot", region=region, path=str(path))
        prices, shares = with_shares(found, types)
        spot_or_not: Kind = "spot" if kind == "spot" else "on_demand"
        return PriceList(
            name=str(path),
            provider=path.name,
            source=str(path),
            date="",
            kind=spot_or_not,
            region=where,
            licence="",
            prices=prices,
            shares=shares,
            skipped=skipped,
        )
    if sorted(header) != sorted(COLUMNS):
        raise ConfigError(
            "this is no table of prices", given=f"prices={path}: {', '.join(header) or 'empty'}", cure=EXAMPLE
        )
    rows = [{str(key): value for key, value in row.items()} for row in table]
    return _as_asked(_own(path, rows, types), kind, region)


def _own(path: Path, rows: list[dict[str, Any]], types: Mapping[str, KnownType]) -> PriceList:
    """Return a list of exactly the profiles that a user gave, in counts that no other list may have."""
    found: dict[Profile, float] = {}
    for row in rows:
        price = parse(Price, row, "prices")
        profile = (_option(price.gpu, types, path), price.count)
        if profile in found:
            raise ConfigError(
                f"{price.count} x {price.gpu} has two prices", given=f"prices={path}", cure="keep one of them"
            )
        found[profile] = price.price_per_hour
    if not found:
        raise ConfigError("there is no price in the file", given=f"prices={path}", cure=EXAMPLE)
    return PriceList(
        name=str(path),
        provider=path.name,
        source=str(path),
        date="",
        kind="own",
        region="",
        licence="",
        prices=found,
    )


def _sheet(name: str, content: Any, types: Mapping[str, KnownType]) -> PriceList:
    sheet = parse(Sheet, content, "prices")
    sold: dict[Profile, float] = {
        (_option(gpu, types, name), count): price
        for gpu, counts in sheet.prices.items()
        for count, price in counts.items()
    }
    prices, shares = with_shares(sold, types)
    whose = sheet.model_dump(exclude={"prices"})
    return PriceList(name=name, prices=prices, shares=shares, **whose)


def _option(gpu: str, types: Mapping[str, KnownType], path: str | Path) -> str:
    """Return the option of a GPU type, named as on the command line (a100) or in results (A100-40GB)."""
    known = {name.lower(): option for option, kind in types.items() for name in (option, kind.name)}
    option = known.get(gpu.strip().lower())
    if option is None:
        cure = f"{did_you_mean(gpu.lower(), known)}there are {', '.join(types)}"
        raise ConfigError(f"there is no GPU type {gpu!r}", given=f"prices={path}", cure=cure)
    return option


def _as_asked(found: PriceList, kind: str | None, region: str | None) -> PriceList:
    for key, asked, has in (("prices_kind", kind, found.kind), ("prices_region", region, found.region)):
        if asked is not None and asked.lower() != has.lower():
            raise ConfigError(
                f"the prices are not of that {key.removeprefix('prices_')}",
                given=f"{key}={asked}, prices={found.name} ({found.label})",
                cure=f"leave {key} out, or another list: {', '.join(shipped())}",
            )
    return found


def _yaml_of(text: str, path: str) -> Any:
    try:
        return yaml.load(text, _EachKeyOnce)
    except _TwiceError as error:
        key, line = error.args
        given = f"prices={path}, line {line}"
        raise ConfigError(f"{key} stands twice in the prices", given=given, cure="keep one of them") from None
    except yaml.YAMLError as error:
        raise ConfigError("this is not YAML", given=f"prices={path}: {error}", cure=EXAMPLE) from None


def _rows_of_yaml(content: Any, path: Path) -> list[dict[str, Any]]:
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
