"""Files that a task writes spare what is there to be read."""

import os
import threading
from pathlib import Path

import pytest

from llmpilot.errors import ConfigError
from llmpilot.files import require_apart, require_writable, write_text


def test_files_that_are_apart_and_inputs_that_are_one_pass() -> None:
    require_apart({"dataset": "a.csv", "prices": "a.csv"}, {"output": "b.csv", "result_file": "c.csv"})


@pytest.mark.parametrize(
    ("kept", "written", "words"),
    [
        ({"dataset": "a.csv"}, {"output": "x/../a.csv"}, "output would overwrite dataset"),
        ({"dataset": "link.csv"}, {"output": "a.csv"}, "output would overwrite dataset"),
        ({}, {"output": "a.csv", "manifest": "a.csv"}, "manifest would overwrite output"),
        ({"raw": "~/a.csv"}, {"output": Path.home() / "a.csv"}, "output would overwrite raw"),
    ],
)
def test_one_file_under_two_keys_is_refused_however_it_is_spelled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, str],
    written: dict[str, str | Path],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.csv").symlink_to("a.csv")
    with pytest.raises(ConfigError, match=words):
        require_apart(kept, written)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    require_writable(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "whole")
    reader.join(10)
    assert read == ["whole"]
    assert pipe.is_fifo()
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]
