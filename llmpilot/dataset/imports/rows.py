"""Imported rows of the table of measurements: what files say, what the user adds, what is lacking or odd."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

import llmpilot
from llmpilot.dataset.imports.found_files import Found
from llmpilot.dataset.imports.result_file import (
    SUCCEEDED,
    Importer,
    ImportFailedError,
    ResultFile,
    Row,
)
from llmpilot.dataset.measured_file import measurements_of
from llmpilot.dataset.measurements import (
    BETWEEN_REASONS,
    CLOSED,
    COLUMNS,
    FIGURES,
    OPEN,
    Measurements,
    MeasurementsError,
)

CURES = {
    "model": "+model=llama_3_1_8b",
    "gpu": "+gpu=h100",
    "engine": "engine=vllm",
    "engine_version": "engine=vllm engine.version='\"0.11.0\"'",
    "precision": "precision=fp8 (else as the checkpoint says)",
    "n_gpus": "gpu.count=2",
    "load_kind": "import.users=16 or import.requests_per_s=4",
}
"""Facts of a service, and the option that adds one where no file says it."""
FACTS = ("engine", "engine_version", "precision", "n_gpus")
LOAD = ("input_tokens", "output_tokens", "n_requests", "failures")
LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
BETWEEN_TOKENS = ("itl_ms_", "tpot_ms_")
PERCENTILES = ("p50", "p90", "p95", "p99")
SAME_DIGITS = 6
"""Figures that agree so far, in any unit, are of one measurement."""

STUMBLES = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, OSError, csv.Error)
"""What reading another content than an importer's raises; a time far beyond our years is an OSError."""
PIECES = 1.25
"""A mean gap between pieces that is so many times the time per token: pieces of several tokens."""
LEAST_BUSY, MOST_BUSY = 0.2, 1.5
"""Share of the stated users that throughput times latency may come to."""


