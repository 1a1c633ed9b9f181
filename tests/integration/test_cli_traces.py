"""Traces as they are published, by the command line: replayed, fitted, asked about; no columns are named."""

import json
from pathlib import Path

import pytest
from conftest import Run
from tracked import read

CELL = ("+gpu=a100", "+model=starcoder", "tuner=none")
WINDOW = ("load.duration_s=10", "load.warmup_s=0", "load.drain_s=30")


def mooncake(gap_ms: int = 200) -> Path:
    """A trace in Mooncake's layout: 60 requests, one each 200 ms."""
    rows = [
        {"timestamp": i * gap_ms, "input_length": 100 + i % 7, "output_length": 5, "hash_ids": [0, i]}
        for i in range(60)
    ]
    path = Path("mooncake.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_milliseconds_are_replayed_as_such(run: Run) -> None:
    path = mooncake()
    ran = run(*CELL, "load=replay", f"load.trace.path={path}", *WINDOW, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "laid out as Mooncake's traces" in ran.err
    assert "timestamps are milliseconds" in ran.err
    assert "60 requests read in 11.8 s, 5.085 a second" in ran.err
    (level,) = read("r.json")["levels"]
    assert level["requests_ok"] == 50  # 5 a second for 10 s


def test_rows_of_no_tokens_and_out_of_order_by_choice(run: Run) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    times = [i * 0.5 for i in range(40)]
    times[3], times[4] = times[4], times[3]
    rows = "".join(f"{t},GPT-4,{0 if t == 5 else 50},{0 if t == 5 else 4},0,API log\n" for t in times)
    Path("burst.csv").write_text(header + rows, encoding="utf-8")
    replay = (*CELL, "load=replay", "load.trace.path=burst.csv", *WINDOW, "result_file=r.json")
    empty = run(*replay)
    assert empty.code == 2
    assert "load.trace.drop_empty=true" in empty.err
    backwards = run(*replay, "load.trace.drop_empty=true")
    assert backwards.code == 2
    assert "load.trace.sort=true" in backwards.err
    ran = run(*replay, "load.trace.sort=true", "load.trace.drop_empty=true")
    assert ran.code == 0, ran.err
    assert "1 row of 0 tokens left out" in ran.err
    (level,) = read("r.json")["levels"]
    assert level["requests_ok"] == 19  # 2 a second for 10 s, but for the one left out


@pytest.mark.parametrize("unit", ["auto", "s"])
def test_a_trace_read_in_the_wrong_unit_says_so(run: Run, unit: str) -> None:
    path = mooncake(gap_ms=2)  # 500 a second
    ran = run(*CELL, "load=replay", f"load.trace.path={path}", f"load.trace.timestamp_unit={unit}", *WINDOW)
    said = "milliseconds" if unit == "auto" else "seconds"
    assert f"timestamps are {said}" in ran.err
    assert ("its timestamps taken for milliseconds" in ran.err) is (unit == "auto")
    assert ran.code == (2 if unit == "auto" else 0)


def test_conversations_are_fitted(run: Run) -> None:
    turns = [{"from": "human", "value": "x" * 400}, {"from": "gpt", "value": "y" * 80}]
    Path("sg.json").write_text(json.dumps([{"id": str(i), "conversations": turns * 2} for i in range(60)]))
    ran = run("task=workload", "trace.path=sg.json", "samples=1000", "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "tokens are estimated: one for 4 characters" in ran.err
    result = read("r.json")
    assert result["rows"] == 120
    assert result["mean"]["input_tokens"] == pytest.approx((100 + 220) / 2)
    assert result["mean"]["output_tokens"] == 20
    assert any("conversations" in remark for remark in result["remarks"])


def test_an_answer_for_a_trace_in_milliseconds(run: Run) -> None:
    ran = run(
        *("task=recommend", "+model=llama_3_1_8b", f"trace.path={mooncake()}", "catalog=[l4]"),
        *("gpus_per_pod=[1]", "result_file=r.json"),
    )
    assert ran.code == 0, ran.err
    assert read("r.json")["requests_per_s"] == pytest.approx(60 / 11.8)
    assert "timestamps are milliseconds" in ran.err
