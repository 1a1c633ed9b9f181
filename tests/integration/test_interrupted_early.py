"""Ctrl-C before the work has begun: one short line, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tracked import interrupted_when

CELL = ("+gpu=a100", "+model=starcoder", "tuner=none")


def importing(pid: int) -> bool:
    """Whether the process is at its imports: of a library that the command line needs from the first."""
    return "pydantic_core" in (Path("/proc") / str(pid) / "maps").read_text()


def making_the_database(_pid: int) -> bool:
    return Path("mlflow.db").exists()


@pytest.mark.parametrize(
    ("ready", "arguments"),
    [
        (importing, CELL),
        (making_the_database, ("-m", *CELL)),
        (making_the_database, ("task=dataset", "output=d.parquet")),
    ],
)
def test_it_says_so(
    ready: Callable[[int], bool], arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, err = interrupted_when(ready, *arguments)
    assert err.splitlines()[-1] == "interrupted"
