"""Operator times of a GPU that was measured where it stands: from a file of task=profile to constants.

PyTorch's kernels are not all an engine's. Its GEMMs are, so they are taken for every GPU type. Its attention,
experts and NCCL's all-reduce are not: they are taken where no table of an engine's own kernels is known for
the GPU type. What the file does not have keeps the constants that the GPU type has without it.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpilot import profile_gpu
from llmpilot.config import Gpu
from llmpilot.errors import ConfigError
from llmpilot.operators.fit import fit_operators, measured
from llmpilot.operators.forms import with_grid
from llmpilot.operators.rates import Rates
from llmpilot.operators.times import Operators, operators_for

LEAST_ROWS = 5
"""Of an operator in a number format: fewer say too little to replace what is known."""
LEAST_SPREAD = 0.05
"""What repeated profiles of one GPU may differ by at least, in the log of a time."""
SHARED = ("gemm",)
"""Operators whose kernels PyTorch and engines share."""
SHAPES = {
    "gemm": ("m", "n", "k"),
    "decode_attention": ("sequences", "context", "n_heads", "n_kv_heads", "head_dim"),
    "prefill_attention": ("chunks", "tokens", "context", "n_heads", "n_kv_heads", "head_dim"),
    "experts": ("tokens", "d_model", "width", "per_token", "n_experts"),
    "all_reduce": ("bytes", "gpus"),
    "copy": ("bytes",),
    "launch": ("kernels",),
}
"""Operator -> the keys of its rows."""
Microseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Row(BaseModel):
    """A row of the file, as far as it is of one operator."""

    model_config = ConfigDict(extra="allow")
    operator: str
    format: str
    time_us: Microseconds
    timed: Literal["graph", "eager", "clock"]
    kernel: str = ""


class _Facts(BaseModel):
    name: str
    kind: Literal["nvidia", "amd", "cpu"]


class _File(BaseModel):
    """What the file must have; what else it has is for people to read."""

    schema_: Literal["llmpilot.gpu_profile"] = Field(alias="schema")
    schema_version: int
    complete: bool
    gpu: _Facts
    rows: list[_Row]


@dataclass(frozen=True)
class GpuProfile:
    """Measured times of operators; `rows` has operator, format, time_us, timed, kernel and shape keys."""

    path: Path
    gpu_name: str
    complete: bool
    content_hash: str
    rows: pd.DataFrame

    def launch_us(self, timed: str) -> float:
        """Return what a kernel that does nothing costs, one by one (eager) or in a graph; 0 if unknown."""
        rows = self.rows
        found = rows[(rows["operator"] == "launch") & (rows["timed"] == timed) & (rows["kernel"] == "add_")]
        return float(found["time_us"].iloc[0]) if len(found) else 0.0

    def copy_rate(self, rates: Rates) -> float:
        """Return the bytes per microsecond that a large copy moves; the datasheet's if none was measured."""
        copies = self.rows[self.rows["operator"] == "copy"]
        if not len(copies):
            return rates.bandwidth * 1e-3
        return float((2.0 * copies["bytes"] / copies["time_us"]).max())


@dataclass(frozen=True)
class ProfiledOperators:
    """Operator times of a GPU type with what a profile of it says, and what that was."""

    operators: Operators
    profile: GpuProfile
    taken: tuple[tuple[str, str], ...]
    """Operators and formats that come from the profile."""
    kept: tuple[tuple[str, str], ...]
    """Those that it has too, but that are not an engine's kernels, or too few."""

    def summary(self) -> str:
        """Return a line for people: what is taken from the profile and what is not."""
        profile, name = self.profile, self.operators.gpu.name
        which = profile.gpu_name
        if re.split(r"[- ]", name)[0] not in re.split(r"[- ]", which):
            which += f", which is not called {name}"
        if not profile.complete:
            which += ", incomplete"
        kept = f"; not taken: {_in_words(self.kept)}" if self.kept else ""
        return f"{profile.path} ({which}): {_in_words(self.taken) or 'nothing'}{kept}"


