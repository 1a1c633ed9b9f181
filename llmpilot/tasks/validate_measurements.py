"""Task `validate` on a table of measurements: every row simulated, and how far off that is."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from pydantic import PositiveInt
from rich.table import Table

from llmpilot import catalog, console
from llmpilot.config import Facts, Model, parse
from llmpilot.dataset.measured_file import CURE, read_measurements, read_table
from llmpilot.dataset.measurements import Measurements, MeasurementsError
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.errors import ConfigError
from llmpilot.files import replacing, require_writable
from llmpilot.predict.service.validation import METRICS, Prediction, predict
from llmpilot.processes import workers

SHIPPED = "shipped"
SHOWN = 12
"""Groups of rows on the screen; all are in the result."""


class ValidationOfRows(Facts):
    """The task's part of the configuration."""

    measurements: str
    models: str | None = None
    left_out: Literal["model", "gpu", "engine_version", "configuration", "level", "other_levels"] | None = (
        None
    )
    predictions_file: str | None = None
    workers: PositiveInt = 2


def run(cfg: DictConfig) -> dict[str, Any]:
    """Predict every row that can be simulated, and return how far off that is, as `result_file` holds it.

    Raises:
        ConfigError: an impossible option, or a folder without models.
        MeasurementsError: the table cannot be read.
    """
    keys = ("measurements", "models", "left_out", "predictions_file", "workers")
    settings = parse(ValidationOfRows, {key: cfg[key] for key in keys}, "validate")
    if settings.predictions_file is not None:
        _require_parquet(Path(settings.predictions_file))
    given, measurements = read_rows(settings.measurements)
    models = _models(settings.models)
    with workers(settings.workers) as run_on:
        found = predict(measurements, models, settings.left_out, run_on, console.note)
    result = summary(found)
    if settings.predictions_file is not None:
        _save(Path(settings.predictions_file), given, found)
    _show(result, settings)
    return result


def _require_parquet(path: Path) -> None:
    if path.suffix != ".parquet":
        raise ConfigError(
            "predictions are a Parquet file", given=path, cure=f"predictions_file={path.stem}.parquet"
        )
    require_writable(path.expanduser().resolve(), "predictions_file")


def _save(path: Path, given: pd.DataFrame, found: Prediction) -> None:
    """Write the rows as they were given, with what was predicted of each."""
    columns = [name for name in found.table.columns if name.startswith("predicted_") or name == "skipped"]
    predicted = found.table[columns].reset_index(drop=True)
    whole = given.drop(columns=[name for name in columns if name in given]).join(predicted)
    path = path.expanduser()
    try:
        with replacing(path) as temporary:
            whole.to_parquet(temporary, index=False)
    except OSError as error:
        raise ConfigError(
            f"predictions cannot be written: {error.strerror or error}",
            given=path,
            cure="predictions_file=<a writable path>.parquet",
        ) from None


def read_rows(name: str) -> tuple[pd.DataFrame, Measurements]:
    """Return a file's rows as they are, and as measurements.

    Of those that ship, the comparable ones: see Measurements.closed_loop_today.

    Raises:
        MeasurementsError: the table cannot be read, or has no rows.
    """
    if name == SHIPPED:
        shipped = shipped_measurements()
        chosen = shipped.select(shipped.closed_loop_today() & ~shipped.in_doubt())
        return chosen.table, chosen
    path = Path(name).expanduser()
    measurements = read_measurements(path)
    if not len(measurements):
        raise MeasurementsError("the table has no rows", given=path, cure=CURE)
    return read_table(path).reset_index(drop=True), measurements


def _models(folder: str | None) -> dict[str, Model]:
    if folder is None:
        return {}
    known, refused = catalog.models_in_folder(folder)
    for name, error in refused.items():
        console.note(f"{name} is left out: {error.wrong}", style="yellow")
    return known


def summary(found: Prediction) -> dict[str, Any]:
    """Return how far off predictions are: over all rows, and by engine, GPU type, model and source."""
    table, judged = found.table, found.judged
    judged = judged.assign(
        error=(judged["predicted"] / judged["measured"] - 1).abs(),
        bias=judged["predicted"] / judged["measured"],
        within=(judged["measured"] >= judged["low"]) & (judged["measured"] <= judged["high"]),
    )
    rows = table["skipped"].isna()
    reasons = table["skipped"].dropna().value_counts()
    by = []
    names = ["engine", "gpu", "model", "source"]
    given = table[names].reset_index(drop=True)
    of_row = judged.join(given, on="row")
    of_row[names] = of_row[names].astype(object).fillna("")
    for key, part in of_row.groupby(names, sort=True):
        one: dict[str, Any] = dict(zip(names, (value or None for value in key), strict=True))
        one["rows"] = int(part["row"].nunique())
        for metric in METRICS:
            errors = part[part["metric"] == metric]
            one[f"{metric}_median"] = _rounded(errors["error"].median())
            one[f"{metric}_bias"] = _rounded(errors["bias"].median())
        tpot = part[part["metric"] == "tpot"]
        one["within_80"] = _rounded((tpot if len(tpot) else part)["within"].mean())
        by.append(one)
    return {
        "rows": int(rows.sum()),
        "skipped": {str(reason): int(n) for reason, n in reasons.items()},
        "errors": {
            metric: {
                "rows": len(part),
                "median": _rounded(part["error"].median()),
                "mean": _rounded(part["error"].mean()),
                "bias": _rounded(part["bias"].median()),
                "within_80": _rounded(part["within"].mean()),
            }
            for metric in METRICS
            if len(part := judged[judged["metric"] == metric])
        },
        "by": by,
    }


def _rounded(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _show(result: dict[str, Any], settings: ValidationOfRows) -> None:
    without = "nothing left out" if settings.left_out is None else f"without each row's {settings.left_out}"
    table = Table(title=f"predicted against measured, {without}")
    for heading in ("", "rows", "median error", "mean error", "bias", "in 80% interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for metric, errors in result["errors"].items():
        figures = (f"{errors['median']:.1%}", f"{errors['mean']:.1%}", f"{errors['bias']:.2f}")
        table.add_row(metric, str(errors["rows"]), *figures, f"{errors['within_80']:.0%}")
    console.out.print(table)
    groups = sorted(result["by"], key=lambda one: -one["rows"])[:SHOWN]
    if groups:
        listed = Table(title="the largest groups")
        for heading in ("engine", "gpu", "model", "rows", "TPOT", "bias", "TTFT"):
            listed.add_column(heading, justify="left" if heading in ("engine", "gpu", "model") else "right")
        for one in groups:
            names = [str(one[name] or "-") for name in ("engine", "gpu", "model")]
            errors = [_percent(one["tpot_median"]), _ratio(one["tpot_bias"]), _percent(one["ttft_median"])]
            listed.add_row(*names[:2], names[2].split("/")[-1], str(one["rows"]), *errors)
        console.out.print(listed)
    for reason, n in result["skipped"].items():
        console.note(f"{n} rows cannot be simulated: {reason}", style="yellow")
    if not result["rows"]:
        console.note("nothing was judged", style="yellow")
    if settings.predictions_file is not None:
        console.say(f"predictions written to {settings.predictions_file}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
