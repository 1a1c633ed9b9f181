"""`from llmpilot import recommend`: the example of its documentation, and the frame it returns."""

import doctest
from pathlib import Path

import pandas as pd
import pytest

import llmpilot
from llmpilot import recommend
from llmpilot.errors import ConfigError
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
    Path("mine.yaml").write_text("h100: {1: 0.5, 2: 1.0}\n")
    ranking = recommend(
        "llama_3_1_8b",
        users=50,
        think_time_s=10,
        workload={"model": "fixed", "input_tokens": 500, "output_tokens": 50},
        sla={"ttft_ms": {"p95": 2000}, "tpot_ms": 60, "percentile": "mean"},
        gpus=["h100"],
        prices="mine.yaml",
        runs=False,
    )
    assert isinstance(ranking, pd.DataFrame)
    assert set(zip(ranking["gpu"], ranking["count"], strict=True)) == {("H100", 1), ("H100", 2)}
    best = ranking.iloc[0]
    assert (best["gpu"], best["count"], best["cost_per_hour"]) == ("H100", 1, 0.5 * best["pods"])
    assert [one["statistic"] for one in ranking.attrs["limits"]] == ["p95", "mean"]
    assert ranking.attrs["trust"]["level"] in ("high", "medium", "low")


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'starcoder'"):
        recommend("starcode", 100)
    with pytest.raises(ConfigError, match="did you mean 'vllm'"):
        recommend("starcoder", 100, engines=["vlm"])
    with pytest.raises(ConfigError, match=r"recommend\.requests_per_s"):
        recommend("starcoder", -1)
    with pytest.raises(ConfigError, match="the load to carry is not given"):
        recommend("starcoder")
    with pytest.raises(ConfigError, match="no limit"):
        recommend("starcoder", 1, sla={}, runs=False)
