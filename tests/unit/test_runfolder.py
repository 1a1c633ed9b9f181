"""A run's folder survives whatever happens between two of its writes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpilot.errors import PilotError
from llmpilot.files import write_text
from llmpilot.runfolder import RunFolder

HASH = "ab" * 32
IDENTITY: dict[str, Any] = {
    "task": "characterize",
    "run_name": "x",
    "unit": "users",
    "params": {},
    "tags": {},
}


def claim(root: Path, *, resume: bool = True) -> RunFolder:
    return RunFolder.claim(HASH, IDENTITY, resume=resume, root=root)


def level(users: int) -> dict[str, Any]:
    return {"level": users, "users": users}


def test_levels_survive_and_are_gone_on_with(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    folder.add_level(level(8), pa.table({"level": [8, 8]}))
    folder.add_level(level(1), pa.table({"level": [1]}))
    folder.close()
    again = claim(tmp_path)
    assert again.path == folder.path
    assert [item["level"] for item in again.levels()] == [1, 8]
    again.collect_artifacts()
    assert pq.read_table(again.artifacts / "requests.parquet")["level"].to_pylist() == [1, 8, 8]


def test_resume_off_or_a_finished_run_begin_anew_and_lose_nothing(tmp_path: Path) -> None:
    first = claim(tmp_path)
    first.add_level(level(1), pa.table({"level": [1]}))
    first.close()
    second = claim(tmp_path, resume=False)
    assert second.path != first.path
    assert second.levels() == []
    assert len(RunFolder.open(first.path).levels()) == 1


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    with pytest.raises(PilotError, match="another process"):
        claim(tmp_path)
    folder.close()
    claim(tmp_path).close()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_folder_is_one_clear_message(tmp_path: Path, damage: str) -> None:
    folder = claim(tmp_path)
    folder.close()
    (folder.path / "run.json").write_text(damage, encoding="utf-8")
    with pytest.raises(PilotError, match="not a run folder, or a damaged one"):
        RunFolder.open(folder.path)


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "levels.json"
    write_text(target, "old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_directory_is_said_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(PilotError, match="working directory cannot be written"):
        claim(blocked / "runs")


def test_rates_that_differ_in_the_seventh_digit_keep_their_own_records(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    for rate in (1.0, 1.0000001, 1.00000012345):
        folder.add_level({"level": rate}, pa.table({"level": [rate]}))
    assert len(folder.levels()) == 3
    assert len(folder.state["level_times_ms"]) == 3
    folder.collect_artifacts()
    kept = pq.read_table(folder.artifacts / "requests.parquet")["level"].to_pylist()
    assert kept == [1.0, 1.0000001, 1.00000012345]


def test_a_level_measured_again_is_one_level_and_keeps_all_records(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    for repeat, margin in enumerate((0.5, 0.1, -0.2)):
        figures = dict.fromkeys(("requests_ok", "requests_failed", "throughput_tok_s"), 10 * repeat)
        measured = {"repeat": repeat, "duration_s": 60.0, "sla_margin": margin, "window_problem": None}
        folder.add_level(level(8) | figures | measured, pa.table({"level": [8.0]}))
    (one,) = folder.levels()
    assert one["repeat"] == 1, "the one nearest to the mean stands for them"
    assert [repeat["sla_margin"] for repeat in one["repeats"]] == [0.5, 0.1, -0.2]
    assert len(folder.measurements()) == 3
    folder.collect_artifacts()
    kept = pq.read_table(folder.artifacts / "requests.parquet")
    assert kept["repeat"].to_pylist() == [0, 1, 2]
