"""Who becomes champion: scores on equal terms, and a champion's data without the LLM that is left out."""

from llmpilot.config import Facts
from llmpilot.dataset import Dataset, published
from llmpilot.predict.decision import Need
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.serving.contest import compare, earlier, terms_of

NEEDS = [Need(200, 100.0, 50.0)]


def some(*names: str) -> Dataset:
    data = published()
    return data.select(data.table["model"].isin(names))


def test_terms_change_with_whatever_changes_a_score() -> None:
    data = some("starcoder", "llama_7b", "llama_13b")
    same = terms_of(data, NEEDS, range(2), [])
    assert same == terms_of(some("llama_13b", "starcoder", "llama_7b"), NEEDS, range(2), [])
    others = [
        terms_of(data.without("starcoder"), NEEDS, range(2), []),
        terms_of(data, [Need(201, 100.0, 50.0)], range(2), []),
        terms_of(data, [Need(200, 100.0)], range(2), []),
        terms_of(data, NEEDS, range(3), []),
        terms_of(data, NEEDS, range(2), ["1xH100"]),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_only_a_better_score_moves_the_champion() -> None:
    assert compare(0.81, 0.80, "3").moved
    assert not compare(0.80, 0.80, "3").moved
    verdict = compare(0.79, 0.80, "3")
    assert not verdict.moved
    assert "0.7900" in verdict.why
    assert "version 3" in verdict.why


def test_a_champion_learns_from_its_own_data_but_never_of_the_llm_left_out() -> None:
    then, today = some("starcoder", "llama_7b", "llama_13b"), some("starcoder", "llama_7b", "flan_t5_xl")
    recipe = Pilot(name="pilot", views=[["closed_form"]], trees=5, fold_trees=5, draws=10)
    champion = earlier(recipe.model_dump(mode="json"), then, today)
    assert isinstance(champion, Facts)

    def learned_from(without: str) -> set[str]:
        return set(champion.fit(today.without(without), 1).out_of_fold["model"])

    assert learned_from("starcoder") == {"llama_7b", "llama_13b"}
    assert learned_from("flan_t5_xl") == {"starcoder", "llama_7b", "llama_13b"}
