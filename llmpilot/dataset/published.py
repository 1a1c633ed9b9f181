"""The published measurements: the table that ships with LLM-Pilot, and its computation from raw requests.

The raw requests are IBM/LLM-performance-prediction's (the LLM-Pilot paper, arXiv 2410.02425),
CDLA-Permissive-2.0; README.md beside this file defines every column. They are read a row group at a time.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot import catalog
from llmpilot.dataset.facts import PAPER_PRICES, known_gpus
from llmpilot.dataset.table import COLUMNS, KEYS, Dataset, DatasetError, frame_of
from llmpilot.files import write_text
from llmpilot.simulator.recordings import CATALOGUE, OK, WINDOW_S, summarize

SHIPPED = Path(__file__).parent / "published.csv"
SOURCE = "IBM/LLM-performance-prediction"
LICENCE = "CDLA-Permissive-2.0"
STATED = f"{SOURCE}, stated medians"
"""Marks the cells whose raw requests are not published, but whose medians are."""
COMMENT = (
    f"# Computed by `python -m llmpilot task=dataset raw=requests.parquet refresh=PATH` from {SOURCE},\n"
    "# licence CDLA-Permissive-2.0; README.md beside this file says how.\n"
)
GPU_NAMES = {"A100": "A100-40GB"}
"""The data's GPU names, where the catalogue has another."""
RAW_KEYS = ("model", "gpu", "n_gpus", "users")
RAW_COLUMNS = (*RAW_KEYS, "status", "input_tokens", "output_tokens", "token_gaps_ms")
EVERY_ROW = {"engine": "tgis", "workload": "paper", "measurement": "published"}
FIGURES = ("nttft_ms", "itl_ms", "ttft_ms", "e2e_ms", "nttft_ms_p95", "itl_ms_p95", "throughput_tok_s")
COMPARED = (*FIGURES, "failure_rate", "requests")
STATED_CELLS = (
    {"model": "llama_7b", "nttft_ms": 5.277443105756358, "itl_ms": 53.0},
    {"model": "starcoder", "nttft_ms": 6.102272727272728, "itl_ms": 50.0},
)
STATED_AT = {"gpu": "H100", "count": 4, "users": 128, "source": STATED}


def published() -> Dataset:
    """Return the shipped table, 528 rows, with the catalogue's facts of its ten LLMs and five GPU types.

    Raises:
        ConfigError: the catalogue lacks one of these LLMs.
        DatasetError: it lacks one of these GPU types.
    """
    lines = (line for line in SHIPPED.read_text(encoding="utf-8").splitlines() if line[0] != "#")
    # Python's own float reads every digit, which pandas' does by default from version 3 on only.
    exact = dict.fromkeys(FIGURES, float) | {"failure_rate": float}
    return _with_facts(
        frame_of(
            [
                {name: exact.get(name, str)(text) if text else None for name, text in row.items()}
                for row in csv.DictReader(lines)
            ]
        )
    )


def from_requests(path: Path) -> Dataset:
    """Return the table of the raw requests in `path`, and the cells that are published as medians only.

    Raises:
        DatasetError: no such file, not Parquet, columns missing, or a cell spread over row groups.
    """
    file = _open(path)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for index in range(file.num_row_groups):
        group = file.read_row_group(index, columns=list(RAW_COLUMNS))
        for key, cell in _cells(group):
            if key in rows:
                raise DatasetError(
                    "a cell is spread over several row groups",
                    given=f"{path}: {dict(zip(RAW_KEYS, map(str, key), strict=True))}",
                    cure=f"sort the file by {', '.join(RAW_KEYS)}, one row group a cell",
                )
            model, gpu, count, users = key
            named = {
                "model": CATALOGUE.get(model, model),
                "gpu": GPU_NAMES.get(gpu, gpu),
                "count": count,
                "users": users,
                "source": SOURCE,
            }
            rows[key] = named | EVERY_ROW | _figures(cell)
    cells = list(rows.values())
    there = {tuple(cell[name] for name in KEYS) for cell in cells}
    for stated in STATED_CELLS:
        cell = stated | STATED_AT | EVERY_ROW
        if tuple(cell[name] for name in KEYS) not in there:
            cells.append(cell)
    unusable = [cell for cell in cells if np.isnan([cell["nttft_ms"], cell["itl_ms"]]).any()]
    if unusable:
        raise DatasetError(
            "no request of a cell succeeded: it has no latencies",
            given=f"{path}: {[unusable[0][name] for name in KEYS]}",
            cure="leave the cell out of the file",
        )
    return _with_facts(frame_of(cells))


