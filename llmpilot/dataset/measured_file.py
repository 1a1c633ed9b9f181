"""Tables of measurements as files: Parquet or CSV, ours or anyone's, and what ships with LLM-Pilot."""

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot.dataset import measured_notes, measured_words
from llmpilot.dataset.measurements import (
    AT_ONCE,
    BATCH,
    CLOSED,
    COLUMNS,
    FIGURES,
    LENGTH_KINDS,
    LOADS,
    NUMBERS,
    OPEN,
    REQUIRED,
    SPECULATION,
    TEXTS,
    YES_OR_NO,
    Measurements,
    MeasurementsError,
)
from llmpilot.errors import did_you_mean
from llmpilot.files import replacing

CURE = "measurements=PATH of a Parquet or CSV file whose columns are those of llmpilot/dataset/README.md"
NOTHING = {"", "nan", "none", "null", "n/a", "na", "<na>"}
TRUE, FALSE = {"true", "yes", "1", "1.0"}, {"false", "no", "0", "0.0"}
PARQUET, CSV = {".parquet", ".pq"}, {".csv", ".gz"}


def read_measurements(path: Path, *, extra: Literal["keep", "refuse"] = "keep") -> Measurements:
    """Return the measurements of a file, one row each, in the file's order.

    Columns that are missing are empty. Names of engines, GPU types and precisions become the table's own
    (`gpu_as_stated` and `precision_as_stated` keep the words), and what is only said in `notes` is read into
    columns. `extra="keep"` keeps unknown columns behind the known ones; `"refuse"` refuses them.

    Raises:
        MeasurementsError: no such file, another kind of file, columns missing, or an impossible value.
    """
    try:
        return measurements_of(read_table(path), extra=extra)
    except MeasurementsError as error:
        if error.given is not None and str(path) in str(error.given):
            raise
        given = f"{path}: {error.given}" if error.given is not None else path
        raise MeasurementsError(error.wrong, given=given, cure=error.cure or CURE) from None


def read_table(path: Path) -> pd.DataFrame:
    """Return the file's rows and columns as they are.

    Raises:
        MeasurementsError: no such file, or neither Parquet nor CSV.
    """
    suffix = path.suffix.lower()
    if suffix not in PARQUET | CSV:
        raise MeasurementsError("this is neither a Parquet nor a CSV file", given=path, cure=CURE)
    if not path.is_file():
        raise MeasurementsError("there is no such file", given=path, cure=CURE)
    try:
        if suffix in PARQUET:
            frame: pd.DataFrame = pq.ParquetFile(path).read().to_pandas()
            return frame
        # Texts stay texts (a version 0.20 is no 0.2), and numbers keep every digit.
        return pd.read_csv(
            path,
            low_memory=False,
            comment="#" if _commented(path) else None,
            dtype=dict.fromkeys(TEXTS, str),
            float_precision="round_trip",
        )
    except (pa.ArrowException, OSError, ValueError, pd.errors.ParserError) as error:
        raise MeasurementsError("the file cannot be read", given=f"{path}: {error}", cure=CURE) from None


def measurements_of(table: pd.DataFrame, *, extra: Literal["keep", "refuse"] = "keep") -> Measurements:
    """Return the measurements of a table of any source's words, one row each, in its order.

    Raises:
        MeasurementsError: columns are missing, unknown ones are refused, or a value is impossible.
    """
    table = table.rename(columns=lambda name: str(name).strip())
    _require_columns(table)
    more = tuple(name for name in table.columns if name not in COLUMNS)
    if more and extra == "refuse":
        raise MeasurementsError(
            f"there is no column {more[0]} in a table of measurements",
            given=f"unknown columns {', '.join(more)}",
            cure=f"{did_you_mean(more[0], COLUMNS)}leave it out",
        )
    known = table[[name for name in table.columns if name in COLUMNS]].reset_index(drop=True)
    plain = [_plain(name, known[name]) for name in known.columns]
    rows = [
        _in_our_words(measured_notes.filled(dict(zip(known.columns, row, strict=True))))
        for row in zip(*plain, strict=True)
    ]
    # A row that lacks what others have got is filled with NaN, which no text may be; Measurements nulls it.
    read = pd.DataFrame(rows, columns=list(dict.fromkeys([*known, *(name for row in rows for name in row)])))
    return Measurements(pd.concat([read, table[list(more)].reset_index(drop=True)], axis=1), more)


