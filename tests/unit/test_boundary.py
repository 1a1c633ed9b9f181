"""What a ladder shows of the most that a service takes: known, between two levels, at least, or less."""

from typing import Any

import pytest

from llmpilot import report
from llmpilot.boundary import Boundary, of_ladder
from llmpilot.config import LATENCIES, STATISTICS, Sla
from llmpilot.console import out
from llmpilot.report.words import largest

SLA = Sla(nttft_ms=None, itl_ms=50.0)


def level(load: float, itl_ms: float) -> dict[str, Any]:
    latencies = {name: dict.fromkeys(STATISTICS, itl_ms) for name in LATENCIES}
    return {"level": load, "users": load, "requests_ok": 30, "failure_rate": 0.0} | latencies


def result(levels: list[dict[str, Any]], unit: str = "users") -> dict[str, Any]:
    found = of_ladder(levels, SLA)
    return {
        "model": "m",
        "gpu": None,
        "cost_per_hour": None,
        "cost_per_million_output_tokens": None,
        "level_unit": unit,
        "level_max": found.kept or 0,
        "sla": SLA.model_dump(),
        "levels": levels,
    } | found.stated(whole=unit == "users")


@pytest.mark.parametrize(
    ("latencies", "meaning", "says", "in_a_table"),
    [
        ({1: 10, 8: 49}, "at_least", "m takes at least 8 users (the largest load tried) within", ">= 8"),
        (
            {1: 10, 8: 49, 12: 51},
            "between",
            "takes 8 users within {sla}, and 12 break it.",
            "8 (12 breaks)",
        ),
        (
            {7: 10, 8: 49, 9: 51},
            "exact",
            "m takes exactly 8 users within {sla}, and 9 break it.",
            "8 (9 breaks)",
        ),
        ({4: 51, 8: 49}, "below", "it takes fewer than 4 users, the smallest load tried.", "< 4"),
        ({1: 51}, "below", "keeps {sla} at no measured level, not even for one user.", "< 1"),
        # What lies above the first level that breaks it counts for nothing.
        ({1: 10, 2: 51, 4: 10}, "exact", "m takes exactly 1 user", "1 (2 breaks)"),
    ],
)
def test_what_is_said_of_the_most_users(
    latencies: dict[int, float], meaning: str, says: str, in_a_table: str
) -> None:
    made = result([level(users, itl_ms) for users, itl_ms in latencies.items()])
    assert made["level_max_is"] == meaning
    assert says.format(sla="the SLA (ITL <= 50 ms at p50, failures <= 1.0%)") in report.conclusion(made)
    assert largest(made) == in_a_table


def test_rates_have_room_between_them_and_are_told_apart_to_the_last_digit() -> None:
    made = result([level(1.0, 10), level(1.0000001, 51)], "requests/s")
    assert made["level_max_is"] == "between"
    assert "takes 1 requests/s within" in report.conclusion(made)
    assert "and 1.0000001 break it" in report.conclusion(made)
    assert "less than 0.5 requests/s" in report.conclusion(result([level(0.5, 51)], "requests/s"))


def test_a_result_of_an_earlier_version_says_no_more_than_it_knows() -> None:
    made = result([level(8, 10)])
    del made["level_max_is"], made["level_broken"]
    assert "takes 8 users within" in report.conclusion(made)
    assert largest(made) == "8"


def test_a_sweep_says_which_cells_may_take_more(capfd: pytest.CaptureFixture[str]) -> None:
    price = {"cost_per_hour": 3.0}
    cells = [
        {"cell": "a", "status": "done", "result": result([level(8, 10)]) | price},
        {"cell": "b", "status": "done", "result": result([level(2, 10), level(4, 60)]) | price},
        {"cell": "c", "status": "done", "result": result([level(2, 60)]) | price},
        {"cell": "d", "status": "failed"},
        {"cell": "e", "status": "done", "result": result([level(2.5, 10)], "requests/s") | price},
    ]
    report.print_sweep(cells)
    rows = capfd.readouterr().out.splitlines()
    a, b, c, e = (next(row for row in rows if f" {name} " in row) for name in "abce")
    assert ">= 8" in a
    assert "<= 0.375" in a
    assert "2 (4 breaks)" in b
    assert " 1.500 " in b
    assert "< 2" in c
    assert ">= 2.5 requests/s" in e
    assert "<=" not in e, "rates are no users, of which each costs so much"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_cells_of_a_sweep_are_told_apart_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(out, "_width", width)
    made = result([level(2, 10), level(4, 60)]) | {"cost_per_hour": 3.0, "max_batch_weight": 30_000}
    models = [f"+model=nemotron_3_nano_30b_a{n}b" for n in (3, 12)]
    report.print_sweep([{"cell": f"{name} gpu.count=2", "status": "done", "result": made} for name in models])
    shown = capfd.readouterr().out
    assert all(name in shown for name in models)
    assert shown.count("2 (4 breaks)") == 2
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ([0, 0], ", not even for one user. That is so with 95% confidence, by 1 level in 2 windows."),
        ([1, 1], "The most is 1 user with 95% confidence"),
        ([0, 3], "The most is at most 3 users with 95% confidence"),
        ([2, 3], "The most lies between 2 and 3 users with"),
        ([64, None], "The most is 64 users or more with"),
    ],
)
def test_what_a_search_says_of_its_interval(interval: list[int | None], says: str) -> None:
    searched = {"interval": interval, "noise": 0.1, "confidence": 0.95, "levels": 1, "windows": 2}
    levels = [level(1, 60)] if interval == [0, 0] else [level(1, 10), level(2, 60)]
    conclusion = report.conclusion(result(levels) | {"search": searched, "cost_per_hour": None})
    assert says in conclusion


def test_a_level_whose_streams_do_not_show_what_is_limited_is_no_broken_one() -> None:
    def level(users: int, itl_ms: float, *not_shown: str) -> dict[str, Any]:
        return {
            "level": users,
            "requests_ok": 5,
            "failure_rate": 0.0,
            "itl_ms": {"p50": itl_ms},
            "nttft_ms": {"p50": itl_ms},
            "streams": {"not_shown": list(not_shown)},
        }

    sound, unseen, slow = level(1, 5), level(2, 0, "itl_ms"), level(4, 500, "itl_ms")
    sla = Sla()
    assert of_ladder([sound, unseen, slow], sla) == Boundary(1, None, 2)
    assert of_ladder([unseen], sla).stated(whole=True) == {
        "level_max_is": "unseen",
        "level_broken": None,
        "level_unseen": 2,
    }
    assert of_ladder([sound, slow], sla) == Boundary(1, 4), "it breaks what its streams show"
