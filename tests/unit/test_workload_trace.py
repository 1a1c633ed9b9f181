"""Reading traces: what is accepted, and that everything else is one clear TraceError."""

import contextlib
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmpilot.errors import TraceError
from llmpilot.workload import Requests, TraceColumns, concatenate, formats, read_trace

LENGTHS = TraceColumns(input_tokens="in", output_tokens="out")
TIMED = TraceColumns(input_tokens="in", output_tokens="out", timestamp="at")


def write(folder: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, columns: TraceColumns = LENGTHS) -> tuple[Requests, np.ndarray | None]:
    parts = list(read_trace(path, columns))
    stamps = [times for _, times in parts if times is not None]
    return concatenate(requests for requests, _ in parts), np.concatenate(stamps) if stamps else None


def refused(path: Path, columns: TraceColumns = LENGTHS) -> str:
    with pytest.raises(TraceError) as caught:
        read(path, columns)
    assert caught.value.exit_code == 2
    assert caught.value.cure
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_csv_as_azure_publishes_it(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n"
        "2023-11-16 18:17:04.0319600,110,27\r\n"
    )
    columns = TraceColumns(
        input_tokens="ContextTokens", output_tokens="GeneratedTokens", timestamp="TIMESTAMP"
    )
    requests, stamps = read(write(tmp_path, text), columns)
    assert requests.input_tokens.tolist() == [4808, 3180, 110]
    assert requests.output_tokens.tolist() == [10, 8, 27]
    assert stamps is not None
    assert stamps.tolist() == [0.0, 0.052, 0.052]
    assert requests.greedy.all()
    assert (requests.temperature.tolist(), requests.top_k.tolist()) == ([1.0] * 3, [0] * 3)


def test_every_parameter_and_empty_optional_cells(tmp_path: Path) -> None:
    text = "in,out,b,g,t,k,p,at\n1,2,3,true,0.7,50,0.9,5\n 4 ,5.0,,SAMPLE,,-1,,6.5\n7,8,1,,0,10,1,7\n"
    columns = TraceColumns(
        input_tokens="in",
        output_tokens="out",
        batch_size="b",
        greedy="g",
        temperature="t",
        top_k="k",
        top_p="p",
        timestamp="at",
    )
    requests, stamps = read(write(tmp_path, text), columns)
    assert requests.input_tokens.tolist() == [1, 4, 7]
    assert requests.batch_size.tolist() == [3, 1, 1]
    assert requests.greedy.tolist() == [True, False, True]  # the last by its temperature of 0
    assert requests.temperature.tolist() == [0.7, 1.0, 0.0]
    assert requests.top_k.tolist() == [50, 0, 10]
    assert requests.top_p.tolist() == [0.9, 1.0, 1.0]
    assert stamps is not None
    assert stamps.tolist() == [0, 1.5, 2]


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.float64(), pa.string(), pa.decimal128(9, 2)])
def test_parquet_of_any_sensible_type(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = pa.array([5, 6]).cast(pa.string()).cast(kind)
    stamps = pa.array([1_000, 3_500], pa.timestamp("ms", "UTC"))
    path = tmp_path / "trace.parquet"
    flags = pa.array(["greedy", "sample"]).dictionary_encode()
    pq.write_table(
        pa.table({"in": numbers, "out": numbers, "at": stamps, "other": [[1], []], "g": flags}), path
    )
    requests, times = read(path, TIMED.model_copy(update={"greedy": "g"}))
    assert requests.input_tokens.tolist() == [5, 6]
    assert requests.greedy.tolist() == [True, False]
    assert times is not None
    assert times.tolist() == [0, 2.5]


def test_a_byte_order_mark_quotes_and_gzip(tmp_path: Path) -> None:
    text = '\ufeffin,out,note\n1,2,"a, b\nsecond line"\n'
    for path in (
        write(tmp_path, text),
        write(tmp_path, gzip.compress(text.encode()), "trace.csv.gz"),
    ):
        assert read(path)[0].output_tokens.tolist() == [2]


@pytest.mark.parametrize(
    "stamps", ["2023-11-16T18:17:03Z,2023-11-16T18:17:04.5Z", "1700000000,1700000001.5", "0,1.5"]
)
def test_timestamps_count_from_the_first(tmp_path: Path, stamps: str) -> None:
    first, second = stamps.split(",")
    times = read(write(tmp_path, f"in,out,at\n1,1,{first}\n1,1,{second}\n"), TIMED)[1]
    assert times is not None
    assert times.tolist() == pytest.approx([0, 1.5])


def test_chunks_continue_rows_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 1000)
    rows = "".join(f"{i},2,{i / 10}\n" for i in range(1, 2001))
    path = write(tmp_path, "in,out,at\n" + rows)
    assert len(list(read_trace(path, TIMED))) > 10
    requests, times = read(path, TIMED)
    assert requests.input_tokens.tolist() == list(range(1, 2001))
    assert times is not None
    assert times[-1] == pytest.approx(199.9)
    assert "'0' in row 2001 below" in refused(write(tmp_path, "in,out,at\n" + rows + "0,1,300\n"), TIMED)
    assert "'199.0' in row 2001 below" in refused(
        write(tmp_path, "in,out,at\n" + rows + "1,1,199.0\n"), TIMED
    )


