"""Task `import`: results of other load generators as rows of the table of measurements."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from hydra.utils import get_class
from omegaconf import DictConfig
from pydantic import BeforeValidator, PositiveFloat, PositiveInt, model_validator
from rich.table import Table

from llmpilot import catalog
from llmpilot.config import Facts, parse, plain, whole_number
from llmpilot.console import note, out, say
from llmpilot.dataset import Measurements, MeasurementsError, joined, read_measurements, save_measurements
from llmpilot.dataset.conversion import model_id
from llmpilot.dataset.doubts import with_doubts
from llmpilot.dataset.facts import keyed, known_models
from llmpilot.dataset.imports import CURES, Imported, Told, found_files, imported
from llmpilot.dataset.measurements import CLOSED, FIGURES, OPEN
from llmpilot.errors import ConfigError
from llmpilot.files import require_writable

PATHS = "import.paths=[FILE, FOLDER or 'results/*.json']"
SUFFIXES = (".csv", ".parquet")
MOST_GPUS = 10_000
SIZES = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "ep": "expert_parallel",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "memory_share": "gpu_memory_utilization",
    "chunked_prefill": "enable_chunked_prefill",
}
"""Our column -> the engine's setting that says it, where it is not null."""
BESIDE_TP = ("pp", "dp", "ep")
"""Sizes that are 1 by default: they count where tensor_parallel, or another of them, is given."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Importing(Facts):
    """The task's part of the configuration."""

    paths: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    format: str | None = None
    measurement: Literal["measured", "published", "simulated"] = "measured"
    source: str | None = None
    licence: str | None = None
    users: PositiveInt | None = None
    requests_per_s: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_load(self) -> "Importing":
        if self.users is not None and self.requests_per_s is not None:
            raise ValueError("import.users and import.requests_per_s are two loads: give one of them")
        return self

    @property
    def load(self) -> dict[str, Any]:
        """The load of files that do not say theirs, in columns of the table."""
        if self.users is not None:
            return {"load_kind": CLOSED, "concurrency": self.users}
        if self.requests_per_s is not None:
            return {"load_kind": OPEN, "request_rate": self.requests_per_s}
        return {}


def run(cfg: DictConfig) -> dict[str, Any]:
    """Read the files, write their rows into the table, and show what they hold and what they lack.

    Raises:
        ConfigError: an impossible option.
        ImportFailedError: a file that cannot be imported.
        MeasurementsError: a table to be extended that cannot be read, or an impossible value.
    """
    settings = parse(Importing, plain(cfg["import"]), "import")
    output = _output(cfg.output)
    if not settings.paths:
        raise ConfigError("task import needs files to read", cure=f"python -m llmpilot task=import {PATHS}")
    told = Told(
        columns=_told(cfg),
        load=settings.load,
        one_gpu="gpu" in cfg,
        source=settings.source,
        licence=settings.licence,
        measurement=settings.measurement,
    )
    found = found_files(settings.paths, settings.format)
    if output.resolve() in {file.path.resolve() for file, _ in found.files}:
        raise ConfigError(
            "output would overwrite a file that is imported", given=output, cure="output=<another path>.csv"
        )
    new = imported(found, told)
    whole, replaced = _extended(output, new.measurements)
    save_measurements(whole, output)
    result = {
        "rows": len(new.measurements),
        "replaced": replaced,
        "rows_in_table": len(whole),
        "output": str(cfg.output),
        "by_client": _counted(new.measurements, "client"),
        "in_doubt": int(new.measurements.in_doubt().sum()),
        "lacking": new.lacking(),
        "left_out": list(new.remarks),
        "content_hash": whole.content_hash,
    }
    _show(new, result)
    return result


def _output(given: Any) -> Path:
    path = Path(str(given)).expanduser()
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            "the table is a CSV or a Parquet file", given=f"output={given}", cure="output=PATH.csv"
        )
    require_writable(path, "output")
    return path


def _told(cfg: DictConfig) -> dict[str, Any]:
    """Return what the command line says of the service, in the columns of the table."""
    told: dict[str, Any] = {}
    if "model" in cfg:
        model = catalog.build_model(cfg.model)
        (key, _), *_ = keyed([model], known_models()).values()
        told["model"] = model_id(model, key)
    if "gpu" in cfg:
        # Only the type's name: others measure on counts that no list of prices has.
        options = {gpu.name: option for option, gpu in catalog.gpus().items()}
        told["gpu"] = options.get(str(cfg.gpu.name), str(cfg.gpu.name))
        if (gpus := whole_number(cfg.gpu.get("count", 1), "gpu.count", least=1, most=MOST_GPUS)) > 1:
            told["n_gpus"] = gpus
    if cfg.get("engine") is not None:
        told |= _engine(plain(cfg.engine))
    for column in ("precision", "kv_precision", "max_batch_weight"):
        if cfg.get(column) is not None:
            told[column] = cfg[column]
    return told


