"""Task `dataset`: published measurements and the project's own runs as tables, versioned in MLflow.

One has what the paper measured, with facts, for predictors of its world; the other has every row there is.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from llmpilot.config import Facts, Tracking, parse
from llmpilot.console import err, note, out, say
from llmpilot.dataset import (
    Dataset,
    DatasetError,
    Measurements,
    joined,
    merge,
    published,
    save,
    save_measurements,
    shipped_measurements,
)
from llmpilot.dataset.conversion import to_measurements
from llmpilot.dataset.published import difference, from_requests, write_shipped
from llmpilot.dataset.runs import Collected, collect
from llmpilot.dataset.tracked import DatasetTracker
from llmpilot.errors import ConfigError, TrackingError
from llmpilot.files import require_writable
from llmpilot.secrets import redact

REMARKS = 5  # printed; more of them say no more


class Building(Facts):
    """The task's part of the configuration."""

    published: bool = True
    runs: bool = True
    simulated: bool = False
    output: str = "dataset.parquet"
    measurements: str | None = "measurements.parquet"
    raw: str | None = None
    refresh: str | None = None


def run(cfg: DictConfig) -> dict[str, Any]:
    """Put the table together, write it, log it in MLflow; return what it holds and what was left out.

    Raises:
        ConfigError, DatasetError: an impossible option or file, or there would be no row.
        TrackingError: written, but MLflow could not be read or written; carries the result.
    """
    keys = tuple(Building.model_fields)
    settings = parse(Building, {key: cfg[key] for key in keys}, "dataset")
    tracking = parse(Tracking, cfg.tracking, "tracking")
    output = Path(settings.output).expanduser()
    _refuse_impossible(settings, output)

    parts: list[Dataset] = []
    result: dict[str, Any] = {}
    if settings.published:
        part, result = _published(settings)
        parts.append(part)
    found, unread = _own(settings, tracking)
    dataset = merge(*parts, found.dataset)
    if not len(dataset):
        raise unread or _nothing(settings, found)

    save(dataset, output)
    everything = _everything(parts, found)
    files = [output]
    if settings.measurements is not None:
        files.append(Path(settings.measurements).expanduser())
        save_measurements(everything, files[-1])
    by_measurement = dataset.table["measurement"].value_counts().sort_index()
    result = {
        "rows": len(dataset),
        "models": len(dataset.models),
        "profiles": dataset.profiles,
        "by_measurement": {str(kind): int(rows) for kind, rows in by_measurement.items()},
        "content_hash": dataset.content_hash,
        "output": settings.output,
        "left_out": dict(sorted(found.left_out.items())),
        "measurements": None
        if settings.measurements is None
        else _counted(everything, settings.measurements),
    } | result
    _show(dataset, result, found)
    if result["measurements"] is not None:
        _show_measurements(everything, settings.measurements)
    tracker = DatasetTracker(tracking)
    params = {key: getattr(settings, key) for key in keys} | {"content_hash": dataset.content_hash}
    result["run_id"] = None if unread else tracker.log_dataset(dataset, files, params, result)
    if unread or tracker.problem:
        raise _not_tracked(unread, tracker, output, result)
    say(f"run {result['run_id']}")
    return result


def _everything(published_parts: list[Dataset], found: Collected) -> Measurements:
    """Return every row there is as a measurement: the paper's, the published ones of today, and our own."""
    theirs = [to_measurements(part) for part in published_parts]
    return joined(*theirs, *([shipped_measurements()] if theirs else []), found.measurements)


def _counted(everything: Measurements, path: str) -> dict[str, Any]:
    by_source = everything.table["source"].value_counts().sort_index()
    return {
        "rows": len(everything),
        "output": path,
        "by_source": {str(source): int(rows) for source, rows in by_source.items()},
        "in_doubt": int(everything.in_doubt().sum()),
    }


def _published(settings: Building) -> tuple[Dataset, dict[str, Any]]:
    """Return the published part, and how far it is from what ships where it was computed again."""
    if settings.raw is None:
        return published(), {}
    with err.status(f"reading {settings.raw}"):
        computed = from_requests(Path(settings.raw).expanduser())
    off = difference(computed, published())
    verdict = (
        "these are not the cells that ship with the project"
        if off is None
        else f"largest relative difference to what ships: {off:.1e}"
    )
    say(f"computed {len(computed)} published cells from {settings.raw}; {verdict}")
    if settings.refresh is not None:
        write_shipped(computed, Path(settings.refresh).expanduser())
        say(f"written as they ship to {settings.refresh}")
    return computed, {"published_difference": off}


