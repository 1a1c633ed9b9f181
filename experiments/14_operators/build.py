"""Fits the constants of operator times from published tables, and judges them on what was left out.

    python build.py KERNELS

writes llmpilot/operators/fitted.json and results/*.csv. Fitting takes half a minute, judging two.
"""

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tables
from latent import OPERATOR, latent
from numpy.typing import NDArray

from llmpilot import catalog
from llmpilot.operators.fit import Measured, fit_own, fit_roofline, fit_universal, measured
from llmpilot.operators.forms import FORMS, with_grid

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "llmpilot" / "operators" / "fitted.json"
LEFT_OUT = 0.25
PROFILED = ("gemm", "decode_attention", "prefill_attention", "experts")
FEW = (20, 60, 200)
"""Rows an operator and format that a profile of one's own GPU may have."""
UNPACKED = {"launch_us": 8.0, "compute_share": 0.7, "spread": 0.3}
FIXED: dict[str, dict[str, dict[str, float]]] = {
    "latent_prefill": {"bf16": UNPACKED, "fp8": UNPACKED},
    "recurrent": {"bf16": {"launch_us": 10.0, "bandwidth_share": 0.6, "compute_share": 0.17, "spread": 0.3}},
    "element": {"bf16": {"bandwidth_share": 0.5, "spread": 0.2}},
}
"""Operators without tables: README.md says where these come from."""
Key = tuple[str, str]


def main(folder: Path) -> None:
    gpus = catalog.gpus(list(tables.GPUS))
    by_gpu = {
        name: measured(tables.load(folder, name, gpu.bandwidth_gb_s), gpu) for name, gpu in gpus.items()
    }
    scores = _scores(by_gpu)
    _write_csv(HERE / "results" / "left_out.csv", scores)
    _write_csv(HERE / "results" / "few_rows.csv", _from_few_rows(by_gpu))
    universal = fit_universal(list(by_gpu.values()))
    own = {gpus[name].name: fit_own(of_gpu, universal) for name, of_gpu in by_gpu.items()}
    for op, fmts in universal.items():
        for fmt, constants in fmts.items():
            rows = [row for row in scores if (row["operator"], row["format"]) == (op, fmt)]
            out = [row["gpu_out_rms"] for row in rows if row["gpu_out_rms"] != ""]
            # A format that one GPU type has tables of is judged by shapes alone: no better than the others.
            constants["spread"] = round(float(np.sqrt(np.mean(np.square(out)))) if out else 0.3, 3)
            for row in rows:
                own[gpus[row["gpu"]].name][op][fmt]["spread"] = round(row["combination_out_rms"], 3)
    for name, of_format in latent(folder, gpus).items():
        place = universal if name == "universal" else own[gpus[name].name]
        place[OPERATOR] = {fmt: dict(constants) for fmt, constants in of_format.items()}
    for op, of_format in FIXED.items():
        universal[op] = {fmt: dict(constants) for fmt, constants in of_format.items()}
    _write_json(universal, own)


def _scores(by_gpu: Mapping[str, Mapping[Key, Measured]]) -> list[dict[str, Any]]:
    scores = []
    for key in sorted({key for of_gpu in by_gpu.values() for key in of_gpu}):
        parts = {name: of_gpu[key] for name, of_gpu in by_gpu.items() if key in of_gpu}
        by_split = {}
        for split in (_at_random, _combinations):
            held = {name: split(key[0], part) for name, part in parts.items()}
            seen = {name: part.taken(~held[name]) for name, part in parts.items()}
            universal = fit_universal([{key: part} for part in seen.values()])
            by_split[split] = held, seen, universal
        for name, part in parts.items():
            row: dict[str, Any] = {"operator": key[0], "format": key[1], "gpu": name, "rows": len(part)}
            for split, label in ((_at_random, "shape_out"), (_combinations, "combination_out")):
                held, seen, universal = by_split[split]
                judged = part.taken(held[name] & _served(key[0], part))
                own = fit_own({key: seen[name]}, universal)[key[0]][key[1]]
                row |= _errors(label, judged, own)
                if split is _combinations:
                    alone = fit_roofline([seen[name].thinned(3000)])
                    row |= _errors("roofline_alone", judged, alone)
            others = [{key: other} for at, other in parts.items() if at != name]
            judged = part.taken(_served(key[0], part))
            if others:
                row |= _errors("gpu_out", judged, fit_universal(others)[key[0]][key[1]])
            else:
                row |= dict.fromkeys(("gpu_out_median", "gpu_out_rms", "gpu_out_bias"), "")
            scores.append(row)
            print(row, flush=True)
    return scores


