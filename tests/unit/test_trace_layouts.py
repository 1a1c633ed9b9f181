"""Traces as others publish them: known by their columns, in whatever unit and order their timestamps are."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpilot.errors import PilotError, TraceError
from llmpilot.workload import Requests, Trace, TraceColumns, TraceReading, concatenate, open_trace
from llmpilot.workload.clock import UnclearUnit, unit_of
from llmpilot.workload.layouts import find_columns

MOONCAKE = [
    {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14, 15]},
    {"timestamp": 3052, "input_length": 7234, "output_length": 794, "hash_ids": [0, 28]},
]
BURST = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(trace: Trace) -> tuple[Requests, list[float] | None]:
    chunks = list(trace.chunks())
    times = [chunk.timestamps_s for chunk in chunks if chunk.timestamps_s is not None]
    return concatenate(chunk.requests for chunk in chunks), np.concatenate(times).tolist() if times else None


def timed(path: Path, **given: Any) -> Trace:
    return open_trace({"path": path, **given}, timed=True, key="load.trace")


def refused(trace: Trace) -> str:
    with pytest.raises(PilotError) as caught:
        read(trace)
    assert caught.value.cure
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_mooncake_in_milliseconds(tmp_path: Path, name: str) -> None:
    text = json.dumps(MOONCAKE, indent=1) if name == "a.json" else lines(MOONCAKE)
    path = write(tmp_path, gzip.compress(text.encode()) if name.endswith("gz") else text, name)
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(MOONCAKE), path)
    trace = timed(path)
    requests, times = read(trace)
    assert requests.input_tokens.tolist() == [6755, 7319, 7234]
    assert requests.output_tokens.tolist() == [500, 490, 794]
    assert times == [0, 0, 3.052]
    assert trace.remarks() == [
        f"{name} is laid out as Mooncake's traces: read are input_length, output_length, timestamp",
        f"{name}: timestamps are milliseconds (if they are not: load.trace.timestamp_unit=...); "
        "3 requests read in 3.1 s, 0.983 a second on average",
    ]
    assert read(timed(path, timestamp_unit="s"))[1] == [0, 0, 3052]


def test_qwens_have_mooncakes_names_and_count_in_seconds(tmp_path: Path) -> None:
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.5, "type": "text", "turn": 1}
    rows = [row | {"input_length": 521, "output_length": 132}, row | {"input_length": 5, "output_length": 6}]
    rows[1]["timestamp"] = 62.0
    trace = timed(write(tmp_path, lines(rows)))
    assert read(trace)[1] == [0, 0.5]
    assert "Qwen Bailian" in trace.remarks()[0]


@pytest.mark.parametrize("stamp", ["2023-11-16 18:17:{:02d}.9799600", "2024-05-10 00:00:{:02d}.009930+00:00"])
def test_azure_of_both_years(tmp_path: Path, stamp: str) -> None:
    rows = "".join(f"{stamp.format(i)},{100 + i},{i + 1}\n" for i in range(3))
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"
    trace = timed(write(tmp_path, text))
    requests, times = read(trace)
    assert (requests.input_tokens.tolist(), requests.output_tokens.tolist()) == ([100, 101, 102], [1, 2, 3])
    assert times == [0, 1, 2]
    assert trace.remarks()[-1].endswith(
        "timestamps are dates; 3 requests read in 2.0 s, 1.5 a second on average"
    )
    untimed = open_trace({"path": tmp_path / "trace.csv"})
    assert read(untimed)[1] is None  # nothing is asked of them


def test_burstgpt_with_failed_requests_and_sessions(tmp_path: Path) -> None:
    rows = [
        "5,a,1.5,ChatGPT,472,18,490,Conversation log",
        "45,,0.0,GPT-4,0,0,0,API log",
        "118,a,2.0,ChatGPT,1087,230,1317,Conversation log",
        "200,,2.0,ChatGPT,10,20,30,API log",
        "261,b,2.0,ChatGPT,37,1656,1693,Conversation log",
    ]
    path = write(tmp_path, BURST + "\n".join(rows) + "\n")
    message = refused(timed(path))
    assert "'0' in row 2 below the header" in message
    assert "load.trace.drop_empty=true" in message
    trace = timed(path, drop_empty=True)
    (chunk,) = trace.chunks()
    assert chunk.requests.output_tokens.tolist() == [18, 230, 20, 1656]
    assert chunk.timestamps_s is not None
    assert chunk.timestamps_s.tolist() == [0, 113, 195, 256]
    assert chunk.sessions is not None
    assert chunk.turns is not None
    assert chunk.sessions.tolist() == ["a", "a", "", "b"]
    assert chunk.turns.tolist() == [0, 1, 0, 0]
    assert trace.has_sessions
    assert any(remark.endswith("1 row of 0 tokens left out") for remark in trace.remarks())
    assert any("timestamps are seconds" in remark for remark in trace.remarks())


def test_rows_of_no_tokens_keep_the_numbers_of_the_others(tmp_path: Path) -> None:
    rows = [
        {"input_tokens": 0, "output_tokens": 5},
        {"output_tokens": 5},
        {"input_tokens": -1, "output_tokens": 5},
    ]
    path = write(tmp_path, lines(rows))
    assert "-1' in object 3 of" in refused(open_trace({"path": path, "drop_empty": True}))
    empty = write(tmp_path, lines(rows[:2]))
    assert "all 2 rows of the trace have 0 tokens" in refused(open_trace({"path": empty, "drop_empty": True}))


SHAREGPT = [
    {
        "id": "QWJhYvA_0",
        "conversations": [
            {"from": "human", "value": "x" * 400},
            {"from": "gpt", "value": "y" * 81},
            {"from": "human", "value": "x" * 19},
            {"from": "gpt", "value": "y" * 4},
        ],
    },
    {"id": "begun", "conversations": [{"from": "gpt", "value": "y" * 40}, {"from": "human", "value": "x"}]},
]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "s" * 40},
            {"role": "user", "content": [{"type": "text", "text": "x" * 8}, {"type": "image_url"}]},
            {"role": "assistant", "content": "y" * 12},
        ]
    }
]


@pytest.mark.parametrize("form", ["array", "lines", "parquet"])
def test_conversations_as_sharegpt_has_them(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, json.dumps(SHAREGPT) if form == "array" else lines(SHAREGPT), f"sg.{form}")
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(SHAREGPT), path)
    trace = open_trace({"path": path})
    (chunk,) = trace.chunks()
    assert chunk.requests.input_tokens.tolist() == [100, 125]  # 400 and 400 + 81 + 19 characters
    assert chunk.requests.output_tokens.tolist() == [21, 1]
    assert chunk.timestamps_s is None
    assert chunk.sessions is not None
    assert chunk.turns is not None
    assert (chunk.sessions.tolist(), chunk.turns.tolist()) == (["QWJhYvA_0"] * 2, [0, 1])
    said = "\n".join(trace.remarks())
    assert "2 conversations; each answer is a request" in said
    assert "tokens are estimated: one for 4 characters" in said
    assert "1 conversation without an answer left out" in said
    message = refused(timed(path))
    assert "a replay needs timestamps" in message
    assert f"task=workload trace.path={path}" in message


def test_conversations_in_a_csv_file_are_said_to_be_none(tmp_path: Path) -> None:
    text = refused(Trace(write(tmp_path, 'messages,id\n"[{""role"": ""user""}]",1\n'), TraceReading()))
    assert "this is a CSV file" in text
    assert "export it as JSON lines" in text


def test_chat_messages_in_parts(tmp_path: Path) -> None:
    trace = open_trace({"path": write(tmp_path, lines(CHATS))})
    requests, _ = read(trace)
    assert (requests.input_tokens.tolist(), requests.output_tokens.tolist()) == ([12], [3])
    assert any("1 part of messages that are no text" in remark for remark in trace.remarks())
    broken = open_trace({"path": write(tmp_path, lines([{"messages": "hello"}]))})
    assert "hello in conversation 1" in refused(broken)


def test_nested_fields_by_dotted_names(tmp_path: Path) -> None:
    rows = [
        {"usage": {"prompt_tokens": 7, "completion_tokens": 3}, "at": {"sent": 0.5 * i}} for i in range(3)
    ]
    columns = {"timestamp": "at.sent"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (write(tmp_path, lines(rows)), tmp_path / "a.parquet"):
        requests, times = read(timed(path, columns=columns))
        assert requests.input_tokens.tolist() == [7, 7, 7]
        assert times == [0, 0.5, 1]
        message = refused(timed(path, columns={"timestamp": "at.send"}))
        assert "did you mean 'at.sent'" in message
        assert "load.trace.columns.timestamp=<column>" in message


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([1_700_000_000, 1_700_000_060], "s"),
        ([1_700_000_000_000, 1_700_000_000_060], "ms"),
        ([1_700_000_000_000_000, 1_700_000_000_000_060], "us"),
        ([1.7e18, 1.7e18 + 1e9], "ns"),
        ([0, 5, 10], "s"),
        ([0, 30.5, 61], "s"),
        ([0, 152, 300], "ms"),
        ([0, 5_000], "ms"),
        ([0, 152_000], "us"),
        ([0, 152_000_000], "ns"),
        ([0, 10**12], "ns"),
        ([7, 7, 7], "s"),
        ([3], "s"),
    ],
)
def test_the_unit_is_found(values: list[float], unit: str) -> None:
    assert unit_of(np.array(values, dtype=float)) == unit


@pytest.mark.parametrize("gap", [6, 99, 6_000, 99_000, 6e6, 9e7])
def test_between_two_units_nothing_is_guessed(gap: float) -> None:
    with pytest.raises(UnclearUnit):
        unit_of(np.array([0.0, gap, 2 * gap]))


def test_an_unclear_unit_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "input_tokens,output_tokens,timestamp\n1,1,0\n1,1,20\n1,1,40\n")
    message = refused(timed(path))
    assert "may be seconds or milliseconds" in message
    assert "one request every 20 of them" in message
    assert "0.05 a second, or 50 a second" in message
    assert "load.trace.timestamp_unit=s or load.trace.timestamp_unit=ms" in message
    assert read(timed(path, timestamp_unit="ms"))[1] == [0, 0.02, 0.04]


@pytest.mark.parametrize(("unit", "second"), [("s", 1.5), ("ms", 1.5e-3), ("us", 1.5e-6), ("ns", 1.5e-9)])
def test_a_unit_that_is_said_is_taken(tmp_path: Path, unit: str, second: float) -> None:
    path = write(tmp_path, "input_tokens,output_tokens,ts\n1,1,10\n1,1,11.5\n")
    trace = timed(path, timestamp_unit=unit)
    times = read(trace)[1]
    assert times is not None
    assert times[1] == pytest.approx(second)
    assert "(if" not in trace.remarks()[-1]
    message = refused(timed(path, timestamp_unit="iso"))
    assert "must hold a date and time" in message
    dated = write(tmp_path, "input_tokens,output_tokens,ts\n1,1,2024-01-01\n", "dated.csv")
    assert "must hold a number of " in refused(timed(dated, timestamp_unit=unit))


def test_zones_are_all_there_or_none(tmp_path: Path) -> None:
    head = "input_tokens,output_tokens,time\n"
    path = write(tmp_path, f"{head}1,1,2024-05-10T02:00:00+02:00\n1,1,2024-05-10 00:00:01 UTC\n")
    assert read(timed(path))[1] == [0, 1]
    for first, second in (("00:00:00Z", "00:00:01"), ("00:00:00", "00:00:01Z")):
        path = write(tmp_path, f"{head}1,1,2024-05-10T{first}\n1,1,2024-05-10T{second}\n")
        message = refused(timed(path))
        assert f"2024-05-10T{second}' in row 2" in message
        assert "time zone" in message


def test_a_trace_out_of_order_is_sorted_by_choice(tmp_path: Path) -> None:
    path = write(tmp_path, "input_tokens,output_tokens,timestamp,session\n1,1,2,a\n2,1,0.5,b\n3,1,1,a\n")
    message = refused(timed(path))
    assert "load.trace.sort=true" in message
    assert "columns.timestamp=null" not in message  # a replay needs it
    trace = timed(path, sort=True)
    (chunk,) = trace.chunks()
    assert chunk.requests.input_tokens.tolist() == [2, 3, 1]
    assert chunk.timestamps_s is not None
    assert chunk.timestamps_s.tolist() == [0, 0.5, 1.5]
    assert chunk.turns is not None
    assert chunk.turns.tolist() == [0, 0, 1]
    assert any("sorted by 'timestamp'" in remark for remark in trace.remarks())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"input_tokens": 1, "output_tokens": 2}\n{"input_tokens": 1, "outp\n',
            "line 2 is no whole JSON object",
        ),
        ('[{"input_tokens": 1, "output_tokens": 2}, {"input_tok', "object 2 is no whole JSON object"),
        ('[{"input_tokens": 1, "output_tokens": 2}, 7]', "7 in object 2"),
        ('{"input_tokens": 1,\n "output_tokens": 2}\n', "line 1 is no whole JSON object"),
        ('{"input_tokens": [1], "output_tokens": 2}\n', "'[1]' in object 1"),
        ('{"input_tokens": "\\ud800", "output_tokens": 2}\n', "cannot be read"),
        ('{"a": ' + "[" * 100_000, "line 1 is no whole JSON object"),
        ("[" * 100_000, "object 1 is no whole JSON object"),
        ("[]", "no rows"),
        ("[{}]", "no rows"),
    ],
)
def test_json_that_is_no_trace(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(Trace(write(tmp_path, text), TraceReading()))


def test_a_byte_order_mark_before_json(tmp_path: Path) -> None:
    text = '\ufeff{"input_tokens": 1, "output_tokens": 2}\n\n{"input_tokens": "3", "output_tokens": 4.0}'
    requests, _ = read(Trace(write(tmp_path, text), TraceReading()))
    assert requests.input_tokens.tolist() == [1, 3]


def test_an_array_longer_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpilot.workload.json_rows.READ_CHARACTERS", 50)
    rows = [{"input_tokens": i, "output_tokens": 2, "text": '"]},' * 40} for i in range(1, 30)]
    requests, _ = read(Trace(write(tmp_path, json.dumps(rows)), TraceReading()))
    assert requests.input_tokens.tolist() == list(range(1, 30))


def test_named_columns_win_over_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "input_tokens,output_tokens,prompt\n1,2,3\n")
    trace = Trace(path, TraceReading(columns=TraceColumns(input_tokens="prompt")))
    assert read(trace)[0].input_tokens.tolist() == [3]
    assert trace.remarks() == []


def test_keys_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "input_tokens,output_tokens\n1,2\n")
    for given, says in (
        ({"unit": "ms"}, "load.trace.unit is not a key"),
        ({"timestamp_units": "ms"}, "did you mean 'timestamp_unit'"),
        ({"timestamp_unit": "minutes"}, "load.trace.timestamp_unit is not possible"),
        ({"columns": {"inputs": "x"}}, "load.trace.columns.inputs is not a key"),
    ):
        with pytest.raises(PilotError, match=says):
            timed(path, **given)
    with pytest.raises(PilotError, match=r"load\.trace\.path is missing"):
        open_trace({}, timed=True, key="load.trace")
    with pytest.raises(TraceError, match="no column 'input_tokens'"):
        read(Trace(write(tmp_path, "a,b\n1,2\n"), TraceReading()))


@pytest.mark.parametrize("name", ["session", "session_id", "conversation_id"])
def test_whose_session_a_request_is_is_known_by_its_name(name: str) -> None:
    there = ["input_tokens", "output_tokens", name]
    assert find_columns(Path("t.csv"), there, TraceColumns(), timed=False).columns["session"] == name


@pytest.mark.parametrize("named", [True, False])
def test_a_layout_s_unit_is_that_of_its_own_column(tmp_path: Path, named: bool) -> None:
    """Mooncake's names and milliseconds, beside a column of seconds that is read in their place."""
    rows = [{"arrival_time": i, "input_length": 9, "output_length": 5} for i in range(3)]
    rows = [row | {"timestamp": 1000 * row["arrival_time"]} if named else row for row in rows]
    given = {"columns": {"timestamp": "arrival_time"}} if named else {}
    trace = timed(write(tmp_path, lines(rows), "a.jsonl"), **given)
    assert read(trace)[1] == [0, 1, 2]
    assert trace.unit == "seconds"


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([b"\xff" * 16, b"\xfe" * 16, b"\xff" * 16, None], pa.binary(16)),
        pa.array([[1], [2], [1], None]),
        pa.array([1.0, 2.0, 1.0, None]),
    ],
    ids=lambda one: str(one.type),
)
def test_sessions_of_whatever_type_are_told_apart(tmp_path: Path, ids: pa.Array) -> None:
    lengths = pa.array([9, 9, 9, 9])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"input_tokens": lengths, "output_tokens": lengths, "session_id": ids}), path)
    (chunk,) = Trace(path, TraceReading()).chunks()
    assert chunk.sessions is not None
    assert chunk.turns is not None
    assert (chunk.sessions[0] == chunk.sessions[2], chunk.sessions[3]) == (True, "")
    assert chunk.turns.tolist() == [0, 0, 1, 0]
