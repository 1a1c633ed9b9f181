"""The served recommender: its files, and that it says what task=recommend says of the same question."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving_samples import FACTS, FEW, GPUS, QUESTION, ask, small_bundle

from llmpilot import recommend
from llmpilot.errors import ConfigError
from llmpilot.serving import shelf
from llmpilot.serving.bundle import Bundle, load_bundle
from llmpilot.serving.recommender import Recommender
from llmpilot.serving.shelf import Kept, Shelf


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


# --- files -----------------------------------------------------------------------------------------------


def test_files_are_json_and_give_the_same_answers(
    bundle: Bundle, recommender: Recommender, tmp_path: Path
) -> None:
    bundle.save(tmp_path / "bundle")
    assert {file.suffix for file in (tmp_path / "bundle").iterdir()} == {".json"}
    again = Recommender(load_bundle(tmp_path / "bundle"))
    assert again.bundle.knowledge.content_hash == bundle.knowledge.content_hash
    cell = {"model": "llama_3_1_8b", "gpu": "H100", "requests_per_s": 5}
    assert ask(again, FEW, cell) == ask(recommender, FEW, cell)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "holds no recommender"),
        ("[]", "holds no recommender"),
        ("{", "holds no recommender"),
        ('{"format": 1, "recipe": {}}', "its format is 1, and this version reads 2"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_cure(
    bundle: Bundle, tmp_path: Path, content: str, said: str
) -> None:
    bundle.save(tmp_path)
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(ConfigError, match=said) as refused:
        load_bundle(tmp_path)
    assert "task=train" in refused.value.cure


def test_knowledge_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    file = tmp_path / "knowledge.json"
    content = json.loads(file.read_text())
    content["rows_hash"] = "another"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="holds no recommender"):
        load_bundle(tmp_path)


# --- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        (QUESTION, {"requests_per_s": 20}),
        (
            {"model": "llama_3_1_8b", "users": 300, "think_time_s": 10, "risk": 0.2, "max_gpus": 16},
            {"users": 300, "think_time_s": 10, "risk": 0.2, "max_gpus": 16},
        ),
        (
            {
                **{"model": "llama_3_1_8b", "requests_per_s": 5, "input_tokens": 500, "output_tokens": 100},
                **{"precision": "bf16,fp8", "e2e_ms_mean": 5000, "prices": "runpod"},
            },
            {
                "requests_per_s": 5,
                "workload": {"model": "lengths", "input_tokens": 500, "output_tokens": 100},
                "precision": ["bf16", "fp8"],
                "sla": {"e2e_ms": {"mean": 5000}},
                "prices": "runpod",
            },
        ),
    ],
    ids=["rate", "users", "lengths"],
)
def test_the_same_question_has_the_figures_of_task_recommend(
    recommender: Recommender, row: dict[str, Any], asked: dict[str, Any]
) -> None:
    (answer,) = ask(recommender, row)
    told = recommend("llama_3_1_8b", gpus=GPUS, runs=False, **asked)
    rows = told.astype(object).where(told.notna(), None).to_dict("records")
    ranking = [{key: one[key] for key in rows[0]} for one in answer["ranking"]]
    assert ranking == rows
    best = told.attrs["recommended"]
    for name in ("gpu", "count", "engine", "precision", "pods", "cost_per_month", "p_sla", "binding"):
        assert answer[name] == best[name]
    assert answer["trust"] == told.attrs["trust"]["level"]
    assert answer["trust_sentence"] == told.attrs["trust"]["sentence"]
    assert answer["alternatives"] == told.attrs["alternatives"]
    assert answer["prices"] == told.attrs["prices"]


def test_what_was_simulated_before_changes_no_answer(bundle: Bundle) -> None:
    others = [
        FEW | {"gpus": "h100"},
        FEW | {"workload": "azure_code"},
        FEW | {"requests_per_s": 3, "itl_ms": 30, "risk": 0.05, "prices": '{"h100": 3}'},
        FEW | {"requests_per_s": None, "users": 50},
    ]
    crowded = Recommender(bundle)
    ask(crowded, *others)
    assert ask(crowded, FEW) == ask(Recommender(bundle), FEW)


def test_another_sla_load_risk_or_price_simulates_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = Recommender(bundle)
    ask(recommender, FEW)
    monkeypatch.setattr(shelf, "curves_of", lambda *_: 1 / 0)
    for more in (
        {"requests_per_s": 90},
        {"itl_ms": 20},
        {"risk": 0.3},
        {"prices": '{"l4": {"1": 9}}'},
        {"max_gpus": 4},
    ):
        ask(recommender, FEW | more)
    with pytest.raises(ZeroDivisionError):
        ask(recommender, FEW | {"workload": "azure_code"})


def test_another_workload_needs_no_other_step_times(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender(bundle)
    ask(recommender, FEW)
    monkeypatch.setattr(shelf, "service_of", lambda *_: 1 / 0)
    ask(recommender, FEW | {"workload": "azure_code"})
    with pytest.raises(ZeroDivisionError):
        ask(recommender, FEW | {"cached_share": 0.5})


def test_less_risk_and_more_load_never_cost_less(recommender: Recommender) -> None:
    costs = [ask(recommender, QUESTION | {"risk": risk})[0]["cost_per_hour"] for risk in (0.5, 0.2, 0.05)]
    assert costs == sorted(costs)
    loads = [ask(recommender, QUESTION | {"requests_per_s": n})[0]["cost_per_hour"] for n in (1, 20, 400)]
    assert loads == sorted(loads)


def test_gpus_restrict_the_choice(recommender: Recommender) -> None:
    (answer,) = ask(recommender, QUESTION | {"gpus": "l4, H100"})
    assert {row["gpu"] for row in answer["ranking"]} == {"L4", "H100"}


def test_types_without_a_price_are_refused(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="row 0: column prices: no price of l4 is known"):
        ask(recommender, QUESTION | {"gpus": "l4", "prices": '{"h100": 3}'})


def test_an_impossible_limit_has_no_recommendation_but_a_reason(recommender: Recommender) -> None:
    (answer,) = ask(recommender, QUESTION | {"itl_ms": 1e-3})
    assert answer["gpu"] is None
    assert answer["pods"] is None
    assert "no service on any GPU profile carries this load" in answer["reason"]
    assert answer["latencies"] == []
    assert not any(row["feasible"] for row in answer["ranking"])


def test_a_model_that_fits_nowhere_is_told_so(recommender: Recommender) -> None:
    huge = FACTS | {"parameters_b": 5000, "requests_per_s": 5}
    recommended, predicted = ask(recommender, huge, huge | {"gpu": "H100", "count": 8})
    assert recommended["gpu"] is None
    assert "fits on none" in recommended["reason"]
    assert "does not fit" in predicted["reason"]
    assert predicted["trust"] == "high"
    assert "itl_ms" not in predicted


def test_what_nothing_was_measured_of_is_not_trusted_much(recommender: Recommender) -> None:
    measured, unknown = ask(recommender, QUESTION, FACTS | {"requests_per_s": 20})
    assert unknown["trust"] in ("medium", "low")
    assert "this LLM was not measured" in unknown["trust_sentence"]
    assert "this LLM was not measured" not in measured["trust_sentence"]
    (long,) = ask(
        recommender, QUESTION | {"input_tokens": 100_000, "output_tokens": 100, "requests_per_s": 0.1}
    )
    assert long["trust"] == "low"


def test_one_pod_is_slower_the_more_it_has_to_do(recommender: Recommender) -> None:
    row = {"model": "llama_3_1_8b", "gpu": "H100", "count": 1}
    cells = ask(recommender, *(row | {"users": users} for users in (1, 20, 100)))
    expected = [one["itl_ms"] for one in cells]
    assert expected == sorted(expected)
    assert expected[0] < expected[-1]
    for one in cells:
        assert one["itl_ms_low"] <= one["itl_ms"] <= one["itl_ms_high"]
        assert {(told["latency"], told["statistic"]) for told in one["latencies"]} >= {
            ("ttft_ms", "p50"),
            ("e2e_ms", "mean"),
        }
    (overloaded,) = ask(recommender, row | {"requests_per_s": 1000})
    assert overloaded["p_sla"] == 0
    assert "does not keep up" in overloaded["reason"]


# --- many at once ----------------------------------------------------------------------------------------


def test_many_threads_get_the_same_answers_as_one(bundle: Bundle) -> None:
    rows = [FEW | {"gpus": gpu, "requests_per_s": n} for n in (1, 5) for gpu in GPUS] * 2
    alone = [ask(Recommender(bundle), row)[0] for row in rows[:4]]
    crowded = Recommender(bundle, Shelf(bundle.knowledge, kept_services=1, kept_curves=1))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: ask(crowded, row)[0], rows))
    assert together == [alone[n % 4] for n in range(len(rows))]


def test_a_question_that_failed_is_asked_anew(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender(bundle)
    with monkeypatch.context() as broken:
        broken.setattr(shelf, "curves_of", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                ask(recommender, FEW)
    assert ask(recommender, FEW) == ask(Recommender(bundle), FEW)


def test_what_is_kept_is_bounded_and_made_once() -> None:
    kept: Kept[int, int] = Kept(3)
    made: list[int] = []

    def make(keys: list[int]) -> Any:
        return lambda places: [made.append(keys[at]) or keys[at] ** 2 for at in places]  # type: ignore[func-returns-value]

    for keys in ([1, 2], [2, 3], [1, 4]):
        assert kept.get(keys, make(keys)) == [key**2 for key in keys]
    assert made == [1, 2, 3, 4]
    assert len(kept) == 3
    kept.get([2], make([2]))  # which was the least lately used
    assert made == [1, 2, 3, 4, 2]
    many = list(range(10, 20))
    assert kept.get(many, make(many)) == [key**2 for key in many]


def test_services_that_cannot_start_say_why(recommender: Recommender) -> None:
    (answer,) = ask(recommender, QUESTION | {"model": "llama_3_1_70b", "gpus": "l4"})
    unfit = [row for row in answer["ranking"] if "does not fit" in row["reason"]]
    assert unfit
    assert all(row["pods"] is None and row["latencies"] == [] for row in unfit)