def read_profile(path: str | Path) -> GpuProfile:
    """Return what task=profile, or profile_gpu.py by itself, wrote.

    Raises:
        ConfigError: there is no such file, or it is no profile of a GPU.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, str(error)) from None
    if not text.strip():
        raise _unusable(file, "it is empty: what wrote it said why on stderr")
    try:
        content = json.loads(text)
        parsed = _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise _unusable(file, f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    except (ValueError, RecursionError) as error:
        raise _unusable(file, f"it is not JSON: {error}") from None
    if parsed.schema_version != profile_gpu.VERSION:
        raise _unusable(file, f"it is of version {parsed.schema_version}, not {profile_gpu.VERSION}")
    if parsed.gpu.kind == "cpu":
        raise _unusable(file, "it was measured on a CPU, to try out the script")
    rows = [_row(file, number, row) for number, row in enumerate(parsed.rows)]
    known = [row for row in rows if row["operator"] in SHAPES]
    columns = ["operator", "format", "time_us", "timed", "kernel", "touched"]
    columns += sorted({key for keys in SHAPES.values() for key in keys})
    table = pd.DataFrame(known).reindex(columns=columns)
    content_hash = hashlib.sha256(text.encode()).hexdigest()
    return GpuProfile(file, parsed.gpu.name, parsed.complete, content_hash, table)


def profiled_operators(gpu: Gpu) -> ProfiledOperators:
    """Return the operator times of a GPU type that has a profile (`gpu.profile`).

    Raises:
        ConfigError: the file is missing or no profile.
    """
    assert gpu.profile is not None
    path = Path(gpu.profile).expanduser()
    try:
        facts = path.stat()
    except OSError as error:
        raise _unusable(path, str(error)) from None
    alone = gpu.model_copy(update={"profile": None})
    return _fitted_to(alone.model_dump_json(), path, path.resolve(), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def _fitted_to(gpu_json: str, path: Path, _place: Path, _changed: int, _size: int) -> ProfiledOperators:
    gpu, profile = Gpu.model_validate_json(gpu_json), read_profile(path)
    known = operators_for(gpu)
    table = long_table(profile, known)
    counts = Counter(zip(table["op"], table["format"], strict=True))
    engines = {op for op, _ in counts if op not in SHARED and op in known.own}
    taken = [key for key, rows in counts.items() if rows >= LEAST_ROWS and key[0] not in engines]
    chosen = table[[key in taken for key in zip(table["op"], table["format"], strict=True)]]
    fitted: dict[str, dict[str, Any]] = {}
    if len(chosen):
        parts = measured(chosen, gpu)
        for operator, by_format in fit_operators(chosen, gpu).items():
            for fmt, constants in by_format.items():
                misses = parts[operator, fmt].misses(with_grid(operator, constants))
                spread = max(LEAST_SPREAD, float(np.sqrt(np.mean(misses**2))))
                fitted.setdefault(operator, {})[fmt] = {**constants, "spread": round(spread, 4)}
    own: dict[str, Mapping[str, Any]] = dict(known.own)
    for operator, by_format in fitted.items():
        own[operator] = {**known.own.get(operator, {}), **by_format}
    return ProfiledOperators(
        Operators(gpu, own, known.universal, measured=frozenset(taken)),
        profile,
        tuple(sorted(taken)),
        tuple(sorted(key for key in counts if key not in taken)),
    )


def _in_words(kinds: tuple[tuple[str, str], ...]) -> str:
    formats: dict[str, list[str]] = {}
    for operator, fmt in kinds:
        formats.setdefault(operator.replace("_", " "), []).append(fmt)
    return ", ".join(f"{operator} in {' '.join(names)}" for operator, names in formats.items())


def long_table(profile: GpuProfile, known: Operators) -> pd.DataFrame:
    """Return the profile's rows as operators are fitted from, as an engine would have them.

    Launches one by one cost what a graph's do: an engine decodes in graphs. GEMMs of quantized weights
    quantize their activations first, a pass over memory. Experts are touched as skewed routing does it, not
    the uniform one that was measured.
    """
    rows = profile.rows
    rows = rows[(rows["timed"] != "clock") & ~rows["operator"].isin(["copy", "launch"])].copy()
    launch = max(0.0, profile.launch_us("eager") - profile.launch_us("graph"))
    without = rows["time_us"] - np.where(rows["timed"] == "eager", launch, 0.0)
    rows = rows.assign(time_us=without)[without > 0.5 * rows["time_us"]]
    tables = [
        _OF[str(operator)](part, profile, known) for operator, part in rows.groupby("operator", sort=False)
    ]
    empty = pd.DataFrame(columns=["op", "format", "time_us"])
    return pd.concat(tables, ignore_index=True) if tables else empty


def _gemm(rows: pd.DataFrame, profile: GpuProfile, known: Operators) -> pd.DataFrame:
    quantized = rows["format"] != "bf16"
    size = rows["format"].map(profile_gpu.BYTES)
    passed = (2.0 + size) * rows["m"] * rows["k"] / profile.copy_rate(known.rates)
    times = rows["time_us"] + np.where(quantized, profile.launch_us("graph") + passed, 0.0)
    return _table(rows, "gemm", time_us=times, m=rows["m"], n=rows["n"], k=rows["k"])


def _heads(rows: pd.DataFrame) -> dict[str, Any]:
    return {name: rows[name] for name in ("n_heads", "n_kv_heads", "head_dim")}


def _decode(rows: pd.DataFrame, profile: GpuProfile, known: Operators) -> pd.DataFrame:
    sizes = {"sequences": rows["sequences"], "context_tokens": rows["sequences"] * rows["context"]}
    return _table(rows, "decode_attention", time_us=rows["time_us"], **sizes, **_heads(rows))


def _prefill(rows: pd.DataFrame, profile: GpuProfile, known: Operators) -> pd.DataFrame:
    tokens = rows["chunks"] * rows["tokens"]
    pairs = tokens * (rows["context"] + (rows["tokens"] + 1) / 2)
    sizes = {"chunks": rows["chunks"], "tokens": tokens, "pairs": pairs}
    return _table(rows, "prefill_attention", time_us=rows["time_us"], **sizes, **_heads(rows))


def _experts(rows: pd.DataFrame, profile: GpuProfile, known: Operators) -> pd.DataFrame:
    sizes: dict[str, Any] = {name: rows[name] for name in SHAPES["experts"]}
    sizes |= {"tensor_parallel": 1.0, "expert_parallel": 1.0, "gated": True}
    table = _table(rows, "experts", time_us=rows["time_us"], **sizes)
    for (operator, fmt), part in measured(table, known.gpu).items():
        skewed = known.constants(operator, fmt)
        ratio = np.exp(part.misses({**skewed, "choosing_share": 1.0}) - part.misses(skewed))
        table.loc[table["format"] == fmt, "time_us"] *= ratio
    return table


def _all_reduce(rows: pd.DataFrame, profile: GpuProfile, known: Operators) -> pd.DataFrame:
    return _table(rows, "all_reduce", time_us=rows["time_us"], message_bytes=rows["bytes"], gpus=rows["gpus"])


def _table(rows: pd.DataFrame, op: str, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"op": op, "format": rows["format"], **columns}).reset_index(drop=True)


_OF = {
    "gemm": _gemm,
    "decode_attention": _decode,
    "prefill_attention": _prefill,
    "experts": _experts,
    "all_reduce": _all_reduce,
}


def _row(file: Path, number: int, row: _Row) -> dict[str, Any]:
    """Return a row with its shape checked."""
    content = row.model_dump()
    least = {"context": 0} if row.operator == "prefill_attention" else {}
    for key in SHAPES.get(row.operator, ()):
        size = content.get(key)
        if type(size) is not int or not least.get(key, 1) <= size <= 2**50:
            shown = "is missing" if size is None else f"is {size!r}"
            raise _unusable(file, f"rows.{number}: {key} of {row.operator} {shown}")
    if row.operator in SHAPES and row.format not in profile_gpu.BYTES:
        raise _unusable(file, f"rows.{number}: there is no format {row.format!r}")
    return content


def _unusable(file: Path, given: str) -> ConfigError:
    return ConfigError(
        "gpu.profile cannot be used: it is no profile of a GPU",
        given=f"{file}: {given}",
        cure="python -m llmpilot task=profile output=my_gpu.json on the machine with the GPU",
    )
