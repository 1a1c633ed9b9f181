"""The served recommender: what it keeps in files, how it answers rows, and what it refuses in which words."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpilot import catalog
from llmpilot.config import Sla
from llmpilot.dataset import published
from llmpilot.errors import ConfigError
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.recommendation.fitting import split_by_fit
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.ranking import rank
from llmpilot.recommendation.unseen import widen_unseen
from llmpilot.serving.bundle import Bundle, load_bundle
from llmpilot.serving.recommender import Recommender

LLMS = ("starcoder", "llama_13b", "llama_7b")
QUESTION = {"model": "llama_3_1_8b", "users": 500, "nttft_ms": 100, "itl_ms": 40}
FACTS = {"parameters_b": 8.03, "n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    data = published()
    data = data.select(data.table["model"].isin(LLMS))
    light = Pilot(name="pilot", views=[["closed_form"]], trees=10, fold_trees=5, draws=100)
    profiles = tuple(catalog.gpu_profiles())
    return Bundle(light.fit(data, 1), data, profiles, 3000, "paper", light.model_dump(mode="json"))


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


def ask(recommender: Recommender, *rows: dict[str, Any], task: str = "auto") -> list[dict[str, Any]]:
    return recommender.answer(recommender.known.read(pd.DataFrame(rows), task))


def test_files_hold_no_code_and_give_the_same_answers(
    bundle: Bundle, recommender: Recommender, tmp_path: Path
) -> None:
    bundle.save(tmp_path / "bundle")
    kinds = {file.suffix for file in (tmp_path / "bundle").rglob("*") if file.is_file()}
    assert kinds == {".json", ".csv", ".parquet", ".ubj"}
    again = Recommender(load_bundle(tmp_path / "bundle"))
    cell = {"model": "starcoder", "gpu": "A100-80GB", "count": 2, "users": 20}
    assert ask(again, QUESTION, cell) == ask(recommender, QUESTION, cell)


def test_a_damaged_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ConfigError, match="no recommender"):
        load_bundle(tmp_path)


def test_the_ranking_is_that_of_the_recommendation(bundle: Bundle, recommender: Recommender) -> None:
    (answer,) = ask(recommender, QUESTION)
    model = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"]
    fit, unfit = split_by_fit(model, bundle.profiles, bundle.heaviest_request_tokens)
    prediction = widen_unseen(bundle.fitted.predict(model, fit, bundle.users), bundle.evidence)
    expected = rank(prediction, need_of(500, Sla(itl_ms=40)), 0.1, unfit)
    best = expected.recommended
    assert best is not None
    assert (answer["gpu"], answer["count"], answer["pods"]) == (
        best.profile.name,
        best.profile.count,
        best.pods,
    )
    assert answer["p_sla"] == best.p_sla >= 0.9
    ranking = json.loads(answer["ranking"])
    assert [(row["gpu"], row["count"]) for row in ranking] == [
        (option.profile.name, option.profile.count) for option in expected.options
    ]
    assert len(ranking) == len(bundle.profiles)


def test_less_risk_never_costs_less(recommender: Recommender) -> None:
    costs = [ask(recommender, QUESTION | {"risk": risk})[0]["cost_per_hour"] for risk in (0.5, 0.2, 0.05)]
    assert costs == sorted(costs)


def test_gpus_restrict_the_choice(recommender: Recommender) -> None:
    (answer,) = ask(recommender, QUESTION | {"gpus": "a100, H100"})
    assert {row["gpu"] for row in json.loads(answer["ranking"])} == {"A100-40GB", "H100"}
    assert answer["gpu"] in ("A100-40GB", "H100")


@pytest.mark.parametrize("limit", ["nttft_ms", "itl_ms"])
def test_an_impossible_limit_has_no_recommendation_but_a_reason(recommender: Recommender, limit: str) -> None:
    (answer,) = ask(recommender, QUESTION | {limit: 1e-6})
    assert answer["gpu"] is None
    assert answer["pods"] is None
    assert "no GPU profile keeps the SLA" in answer["reason"]


def test_a_model_that_fits_nowhere_is_told_so(recommender: Recommender) -> None:
    huge = FACTS | {"parameters_b": 5000, "users": 5, "nttft_ms": 100, "itl_ms": 40}
    recommended, predicted = ask(recommender, huge, huge | {"gpu": "H100", "count": 8})
    assert recommended["gpu"] is None
    assert "fits on none" in recommended["reason"]
    assert "does not fit" in predicted["reason"]
    assert "itl_ms" not in predicted


def test_facts_as_columns_json_or_a_hugging_face_config_are_one_model(recommender: Recommender) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    asked = {"users": 500, "nttft_ms": 100, "itl_ms": 40}
    columns, text, hub = ask(
        recommender,
        FACTS | asked,
        {"model_facts": json.dumps(FACTS)} | asked,
        {"model_facts": json.dumps(config)} | asked,
    )
    assert columns == text
    assert (hub["gpu"], hub["count"]) == (text["gpu"], text["count"])
    assert hub["itl_ms"] == pytest.approx(text["itl_ms"], rel=0.05)


def test_a_fact_beside_a_name_replaces_the_names_own(recommender: Recommender) -> None:
    row = {"model": "llama_3_1_8b", "gpu": "H100", "users": 1}
    own, heavy = ask(recommender, row, row | {"weight_bytes_per_parameter": 20.0})
    assert own["reason"] == ""
    assert "does not fit" in heavy["reason"]


def test_measured_cells_are_told_as_they_were_measured(recommender: Recommender) -> None:
    table = published().only("starcoder").table
    rows = table[table["gpu"] == "H100"].to_dict("records")
    asked = [
        {"model": "bigcode/starcoder", "gpu": "h100", "count": row["count"], "users": row["users"]}
        for row in rows
    ]
    answers = ask(recommender, *asked)
    assert len(answers) >= 8
    assert [one["itl_ms"] for one in answers] == pytest.approx([row["itl_ms"] for row in rows])


def test_latencies_between_the_measured_loads_lie_between_theirs(recommender: Recommender) -> None:
    row = {"model": "llama_3_1_8b", "gpu": "A100-80GB", "count": 1}
    low, middle, high = (ask(recommender, row | {"users": users})[0] for users in (16, 24, 32))
    assert middle["itl_ms"] == pytest.approx((low["itl_ms"] + high["itl_ms"]) / 2)
    assert all(one["itl_ms_low"] < one["itl_ms"] < one["itl_ms_high"] for one in (low, middle, high))


def test_many_threads_get_the_same_answers_as_one(bundle: Bundle) -> None:
    rows = [
        FACTS | {"parameters_b": 7 + n % 4, "users": 100, "nttft_ms": 100, "itl_ms": 40} for n in range(40)
    ]
    alone = [ask(Recommender(bundle, kept_models=8), row)[0] for row in rows[:4]]
    crowded = Recommender(bundle, kept_models=2)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: ask(crowded, row)[0], rows))
    assert together == [alone[n % 4] for n in range(40)]


def test_a_question_that_failed_is_asked_anew(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender(bundle)
    with monkeypatch.context() as broken:
        broken.setattr(Bundle, "measured", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                ask(recommender, QUESTION)
    assert ask(recommender, QUESTION) == ask(Recommender(bundle), QUESTION)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"users": 5}, "column model is missing"),
        (QUESTION | {"model": "starcodr"}, "did you mean 'starcoder'"),
        (QUESTION | {"model": 7}, "column model is no text"),
        (QUESTION | {"users": None}, "column users is missing"),
        (QUESTION | {"users": 0}, "column users is not possible"),
        (QUESTION | {"users": 2.5}, "a whole number"),
        (QUESTION | {"users": float("inf")}, "column users is not possible"),
        (QUESTION | {"itl_ms": float("nan")}, "column itl_ms is missing"),
        (QUESTION | {"nttft_ms": "fast"}, "column nttft_ms is not possible"),
        (QUESTION | {"nttft_ms": True}, "column nttft_ms is not possible"),
        (QUESTION | {"risk": 1.0}, "column risk is not possible"),
        (QUESTION | {"gpus": "a100,h1000"}, "column gpus: there is no GPU type 'h1000'"),
        (QUESTION | {"task": "reccomend"}, "column task"),
        (QUESTION | {"model_facts": "{"}, "column model_facts is no JSON"),
        (QUESTION | {"model_facts": "[" * 100_000}, "column model_facts is no JSON"),
        (QUESTION | {"users": 10**400}, "column users is not possible"),
        (QUESTION | {"gpus": []}, "column gpus names no GPU type"),
        (QUESTION | {"model_facts": "[]"}, "column model_facts is no JSON object"),
        ({"model_facts": json.dumps(FACTS | {"depth": 3}), "users": 5}, "model_facts.depth is not a key"),
        ({"parameters_b": 7, "users": 5}, "column n_layers is missing"),
        (FACTS | {"n_heads": "many", "users": 5}, "column n_heads is not possible"),
        (FACTS | {"active_parameters_b": 9, "users": 5}, "active_parameters_b is larger"),
        ({"model": "starcoder", "gpu": "H100", "count": 3, "users": 5}, "no profile of 3 x H100"),
        ({"model": "starcoder", "gpu": "H100", "users": 129}, "from 1 to 128"),
        ({"model": "starcoder", "task": "predict", "users": 5}, "column gpu is missing"),
    ],
)
def test_what_cannot_be_answered_names_row_and_column(
    recommender: Recommender, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        recommender.known.read(pd.DataFrame([QUESTION, row], dtype=object), "auto")
    assert str(refused.value).startswith("row 1: ")
    assert said in str(refused.value)
    assert refused.value.cure or "larger" in said


def test_a_request_without_rows_is_refused(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        recommender.known.read(pd.DataFrame(), "auto")


def test_the_kept_draws_are_those_that_would_be_drawn_again(bundle: Bundle) -> None:
    first, second = (
        bundle.fitted.predict(catalog.models([name])[name], bundle.profiles[:5], (1, 8))
        for name in ("phi_4", "qwen3_8b")
    )
    assert first.draws is not None
    assert second.draws is not None
    strayed, other = (np.log(one.draws.itl_ms / one.itl_ms) for one in (first, second) if one.draws)
    # Each cell has a scale of its own; what is multiplied by it is the same.
    scale = np.median(other / strayed, axis=0)
    np.testing.assert_allclose(other, strayed * scale, rtol=1e-6, atol=1e-9)