def test_only_as_much_memory_as_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 1 << 16)
    path = write(
        tmp_path, b"in,out,prompt\n" + b"123,45,a prompt of some length that nobody reads\n" * 400_000
    )
    held = pa.total_allocated_bytes()
    peak = 0
    for _ in read_trace(path, LENGTHS):
        peak = max(peak, pa.total_allocated_bytes() - held)
    assert peak < path.stat().st_size / 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("-5", "'-5' in row 2 below the header"),
        ("0", "whole number of tokens from 1 to 10,000,000"),
        ("1.5", "'1.5' in row 2"),
        ("nan", "'nan' in row 2"),
        ("inf", "'inf' in row 2"),
        ("10000001", "'10000001' in row 2"),
        ("1e300", "'1e300' in row 2"),
        ("many", "'many' in row 2"),
        ("", "nothing in row 2"),
    ],
)
@pytest.mark.parametrize("column", ["in", "out"])
def test_impossible_tokens(tmp_path: Path, value: str, says: str, column: str) -> None:
    row = f"{value},1" if column == "in" else f"1,{value}"
    message = refused(write(tmp_path, f"in,out\n3,4\n{row}\n5,6\n"))
    assert says in message
    assert f"column {column!r}" in message


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("batch_size", "0", "at least 1"),
        ("batch_size", "2.5", "whole number of sequences"),
        ("temperature", "-0.1", "from 0 to 100"),
        ("temperature", "warm", "'warm' in row 1"),
        ("top_k", "-2", "0 or -1 mean no limit"),
        ("top_p", "1.1", "from 0 to 1"),
        ("top_p", "-0.1", "from 0 to 1"),
        ("top_p", "nan", "'nan' in row 1"),
        ("greedy", "maybe", "greedy or sample"),
        ("timestamp", "yesterday", "a number, or a date and time"),
        ("timestamp", "", "nothing in row 1"),
        ("timestamp", "nan", "'nan' in row 1"),
    ],
)
def test_impossible_options(tmp_path: Path, field: str, value: str, says: str) -> None:
    columns = LENGTHS.model_copy(update={field: "x"})
    assert says in refused(write(tmp_path, f"in,out,x\n3,4,{value}\n"), columns)


def test_timestamps_that_go_backwards_or_change_kind(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "in,out,at\n1,1,5\n1,1,6\n1,1,5.5\n"), TIMED)
    assert "go backwards" in message
    assert "'5.5' in row 3" in message
    assert "trace.columns.timestamp=null" in message
    assert "row 2" in refused(write(tmp_path, "in,out,at\n1,1,2023-11-16 18:17:03\n1,1,12\n"), TIMED)
    assert "row 2" in refused(write(tmp_path, "in,out,at\n1,1,12\n1,1,2023-11-16 18:17:03\n"), TIMED)