def _engine(values: Mapping[str, Any]) -> dict[str, Any]:
    kind: Any = get_class(str(values["_target_"]))
    name = str(values.get("serves") or kind.name)
    told: dict[str, Any] = {"engine": name}
    if values.get("version") is not None:
        told["engine_version"] = str(values["version"])
    sizes = {column: values[key] for column, key in SIZES.items() if values.get(key) is not None}
    if "tp" not in sizes and all(sizes.get(name) in (None, 1) for name in BESIDE_TP):
        sizes = {column: value for column, value in sizes.items() if column not in BESIDE_TP}
    return told | sizes


def _extended(output: Path, new: Measurements) -> tuple[Measurements, int]:
    """Return the table with the new rows, and how many of its rows they replace: those of the same files.

    A file that was appended to is another one by its content: its earlier lines are known by their figures.
    """
    if not output.is_file() or not output.stat().st_size:
        return with_doubts(new), 0
    try:
        there = read_measurements(output)
    except MeasurementsError as error:
        raise MeasurementsError(
            f"the table that is there already cannot be extended: {error.wrong}",
            given=error.given,
            cure="output=<another path>.csv, or move the file away",
        ) from None
    same = there.table["source_row"].isin(new.table["source_row"]) & there.table["source_row"].notna()
    again = set(_measured(new))
    same |= pd.Series([one in again for one in _measured(there)], index=same.index, dtype=bool)
    return with_doubts(joined(there.select(~same), new)), int(same.sum())


def _measured(measurements: Measurements) -> list[tuple[str, ...]]:
    """Return of each row in which file it was, as that was named, and all of its figures."""
    table = measurements.table[["source_path", *FIGURES]]
    return [tuple(map(str, row)) for row in table.itertuples(index=False)]


def _counted(measurements: Measurements, column: str) -> dict[str, int]:
    counts = measurements.table[column].value_counts().sort_index()
    return {str(name): int(number) for name, number in counts.items()}


def _show(new: Imported, result: Mapping[str, Any]) -> None:
    table = Table(title=f"{result['rows']} measurements, one level of load each; medians in ms")
    for heading in ("file", "client", "load", "requests", "failed", "TTFT", "ITL", "TPOT", "E2E", "doubts"):
        table.add_column(heading, justify="left" if heading in ("file", "client", "load") else "right")
    for row in new.measurements.table.to_dict("records"):
        latencies = [_number(row[f"{name}_ms_p50"]) for name in ("ttft", "itl", "tpot", "e2e")]
        failed = "-" if pd.isna(row["failures"]) else f"{row['failures']:.1%}"
        counts = (_number(row["n_requests"], "g"), failed)
        doubts = len(row["in_doubt"].split("; ")) if row["in_doubt"] else 0
        name = Path(str(row["source_path"])).name
        table.add_row(name, str(row["client"] or "-"), _load(row), *counts, *latencies, str(doubts or "-"))
    out.print(table)
    for remark in new.remarks:
        note(remark, style="yellow")
    for column, said in (("in_doubt", "in doubt"), ("flag", "flagged")):
        for reasons, rows in new.measurements.table.groupby(column):
            note(f"{said}, {len(rows)} of {result['rows']} rows: {reasons}", style="yellow")
    for name, rows in result["lacking"].items():
        cure = f"; add {CURES[name]}" if name in CURES else ""
        note(f"lacking in {rows} of {result['rows']} rows: {name}{cure}")
    replaced = f", {result['replaced']} rows of the same files replaced" if result["replaced"] else ""
    say(f"written to {result['output']}: {result['rows_in_table']} rows{replaced}")


def _load(row: Mapping[Any, Any]) -> str:
    if not pd.isna(row["concurrency"]):
        return f"{row['concurrency']:g} users"
    if not pd.isna(row["request_rate"]):
        return f"{row['request_rate']:g} requests/s"
    return str(row["load_kind"] or "-")


def _number(value: Any, digits: str = ".1f") -> str:
    return "-" if pd.isna(value) else f"{value:{digits}}"
