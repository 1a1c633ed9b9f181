"""One table of measurements: a row is one level of load on one service, from anywhere. No I/O.

Owns the columns, their units and what a value may be. Where rows come from, and what a source's own words
mean, is said in `measured_words`, `measured_notes` and `measured_file`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmpilot.dataset.table import MEASUREMENTS as KINDS
from llmpilot.errors import PilotError, did_you_mean

Mask = npt.NDArray[np.bool_]

LATENCIES = ("ttft_ms", "nttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "unspec")
"""`unspec`: the source does not say which statistic it states."""
LATENCY_COLUMNS = tuple(f"{latency}_{statistic}" for latency in LATENCIES for statistic in STATISTICS)
THROUGHPUTS = ("throughput_req_s", "throughput_out_tok_s", "throughput_total_tok_s")
FIGURES = (*LATENCY_COLUMNS, *THROUGHPUTS)

CLOSED = "closed concurrency"
OPEN = "request rate"
BATCH = "offline batch"
AT_ONCE = "all requests at once"
"""The kinds of load that are understood; a row with another one is kept, and nothing can be done with it."""
LENGTH_KINDS = ("fixed", "uniform", "mean", "dataset", "workload")

PRECISIONS = ("bf16", "fp8", "nvfp4", "mxfp4", "int4")
KV_PRECISIONS = ("bf16", "fp8")
SPECULATION = ("none", "yes", "not stated")

COUNTS = (
    *("n_gpus", "tp", "pp", "dp", "ep", "moe_tp", "n_requests", "max_num_seqs", "max_num_batched_tokens"),
    *("max_model_len", "kv_cache_tokens", "max_batch_weight", "spec_tokens"),
)
"""Whole numbers of at least 1."""
AMOUNTS = ("input_tokens", "output_tokens", "concurrency", "request_rate")
"""Numbers above 0."""
SHARES = ("length_min_share", "prefix_hit_share", "memory_share", "failures")
"""Numbers from 0 to 1."""
CHECKS = ("check", "tpot_over_floor")
"""Ratios that whoever collected the rows computed; nothing here reads them."""
NUMBERS = (*COUNTS, *AMOUNTS, *SHARES, *FIGURES, *CHECKS)
YES_OR_NO = ("disaggregated", "chunked_prefill", "prefix_caching", "attention_dp", "eager")
TEXTS = (
    *("source", "source_path", "source_row", "licence", "commit"),
    *("model", "checkpoint", "gpu", "gpu_as_stated", "hardware"),
    *("engine", "engine_version", "image", "server_options"),
    *("precision", "precision_as_stated", "kv_precision", "gemm_quant", "moe_quant"),
    *("length_kind", "workload", "load_kind", "client", "spec_decode"),
    *("date", "measurement", "run_id", "flag", "in_doubt", "notes"),
)
COLUMNS = (
    *("source", "source_path", "source_row", "licence", "commit", "date", "measurement", "run_id"),
    *("model", "checkpoint", "gpu", "gpu_as_stated", "hardware", "n_gpus", "tp", "pp", "dp", "ep", "moe_tp"),
    *("attention_dp", "disaggregated", "engine", "engine_version", "image", "server_options"),
    *("precision", "precision_as_stated", "kv_precision", "gemm_quant", "moe_quant"),
    *("input_tokens", "output_tokens", "length_kind", "length_min_share", "workload"),
    *("load_kind", "concurrency", "request_rate", "n_requests", "client"),
    *("max_num_seqs", "max_num_batched_tokens", "chunked_prefill", "prefix_caching", "prefix_hit_share"),
    *("max_model_len", "memory_share", "kv_cache_tokens", "max_batch_weight", "eager"),
    *("spec_decode", "spec_tokens"),
    "failures",
    *FIGURES,
    *("flag", "in_doubt", *CHECKS, "notes"),
)
ONE_OF = {
    "measurement": KINDS,
    "length_kind": LENGTH_KINDS,
    "precision": PRECISIONS,
    "kv_precision": KV_PRECISIONS,
    "spec_decode": SPECULATION,
}
REQUIRED = ("model", "gpu")
"""No row may lack these."""
LOADS = ("concurrency", "request_rate", "load_kind")
TODAY = ("vllm", "sglang", "trtllm")
LARGEST_NODE_GPUS = 8

MODEL_BASED = "model-based: "
"""Begins a reason of `in_doubt` that rests on what a model predicts, not on the row itself."""
JUDGED = "judged: "
"""Begins a reason of `in_doubt` that is someone's judgement."""
BETWEEN_REASONS = "; "