def test_dates_beyond_the_calendar_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "late.parquet"
    pq.write_table(pa.table({"in": [1], "out": [1], "at": pa.array([2**62], pa.timestamp("us"))}), path)
    assert "a value of type timestamp[us] in row 1" in refused(path, TIMED)


def test_missing_columns_list_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path, "ContextTokens,GeneratedTokens\n1,2\n")
    message = refused(path, TraceColumns(input_tokens="ContextToken", output_tokens="GeneratedTokens"))
    assert "with columns ContextTokens, GeneratedTokens" in message
    assert "did you mean 'ContextTokens'" in message
    assert "trace.columns.input_tokens=<column>" in message
    assert "two columns" in refused(write(tmp_path, "in,in,out\n1,2,3\n"))


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_marks_may_part_the_columns(tmp_path: Path, mark: str) -> None:
    text = f"\ufeffin{mark}out\r\n1{mark}2\r\n3{mark}4\r\n"
    requests, _ = read(write(tmp_path, text.encode()))
    assert (requests.input_tokens.tolist(), requests.output_tokens.tolist()) == ([1, 3], [2, 4])
    message = refused(write(tmp_path, f"in{mark}answer\n1{mark}2\n"))
    assert "with columns in, answer" in message


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.csv")
    assert "is a folder" in refused(tmp_path)
    assert "is empty" in refused(write(tmp_path, ""))
    assert "no rows below its header" in refused(write(tmp_path, "in,out\n"))
    assert "no column 'out'" in refused(write(tmp_path, '{"in": 1}\n'))
    assert "neither CSV nor JSON nor Parquet" in refused(write(tmp_path, b"in,out\n\0\1\2\n"))
    assert "neither CSV nor JSON nor Parquet" in refused(write(tmp_path, "in,out\n1,2\n", "t.parquet"))
    assert "is compressed" in refused(write(tmp_path, gzip.compress(b"in,out\n1,2\n")))
    assert "cannot be read" in refused(write(tmp_path, "in,out\n1,2\n3\n"))
    assert "cannot be read" in refused(write(tmp_path, b"in,out\n\xff\xfe,2\n"))
    assert "cannot be read" in refused(write(tmp_path, b"PAR1 and nothing else"))
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"in": pa.array([], pa.int64()), "out": pa.array([], pa.int64())}), empty)
    assert "no rows" in refused(empty)
    lists = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"in": [[1]], "out": [1]}), lists)
    assert "not single numbers" in refused(lists)


def test_errors_of_whoever_takes_the_chunks_pass_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path, "in,out\n1,2\n")
    with pytest.raises(OSError, match="disk full"):  # noqa: PT012
        for _ in read_trace(path, LENGTHS):
            raise OSError("disk full")


@given(st.binary(max_size=300))
@example(b"in,out,at\n" + b'"' * 9)
@example(b"in,out,at\n1,1,9999999-11-16")
@example(b"in,out,at\n1,1,1\n\n,,\n")
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_requests_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for text in (content, b"in,out,at\n" + content):
        try:
            requests, _ = read(write(folder, text), TIMED)
        except TraceError:
            continue
        assert len(requests) >= 1
        assert requests.input_tokens.min() >= 1


CELL = st.one_of(
    st.integers(-2, 10**8).map(str),
    st.floats().map(repr),
    st.text(max_size=6),
    st.sampled_from(['"', "\r", "é"]),
)


@given(st.lists(st.lists(CELL, min_size=2, max_size=4), max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_table_gives_requests_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    text = "in,out,at\n" + "\n".join(",".join(row) for row in rows)
    with contextlib.suppress(TraceError):
        read(write(tmp_path_factory.mktemp("fuzz"), text.encode("utf-8", "surrogatepass")), TIMED)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_parquet_gives_requests_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "trace.parquet"
    pq.write_table(pa.table({"in": [1, 2, 3], "out": [4, 5, 6], "at": ["1", "2", "3"]}), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(5, len(content)))])
    with contextlib.suppress(TraceError):
        read(path, TIMED)
