"""What a run has measured, on disk: written level by level before MLflow hears of it, so nothing is lost.

A folder under `.llmpilot/runs` in the working directory; gone once the run is finished and tracked.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot.boundary import representative
from llmpilot.errors import ConfigError, PilotError
from llmpilot.files import replacing, to_json, write_text
from llmpilot.schema import exactly

ROOT = Path(".llmpilot") / "runs"
FORMAT = 1

REPEATED = (
    *("repeat", "duration_s", "sla_margin", "requests_ok", "requests_failed"),
    *("throughput_tok_s", "window_problem"),
)
"""What is kept of each measurement of a level, beside all figures of the one that stands for it."""

Level = dict[str, Any]


class RunFolder:
    """One run's folder: `run.json` (identity, state), `levels.json`, `requests/*.parquet`, `artifacts/`."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self.state = path, state
        self._lock: Any = None

    @classmethod
    def claim(
        cls, config_hash: str, identity: dict[str, Any], *, resume: bool, root: Path = ROOT
    ) -> "RunFolder":
        """Return the unfinished folder of this configuration to go on with, or a new one; locked either way.

        Raises:
            PilotError: another process is measuring the same configuration here.
        """
        for path in sorted(root.glob(f"{config_hash[:12]}-*")) if resume else []:
            folder = cls.open(path)
            if folder.state["status"] != "FINISHED":
                folder.lock()
                return folder
        number = 1
        while (root / f"{config_hash[:12]}-{number}").exists():
            number += 1
        path = root / f"{config_hash[:12]}-{number}"
        try:
            (path / "requests").mkdir(parents=True)
            (path / "artifacts").mkdir()
        except OSError as error:
            raise ConfigError(
                f"the working directory cannot be written: {error.strerror}",
                given=path,
                cure="start in another one",
            ) from None
        folder = cls(
            path, {"format": FORMAT, "status": "RUNNING", "run_id": None, "level_times_ms": {}} | identity
        )
        folder.lock()
        folder.save()
        write_text(path / "levels.json", to_json([]))
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return an existing folder.

        Raises:
            PilotError: it is not one, or it is damaged.
        """
        try:
            state = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}, not {FORMAT}")
            json.loads((path / "levels.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PilotError(
                f"not a run folder, or a damaged one: {error}",
                given=path,
                cure=f"name a folder under {ROOT}, or remove this one",
            ) from None
        return cls(path, state)

    def lock(self) -> None:
        """Hold the folder until this process ends.

        Raises:
            PilotError: another process holds it.
        """
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PilotError(
                "another process is measuring the same configuration in this directory",
                given=self.path,
                cure="wait for it, or start this one elsewhere",
            ) from None

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def artifacts(self) -> Path:
        """Where the files go that MLflow will keep with the run."""
        return self.path / "artifacts"

    def save(self, **changes: Any) -> None:
        """Bring `run.json` up to date."""
        self.state |= changes
        write_text(self.path / "run.json", to_json(self.state))

    def measurements(self) -> list[Level]:
        """Return what was measured so far, in that order: a search measures some levels several times."""
        measured: list[Level] = json.loads((self.path / "levels.json").read_text(encoding="utf-8"))
        return measured

    def levels(self) -> list[Level]:
        """Return the levels measured so far, going up; a search's with its `repeats`."""
        of_level: dict[float, list[Level]] = {}
        for one in self.measurements():
            of_level.setdefault(one["level"], []).append(one)
        return [_as_one(measured) for _, measured in sorted(of_level.items())]

    def add_level(self, level: Level, requests: pa.Table) -> None:
        """Keep a measured level: its raw records first, so that a level in `levels.json` is whole.

        A level measured again is told from the first time by its `repeat`, counted from 0.
        """
        if "repeat" in level:
            requests = requests.append_column("repeat", pa.array(np.full(len(requests), level["repeat"])))
        with replacing(self._requests_path(level)) as temporary:
            pq.write_table(requests, temporary, compression="zstd")
        write_text(self.path / "levels.json", to_json([*self.measurements(), level]))
        times_ms = self.state["level_times_ms"] | {str(level["level"]): time.time_ns() // 1_000_000}
        self.save(level_times_ms=times_ms)

    def collect_artifacts(self) -> None:
        """Put `levels.json` and one `requests.parquet` of all levels among the artifacts."""
        write_text(self.artifacts / "levels.json", to_json(self.levels()))
        measured = sorted(self.measurements(), key=lambda one: (one["level"], one.get("repeat", 0)))
        if measured:
            with replacing(self.artifacts / "requests.parquet") as temporary:
                _concatenate(map(self._requests_path, measured), temporary)

    def remove(self) -> None:
        """Delete the folder, and the folders above it that are then empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in (self.path.parent, self.path.parent.parent):
            try:
                parent.rmdir()
            except OSError:
                return

    def _requests_path(self, level: Level) -> Path:
        again = f" again {level['repeat']}" if level.get("repeat") else ""
        return self.path / "requests" / f"{exactly(level['level'])}{again}.parquet"


def _as_one(measured: list[Level]) -> Level:
    """Return the entry of a level that was measured once, or several times by a search."""
    if "repeat" not in measured[0]:
        return measured[-1]
    return representative(measured) | {
        "repeats": [{name: one[name] for name in REPEATED} for one in measured]
    }


def _concatenate(paths: Iterator[Path], target: Path) -> None:
    writer = None
    for path in paths:
        table = pq.read_table(path).replace_schema_metadata(None)
        if writer is None:
            writer = pq.ParquetWriter(target, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
