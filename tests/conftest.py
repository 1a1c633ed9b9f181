"""Fixtures shared by all tests: a working directory of one's own, and the command line in this process."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

for _variable in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "COLUMNS"):
    os.environ.pop(_variable, None)


@dataclass
class Ran:
    """What a command line came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database without runs: making one takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """An empty working directory but for a fresh tracking database."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def binary(tmp_path: Path) -> str:
    """A program that does nothing, where one is only to be named."""
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random StarCoder for llama.cpp."""
    from llmpilot.engine.tiny_model import write_gguf

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path)
    return str(path)


@pytest.fixture
def run(workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line of LLM-Pilot as a user would, in `workdir`."""
    from llmpilot import cli

    monkeypatch.setattr("sys.argv", ["llmpilot"])

    def run_command_line(*arguments: str) -> Ran:
        capfd.readouterr()
        try:
            code = cli.run(list(arguments))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_command_line
