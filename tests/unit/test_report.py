"""The table, plots and page hold for any run: also one in which nothing succeeded."""

from pathlib import Path
from typing import Any

import pytest

from llmpilot import metrics, report
from llmpilot.config import LATENCIES, STATISTICS, Sla
from llmpilot.console import out


def result(values: list[float | None]) -> dict[str, Any]:
    levels = [
        {
            "level": 2**i,
            "users": 2**i,
            "requests_ok": 0 if value is None else 5,
            "requests_failed": 3,
            "failures": {"out_of_memory": 3},
            "excluded": {"warmup": 1, "drain": 2},
            **{name: dict.fromkeys(STATISTICS, value) for name in LATENCIES},
            **dict.fromkeys(
                ("requests_per_s", "goodput_per_s", "throughput_tok_s", "input_tok_s"), value or 0.0
            ),
        }
        for i, value in enumerate(values)
    ]
    return {
        "model": "<b>m</b>",
        "gpu": "G",
        "count": 2,
        "measurement": "measured",
        "workload": "paper",
        "max_batch_weight": None,
        "level_unit": "users",
        "level_max": 0,
        "cost_per_hour": 3.0,
        "cost_per_million_output_tokens": None,
        "sla": {
            "ttft_ms": None,
            "nttft_ms": 100.0,
            "itl_ms": 50.0,
            "percentile": 50,
            "max_failure_rate": 0.01,
        },
        "levels": levels,
    }


