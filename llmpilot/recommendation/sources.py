"""What a recommendation rests on: the data set, the user's own runs, the description of the model."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpilot import catalog
from llmpilot.config import DEFAULT_TRACKING_URI, Model, Tracking
from llmpilot.console import note
from llmpilot.dataset import (
    Dataset,
    MeasurementsError,
    from_runs,
    load,
    merge,
    published,
    read_measurements,
)
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.hf_config import model_from_hf_config
from llmpilot.predict.service.knowledge import Knowledge, shipped_knowledge
from llmpilot.predict.service.own_levels import OwnLevel, levels_in, own_levels
from llmpilot.tracking_store import sqlite_file

PUBLISHED = "published"


def data_of(dataset: str | Path, tracking: Tracking | None, *, simulated: bool = False) -> Dataset:
    """Return the published measurements or those in a file, with the user's own runs of the tracking store.

    `tracking` None does without own runs; so does the default store where it does not exist yet. What was
    simulated is left out, unless asked for.

    Raises:
        ConfigError: a tracking store was named, and does not exist.
        DatasetError: no such file, or no data set.
        TrackingError: the tracking store cannot be read.
    """
    data = stored(dataset)
    if tracking is not None and _is_there(tracking.uri):
        data = with_fresh(data, from_runs(tracking, simulated=simulated))
    return data if simulated else measured_only(data)


def knowledge_of(
    tracking: Tracking | None, table: str | Path | None = None, models: Mapping[str, Model] | None = None
) -> Knowledge:
    """Return what is known of today's services: what ships, and the user's own measured runs of them.

    `tracking` None does without own runs; so does the default store where it does not exist yet. `table` is a
    file of further measurements, as task=import writes it; `models` are of its LLMs that the catalogue lacks.

    Raises:
        ConfigError: a tracking store was named, and does not exist.
        MeasurementsError: the table cannot be read, or no row of it says anything.
        TrackingError: the tracking store cannot be read.
    """
    known = shipped_knowledge()
    if tracking is not None and _is_there(tracking.uri):
        known = known.conditioned_on(own_levels(tracking))
    return known if table is None else known.conditioned_on(_levels_in(Path(table), models or {}))


def _levels_in(path: Path, models: Mapping[str, Model]) -> list[OwnLevel]:
    levels, left_out = levels_in(read_measurements(path.expanduser()), models)
    reasons = [f"{reason}: {rows}" for reason, rows in sorted(left_out.items())]
    if not levels:
        raise MeasurementsError(
            "no row of the table tells how fast a service of today is",
            given=f"measurements={path}: {'; '.join(reasons) or 'it has no rows'}",
            cure="rows need engine, gpu, model, lengths, a load and a TPOT: llmpilot/dataset/README.md",
        )
    for reason in reasons:
        note(f"left out of {path}: {reason}", style="yellow")
    return levels


def stored(dataset: str | Path) -> Dataset:
    """Return the published measurements, or those in a file.

    Raises:
        DatasetError: no such file, or no data set.
    """
    return published() if str(dataset) == PUBLISHED else load(Path(dataset).expanduser())


def with_fresh(data: Dataset, own: Dataset) -> Dataset:
    """Return the data with those own runs that a file does not hold already."""
    fresh = own.select(~own.table["run_id"].isin(set(data.table["run_id"].dropna())))
    return merge(data, fresh) if len(fresh) else data


def measured_only(data: Dataset) -> Dataset:
    """Return the rows that were not simulated; say how many were."""
    simulated = (data.table["measurement"] == "simulated").to_numpy(bool)
    if not simulated.any():
        return data
    note(f"left out: {int(simulated.sum())} simulated rows; simulated=true takes them", style="yellow")
    return data.select(~simulated)


def _is_there(uri: str) -> bool:
    """Whether a local store exists: to ask one that does not would make it. One that was named has to."""
    path = sqlite_file(uri)
    if path is None or path.exists():
        return True
    if uri != DEFAULT_TRACKING_URI or os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            f"there is no tracking store {path}: own runs cannot be read",
            given=f"tracking.uri={uri}",
            cure="name another (tracking.uri=..., MLFLOW_TRACKING_URI); runs=false does without own runs",
        )
    return False


def model_of(model: str | Path | Mapping[str, Any] | Model) -> Model:
    """Return the facts of a model: of the catalogue by name or id, or from a config.json or its content.

    Raises:
        ConfigError: neither a name of the catalogue nor a file, or the config cannot be used.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, Mapping):
        with tempfile.TemporaryDirectory(prefix="llmpilot-") as folder:
            hub = str(model.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
            # Whoever asks names the file: only by what every file system takes.
            file = Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '-', hub)[:100] or 'model'}.json"
            file.write_text(json.dumps(dict(model)), encoding="utf-8")
            return model_from_hf_config(file)
    known = catalog.options("model")
    if isinstance(model, str) and model in known:
        return catalog.models([model])[model]
    if Path(model).expanduser().exists():
        return model_from_hf_config(Path(model).expanduser())
    if isinstance(model, str) and (found := catalog.model_of_hf_id(model)) is not None:
        return found
    raise ConfigError(
        f"there is no model {str(model)!r}, and no such file",
        given=f"model={model}",
        cure=f"{did_you_mean(str(model), known)}there are {', '.join(known)}; or the path of a config.json",
    )
