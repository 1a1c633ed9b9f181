"""Rows that other rows contradict: measurements published twice, and twins that differ beyond noise.

Reasons only: what is in doubt stays in the table, and whoever uses it decides.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from llmpilot.dataset.measurements import BETWEEN_REASONS, JUDGED, MODEL_BASED, Measurements

TWINS_DIFFER = 1.6
"""Versions of one engine differ by 12% in TPOT in the median: this much is more than a version."""
SAME_LLM = {"deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-R1"}
"""LLMs of one architecture, whose measurements are interchangeable and whose names sources mix up."""
CELL = (
    *("gpu", "n_gpus", "tp", "pp", "dp", "ep", "engine", "precision", "input_tokens", "output_tokens"),
    *("length_kind", "load_kind", "concurrency", "request_rate", "disaggregated", "attention_dp"),
)
MEASURED = ("source", "gpu", "engine", "input_tokens", "output_tokens", "concurrency", "request_rate")
"""What the two rows of one measurement agree on, whatever else one of them leaves out."""
MARKS = {"(model-based)": MODEL_BASED, "(judged)": JUDGED}


def with_doubts(measurements: Measurements, reasons: Mapping[str, str] | None = None) -> Measurements:
    """Return the same rows with their `in_doubt` completed.

    By `reasons` (source_row -> reasons, `(model-based)` and `(judged)` behind those that are), and by two
    rules of what rows say of each other: of rows with the same figures at the same load, all but the first
    are duplicates; and a row whose TPOT is over TWINS_DIFFER times smaller than another's of the same cell,
    with another version of the engine, probably decodes speculatively.
    """
    table = measurements.table.copy()
    found: list[list[str]] = [
        (before or "").split(BETWEEN_REASONS) if before else [] for before in table["in_doubt"]
    ]
    for row, name in enumerate(table["source_row"]):
        if name is not None and reasons is not None and name in reasons:
            found[row] += [_marked(reason) for reason in reasons[name].split(BETWEEN_REASONS)]
    for rule in (_duplicates, _faster_twins):
        for row, reason in rule(measurements).items():
            found[row].append(reason)
    table["in_doubt"] = [BETWEEN_REASONS.join(dict.fromkeys(row)) or None for row in found]
    return Measurements(table, measurements.extra)


def _marked(reason: str) -> str:
    for ending, beginning in MARKS.items():
        if reason.endswith(ending):
            return beginning + reason.removesuffix(ending).strip()
    return reason


def _keys(measurements: Measurements, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each row's LLM and values of the columns; what is unknown equals what is unknown."""
    table = measurements.table
    keys = table[list(columns)].assign(llm=table["model"].replace(SAME_LLM))
    return [tuple(map(str, row)) for row in keys.itertuples(index=False)]


def _name(measurements: Measurements, row: int) -> str:
    table = measurements.table
    path, name = table["source_path"][row], table["source_row"][row]
    if name is None:
        return str(row)
    return str(name) if not str(name).isdigit() else f"{name} of {path}"


def _duplicates(measurements: Measurements) -> dict[int, str]:
    """Return row -> reason of every row whose TTFT and TPOT another row of its source and load has."""
    table = measurements.table
    ttft_ms, tpot_ms = measurements.figure("ttft_ms"), measurements.figure("tpot_ms")
    known = np.flatnonzero(ttft_ms.notna() & tpot_ms.notna()).tolist()
    # The first is kept, but before it one whose LLM is not another's alias.
    order = sorted(known, key=lambda row: (table["model"][row] in SAME_LLM, row))
    cells = _keys(measurements, MEASURED)
    firsts: dict[tuple[object, ...], int] = {}
    found = {}
    for row in order:
        first = firsts.setdefault((*cells[row], ttft_ms[row], tpot_ms[row]), row)
        if first != row:
            found[row] = f"the same measurement as row {_name(measurements, first)}"
    return found


def _faster_twins(measurements: Measurements) -> dict[int, str]:
    """Return row -> reason of every row that runs implausibly faster than another version in its cell."""
    tpot_ms = measurements.figure("tpot_ms").to_numpy()
    versions = measurements.table["engine_version"]
    comparable = np.isfinite(tpot_ms) & versions.notna() & measurements.table["disaggregated"].ne(True)
    cells: dict[tuple[str, ...], list[int]] = {}
    for row, cell in enumerate(_keys(measurements, ("source", *CELL))):
        if comparable[row]:
            cells.setdefault(cell, []).append(row)
    found = {}
    for rows in cells.values():
        slowest = max(rows, key=lambda row: tpot_ms[row])
        for row in rows:
            if versions[row] != versions[slowest] and tpot_ms[slowest] > TWINS_DIFFER * tpot_ms[row]:
                found[row] = (
                    f"over {TWINS_DIFFER} times faster than row {_name(measurements, slowest)}, another "
                    "version in the same cell: speculative decoding not marked"
                )
    return found