def _from_few_rows(by_gpu: Mapping[str, Mapping[Key, Measured]]) -> list[dict[str, Any]]:
    """What a GPU type's own correction is worth that few rows tell, on combinations left out."""
    scores = []
    for key in sorted({key for of_gpu in by_gpu.values() for key in of_gpu if key[0] in PROFILED}):
        parts = {name: of_gpu[key] for name, of_gpu in by_gpu.items() if key in of_gpu}
        for name, part in parts.items():
            others = [{key: other} for at, other in parts.items() if at != name]
            if not others:
                continue
            universal = fit_universal(others)
            held = _combinations(key[0], part)
            judged, seen = part.taken(held & _served(key[0], part)), part.taken(~held)
            row: dict[str, Any] = {"operator": key[0], "format": key[1], "gpu": name}
            row |= _errors("rows_0", judged, universal[key[0]][key[1]])
            for rows in FEW:
                own = fit_own({key: seen.thinned(rows)}, universal)[key[0]][key[1]]
                row |= _errors(f"rows_{rows}", judged, own)
            scores.append(row)
    return scores


def _errors(label: str, part: Measured, constants: Mapping[str, Any]) -> dict[str, float]:
    op = next(op for op, form in FORMS.items() if form is part.form)
    missed = part.misses(with_grid(op, constants))
    return {
        f"{label}_median": round(float(np.median(np.abs(np.expm1(-missed)))), 4),
        f"{label}_rms": round(float(np.sqrt(np.mean(missed**2))), 4),
        f"{label}_bias": round(float(np.median(np.exp(-missed))), 4),
    }


def _at_random(op: str, part: Measured) -> NDArray[np.bool_]:
    return np.random.default_rng(2).random(len(part)) < LEFT_OUT


def _combinations(op: str, part: Measured) -> NDArray[np.bool_]:
    """Whole combinations: all numbers of tokens of a matrix, of heads, of experts."""
    s = part.shape
    if op == "gemm":
        combination = np.stack([s[1], s[2]])
    elif "attention" in op:
        combination = np.stack(s[-3:])
    elif op == "experts":
        combination = np.stack([s[1], s[2], s[3], s[4], s[5]])
    else:
        combination = np.stack(s)
    _, of_row = np.unique(combination, axis=1, return_inverse=True)
    held = np.random.default_rng(1).random(of_row.max() + 1) < LEFT_OUT
    return held[of_row.ravel()]


def _served(op: str, part: Measured) -> NDArray[np.bool_]:
    """Shapes that services run: what errors are stated for. All rows are fitted."""
    s = part.shape
    if op == "gemm":
        return (s[0] <= 8192) & (s[1] * s[2] >= 2**19)
    if op == "decode_attention":
        context = s[1] / s[0]
        return (s[0] <= 512) & (context >= 128) & (context <= 32768)
    if op == "prefill_attention":
        return (s[1] <= 16384) & (s[1] / s[0] >= 64)
    if op == "experts":
        return s[0] <= 8192
    return np.ones(len(part), dtype=bool)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_json(universal: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    source = {
        "data": "operator times of vLLM from https://github.com/ai-dynamo/aiconfigurator, systems/data",
        "commit": "095f58a5",
        "licence": "Apache-2.0",
        "versions": "vLLM 0.14.0, 0.19.0, 0.22.0; see README.md",
        "fitted_by": "experiments/14_operators/build.py",
    }
    lines = [
        "{",
        f'"source": {json.dumps(source)},',
        '"universal": ' + _compact(universal) + ",",
        '"gpus": {',
    ]
    lines += [
        f"{json.dumps(name)}: {_compact(of_gpu)}" + ("," if name != list(own)[-1] else "")
        for name, of_gpu in own.items()
    ]
    SHIPPED.write_text("\n".join([*lines, "}", "}"]) + "\n")


def _compact(by_operator: Mapping[str, Any]) -> str:
    operators = []
    for op, of_format in by_operator.items():
        formats = [f" {json.dumps(f)}: {json.dumps(c, separators=(',', ':'))}" for f, c in of_format.items()]
        operators.append(f"{json.dumps(op)}: {{\n" + ",\n".join(formats) + "\n}")
    return "{\n" + ",\n".join(operators) + "\n}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