class MeasurementsError(PilotError):
    """A table of measurements cannot be used."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """Levels of load on services: one row each, in the order given.

    `table` has the columns COLUMNS, then those of `extra`. Numbers are float64, null is NaN; texts and yes
    or no (True, False) are objects, null is None. The README beside this file defines each column.

    Raises:
        MeasurementsError: a column is unknown and not in `extra`, or a value is impossible.
    """

    table: pd.DataFrame
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _typed(self.table, self.extra))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the columns and rows: the same for the same rows, whatever their order."""
        names = list(map(str, self.table.columns))
        columns = [self.table[name].astype(object).where(self.table[name].notna(), None) for name in names]
        rows = sorted(json.dumps(row, default=str) for row in zip(*columns, strict=True))
        return hashlib.sha256(json.dumps([names, rows]).encode()).hexdigest()

    def select(self, mask: Any) -> "Measurements":
        """Return the rows where `mask` [n rows, boolean] is true."""
        return Measurements(self.table[np.asarray(mask, dtype=bool)], self.extra)

    def figure(self, latency: str, statistics: Sequence[str] = STATISTICS) -> pd.Series:
        """Return each row's latency [ms] by the first of `statistics` that it has, or NaN."""
        names = [f"{latency}_{statistic}" for statistic in statistics]
        return self.table[names].bfill(axis=1).iloc[:, 0].rename(latency)

    def in_doubt(self, *, model_based: bool = True, judged: bool = True) -> Mask:
        """Return which rows are in doubt [n rows]; by default for model-based and judged reasons, too."""
        left_out = (*(() if model_based else (MODEL_BASED,)), *(() if judged else (JUDGED,)))

        def doubted(reasons: str | None) -> bool:
            return any(not one.startswith(left_out) for one in (reasons or "").split(BETWEEN_REASONS) if one)

        return np.array([doubted(reasons) for reasons in self.table["in_doubt"]], dtype=bool)

    def closed_loop_today(self) -> Mask:
        """Return which rows are of today's engines under a constant number of users, and comparable [n rows].

        Not disaggregated, no speculative decoding that is known of, at most one node of eight GPUs, and not
        in doubt by a reason that rests on the row itself.
        """
        table = self.table
        mask = (
            table["engine"].isin(TODAY)
            & (table["load_kind"] == CLOSED)
            & table["concurrency"].notna()
            & (table["disaggregated"].ne(True))
            & (table["spec_decode"] != "yes")
            & (table["n_gpus"] <= LARGEST_NODE_GPUS)
        )
        return np.asarray(mask, dtype=bool) & ~self.in_doubt(model_based=False, judged=False)


def joined(*parts: Measurements) -> Measurements:
    """Return all rows of all parts, one part after the other."""
    extra = tuple(dict.fromkeys(name for part in parts for name in part.extra))
    names = [*COLUMNS, *extra]
    # Objects: concatenating columns that are empty in one part would guess their types.
    tables = [part.table.reindex(columns=names).astype(object) for part in parts]
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=names, dtype=object)
    return Measurements(whole, extra)


