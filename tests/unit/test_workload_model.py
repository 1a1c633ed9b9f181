"""The workload model: what it keeps of the trace, what it draws, and that it draws the same everywhere."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpilot.errors import ConfigError, TraceError
from llmpilot.workload import (
    PARAMETERS,
    SHIPPED,
    Requests,
    WorkloadModel,
    concatenate,
    fit,
    from_lengths,
    load_workload,
)
from llmpilot.workload.binning import Counter, make_bins
from llmpilot.workload.requests import decode, encode

ROW = st.tuples(
    st.integers(1, 10_000_000),
    st.integers(1, 5_000),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.3333]),
    st.sampled_from([0, 10, 50]),
    st.floats(0, 1),
)


def requests_of(rows: list[tuple]) -> Requests:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    kinds = ("int64", "int64", "int64", "bool", "float64", "int64", "float64")
    return Requests(*(column.astype(kind) for column, kind in zip(columns, kinds, strict=True)))


REQUESTS = st.lists(ROW, min_size=1, max_size=200).map(requests_of)


def same(a: Requests, b: Requests) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in PARAMETERS)


def bin_indices(model: WorkloadModel, requests: Requests) -> list[tuple[int, ...]]:
    found = []
    for bins, column in zip(model.bins, encode(requests), strict=True):
        index = np.searchsorted(bins[:, 0], column, side="right") - 1
        assert (index >= 0).all()
        assert (column <= bins[index, 1]).all()
        found.append(index.tolist())
    return list(zip(*found, strict=True))


def digest(requests: Requests) -> str:
    return hashlib.sha256(b"".join(c.astype("<i8").tobytes() for c in encode(requests))).hexdigest()[:16]


@given(REQUESTS, st.integers(20, 64), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_every_sample_lies_in_a_cell_of_the_trace(trace: Requests, max_bins: int, seed: int) -> None:
    model = fit(lambda: [trace], max_bins)
    cells = set(bin_indices(model, trace))
    assert cells == set(map(tuple, model.cells.T.tolist()))
    assert set(bin_indices(model, model.sample(300, seed))) <= cells


@given(REQUESTS, st.integers(20, 64))
@settings(max_examples=60, deadline=None)
def test_weights_conserve_the_rows_of_every_marginal(trace: Requests, max_bins: int) -> None:
    model = fit(lambda: [trace], max_bins)
    assert model.rows == len(trace)
    for name, bins in zip(PARAMETERS, model.bins, strict=True):
        assert len(bins) <= max_bins
        assert model.marginal(name).sum() == len(trace)
        assert model.marginal(name).min() >= 1
    assert model.longest() == (trace.input_tokens.max(), trace.output_tokens.max())
    assert model.heaviest_weight >= trace.weights.max()


@given(REQUESTS, st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_how_the_trace_is_chunked_changes_nothing(trace: Requests, size: int) -> None:
    parts = [trace.take(slice(i, i + size)) for i in range(0, len(trace), size)]
    assert same(concatenate(parts), trace)
    assert fit(lambda: parts).content_hash == fit(lambda: [trace]).content_hash


@given(st.lists(st.integers(0, 400), max_size=6), st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_how_the_stream_is_chunked_changes_nothing(takes: list[int], seed: int, independent: bool) -> None:
    model = load_workload({"name": "production", "model": "shipped:production"})
    stream = model.stream(seed, independent=independent)
    parts = concatenate([stream.take(n) for n in takes])
    assert same(parts, model.sample(sum(takes), seed, independent=independent))


def test_takes_longer_than_the_inner_chunk_continue_the_stream() -> None:
    model = load_workload({"name": "paper", "model": "shipped:paper"})
    stream = model.stream(1)
    assert same(concatenate([stream.take(70_000), stream.take(80_000)]), model.sample(150_000, 1))


@given(REQUESTS)
@settings(max_examples=30, deadline=None)
def test_a_saved_model_loads_as_the_same(tmp_path_factory: pytest.TempPathFactory, trace: Requests) -> None:
    path = tmp_path_factory.mktemp("model") / "model.parquet"
    model = fit(lambda: [trace], about={"name": "mine", "licence": "own"})
    model.save(path)
    loaded = WorkloadModel.load(path)
    assert loaded.content_hash == model.content_hash
    assert loaded.about == model.about
    assert same(loaded.sample(50, 3), model.sample(50, 3))
    assert [p.name for p in path.parent.iterdir()] == ["model.parquet"]


@given(REQUESTS)
@settings(max_examples=40, deadline=None)
def test_encoding_keeps_a_grid_of_one_ten_thousandth(trace: Requests) -> None:
    back = decode(encode(trace))
    assert np.abs(back.top_p - trace.top_p).max() <= 0.5e-4 + 1e-12
    assert same(decode(encode(back)), back)


@given(
    st.dictionaries(st.integers(0, 10**7), st.integers(1, 10**6), min_size=1, max_size=400),
    st.integers(20, 256),
)
@settings(max_examples=80, deadline=None)
def test_bins_cover_all_values_apart_and_heavy_ones_alone(seen: dict[int, int], max_bins: int) -> None:
    values = np.array(sorted(seen), dtype=np.int64)
    counts = np.array([seen[v] for v in values.tolist()], dtype=np.int64)
    bins = make_bins(values, counts, max_bins)
    assert 1 <= len(bins) <= max_bins
    assert (bins[:, 0] <= bins[:, 1]).all()
    assert (bins[1:, 0] > bins[:-1, 1]).all()
    at = np.searchsorted(bins[:, 0], values, side="right") - 1
    assert (values <= bins[at, 1]).all()
    for value in values[counts * 10 > counts.sum()].tolist():
        assert [value, value] in bins.tolist()
    if len(values) <= max_bins:
        assert len(bins) == len(values)


@given(st.lists(st.lists(st.integers(-5, 5), max_size=40), max_size=8))
def test_the_counter_counts(chunks: list[list[int]]) -> None:
    counter = Counter()
    for chunk in chunks:
        counter.add(np.array(chunk, dtype=np.int64))
    values, counts = counter.result()
    flat = [value for chunk in chunks for value in chunk]
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {v: flat.count(v) for v in set(flat)}


def test_a_heavy_tail_keeps_its_mean_and_its_quantiles() -> None:
    tail = np.floor(np.random.Generator(np.random.PCG64(5)).lognormal(3, 1.5, 100_000)).astype(np.int64) + 1
    drawn = fit(lambda: [from_lengths(tail, tail)]).sample(400_000, 1).input_tokens
    assert drawn.mean() == pytest.approx(tail.mean(), rel=0.02)
    for q in (10, 50, 90, 99, 99.9):
        assert np.percentile(drawn, q) == pytest.approx(np.percentile(tail, q), rel=0.05, abs=1)


def test_the_same_seed_draws_the_same_on_every_machine() -> None:
    """Golden values: if one differs, samples are no longer reproducible across platforms or versions."""
    paper = load_workload({"name": "paper", "model": "shipped:paper"})
    first = paper.sample(5, 42)
    assert first.input_tokens.tolist() == [10, 31, 14, 88, 13]
    assert first.output_tokens.tolist() == [1, 9, 1, 20, 1]
    assert digest(paper.sample(10_000, 42)) == "4ea18320905b7346"
    production = load_workload({"name": "production", "model": "shipped:production"})
    first = production.sample(3, 42)
    assert first.temperature.tolist() == [0.0, 0.7, 0.7]
    assert first.top_p.tolist() == [1.0, 1.0, 0.73]
    assert digest(production.sample(10_000, 42)) == "8a1ee569e89702d6"


def test_the_numpy_stream_beneath_is_the_one_we_know() -> None:
    words = np.random.PCG64(42).random_raw(2).tolist()
    assert words == [14276969152011380360, 8095878257575067585]


@pytest.mark.parametrize(
    ("name", "rows", "longest"),
    [
        ("paper", 929, (874, 381)),
        ("production", 8_497_715, (1868, 1500)),
        ("azure_code", 8_819, (7437, 1899)),
        ("azure_conv", 19_366, (14050, 1000)),
    ],
)
def test_shipped_models_are_small_and_say_where_they_come_from(
    name: str, rows: int, longest: tuple[int, int]
) -> None:
    from llmpilot.workload.shipped import FOLDER

    model = load_workload({"name": name, "model": f"shipped:{name}"})
    assert (model.name, model.rows, model.longest()) == (name, rows, longest)
    assert {"source", "licence", "description", "command"} <= set(model.about)
    assert (FOLDER / f"{name}.parquet").stat().st_size <= 60_000
    assert set(SHIPPED) == {path.stem for path in FOLDER.glob("*.parquet")}
    drawn = model.sample(20_000, 7)
    assert drawn.input_tokens.mean() == pytest.approx(model.mean("input_tokens"), rel=0.05)
    assert drawn.weights.max() <= model.heaviest_weight


def test_a_long_stream_takes_little_memory() -> None:
    stream = load_workload({"name": "production", "model": "shipped:production"}).stream(1)
    tracemalloc.start()
    for _ in range(6):
        stream.take(50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize("max_bins", [0, 19, 257])
def test_impossible_bins_are_refused(max_bins: int) -> None:
    with pytest.raises(ConfigError, match="max_bins is not possible"):
        fit(lambda: [from_lengths([1], [1])], max_bins)


def test_impossible_fits_are_refused() -> None:
    with pytest.raises(TraceError, match="there are no requests"):
        fit(lambda: [])
    passes = iter([[from_lengths([1, 2], [1, 2])], [from_lengths([1, 3], [1, 2])]])
    with pytest.raises(TraceError, match="changed while it was read"):
        fit(lambda: next(passes))
    with pytest.raises(ConfigError, match="seed is not possible"):
        fit(lambda: [from_lengths([1], [1])]).sample(1, -1)
    with pytest.raises(ValueError, match="differ in length"):
        from_lengths([1, 2], [1])


def test_workload_nodes_that_name_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workload\.model is missing.*\n.*task=workload"):
        load_workload({"name": "file", "model": None})
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        load_workload({"name": "x", "model": "shipped:papre"})
    with pytest.raises(ConfigError, match=r"workload\.modle is not a key"):
        load_workload({"name": "x", "modle": "shipped:paper"})
    with pytest.raises(TraceError, match="does not exist"):
        load_workload({"name": "x", "model": str(tmp_path / "none.parquet")})
    with pytest.raises(TraceError, match="is a folder"):
        load_workload({"name": "x", "model": str(tmp_path)})


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    pq.write_table(pa.table({"input_tokens": [1]}), path)
    with pytest.raises(TraceError, match="but not a workload model"):
        WorkloadModel.load(path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_model_is_refused_or_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any flipped byte or cut is either refused with a TraceError, or the model is still the same."""
    from llmpilot.workload.shipped import FOLDER

    original = bytearray((FOLDER / "paper.parquet").read_bytes())
    damaged = original[:]
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(original) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.parquet"
    path.write_bytes(damaged)
    try:
        model = WorkloadModel.load(path)
    except TraceError:
        return
    assert model.content_hash == WorkloadModel.load(FOLDER / "paper.parquet").content_hash