def save_measurements(measurements: Measurements, path: Path) -> None:
    """Write the measurements to a Parquet file, whole or not at all; `read_measurements` gives them back.

    To a CSV file where the path ends so: without the columns that are empty in all rows.

    Raises:
        MeasurementsError: it cannot be written there.
    """
    try:
        with replacing(path) as temporary:
            if path.suffix.lower() == ".csv":
                table = measurements.table
                there = [name for name in table.columns if name in REQUIRED or table[name].notna().any()]
                table[there].to_csv(temporary, index=False, lineterminator="\n")
                return
            schema = _schema(measurements)
            whole = pa.Table.from_pandas(measurements.table, schema=schema, preserve_index=False)
            pq.write_table(whole, temporary, compression="zstd", compression_level=19)
    except OSError as error:
        raise MeasurementsError(
            f"cannot write there: {error.strerror or error}", given=path, cure="a path that is writable"
        ) from None


def _schema(measurements: Measurements) -> pa.Schema:
    kinds = {name: pa.float64() for name in NUMBERS} | {name: pa.bool_() for name in YES_OR_NO}
    fields = [(name, kinds.get(name, pa.string())) for name in COLUMNS]
    extra = pa.Schema.from_pandas(measurements.table[list(measurements.extra)], preserve_index=False)
    return pa.schema([*(pa.field(*field) for field in fields), *extra])


def _commented(path: Path) -> bool:
    return path.suffix == ".csv" and path.read_bytes()[:4].removeprefix(codecs.BOM_UTF8)[:1] == b"#"


def _require_columns(table: pd.DataFrame) -> None:
    given = f"columns {', '.join(map(str, table.columns)) or 'none'}"
    if missing := [name for name in REQUIRED if name not in table.columns]:
        raise MeasurementsError(
            f"columns are missing: {', '.join(missing)}",
            given=given,
            cure=f"a table of measurements needs {' and '.join(REQUIRED)} in every row",
        )
    if not set(LOADS) & set(table.columns):
        raise MeasurementsError(
            "no column says what the load was", given=given, cure=f"at least one of {', '.join(LOADS)}"
        )
    if not set(FIGURES) & set(table.columns):
        raise MeasurementsError(
            "no column holds a figure that was measured",
            given=given,
            cure="at least one of ttft_ms_p50, tpot_ms_mean, throughput_out_tok_s ...",
        )


def _plain(name: str, values: pd.Series) -> list[Any]:
    """Return a column as plain objects: numbers, true or false, texts; every kind of missing is None."""
    missing = values.isna()
    if name in NUMBERS:
        numbers = pd.to_numeric(values, errors="coerce").astype("float64")
        for row in np.flatnonzero(numbers.isna() & ~missing):
            if not _says_nothing(values.iloc[row]):
                raise MeasurementsError(
                    f"the column {name} holds what is no number",
                    given=f"{values.iloc[row]!r} in row {row}",
                    cure="numbers only, without units or separators; empty where unknown",
                )
        return [None if np.isnan(number) else number for number in numbers.tolist()]
    plain: Callable[[Any], Any] = _yes_or_no if name in YES_OR_NO else _text
    if name == "spec_decode":  # "none" says that there is no speculative decoding
        plain = str
    return [
        None if nothing else plain(value) for value, nothing in zip(values.tolist(), missing, strict=True)
    ]


