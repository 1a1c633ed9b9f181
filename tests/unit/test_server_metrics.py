"""A server's own metrics: pages of text become figures, samples become a level's, nothing is made up."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot.emulator.metrics import Metrics
from llmpilot.engine.known_metrics import KNOWN, recognise
from llmpilot.engine.llamacpp import LlamaCppEngine
from llmpilot.engine.prometheus import read, values
from llmpilot.engine.server import ServerMetrics
from llmpilot.engine.sglang import SglangEngine
from llmpilot.engine.tgi import TgiEngine
from llmpilot.engine.vllm import VllmEngine
from llmpilot.loadtest.server_samples import FIGURES, Sample, as_columns, write_csv
from llmpilot.loadtest.watch import period_of
from llmpilot.metrics import server_figures

EMULATED = Metrics('a "b} c', 1000).render(
    running=5, waiting=3, kv_share=0.25, generating=7, preemptions=0, slips=0
)
NAN = math.nan
WINDOW_US = (1_000_000, 4_000_000)


def page(names: ServerMetrics, value: float = 1.0) -> str:
    known = (names.running, names.waiting, names.kv_use, names.preemptions, names.tokens)
    return "".join(f'# TYPE {name} gauge\n{name}{{a="b"}} {value}\n' for name in known if name)


def test_a_page_of_our_emulator_is_one_of_vllm() -> None:
    assert recognise(EMULATED) == VllmEngine.metrics
    reading = read(EMULATED, VllmEngine.metrics)
    assert (reading.running, reading.waiting, reading.kv_usage) == (5, 3, 0.25)
    assert (reading.preemptions, reading.tokens) == (0, 7)


@pytest.mark.parametrize("names", KNOWN, ids=lambda names: f"{names.running} {names.kv_use}")
def test_every_known_engine_is_recognised_by_its_page(names: ServerMetrics) -> None:
    assert recognise(page(names)) == names


def test_what_is_no_page_of_metrics_is_nobodys() -> None:
    assert recognise("") is None
    assert recognise('{"data": []}') is None
    assert recognise("vllm:num_requests_waiting 3\n") is None, "without what runs, the rest says little"
    assert {names.running for names in KNOWN} >= {
        LlamaCppEngine.metrics.running,
        SglangEngine.metrics.running,
        TgiEngine.metrics.running,
    }


def test_engine_cores_are_summed_and_their_shares_averaged() -> None:
    lines = [
        f'{name}{{engine="{core}"}} {value} 1700000000'
        for core, value in enumerate((1, 0.5))
        for name in ("run", "kv", "pre")
    ]
    text = "\n".join([*lines, "wait NaN", "waiting 4", "run_by_reason 9", 'run{engine="2"} broken', "kv"])
    reading = read(text, ServerMetrics("/m", running="run", waiting="wait", kv_use="kv", preemptions="pre"))
    assert (reading.running, reading.kv_usage, reading.preemptions) == (1.5, 0.75, 1.5)
    assert math.isnan(reading.waiting), "NaN is no figure"
    assert math.isnan(reading.tokens), "a name that the engine does not have is unknown"


@given(st.text())
def test_garbage_is_never_an_error(text: str) -> None:
    assert set(values(f"{text}\nrun 3\n{text}", ["run"])) <= {"run"}


def sample(second: float, **figures: float) -> Sample:
    return Sample(round(second * 1e9), *(figures.get(name, NAN) for name in FIGURES))


def test_only_samples_of_the_window_count() -> None:
    samples = [
        sample(0.5, running=50, waiting=50, kv_usage=0.9, preemptions=0),
        sample(1, running=2, waiting=0, kv_usage=0.2, preemptions=10),
        sample(2, running=4, waiting=3, kv_usage=0.4, preemptions=13),
        sample(3, running=6, kv_usage=0.3, preemptions=14),
        sample(3.5, answer_ms=500, running=70, preemptions=80),
        sample(4, running=90, waiting=90, kv_usage=1, preemptions=99),
    ]
    figures = server_figures(as_columns(samples, 2, start_ns=0), WINDOW_US)
    assert figures == {
        "samples": 3,
        "missed": 2,
        "running": {"mean": 4, "max": 6},
        "waiting": {"mean": 1.5, "max": 3},
        "kv_usage": {"mean": 0.3, "max": 0.4},
        "preemptions": 4,
    }


def test_a_server_that_began_anew_counts_from_zero() -> None:
    samples = [sample(1, preemptions=7), sample(2, preemptions=2), sample(3, preemptions=5)]
    assert server_figures(as_columns(samples, 0, 0), WINDOW_US)["preemptions"] == 5


def test_no_sample_is_no_figure() -> None:
    assert server_figures(as_columns([], 3, 0), WINDOW_US) == {"samples": 0, "missed": 3}


def test_raw_samples_of_all_levels_are_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    one = as_columns([sample(0.5, running=1), sample(1, running=2, tokens=12_345_678_901)], 0, 0)
    for level, samples in ((1, one), (2.5, one), (2.5000001, one), (1, one)):
        write_csv(path, level, WINDOW_US, samples)
    write_csv(path, 1, WINDOW_US, one, repeat=1)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["level"], row["repeat"], row["time_s"], row["in_window"]) for row in rows] == [
        ("2.5", "0", "0.500", "0"),
        ("2.5", "0", "1.000", "1"),
        ("2.5000001", "0", "0.500", "0"),
        ("2.5000001", "0", "1.000", "1"),
        ("1", "0", "0.500", "0"),
        ("1", "0", "1.000", "1"),
        ("1", "1", "0.500", "0"),
        ("1", "1", "1.000", "1"),
    ]
    assert rows[1]["running"] == "2"
    assert rows[1]["tokens"] == "12345678901"
    assert rows[1]["gpu_power_w"] == ""


def test_a_window_has_several_samples_and_a_second_between_them_suffices() -> None:
    assert period_of(120) == 1
    assert period_of(2) == 0.5
    assert period_of(0.1) == pytest.approx(0.1)
    assert np.isfinite(period_of(1e-6))
