"""What is known before a recommendation: a predictor fitted on the data set, and rows of the model itself.

A fitted predictor is kept on disk by what it was made of, so that asking again takes no time.
"""

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

import llmpilot
from llmpilot import console
from llmpilot.config import Model
from llmpilot.dataset import Dataset
from llmpilot.dataset.facts import fingerprint
from llmpilot.errors import ConfigError
from llmpilot.predict.predictor import Fitted, Predictor
from llmpilot.recommendation.trust import Evidence

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-pilot" / "predictors"
KEPT = 8
"""Fitted predictors that are kept; of more, those longest not used go."""


@dataclass(frozen=True)
class Learned:
    """A predictor fitted without the model in question, what it learned from, and the model's own rows."""

    fitted: Fitted
    evidence: Evidence
    users: tuple[int, ...]
    own: pd.DataFrame | None

    @property
    def measured_on(self) -> list[str]:
        """The profiles that the model itself was measured on: `1 x H100`."""
        if self.own is None:
            return []
        pairs = zip(self.own["count"], self.own["gpu"], strict=True)
        return list(dict.fromkeys(f"{count} x {gpu}" for count, gpu in pairs))


@runtime_checkable
class _Saves(Protocol):
    """A fitted predictor that can be written to a folder."""

    def save(self, folder: Path) -> None: ...


@runtime_checkable
class _Loads(Protocol):
    """A predictor whose fitted ones can be read back."""

    def load(self, folder: Path) -> Fitted: ...


@runtime_checkable
class _Ships(Protocol):
    """A predictor of which fitted ones come with the package."""

    def shipped(self, data: Dataset, seed: int) -> Fitted | None: ...


def learn(
    data: Dataset,
    model: Model,
    predictor: Predictor,
    *,
    workload: str,
    seed: int,
    folder: Path | None = FOLDER,
) -> Learned:
    """Return what `predictor` learns from the rows of this workload, the model's own kept apart.

    The predictor is fitted for its own rows and conditioned on them: the way in which predictors are
    evaluated with a measured profile. `folder` is where fitted predictors are kept; None keeps none.

    Raises:
        ConfigError: nothing was measured under this workload.
    """
    known = data.select([name in (workload, None) for name in data.table["workload"]])
    key = next((key for key, one in known.models.items() if fingerprint(one) == fingerprint(model)), None)
    others = known if key is None else known.without(key)
    if not len(others):
        there = sorted({str(name) for name in data.table["workload"]})
        raise ConfigError(
            "no other model was measured under this workload: there is nothing to learn from",
            given=f"workload={workload}; the data hold {', '.join(there) or 'nothing'}",
            cure=f"workload={there[0] if there else 'paper'}; predictions hold for the workload measured",
        )
    own = None if key is None else known.only(key)
    fitted = _fitted(others, own, predictor, seed, folder)
    table = others.table
    evidence = Evidence(
        models=others.models,
        gpus=others.gpus,
        counts=tuple(sorted({int(count) for count in table["count"]})),
        engines=tuple(sorted({str(name) for name in table["engine"].dropna()})),
        simulated=float((table["measurement"] == "simulated").mean()),
        out_of_fold=getattr(fitted, "out_of_fold", None),
    )
    most = max(int(known.table["users"].max()), 1)
    return Learned(fitted, evidence, _ladder(most), None if own is None else _with_gpu_names(own))


def _ladder(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and the most users that were ever measured: beyond them nothing is predicted."""
    doubled = [2**n for n in range(most.bit_length()) if 2**n < most]
    return (*doubled, most)


def _with_gpu_names(own: Dataset) -> pd.DataFrame:
    """Return the rows with the GPU types' own names, in place of what tells like-named ones apart."""
    return own.table.assign(gpu=[own.gpus[key].name for key in own.table["gpu"]])


# --- fitted predictors on disk ---------------------------------------------------------------------------


def _fitted(
    data: Dataset, own: Dataset | None, predictor: Predictor, seed: int, folder: Path | None
) -> Fitted:
    kept = None if folder is None else folder / _identity(data, own, predictor, seed)
    if kept is not None and isinstance(predictor, _Loads) and (kept / "complete").is_file():
        (kept / "complete").touch()
        return predictor.load(kept)
    if own is None and isinstance(predictor, _Ships) and (ready := predictor.shipped(data, seed)):
        return ready
    with console.err.status(f"fitting {predictor.name} to {len(data):,} measured levels, once"):
        fitted = predictor.fit(data, seed) if own is None else predictor.fit_knowing(data, own, seed)
    if kept is not None and isinstance(fitted, _Saves):
        _keep(fitted, kept)
    return fitted


def _identity(data: Dataset, own: Dataset | None, predictor: Predictor, seed: int) -> str:
    made_of = {
        "data": data.content_hash,
        "own": None if own is None else own.content_hash,
        "predictor": [type(predictor).__module__, predictor.model_dump(mode="json")],
        "seed": seed,
        "version": llmpilot.__version__,
        "code": _code_hash(type(predictor)),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _code_hash(kind: type[Predictor]) -> str:
    """Return a hash of the files that a fit rests on: what other code or tables fitted is not taken."""
    digest = hashlib.sha256()
    for file in _rests_on(kind):
        digest.update(f"{file.name}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _rests_on(kind: type[Predictor]) -> list[Path]:
    """Return code and tables beside the predictor's, of all predictors, and of the simulator they may ask."""
    package = Path(llmpilot.__file__).parent
    folders = (Path(inspect.getfile(kind)).parent, package / "predict", package / "simulator")
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    return sorted(file for file in files if file.suffix != ".pyc")


def _keep(fitted: _Saves, place: Path) -> None:
    """Write the fitted predictor; without a place to write, it is fitted again next time."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as temporary:
            fresh = Path(temporary) / place.name
            fresh.mkdir()
            fitted.save(fresh)
            (fresh / "complete").touch()
            shutil.rmtree(place, ignore_errors=True)
            fresh.rename(place)
        marks = sorted(place.parent.glob("*/complete"), key=lambda mark: -mark.stat().st_mtime)
        for mark in marks[KEPT:]:
            shutil.rmtree(mark.parent, ignore_errors=True)
    except OSError:
        return