def _says_nothing(value: Any) -> bool:
    return str(value).strip().lower() in NOTHING


def _yes_or_no(value: Any) -> Any:
    word = str(value).strip().lower()
    if word in TRUE | FALSE:
        return word in TRUE
    return None if word in NOTHING else value


def _text(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of row numbers, some of them missing
    return None if _says_nothing(value) else str(value).strip()


def _in_our_words(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the names that the table uses, and with what follows from its other values."""
    model = str(row.get("model") or "")
    if gpu := row.get("gpu"):
        row["gpu"] = measured_words.gpu(gpu)
        if row["gpu"] != gpu:
            row["gpu_as_stated"] = row.get("gpu_as_stated") or gpu
    if engine := row.get("engine"):
        row["engine"] = measured_words.engine(engine)
    if word := row.get("precision"):
        row["precision"] = measured_words.precision(word, model)
        if row["precision"] != word:
            row["precision_as_stated"] = row.get("precision_as_stated") or word
    else:
        row["precision"] = measured_notes.stated_precision(row)
    if word := row.get("kv_precision"):
        row["kv_precision"] = measured_words.kv_precision(word)
    if kind := row.get("length_kind"):
        row["length_kind"] = next((one for one in LENGTH_KINDS if kind.startswith(one)), "mean")
    if (word := row.get("spec_decode")) and word not in SPECULATION:
        row["spec_decode"] = "none" if word.lower() in FALSE else "yes"
    row["load_kind"] = _load_kind(row)
    if row["load_kind"] == AT_ONCE and row.get("request_rate") == np.inf:
        row["request_rate"] = None
    if (date := row.get("date")) and re.fullmatch(r"\d{8}", date):
        row["date"] = f"{date[:4]}-{date[4:6]}-{date[6:]}"
    return row if row.get("disaggregated") is True else _sharded(row)


def _sharded(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one service with n_gpus = tp x pp x dp, as far as that follows.

    SGLang's own tensor parallelism counts the GPUs of all replicas of the attention, which is data parallel
    only with more than one of them. A service that shares its experts among more GPUs than the tp x pp of a
    replica has as many replicas as that leaves.
    """
    n, tp, pp, dp = (row.get(name) for name in ("n_gpus", "tp", "pp", "dp"))
    if n is None and tp is not None:
        row["n_gpus"] = n = tp * (pp or 1) * (dp or 1)
    sizes = (n, tp, pp, dp, row.get("ep"), row.get("moe_tp"))
    if n is None or any(size is not None and not 1 <= size < np.inf for size in sizes):
        return row  # what is impossible is refused later
    experts = (row.get("ep") or 1) * (row.get("moe_tp") or 1)
    if row.get("attention_dp") and dp == 1:
        row["attention_dp"] = False
    elif row.get("attention_dp") and dp is not None and (tp is None or tp * (pp or 1) * dp > n):
        row["tp"] = max(1.0, n // ((pp or 1) * dp))
    elif dp is None and tp is not None and tp * (pp or 1) < n == experts and n % (tp * (pp or 1)) == 0:
        row["dp"], row["attention_dp"] = n // (tp * (pp or 1)), True
    return row


LOAD_WORDS = {
    "closed": CLOSED,
    "concurrency": CLOSED,
    "users": CLOSED,
    "open": OPEN,
    "rate": OPEN,
    "poisson": OPEN,
    "offline": BATCH,
    "batch": BATCH,
    "at once": AT_ONCE,
}


def _load_kind(row: dict[str, Any]) -> str | None:
    """Return the kind of load; where the row does not name it, what it has a figure of."""
    if kind := row.get("load_kind"):
        word = str(kind).lower()
        return next((ours for said, ours in LOAD_WORDS.items() if said in word), str(kind))
    if row.get("concurrency") is not None:
        return CLOSED
    if (rate := row.get("request_rate")) is not None:
        return AT_ONCE if rate == np.inf else OPEN
    return None