def difference(ours: Dataset, theirs: Dataset) -> float | None:
    """Return the largest relative difference of a figure over all cells; None: their cells are not the same.

    A figure that only one of them has is infinitely different.
    """
    left, right = (
        one.table.set_index(list(KEYS))[list(COMPARED)].astype("float64") for one in (ours, theirs)
    )
    if not left.index.equals(right.index):
        return None
    a, b = left.to_numpy(), right.to_numpy()
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.finfo(float).tiny)
    relative = np.where(same, 0.0, np.nan_to_num(np.abs(a - b) / scale, nan=np.inf))
    return float(relative.max(initial=0.0))


def write_shipped(dataset: Dataset, path: Path) -> None:
    """Write a table of published measurements as it ships: CSV, floats with every digit."""
    write_text(path, COMMENT + dataset.table.to_csv(index=False, columns=list(COLUMNS), lineterminator="\n"))


def _with_facts(table: pd.DataFrame) -> Dataset:
    models = catalog.models(sorted(set(table["model"])))
    return Dataset(table, models, known_gpus(catalog.price_list(PAPER_PRICES)))


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DatasetError(
            "there is no such file", given=path, cure="raw=PATH of the paper's requests.parquet"
        )
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(
            "this is no Parquet file",
            given=f"{path}: {error}",
            cure="raw=PATH of the paper's requests.parquet",
        ) from None
    if missing := sorted(set(RAW_COLUMNS) - set(file.schema_arrow.names)):
        raise DatasetError(
            f"columns are missing: {', '.join(missing)}",
            given=f"{path} has {', '.join(file.schema_arrow.names)}",
            cure="the columns of the paper's requests.parquet are needed, with their names",
        )
    return file


def _cells(group: pa.Table) -> list[tuple[tuple[Any, ...], pa.Table]]:
    """Return the requests of each cell in a row group; in the published file there is one."""
    keys = group.select(list(RAW_KEYS)).to_pandas()
    indices = keys.groupby(list(RAW_KEYS), sort=False).indices
    return [(key, group.take(pa.array(rows))) for key, rows in indices.items()]


def _figures(cell: pa.Table) -> dict[str, float | int]:
    """Return a cell's figures over its successful requests, as the paper defines them; latencies in ms.

    Of a request's reports, the first is the wait before the stream opened, which the paper does not count;
    the second is its TTFT, the others its inter-token gaps. From sending to the last token is all of them.
    """
    ok = cell.filter(pa.array(cell["status"].to_numpy() == OK))
    reports = ok["token_gaps_ms"].combine_chunks()
    offsets = reports.offsets.to_numpy().astype(np.int64)
    values = reports.values.to_numpy().astype(np.float64)
    starts, lengths = offsets[:-1], np.diff(offsets)
    within = np.arange(offsets[0], offsets[-1]) - np.repeat(starts, lengths)
    spoken = lengths > 1
    inputs, outputs = ok["input_tokens"].to_numpy(), ok["output_tokens"].to_numpy()
    ttft_ms = values[starts[spoken] + 1]
    total = np.concatenate([[0.0], np.cumsum(values)])
    e2e_ms = (total[offsets[1:]] - total[offsets[:-1]])[spoken]
    gaps_ms = values[offsets[0] : offsets[-1]][within >= 2]
    summary = summarize(ttft_ms, gaps_ms, inputs[spoken].astype(np.int64), outputs, WINDOW_S)
    nttft_ms = ttft_ms / inputs[spoken]
    return {
        "nttft_ms": summary.nttft_ms_p50,
        "itl_ms": summary.itl_ms_p50,
        "ttft_ms": summary.ttft_ms_p50,
        "e2e_ms": float(np.median(e2e_ms)) if len(e2e_ms) else np.nan,
        "nttft_ms_p95": float(np.percentile(nttft_ms, 95)) if len(nttft_ms) else np.nan,
        "itl_ms_p95": summary.itl_ms_p95,
        "throughput_tok_s": summary.throughput_tok_s,
        "failure_rate": 1 - len(ok) / len(cell),
        "requests": len(cell),
    }
