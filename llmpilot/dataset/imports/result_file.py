"""A load generator's result file: its text, what is parsed of it, and the rows that an importer makes of it.

Owns reading and the small arithmetic that all importers share. What a field of a tool means is said in the
tool's own module.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmpilot.dataset.measurements import STATISTICS
from llmpilot.errors import PilotError

Row = dict[str, Any]
"""Columns of the table of measurements -> values.

Beside them `notes`, a list of the importer's own remarks, `client_version` and `succeeded`, a count.
"""

QUANTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
SUFFIXES = (".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".csv", ".txt")
"""Of files that may be results; in a folder no others are looked at."""
SHORT_HASH = 12
BAD_VALUES = (ValueError, AttributeError, RecursionError)
"""What PyYAML lets pass of values that are not what their tags say, and of too deep a nesting."""


class ImportFailedError(PilotError):
    """A file cannot be imported."""


@dataclass(frozen=True)
class ResultFile:
    """One file, read once.

    Raises:
        ImportFailedError: on the first look at its content, where it cannot be read.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name

    @cached_property
    def content(self) -> bytes:
        """The bytes as they are."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImportFailedError(
                f"the file cannot be read: {error.strerror or error}",
                given=self.path,
                cure="import.paths=[FILE, FOLDER or 'results/*.json']",
            ) from None

    @cached_property
    def identity(self) -> str:
        """The first digits of the SHA-256 of the content: the same file has it under any name."""
        return hashlib.sha256(self.content).hexdigest()[:SHORT_HASH]

    @cached_property
    def text(self) -> str:
        """The content as text, without a byte order mark."""
        if not self.content.strip():
            raise ImportFailedError(
                "the file is empty", given=self.path, cure="run the load generator again, or leave it out"
            )
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ImportFailedError(
                "the file is no text",
                given=f"{self.path}: {error}",
                cure="name the result file as it was written",
            ) from None

    @cached_property
    def documents(self) -> list[Any]:
        """What the file holds: one JSON or YAML document, or one for each of its lines; none of a CSV."""
        if self.path.suffix.lower() == ".csv":
            return []
        if self.path.suffix.lower() in (".yaml", ".yml"):
            return self._yaml()
        try:
            return [json.loads(self.text)]
        except json.JSONDecodeError as error:
            return self._lines(error)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deeply
            raise self.damaged("no JSON that can be read", str(error)) from None

    @property
    def first(self) -> Mapping[str, Any]:
        """The first document, where it is an object; else an empty one."""
        found = self.documents[0] if self.documents else None
        return found if isinstance(found, dict) else {}

    def _yaml(self) -> list[Any]:
        try:
            return [one for one in yaml.load_all(self.text, Loader=_Loader) if one is not None]
        except (yaml.YAMLError, *BAD_VALUES) as error:
            raise self.damaged("no valid YAML", str(error).replace("\n", " ")) from None

    def _lines(self, whole: json.JSONDecodeError) -> list[Any]:
        """Return a document for each line that is not empty."""
        # By line feeds alone: texts may hold other marks that Python takes for ends of lines.
        lines = [(at, line) for at, line in enumerate(self.text.split("\n"), 1) if line.strip()]
        found = []
        for at, line in lines:
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                # Of a file whose first line is no document, the whole is what is damaged.
                if not found or not isinstance(found[0], dict):
                    raise self.damaged("no valid JSON", str(whole)) from None
                raise self.damaged("no valid JSON", f"line {at} of {len(lines)}: {error}") from None
        return found

    def damaged(self, what: str, why: str) -> ImportFailedError:
        """Return the error of a file that breaks off or never was what its name says."""
        return ImportFailedError(
            f"this is {what}: the file is damaged, or was cut off",
            given=f"{self.path}: {why}",
            cure="export it again, or leave it out of import.paths",
        )

    def outdated(self, what: str, cure: str) -> ImportFailedError:
        """Return the error of a file whose format is known, but not in this version."""
        return ImportFailedError(what, given=self.path, cure=cure)


class _Loader(yaml.SafeLoader):
    """YAML without dates, which reports write as text as often as not."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way to say it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True)
class Importer:
    """One format: what it is called, how it is recognised, and how its rows are read.

    `read` returns a row for each level of load, in the columns of the table of measurements, latencies in ms;
    it leaves out what the file does not say. `supersedes` names files of the same run in the same folder that
    say the same again.
    """

    name: str
    """What `import.format` takes, and the rows' `client`."""
    label: str
    what: str
    """Which file of the tool this is, for messages."""
    recognises: Callable[[ResultFile], bool]
    read: Callable[[ResultFile], list[Row]]
    supersedes: Callable[[ResultFile], list[str]] = lambda file: []


def number(value: Any) -> float | None:
    """Return a finite number, from text too; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def count(value: Any) -> int | None:
    """Return a whole number of at least 1, or None."""
    found = number(value)
    return int(found) if found is not None and found >= 1 and found == int(found) else None


def at(document: Any, *keys: Any) -> Any:
    """Return what lies under the keys of nested objects and lists, or None."""
    for key in keys:
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and isinstance(key, int) and -len(document) <= key < len(document):
            document = document[key]
        else:
            return None
    return document


def figures(latency: str, values: Mapping[str, Any], scale: float = 1.0) -> Row:
    """Return a latency's columns from its statistics (`mean`, `p50` ...), times `scale` to be ms."""
    found = {name: number(values.get(name)) for name in STATISTICS}
    return {f"{latency}_{name}": value * scale for name, value in found.items() if value is not None}


def summarized(latency: str, values: Sequence[float], scale: float = 1.0) -> Row:
    """Return a latency's columns computed from single values, times `scale` to be ms; nothing of no value."""
    if not len(values):
        return {}
    scaled = np.asarray(values, dtype=float) * scale
    found = {name: float(np.percentile(scaled, q)) for name, q in QUANTILES.items()}
    return {f"{latency}_{name}": value for name, value in {"mean": float(scaled.mean()), **found}.items()}


def lengths(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Row:
    """Return the columns of lengths from statistics (`mean`, `min`, `max`) of input and output tokens."""
    means = {name: number(one.get("mean")) for name, one in (("input", inputs), ("output", outputs))}
    row: Row = {f"{name}_tokens": value for name, value in means.items() if value}
    if len(row) == len(means):
        ends = [(number(one.get("min")), number(one.get("max"))) for one in (inputs, outputs)]
        same = all(least is not None and least == most for least, most in ends)
        row["length_kind"] = "fixed" if same else "mean"
    return row


SUCCEEDED = "succeeded"
"""Of a row, beside the table's columns: how many requests succeeded."""


def requests(ok: float | None, failed: float | None) -> Row:
    """Return how many requests were sent and the share that failed, as far as both are known."""
    if ok is None:
        return {}
    row: Row = {SUCCEEDED: ok}
    sent = ok + (failed or 0.0)
    if sent:
        row["n_requests"] = sent
        if failed is not None:
            row["failures"] = failed / sent
    return row