def test_short_windows_and_the_server_are_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = result([3.0, 40.0])
    made["levels"][0]["window_problem"] = "<7> of them"
    made["levels"][1]["server"] = {"running": {"mean": 12.5, "max": 16.0}, "preemptions": 4_321}
    assert report.short_windows(made) == ["1 user: <7> of them"]
    report.print_table(made)
    assert "1 !" in capfd.readouterr().out
    report.write(made, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Window too short at 1 user: &lt;7&gt; of them" in page
    row = page.partition("server: requests running, mean")[2].partition("</tr>")[0]
    assert "<td>-</td><td>12.5</td>" in row
    assert "4,321" in page.partition("server: preemptions")[2].partition("</tr>")[0]
    assert "server: GPU power" not in page


def held_back(level: dict[str, Any], not_shown: tuple[str, ...] = ("itl_ms",)) -> None:
    level["streams"] = {"one_piece_share": 0.25, "short_gap_share": 0.9, "not_shown": list(not_shown)}
    level["stream_problem"] = metrics.problem_of([level], Sla())


@pytest.mark.parametrize(("width", "marked"), [(80, 1), (200, 3)])
def test_what_streams_do_not_show_is_marked_and_said(
    width: int,
    marked: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(out, "_width", width)
    made = result([3.0, 0.04, 0.0])
    held_back(made["levels"][1])
    held_back(made["levels"][2])
    made |= {"level_max": 1, "level_max_is": "unseen", "level_broken": None, "level_unseen": 2}
    (kind, text) = report.stream_problems(made)[0]
    assert kind == metrics.BURSTS
    assert text.startswith("2, 4 users: 90% of the gaps between tokens are below 0.1 ms")
    assert "takes at least 1 user (at 2 users the streams do not show ITL) within" in report.conclusion(made)
    report.print_table(made)
    rows = capfd.readouterr().out.splitlines()
    assert [row.count("-*") for row in rows if "│" in row] == [0, marked, marked]
    assert any("TPOT p50" in row for row in rows), "what is shown in place of ITL stays on any terminal"
    assert all(len(row) <= width and "…" not in row for row in rows)
    assert "-* the streams do not show it, see below" in rows
    report.write(made, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Tokens in bursts at 2, 4 users" in page
    assert "<td>3.00</td><td>-*</td><td>-*</td>" in page.partition("ITL [ms] p50")[2].partition("</tr>")[0]
    made |= {"level_max": 0, "level_unseen": 2}
    assert "at no measured level: at 2 users the streams do not show ITL" in report.conclusion(made)


@pytest.mark.parametrize("unit", ["users", "requests/s", "x trace speed", "conversations/s"])
def test_no_figure_is_cut_on_a_narrow_terminal(
    unit: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "_width", 80)
    report.print_table(result([3.0, 40.0]) | {"level_unit": unit, "cost_per_hour": 2.5})
    shown = capfd.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        *((0.04, 1, "0.04"), (0.0, 1, "0.0"), (0.06, 1, "0.1"), (3.26, 1, "3.3"), (1234.5, 0, "1,234")),
        *((0.00096, 2, "0.0010"), (0.4, 0, "0.4"), (-0.003, 2, "-0.003"), (None, 2, "-")),
    ],
)
def test_no_figure_reads_zero_that_is_not(value: float | None, digits: int, shown: str) -> None:
    assert report.figure_of(value, digits) == shown


def test_thoughts_lengths_cached_prompts_and_turns_are_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "_width", 200)
    made = result([3.0, 40.0])
    first, second = made["levels"]
    turn = {"and_later": False, "requests": 3, "input_tokens_mean": 9.0, "cached_share": None}
    first["turns"] = [turn | {"turn": 1, "ttft_ms": dict.fromkeys(STATISTICS, 61.0)}]
    second["turns"] = [
        turn | {"turn": 1, "ttft_ms": dict.fromkeys(STATISTICS, 62.0)},
        turn
        | {"turn": 10, "and_later": True, "cached_share": 0.875, "ttft_ms": dict.fromkeys(STATISTICS, 63.0)},
    ]
    second["cached_share"] = 0.004
    second |= {"ttfa_ms": dict.fromkeys(STATISTICS, 777.0), "thought_aloud": 4}
    second["hidden_tokens"] = {"total": 80, "share": 0.25}
    for level, received, problem in ((first, 60.0, "<60> were"), (second, 63.0, None)):
        level["client"] = {"tokens_counted_by": {"usage": 5, "chunks": 2}}
        level["fidelity"] = {"output_tokens_asked": 64.0, "output_tokens_received": received}
        level["fidelity"] |= {"ended_early_share": 0.5, "longer_share": 0.0, "problem": problem}
    assert report.other_workload(made) == "1 user: <60> were"
    report.print_table(made)
    said = capfd.readouterr().out
    assert "777" in said
    assert "0.4%" in said
    (row,) = [line for line in said.splitlines() if "63, 88%" in line]
    assert "62" in row
    assert "10 and later" in said
    report.write(made, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    def cells(name: str) -> str:
        return page.partition(f"<th>{name}</th>")[2].partition("</tr>")[0]

    assert "Another workload than configured at 1 user: &lt;60&gt; were." in page
    assert cells("time to the first answer token [ms] p50") == "<td>-</td><td>777.00</td>"
    assert cells("answers behind thoughts") == "<td>-</td><td>4</td>"
    assert cells("output tokens never shown") == "<td>-</td><td>25%</td>"
    assert cells("tokens counted by") == "<td>5 by usage, 2 by chunks</td>" * 2
    assert cells("output tokens received, mean") == "<td>60.0</td><td>63.0</td>"
    assert cells("answers that ended early") == "<td>50%</td><td>50%</td>"
    assert cells("prompt tokens cached") == "<td>-</td><td>0.4%</td>"
    assert cells("turn 1: TTFT [ms] p50") == "<td>61.00</td><td>62.00</td>"
    assert cells("turn 10 and later: TTFT [ms] p50") == "<td>-</td><td>63.00</td>"
    assert cells("turn 10 and later: prompt tokens cached") == "<td>-</td><td>88%</td>"


@pytest.mark.parametrize("values", [[None], [None, 3.0], [3.0, 40.0, None], [0.0, 0.0]])
def test_every_picture_and_table_can_be_made(values: list[float | None], tmp_path: Path) -> None:
    made = result(values)
    report.print_table(made)
    report.write(made, tmp_path)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "plots").iterdir())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;m" in page
    assert "3 out_of_memory" in page
    assert "keeps the SLA" in page


def test_a_sweep_of_recommendations_says_what_to_take(capfd: pytest.CaptureFixture[str]) -> None:
    best = {"pods": 7, "count": 2, "gpu": "H100", "precision": "fp8", "cost_per_hour": 48.16, "p_sla": 0.82}
    cells = [
        {"cell": "requests_per_s=1", "status": "done", "result": {"recommended": best}},
        {"cell": "requests_per_s=9", "status": "done", "result": {"recommended": None}},
        {"cell": "requests_per_s=x", "status": "failed"},
    ]
    report.print_sweep(cells)
    first, second, third = (line for line in capfd.readouterr().out.splitlines() if "requests_per_s" in line)
    assert all(word in first for word in ("7 x (2 x H100), fp8", "48.16", "82%"))
    assert "nothing" in second
    assert "nothing" not in third


def test_answers_without_ids_are_counted_over_all_levels() -> None:
    told, none = {"client": {"histories": {"made_up_answers": 3}}}, {"client": {"histories": None}}
    assert report.made_up_answers({"levels": [told, none, {}, told]}) == 6
