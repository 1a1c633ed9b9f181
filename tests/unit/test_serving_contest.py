"""Who becomes champion: scores on equal terms, and a tie keeps the one that there is."""

from dataclasses import asdict

from llmpilot import catalog
from llmpilot.dataset import shipped_measurements
from llmpilot.predict.decision import Rule
from llmpilot.serving.contest import compare, terms_of

SETTINGS = {"tpot_ms": [10, 15], "ttft_ms": [500]}


def test_terms_change_with_whatever_changes_a_score() -> None:
    rows = shipped_measurements()
    few = rows.select([at < 50 for at in range(len(rows))])
    fewer = rows.select([at < 49 for at in range(len(rows))])
    upside_down = type(few)(few.table.iloc[::-1], few.extra)
    prices, rule = catalog.price_list(), asdict(Rule.at(None))
    same = terms_of(few, prices, rule, SETTINGS)
    assert same == terms_of(upside_down, prices, rule, SETTINGS)
    others = [
        terms_of(fewer, prices, rule, SETTINGS),
        terms_of(few, catalog.price_list("runpod"), rule, SETTINGS),
        terms_of(few, prices, asdict(Rule.at(0.1)), SETTINGS),
        terms_of(few, prices, rule, SETTINGS | {"ttft_ms": [1000]}),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_only_a_better_score_moves_the_champion() -> None:
    assert compare(0.81, 0.80, "3").moved
    assert not compare(0.80, 0.80, "3").moved
    verdict = compare(0.79, 0.80, "3")
    assert not verdict.moved
    assert "0.7900" in verdict.why
    assert "version 3" in verdict.why