def test_nothing_is_left_when_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmpilot.workload import store

    model = load_workload({"name": "paper", "model": "shipped:paper"})
    target = tmp_path / "m.parquet"
    target.write_text("before")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.pq, "ParquetWriter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]
    assert target.read_text() == "before"
    with pytest.raises(TraceError, match="a folder is in the way"):
        model.save(tmp_path)
    with pytest.raises(TraceError, match="no folder that can be written"):
        model.save(target / "below.parquet")


@given(REQUESTS, st.integers(1, 400), st.integers(0, 3))
@settings(max_examples=30)
def test_requests_that_stand_for_all_have_each_cell_as_often_as_it_weighs(
    requests: Requests, n: int, seed: int
) -> None:
    model = fit(lambda: [requests], max_bins=20)
    spread = model.spread(n, seed)
    assert len(spread) == n
    assert same(spread, model.spread(n, seed))
    cells, counts = np.unique(np.array(bin_indices(model, spread)), axis=0, return_counts=True)
    weights = dict(zip(map(tuple, model.cells.T.tolist()), model.weights.tolist(), strict=True))
    for cell, count in zip(map(tuple, cells.tolist()), counts.tolist(), strict=True):
        assert abs(count - n * weights[cell] / len(requests)) < 1 + 1e-9
