"""What the cells of a request hold: texts, lists, numbers, JSON. A refusal names the column and the cure."""

import json
from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import pandas as pd

from llmpilot.errors import ConfigError, did_you_mean

MOST = 1e9

Row = Mapping[str, Any]


def text_in(row: Row, column: str) -> str | None:
    """Return the text of a cell; None where it is missing or empty."""
    value = row.get(column)
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise ConfigError(f"column {column} is no text", given=value, cure=f"{column} as a string")
    return value.strip() or None


def list_in(row: Row, column: str) -> list[str] | None:
    """Return the names in a cell, a list or a text with commas; None where it is missing or empty."""
    value = row.get(column)
    if isinstance(value, list | tuple):
        names = [str(name).strip() for name in value]
    else:
        text = text_in(row, column)
        if text is None:
            return None
        names = [name.strip() for name in text.strip("[]").split(",")]
    names = [name for name in names if name]
    if not names:
        raise ConfigError(f"column {column} names none", given=value, cure="leave it out, or name some")
    return names


def several_in(row: Row, column: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a cell, each of which has to be known; none where it is missing."""
    names = list_in(row, column) or []
    for name in names:
        if name not in known:
            raise ConfigError(
                f"column {column}: there is no {name!r}",
                given=name,
                cure=f"{did_you_mean(name, known)}there are {', '.join(known)}",
            )
    return tuple(dict.fromkeys(names))


def number_in(
    row: Row,
    column: str,
    *,
    least: float = 1,
    most: float = MOST,
    whole: bool = False,
    default: float | None = None,
) -> float:
    """Return the number in a cell.

    Raises:
        ConfigError: it is missing without a default, no number, or beyond its bounds.
    """
    found = number_or_none(row, column, least=least, most=most, whole=whole)
    if found is not None:
        return found
    if default is None:
        raise ConfigError(f"column {column} is missing", cure=_possible(least, most, whole))
    return default


def number_or_none(
    row: Row, column: str, *, least: float = 1, most: float = MOST, whole: bool = False
) -> float | None:
    """Return the number in a cell; None where it is missing or empty.

    Raises:
        ConfigError: it is no number, or beyond its bounds.
    """
    value: Any = row.get(column)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = nan
    if not (least <= number <= most) or (whole and number != int(number)):
        raise ConfigError(f"column {column} is not possible", given=value, cure=_possible(least, most, whole))
    return number


def _possible(least: float, most: float, whole: bool) -> str:
    return f"{'a whole number' if whole else 'a number'} from {least:g} to {most:g}"


def json_object(text: str, column: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    Raises:
        ConfigError: it holds none.
    """
    example = '{"parameters_b": 7.6, ...}' if column == "model_facts" else '{"h100": {"1": 2.5}}'
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"column {column} is no JSON: {error}", given=text[:80], cure=example) from None
    if not isinstance(found, dict):
        raise ConfigError(f"column {column} is no JSON object", given=text[:80], cure=example)
    return found


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, or pandas' own NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and isnan(value))