@dataclass(frozen=True)
class Told:
    """What the user says beside the files: columns of the table, and whose measurements these are.

    `columns` hold whatever a file says; `load` where a file does not say its own (columns again); `one_gpu`
    that there was one, unless a file says otherwise.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    one_gpu: bool = False
    source: str | None = None
    licence: str | None = None
    measurement: str = "measured"


@dataclass(frozen=True)
class Imported:
    """The rows of all files, and what a user should know of what is not among them."""

    measurements: Measurements
    remarks: tuple[str, ...] = ()

    def lacking(self) -> dict[str, int]:
        """Return what rows lack -> how many of them do."""
        counts: dict[str, int] = {}
        for row in self.measurements.table.to_dict("records"):
            for name in lacking({str(key): value for key, value in row.items() if pd.notna(value)}):
                counts[name] = counts.get(name, 0) + 1
        return counts


def imported(found: Found, told: Told) -> Imported:
    """Return the rows of the files found, completed by what the user says.

    A row without a request that succeeded is left out with a remark, and so is one whose figures another file
    has, too (a tool's own result beside a report that was made of it), and a file of a folder that its
    importer does not read, such as a server's own metrics beside the results.

    Raises:
        ImportFailedError: a file that was named cannot be read, no request succeeded at all, or nothing says
            which LLM or GPU type it was.
        MeasurementsError: a value is impossible.
    """
    rows: list[Row] = []
    places: dict[tuple[str, ...], tuple[int, str]] = {}
    remarks = list(found.remarks)
    unread: ImportFailedError | None = None
    for file, importer in found.files:
        try:
            read = _read(file, importer)
        except ImportFailedError as error:
            if file.path in found.named:
                raise
            unread = error
            remarks.append(f"left out: {file.path}: {error.wrong}")
            continue
        for number, row in enumerate(read):
            place = f"{file.path}" + (f", row {number}" if len(read) > 1 else "")
            if row.get(SUCCEEDED) == 0 or not any(row.get(name) for name in FIGURES):
                remarks.append(f"left out: {place}: no request succeeded")
                continue
            full = _completed(row, file, importer, number, told)
            figures = _signature(full)
            if figures is None or figures not in places:
                if figures is not None:
                    places[figures] = len(rows), place
                rows.append(full)
                continue
            at, other = places[figures]
            if len(lacking(full)) < len(lacking(rows[at])):
                places[figures], rows[at] = (at, place), full
                place, other = other, place
            remarks.append(f"left out: {place}: the same measurement as {other}, which says no less of it")
    if not rows and unread is not None:
        raise unread
    if not rows:
        raise ImportFailedError(
            "no request succeeded in any file: there is nothing to import",
            given=", ".join(str(file.path) for file, _ in found.files),
            cure="look into the load generator's log, and measure again",
        )
    _require(rows)
    for row in rows:
        _finish(row)
    return Imported(_table(rows), tuple(remarks))


def _read(file: ResultFile, importer: Importer) -> list[Row]:
    """Return an importer's rows; what it stumbles over says that the file is none of its format."""
    try:
        return importer.read(file)
    except STUMBLES as error:
        raise ImportFailedError(
            f"this file is not as {importer.label} writes {importer.what}",
            given=f"{file.path}: {type(error).__name__}: {error}",
            cure="import.format=NAME, where the format was mistaken; else export the results again",
        ) from None


def _signature(row: Row) -> tuple[str, ...] | None:
    """Return what two files of one measurement agree on; None, where a row has too little to tell."""
    values = [row.get("ttft_ms_mean"), row.get("e2e_ms_mean"), row.get("throughput_req_s")]
    if None in (values[0], values[2]):
        return None
    return tuple("" if value is None else f"{value:.{SAME_DIGITS}g}" for value in values)


def _completed(row: Row, file: ResultFile, importer: Importer, number: int, told: Told) -> Row:
    """Return the row with the user's facts before the file's, and where it is from."""
    notes = list(row.pop("notes", []))
    version = row.pop("client_version", None)
    row.pop(SUCCEEDED, None)
    for column, value in told.columns.items():
        stated = row.get(column)
        if stated is not None and stated != value:
            notes.append(f"the file says {column} {stated}")
    full = {**row, **told.columns}
    if "gpu" in told.columns:
        full.pop("gpu_as_stated", None)
    if full.get("load_kind") is None:
        full |= told.load
    if full.get("output_tokens") == 1:  # no gaps; tools then state 0
        full = {name: value for name, value in full.items() if not name.startswith(BETWEEN_TOKENS)}
    if told.one_gpu and full.get("n_gpus") is None and full.get("tp") is None:
        full["n_gpus"] = 1
    generator = importer.label + (f" {version}" if version else "")
    return full | {
        "source": told.source or importer.label,
        "source_path": str(file.path),
        "source_row": f"{file.identity}:{number}",
        "licence": told.licence,
        "measurement": told.measurement,
        "notes": [f"imported from {generator} by LLM-Pilot {llmpilot.__version__}", *notes],
    }


def _require(rows: Sequence[Row]) -> None:
    """Refuse rows without an LLM or a GPU type, which no row of the table may lack."""
    for column, what in (("model", "which LLM was served"), ("gpu", "on which GPUs that was")):
        missing = [row for row in rows if not row.get(column)]
        if missing:
            names = list(dict.fromkeys(str(row["source_path"]) for row in missing))
            more = f" and {len(names) - 1} more files" if len(names) > 1 else ""
            raise ImportFailedError(
                f"the file does not say {what}",
                given=f"{names[0]}{more}",
                cure=f"say it of all files of one command: {CURES[column]}",
            )


def _finish(row: Row) -> None:
    """Write what is odd and what is lacking into the row."""
    gaps, reasons = odd_gaps(row), doubts(row)
    if gaps and (row.get("tpot_ms_mean") or row.get("tpot_ms_p50")):
        row["flag"] = BETWEEN_REASONS.join(gaps)  # the time per output token is sound all the same
    else:
        reasons = gaps + reasons
    if reasons:
        row["in_doubt"] = BETWEEN_REASONS.join(reasons)
    notes = row["notes"]
    if missing := lacking(row):
        notes.append(f"lacking {', '.join(missing)}")
    row["notes"] = "; ".join(notes)


def lacking(row: Mapping[str, Any]) -> list[str]:
    """Return what the row lacks of what predictions and comparisons ask for: columns, and percentiles."""
    names = [name for name in FACTS if row.get(name) is None]
    if "n_gpus" in names and row.get("tp") is not None:
        names.remove("n_gpus")
    load = {CLOSED: "concurrency", OPEN: "request_rate"}.get(str(row.get("load_kind")))
    if row.get("load_kind") is None:
        names.append("load_kind")
    elif load is not None and row.get(load) is None:
        names.append(load)
    names += [name for name in LOAD if row.get(name) is None]
    for latency in LATENCIES:
        there = [name for name in ("mean", *PERCENTILES) if row.get(f"{latency}_{name}") is not None]
        if not there:
            names.append(latency)
        elif absent := [name for name in PERCENTILES if name not in there]:
            names.append(f"{latency} {' '.join(absent)}")
    return names


def odd_gaps(row: Mapping[str, Any]) -> list[str]:
    """Return why the row's ITL is not that of single tokens."""
    itl, tpot = _figure(row, "itl_ms_mean"), _figure(row, "tpot_ms_mean")
    reasons = []
    if _figure(row, "itl_ms_p50") == 0:
        reasons.append("an ITL of 0 ms: several tokens came at once")
    if itl and tpot and itl > PIECES * tpot:
        reasons.append(f"ITL is of pieces of {itl / tpot:.1f} tokens, not of tokens")
    return reasons


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return None if value is None else float(value)


def doubts(row: Mapping[str, Any]) -> list[str]:
    """Return reasons to doubt the whole row that its own figures give."""

    def of(name: str) -> float | None:
        return _figure(row, name)

    def first(latency: str) -> float | None:
        return next((found for one in ("p50", "mean") if (found := of(f"{latency}_{one}")) is not None), None)

    reasons = []
    itl, tpot = of("itl_ms_mean"), of("tpot_ms_mean")
    if itl and tpot and tpot > PIECES * itl:
        reasons.append("gaps between tokens add up to less than the time per token: tokens were miscounted")
    ttft, e2e = first("ttft_ms"), first("e2e_ms")
    if ttft == 0:
        reasons.append("a TTFT of 0 ms: the answers were not streamed")
    if ttft is not None and e2e is not None and ttft > e2e:
        reasons.append("the first token came after the end: not one unit")
    elif tpot == 0 and (of("output_tokens") or 0) > 1:
        reasons.append("a TPOT of 0 ms: whole answers came at once")
    users, rate, mean = of("concurrency"), of("throughput_req_s"), of("e2e_ms_mean")
    if row.get("load_kind") == CLOSED and users and rate and mean:
        busy = rate * mean / 1e3
        if not LEAST_BUSY <= busy / users <= MOST_BUSY:
            reasons.append(f"throughput times latency is {busy:.3g} requests at once, not {users:g} users")
    return reasons


def _table(rows: Sequence[Row]) -> Measurements:
    frame = pd.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], dtype=object)
    try:
        return measurements_of(frame)
    except MeasurementsError as error:
        raise MeasurementsError(
            f"what the files say is no measurement: {error.wrong}",
            given=error.given,
            cure="leave the file out, or mend what it says",
        ) from None
