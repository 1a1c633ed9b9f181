"""How far to trust a recommendation follows from errors on LLMs and GPU types that were left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpilot import catalog
from llmpilot.dataset import published
from llmpilot.predict.prediction import Draws, Prediction
from llmpilot.recommendation.trust import Evidence, distance, errors_by_model, judge_trust, kind_of, left_out
from llmpilot.recommendation.unseen import widen_unseen

MODELS = catalog.models()
GPUS = catalog.gpus()
DATA = published()


def evidence(errors: Mapping[str, float], **changes: Any) -> Evidence:
    """Return the published data, each LLM predicted without it with the same error everywhere."""
    rows = [
        {
            "model": name,
            "gpu": "H100",
            "count": 1,
            "users": users,
            "nttft": np.log1p(e),
            "itl": -np.log1p(e / 2),
        }
        for name, e in errors.items()
        for users in (1, 8, 64)
    ]
    facts: dict[str, Any] = {
        "models": DATA.models,
        "gpus": DATA.gpus,
        "counts": (1, 2, 4),
        "engines": ("tgis",),
        "out_of_fold": pd.DataFrame(rows),
    }
    return Evidence(**(facts | changes))


def alike(error: float) -> Evidence:
    return evidence(dict.fromkeys(DATA.models, error))


def test_errors_are_medians_of_each_model() -> None:
    errors = errors_by_model(evidence({"starcoder": 0.2, "llama_7b": 0.4}).out_of_fold)
    assert errors["starcoder"] == pytest.approx((0.2, 0.1))
    assert errors["llama_7b"] == pytest.approx((0.4, 0.2))


@pytest.mark.parametrize(("error", "level"), [(0.1, "high"), (0.4, "medium"), (0.9, "low")])
def test_the_level_follows_the_errors_of_models_as_new(error: float, level: str) -> None:
    model = MODELS["llama_7b"].model_copy(update={"name": "a fine-tuned one"})
    trust = judge_trust(model, GPUS["h100"], alike(error), [])
    assert trust.level == level
    assert f"{error:.0%} (nTTFT) and {error / 2:.0%} (ITL)" in trust.reasons[0]
    assert any("tgis" in reason for reason in trust.reasons)


def test_only_models_of_the_kind_that_lay_as_far_count() -> None:
    """llama_3_1_8b is far from all flash decoders but not as far as starcoder was."""
    model = MODELS["llama_3_1_8b"]
    flash = [name for name, one in DATA.models.items() if kind_of(one) == kind_of(model)]
    gaps = {
        name: min(distance(DATA.models[name], DATA.models[other]) for other in flash if other != name)
        for name in flash
    }
    away = min(distance(model, DATA.models[name]) for name in flash)
    assert [name for name, gap in gaps.items() if gap >= away] == ["starcoder"]
    errors = dict.fromkeys(DATA.models, 0.9) | {"starcoder": 0.1}
    trust = judge_trust(model, GPUS["h100"], evidence(errors), [])
    assert trust.level == "medium"  # its errors are small, but one LLM is no rule
    assert "starcoder, the only one of its kind that lay as far, was predicted" in trust.reasons[0]


def test_what_lies_farther_than_anything_checked_is_not_trusted() -> None:
    tiny = MODELS["llama_7b"].model_copy(
        update={"parameters_b": 0.01, "active_parameters_b": 0.01, "d_model": 64, "n_layers": 2}
    )
    trust = judge_trust(tiny, GPUS["h100"], alike(0.1), [])
    assert trust.level == "low"
    assert "farther than any that predictions were checked on" in trust.reasons[0]
    measured = judge_trust(tiny, GPUS["a100"], alike(0.1), ["1 x H100"])
    assert measured.level == "medium"
    assert "itself measured on 1 x H100" in measured.reasons[0]
    there = judge_trust(tiny, GPUS["h100"], alike(0.1), ["1 x H100"])
    assert there.level == "high"
    assert there.reasons[0] == "this LLM was measured on 1 x H100"


def test_a_kind_that_the_data_lack_is_not_trusted() -> None:
    trust = judge_trust(MODELS["mixtral_8x7b"], GPUS["h100"], alike(0.1), [])
    assert trust.level == "low"
    assert "no mixture-of-experts decoder LLM is in the data" in trust.reasons[0]


def test_an_unchecked_predictor_is_not_trusted() -> None:
    trust = judge_trust(MODELS["llama_3_1_8b"], GPUS["h100"], evidence({}, out_of_fold=None), [])
    assert trust.level == "low"


def test_unseen_gpu_types_and_counts_are_judged_by_those_left_out() -> None:
    seen = judge_trust(MODELS["llama_7b"], GPUS["h100"], alike(0.01), [])
    eight = GPUS["h200"].model_copy(update={"count": 8})
    unseen = judge_trust(MODELS["llama_7b"], eight, alike(0.01), [])
    assert "no H200 is in the data" in unseen.reasons[1]
    assert "no profile of 8 GPUs is in the data" in unseen.reasons[2]
    for reason, key in zip(unseen.reasons[1:3], ("gpu_types", "most_gpus"), strict=True):
        assert f"{left_out()[key]['nttft']:.0%} (nTTFT)" in reason
    assert seen.level == "high"
    worst = max(max(left_out()[key].values()) for key in ("gpu_types", "most_gpus"))
    assert unseen.level == ("high" if worst <= 0.25 else "medium" if worst <= 0.5 else "low")
    measured = judge_trust(MODELS["llama_7b"], eight, alike(0.01), ["8 x H200"])
    assert measured.level == "high"


def test_a_vendor_that_the_data_lack_is_not_trusted() -> None:
    trust = judge_trust(MODELS["llama_7b"], GPUS["mi300x"], alike(0.01), [])
    assert trust.level == "low"
    assert "no GPU of amd was measured: only GPUs of nvidia were" in " ".join(trust.reasons)


def test_draws_for_unseen_gpu_types_spread_as_errors_did() -> None:
    model, users = MODELS["llama_3_1_8b"], (1, 8)
    profiles = (GPUS["h100"], GPUS["l4"], GPUS["l4"].model_copy(update={"count": 2}))
    middle = np.full((3, 2), 10.0)
    errors = np.exp(0.05 * np.random.default_rng(5).standard_normal((4000, 3, 2)))
    said = Prediction(model, profiles, users, middle, middle, draws=Draws(middle * errors, middle * errors))
    widened = widen_unseen(said, alike(0.1))
    assert widened.draws is not None
    assert said.draws is not None
    assert np.allclose(widened.draws.itl_ms[:, 0], said.draws.itl_ms[:, 0])
    for drawn, metric in ((widened.draws.nttft_ms, "nttft"), (widened.draws.itl_ms, "itl")):
        error = np.expm1(np.median(np.abs(np.log(drawn[:, 1] / 10.0))))
        assert error == pytest.approx(left_out()["gpu_types"][metric], rel=0.15)
    logs = np.log(widened.draws.itl_ms)
    assert np.corrcoef(logs[:, 1, 0], logs[:, 2, 0])[0, 1] > 0.8
    measured = widen_unseen(said, alike(0.1), ["1 x L4"])
    assert measured.draws is not None
    assert np.allclose(measured.draws.itl_ms, said.draws.itl_ms)
