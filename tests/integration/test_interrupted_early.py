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
    """Whether MLflow writes its tables, which it does where temporary files go."""
    return any(Path("temporary").glob("*/mlflow.db"))


@pytest.mark.parametrize(
    ("ready", "arguments", "said"),
    [
        (importing, CELL, "interrupted"),
        (making_the_database, ("-m", *CELL), "interrupted"),
        (making_the_database, ("task=dataset", "output=d.parquet"), "interrupted"),
        (making_the_database, CELL, "interrupted: 0 levels are kept in "),
    ],
)
def test_it_says_so(
    ready: Callable[[int], bool],
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    _, err = interrupted_when(ready, *arguments)
    assert err.splitlines()[-1].startswith(said)
    assert "MLflow" not in err
    assert list(Path("temporary").iterdir()) == []
    assert not Path("mlflow.db").exists(), "there is a whole database, or none"
