"""The table, plots and page hold for any run: also one in which nothing succeeded."""

from pathlib import Path
from typing import Any

import pytest

from llmpilot import report
from llmpilot.config import LATENCIES, STATISTICS


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
    assert report.short_windows(made) == ["1 users: <7> of them"]
    report.print_table(made)
    assert "1 !" in capfd.readouterr().out
    report.write(made, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Window too short at 1 users: &lt;7&gt; of them" in page
    row = page.partition("server: requests running, mean")[2].partition("</tr>")[0]
    assert "<td>-</td><td>12.5</td>" in row
    assert "4,321" in page.partition("server: preemptions")[2].partition("</tr>")[0]
    assert "server: GPU power" not in page


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