def _own(settings: Building, tracking: Tracking) -> tuple[Collected, TrackingError | None]:
    """Return what MLflow holds of our own runs, or nothing and why it could not be read."""
    nothing = Collected(merge())
    if not settings.runs:
        return nothing, None
    try:
        with err.status(f"reading your runs from {redact(tracking.uri)}"):
            return collect(tracking, simulated=settings.simulated), None
    except TrackingError as error:
        return nothing, error


def _refuse_impossible(settings: Building, output: Path) -> None:
    if output.suffix != ".parquet":
        raise ConfigError("the table is a Parquet file", given=f"output={output}", cure="output=PATH.parquet")
    if settings.measurements is not None and Path(settings.measurements).suffix != ".parquet":
        raise ConfigError(
            "the table of measurements is a Parquet file",
            given=f"measurements={settings.measurements}",
            cure="measurements=PATH.parquet, or measurements=null for none",
        )
    if settings.raw is None and settings.refresh is not None:
        raise ConfigError("refresh needs the raw requests", cure="raw=PATH of the paper's requests.parquet")
    if settings.raw is not None and not settings.published:
        raise ConfigError("raw holds published measurements, which are not wanted", cure="published=true")
    written = {"output": settings.output, "measurements": settings.measurements, "refresh": settings.refresh}
    for key, value in written.items():
        if value is not None:
            _require_writable(key, Path(value).expanduser().resolve())


def _require_writable(key: str, path: Path) -> None:
    try:
        require_writable(path)
    except ConfigError as error:
        wrong = error.wrong.replace("result_file", key)
        raise ConfigError(wrong, given=path, cure=f"{key}=<a writable path>") from None


def _nothing(settings: Building, found: Collected) -> DatasetError:
    left_out = ", ".join(f"{reason}: {n}" for reason, n in sorted(found.left_out.items()))
    simulated = "simulated=true takes simulated runs, too; " if not settings.simulated else ""
    return DatasetError(
        "there is nothing to put into the table",
        given=f"left out: {left_out}" if left_out else "no finished characterization in the tracking store",
        cure=f"measure with python -m llmpilot +gpu=... +model=... first; {simulated}"
        "published=true takes the published measurements",
    )


def _show(dataset: Dataset, result: dict[str, Any], found: Collected) -> None:
    table = Table(title=f"{len(dataset)} rows: {len(dataset.models)} models on {result['profiles']} profiles")
    for heading in ("measurement", "rows", "models", "profiles", "fail > 1%"):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for kind in result["by_measurement"]:
        part = dataset.select(dataset.table["measurement"] == kind)
        failing = int((part.table["failure_rate"] > 0.01).sum())
        table.add_row(kind, *(str(n) for n in (len(part), len(part.models), part.profiles, failing)))
    out.print(table)
    for reason, n in result["left_out"].items():
        note(f"left out: {reason}: {n}", style="yellow")
    for remark in found.remarks[:REMARKS]:
        note(f"  {remark}")
    if len(found.remarks) > REMARKS:
        note(f"  ... and {len(found.remarks) - REMARKS} more")
    for key in (*dataset.models, *dataset.gpus):
        if "@" in key:
            note(f"kept apart: {key}, whose facts are not those that its name stands for elsewhere")
    say(f"written to {result['output']}; content hash {dataset.content_hash}")


def _show_measurements(everything: Measurements, path: str | None) -> None:
    table = Table(title=f"{len(everything)} measurements, one level of load each")
    for heading in ("source", "rows", "LLMs", "GPU types", "engines", "in doubt"):
        table.add_column(heading, justify="left" if heading in ("source", "engines") else "right")
    doubt = everything.in_doubt()
    for source, rows in everything.table.groupby("source"):
        engines = ", ".join(sorted(rows["engine"].dropna().unique()))
        counts = (len(rows), rows["model"].nunique(), rows["gpu"].nunique())
        table.add_row(str(source), *map(str, counts), engines, str(int(doubt[rows.index].sum())))
    out.print(table)
    say(f"written to {path}")


def _not_tracked(
    unread: TrackingError | None, tracker: DatasetTracker, output: Path, result: dict[str, Any]
) -> TrackingError:
    uri = redact(tracker.tracking.uri)
    if unread is not None:
        return TrackingError(
            f"{output} holds published measurements only, and is not tracked: {unread.wrong}",
            given=unread.given,
            cure="give the same command again once MLflow answers; runs=false does without your runs",
            result=result,
        )
    return TrackingError(
        f"written to {output}, but not tracked: {tracker.problem}",
        given=f"tracking.uri={uri}",
        cure=f"{tracker.when} give the same command again",
        result=result,
    )
