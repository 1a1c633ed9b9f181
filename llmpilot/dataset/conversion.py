"""Between the two tables: characterizations (medians under users, with facts) and measurements."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.dataset.facts import fingerprint, known_gpus, known_models, single
from llmpilot.dataset.measured_words import engine
from llmpilot.dataset.measurements import CLOSED, Measurements
from llmpilot.dataset.published import LICENCE
from llmpilot.dataset.published import SOURCE as PAPER
from llmpilot.dataset.table import Dataset, frame_of

FIGURES = {
    "users": "concurrency",
    "nttft_ms": "nttft_ms_p50",
    "itl_ms": "itl_ms_p50",
    "ttft_ms": "ttft_ms_p50",
    "e2e_ms": "e2e_ms_p50",
    "nttft_ms_p95": "nttft_ms_p95",
    "itl_ms_p95": "itl_ms_p95",
    "throughput_tok_s": "throughput_out_tok_s",
    "failure_rate": "failures",
    "requests": "n_requests",
}
"""A characterization's columns, and what they are among measurements."""
SAME = ("workload", "max_batch_weight", "measurement", "hardware", "source", "run_id")


def to_measurements(dataset: Dataset) -> Measurements:
    """Return a row of measurements for each row of the data set, in its order.

    LLMs go by their Hugging Face ids and GPU types by their options where their facts are the catalogue's,
    else by the data set's keys. Every value of a figure stays what it is.
    """
    table = dataset.table
    rows = pd.DataFrame({ours: table[name].astype("float64") for name, ours in FIGURES.items()})
    rows["model"] = table["model"].map({key: model_id(one, key) for key, one in dataset.models.items()})
    rows["gpu"] = table["gpu"].map({key: gpu_option(one, key) for key, one in dataset.gpus.items()})
    rows["n_gpus"] = rows["tp"] = table["count"].astype("float64")
    rows["engine"] = table["engine"].map(engine, na_action="ignore")
    rows["load_kind"] = CLOSED
    rows["length_kind"] = ["workload" if name is not None else None for name in table["workload"]]
    rows["spec_decode"] = ["none" if kind == "published" else None for kind in table["measurement"]]
    rows["licence"] = [LICENCE if str(source).startswith(PAPER) else None for source in table["source"]]
    for name in SAME:
        rows[name] = table[name].astype("float64") if name == "max_batch_weight" else table[name]
    return Measurements(rows)


def to_dataset(measurements: Measurements) -> Dataset:
    """Return the rows that are characterizations, with the catalogue's facts of what they name.

    Those are closed loops with a median nTTFT and ITL above 0 and a whole number of users, of an LLM and a
    GPU type of the catalogue. All other rows are left out.
    """
    table = measurements.table
    models = {model_id(one, name): one for name, one in known_models().items()}
    models |= {one.name: one for one in known_models().values()}
    gpus = catalog.gpus()
    usable = (
        (table["load_kind"] == CLOSED)
        & table["measurement"].notna()
        & (table["nttft_ms_p50"] > 0)
        & (table["itl_ms_p50"] > 0)
        & (table["concurrency"] % 1 == 0)
        & table["n_gpus"].notna()
        & table["model"].isin(models)
        & table["gpu"].isin(gpus)
    )
    rows = []
    for row in table[usable].to_dict("records"):
        cell = {name: row[ours] for name, ours in FIGURES.items()} | {name: row[name] for name in SAME}
        named = {"model": models[row["model"]].name, "gpu": gpus[row["gpu"]].name, "count": row["n_gpus"]}
        rows.append(cell | named | {"engine": row["engine"]})
    known = known_models()
    return Dataset(
        frame_of(rows),
        {row["model"]: known[row["model"]] for row in rows},
        {row["gpu"]: known_gpus()[row["gpu"]] for row in rows},
    )


def model_id(model: Model, key: str) -> str:
    """Return what a table of measurements calls an LLM that a data set has under `key`.

    Its Hugging Face id, where its facts are what that id stands for as far as we know.
    """
    ours = known_models().get(key)
    known = fingerprint(ours) == fingerprint(model) if ours is not None else "@" not in key
    return model.hf_id if known and "/" in model.hf_id else key


def gpu_option(gpu: Gpu, key: str) -> str:
    """Return what a table of measurements calls a GPU type that a data set has under `key`."""
    options: Mapping[str, Any] = catalog.gpus()
    same = (name for name, one in options.items() if one.name == key)
    return next((name for name in same if fingerprint(single(options[name])) == fingerprint(gpu)), key)
