"""What a fitted predictor that is kept on disk is known by."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.predict.predictor import Predictor
from llmpilot.recommendation.learn import _code_hash, _rests_on


@pytest.fixture
def own(tmp_path: Path) -> Iterator[type[Predictor]]:
    """A predictor of a user's own, in a file with a table beside it."""
    (tmp_path / "own_predictor.py").write_text(
        "from llmpilot.predict.pilot.pilot import Pilot\nclass Own(Pilot):\n    pass\n"
    )
    (tmp_path / "table.json").write_text("[1]")
    spec = importlib.util.spec_from_file_location("own_predictor", tmp_path / "own_predictor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_predictor"] = module
    spec.loader.exec_module(module)
    yield module.Own
    del sys.modules["own_predictor"]


@pytest.mark.parametrize("changed", ["own_predictor.py", "table.json"])
def test_what_other_code_or_tables_fitted_is_another_predictor(
    own: type[Predictor], tmp_path: Path, changed: str
) -> None:
    before = _code_hash(own)
    assert _code_hash(own) == before
    with (tmp_path / changed).open("a") as file:
        file.write(" ")
    assert _code_hash(own) != before


def test_it_rests_on_all_tables_that_the_fit_reads() -> None:
    names = {file.name for file in _rests_on(Pilot)}
    assert {"pilot.py", "predictor.py", "virtual.py"} <= names
    assert {
        "distilled.json",
        "curvatures.json",
        "all_levels.csv",
        "three_levels.csv",
        "physics.json",
    } <= names
    assert not any(name.endswith(".pyc") for name in names)