def _typed(table: pd.DataFrame, extra: Sequence[str]) -> pd.DataFrame:
    """Return the table with all columns, in their order and type, checked."""
    for name in map(str, table.columns):
        if name not in COLUMNS and name not in extra:
            raise MeasurementsError(
                f"there is no column {name} in a table of measurements",
                given=f"columns {', '.join(map(str, table.columns))}",
                cure=f"{did_you_mean(name, COLUMNS)}leave it out, or name it in `extra`",
            )
    if repeated := sorted({str(name) for name in table.columns[table.columns.duplicated()]}):
        raise MeasurementsError(f"the column {repeated[0]} is there twice", cure="keep one of them")
    if missing := [name for name in REQUIRED if name not in table.columns]:
        raise MeasurementsError(
            f"columns are missing: {', '.join(missing)}",
            given=f"columns {', '.join(map(str, table.columns)) or 'none'}",
            cure=f"every row needs {' and '.join(REQUIRED)}",
        )
    table = table.reset_index(drop=True)
    typed = {}
    for name in COLUMNS:
        given = table[name] if name in table.columns else pd.Series(None, index=table.index, dtype=object)
        typed[name] = _number(name, given) if name in NUMBERS else _object(given)
        if name in YES_OR_NO:
            typed[name] = typed[name].map(_truth).astype(object)
    for name in extra:
        typed[name] = table[name] if name in table.columns else pd.Series(None, index=table.index)
    whole = pd.DataFrame(typed, index=table.index)
    _check(whole)
    return whole


def _number(name: str, given: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(given).astype("float64")
    except (TypeError, ValueError):
        numbers = pd.to_numeric(given, errors="coerce")
        row = int(np.flatnonzero(numbers.isna() & given.notna())[0])
        raise MeasurementsError(
            f"the column {name} holds what is no number", given=f"{given.iloc[row]!r} in row {row}"
        ) from None


def _object(given: pd.Series) -> pd.Series:
    return given.astype(object).where(given.notna(), None).astype(object)


def _truth(value: Any) -> Any:
    """Return true or false for what equals it (1, -0.0), which Arrow would not store; else the value."""
    return bool(value) if isinstance(value, int | float | np.bool_) and value in (0, 1) else value


def _check(table: pd.DataFrame) -> None:
    """Refuse what no measurement can be, naming the first row of that kind."""
    for name in COLUMNS:
        values = table[name]
        there = values.notna()
        if name in NUMBERS:
            bad, allowed = _impossible(name, values[there])
        elif name in YES_OR_NO:
            bad, allowed = ~values[there].isin([True, False]), "true or false"
        else:
            bad = ~values[there].map(lambda value: isinstance(value, str)).astype(bool)
            allowed = "a text"
            if name in ONE_OF:
                bad, allowed = ~values[there].isin(ONE_OF[name]), f"one of {', '.join(ONE_OF[name])}"
        wrong = bad[bad].index
        if name in REQUIRED and not there.all():
            wrong, allowed = table.index[~there], "in every row"
        if len(wrong):
            raise MeasurementsError(
                f"{len(wrong)} of {len(table)} rows have an impossible {name}",
                given=f"{name}={values[wrong[0]]} in {described(table, int(wrong[0]))}",
                cure=f"{name} is {allowed}",
            )


def _impossible(name: str, values: pd.Series) -> tuple[pd.Series, str]:
    """Return which of a column's values are impossible, and what is possible."""
    finite = np.isfinite(values)
    if name in COUNTS:
        return ~(finite & (values >= 1) & (values == np.floor(values))), "a whole number of at least 1"
    if name in AMOUNTS:
        return ~(finite & (values > 0)), "a number above 0"
    if name in SHARES:
        return ~values.between(0.0, 1.0), "a share from 0 to 1"
    # A latency of 0 is what coarse clocks and chunks of several tokens give: odd, and possible.
    return ~(finite & (values >= 0)), "a number of at least 0"


def described(table: pd.DataFrame, row: int) -> str:
    """Return what a row is, in a few words, for messages: its place and what it names."""
    names = ("source", "source_row", "model", "gpu", "n_gpus", "engine", "load_kind", "concurrency")
    said = [f"{name}={table[name].iloc[row]}" for name in names if pd.notna(table[name].iloc[row])]
    return f"row {row}: {' '.join(said)}"
