"""`from llmpilot import recommend`: the example of its documentation, and the frame it returns."""

import doctest
from pathlib import Path

import pandas as pd
import pytest

import llmpilot
from llmpilot import recommend
from llmpilot.dataset import published
from llmpilot.errors import ConfigError
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.recommendation import api


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One working directory for all: the predictor is fitted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        yield


def test_the_example_of_its_documentation() -> None:
    tried = doctest.testmod(api)
    assert tried.attempted >= 5
    assert tried.failed == 0


def test_it_is_a_function_of_the_package() -> None:
    assert callable(recommend)
    assert recommend is api.recommend
    assert "recommend" in llmpilot.__all__
    with pytest.raises(AttributeError, match="no attribute 'recomend'"):
        _ = llmpilot.recomend


def test_the_ranking_is_a_frame() -> None:
    Path("mine.yaml").write_text("h100: {1: 0.5, 2: 1.5}\nt4: {1: 9}\n")
    light = Pilot(name="pilot", views=[["closed_form"]], trees=20, fold_trees=5)
    ranking = recommend(
        "starcoder", 200, gpus=["t4", "h100"], prices="mine.yaml", runs=False, predictor=light
    )
    assert isinstance(ranking, pd.DataFrame)
    profiles = {(row.gpu, row.count) for row in ranking[["gpu", "count"]].itertuples(index=False)}
    assert profiles == {("T4", 1), ("H100", 1), ("H100", 2)}
    best = ranking.iloc[0]
    assert (best["gpu"], best["count"], best["cost_per_hour"]) == ("H100", 1, 0.5 * best["pods"])
    # What was published of this very model conditions the prediction.
    assert ranking.attrs["measured"]["rows"] == len(published().only("starcoder"))
    assert ranking.attrs["trust"]["level"] in ("high", "medium", "low")


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'starcoder'"):
        recommend("starcode", 100)
    with pytest.raises(ConfigError, match="did you mean 'pilot'"):
        recommend("starcoder", 100, predictor="pilott")
    with pytest.raises(ConfigError, match=r"recommend\.users"):
        recommend("starcoder", -1)
    with pytest.raises(ConfigError, match="no limit"):
        recommend("starcoder", 1, itl_ms=None, nttft_ms=None, runs=False)
