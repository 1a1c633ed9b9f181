"""JSON lines, or one JSON array, as a stream of objects; nested values are reached by dotted names.

Knows nothing of requests. Memory is bounded by an object, not by the file.
"""

import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from llmpilot.errors import TraceError

READ_CHARACTERS = 1 << 20
LONGEST_OBJECT = 64 << 20
"""Characters of one object of an array; more is a damaged file, not a request."""
SAMPLED_OBJECTS = 100
"""Objects whose keys are the columns: a key that first comes up later has to be named to be found."""
_DECODER = json.JSONDecoder()


def json_objects(stream: Any, source: object) -> Iterator[dict[str, Any]]:
    """Yield the objects of a stream of bytes in UTF-8: one a line, or those of one array.

    Raises:
        TraceError: something else than an object, or damaged JSON; says where.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    head = text.read(READ_CHARACTERS)
    if head.lstrip()[:1] == "[":
        yield from _of_array(text, head.lstrip()[1:], source)
    else:
        yield from _of_lines(text, head, source)


def _of_lines(text: io.TextIOWrapper, head: str, source: object) -> Iterator[dict[str, Any]]:
    # The head may end within a line.
    lines = io.StringIO(head + text.readline())
    for number, line in enumerate((line for part in (lines, text) for line in part), start=1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except ValueError as error:
            raise _damaged(f"line {number}", source, error) from None
        yield _object(value, f"line {number}", source)


def _of_array(text: io.TextIOWrapper, buffer: str, source: object) -> Iterator[dict[str, Any]]:
    number, position, whole = 0, 0, False
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            position += 1
        if buffer[position : position + 1] == "]":
            return
        try:
            value, end = _DECODER.raw_decode(buffer, position)
        except RecursionError:
            raise _damaged(f"object {number + 1}", source, "nested too deeply") from None
        except ValueError as error:
            # It may go on in what has not been read.
            more = "" if whole else text.read(max(READ_CHARACTERS, len(buffer)))
            buffer, position, whole = buffer[position:] + more, 0, not more
            if whole or len(buffer) > LONGEST_OBJECT:
                raise _damaged(f"object {number + 1}", source, error) from None
            continue
        number, position = number + 1, end
        yield _object(value, f"object {number}", source)


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(value: Any, where: str, source: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise TraceError(
        "the trace must hold JSON objects",
        given=f"{str(value)[:80]} in {where} of {source}",
        cure='give one object a line, as {"input_tokens": 100, "output_tokens": 20}, or an array of them',
    )


def _damaged(where: str, source: object, error: object) -> TraceError:
    return TraceError(
        f"the trace cannot be read: {where} is no whole JSON object",
        given=f"{error} in {source}",
        cure="give one object a line, or one array of objects",
    )


def keys_of(objects: Iterator[dict[str, Any]]) -> list[str]:
    """Return the dotted names of the values of the first objects, in the order in which they come up."""
    names: dict[str, None] = {}
    for value in islice(objects, SAMPLED_OBJECTS):
        names |= dict.fromkeys(_dotted(value, ""))
    return list(names)


def _dotted(value: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _dotted(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def value_at(value: Any, name: str) -> Any:
    """Return what an object has under a dotted name, a key that is written so itself first; or None."""
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    head, dot, rest = name.partition(".")
    return value_at(value.get(head), rest) if dot else None


def as_text(value: Any) -> str | None:
    """Return a single value as a CSV file would hold it; lists and objects as JSON, which no rule takes."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
