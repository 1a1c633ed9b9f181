"""Recordings are read as the paper defines its figures, replayed, and fitted back to their truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import SLOW, off, write_campaign

from llmpilot import catalog
from llmpilot.errors import TraceError
from llmpilot.simulator import physics
from llmpilot.simulator.accuracy import Judged, calibrated_errors, healthy, unseen_errors
from llmpilot.simulator.calibration_fit import COEFFICIENTS, Fit, fit_pair, usable
from llmpilot.simulator.recordings import read_recordings
from llmpilot.simulator.replay import replay

STARCODER = catalog.models(["starcoder"])["starcoder"]
A100 = catalog.gpus(["a100"])["a100"]


def test_figures_are_the_papers(tmp_path: Path) -> None:
    row = {"model": "llama-7b", "gpu": "T4", "n_gpus": 2, "users": 1, "start_ms": 0}
    rows = [
        row
        | {
            "status": 200,
            "sample_id": 1,
            "input_tokens": 10,
            "output_tokens": 3,
            "token_gaps_ms": [9, 50, 20, 30],
        },
        row
        | {
            "status": 200,
            "sample_id": 2,
            "input_tokens": 20,
            "output_tokens": 4,
            "token_gaps_ms": [7, 60, 25, 35],
        },
        row
        | {"status": 408, "sample_id": 1, "input_tokens": None, "output_tokens": None, "token_gaps_ms": []},
        row
        | {"status": 408, "sample_id": 3, "input_tokens": None, "output_tokens": None, "token_gaps_ms": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    (recording,) = read_recordings(tmp_path / "r.parquet")
    assert recording.pair == ("llama_7b", "t4", 2)
    assert recording.failure_rate == 0.5
    assert recording.overhead_ms == 8
    # Of the failed requests, the one whose lengths nobody reported cannot be replayed.
    assert recording.input_tokens.tolist() == [10, 20, 10]
    assert recording.silent_first.tolist() == [False, True, False]
    truth = recording.truth
    assert (truth.ttft_ms_p50, truth.nttft_ms_p50) == (55, 4.0)
    assert (truth.itl_ms_p50, truth.throughput_tok_s) == (27.5, 7 / 120)
    assert not usable(recording)


@pytest.mark.parametrize("kind", ["absent", "text", "columns", "split"])
def test_data_that_cannot_be_used_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.parquet"
    if kind == "text":
        path.write_text("no parquet")
    elif kind == "columns":
        pq.write_table(pa.table({"model": ["a"]}), path)
    elif kind == "split":
        write_campaign(path, (1, 1))
    expected = {
        "absent": "no such file",
        "text": "no Parquet",
        "columns": "columns are missing: gpu",
        "split": "several row groups",
    }
    with pytest.raises(TraceError, match=expected[kind]):
        list(read_recordings(path))


def test_a_replay_of_the_truth_is_exact(tmp_path: Path) -> None:
    write_campaign(tmp_path / "r.parquet", (1, 6))
    for recording in read_recordings(tmp_path / "r.parquet"):
        assert replay(SLOW.service(STARCODER, A100), recording) == recording.truth
        slower = replay(off(SLOW, 0.3).service(STARCODER, A100), recording)
        judged = Judged(recording, slower)
        assert 0.1 < judged.error("itl_ms_p50") < 0.4
        assert slower.throughput_tok_s < recording.truth.throughput_tok_s


def test_a_fit_finds_the_truth_again(tmp_path: Path) -> None:
    write_campaign(tmp_path / "r.parquet", (1, 4, 16))
    recordings = list(read_recordings(tmp_path / "r.parquet"))
    start = replace(off(SLOW, 0.4), prefill_ms=60.0, decode_ms_per_sequence=4.0, max_batch_weight=4_000.0)
    fit = fit_pair(recordings, STARCODER, A100, start, max_iterations=8)
    assert fit.curvature.shape == (len(COEFFICIENTS), len(COEFFICIENTS))
    for recording in recordings:
        judged = Judged(recording, replay(fit.calibration.service(STARCODER, A100), recording))
        assert judged.error("itl_ms_p50") < 0.05
        assert judged.error("throughput_tok_s") < 0.08
        assert judged.error("ttft_ms_p50") < 0.2


def test_physics_learns_from_pairs_and_is_the_same_again() -> None:
    gpus = catalog.gpu_profiles(["a100", "h100"])
    models = catalog.models(["llama_7b", "llama_13b", "starcoder"]).values()
    prior = {name: median for name, (median, _) in physics.PRIORS.items()}
    truth = prior | {"weights": 1.5, "sequence.flash": 0.5}
    well_known = np.eye(len(COEFFICIENTS)) * 1e4
    pairs = [
        (model, gpu, Fit(physics.predict(truth, model, gpu), 0.0, well_known))
        for model in models
        for gpu in gpus
        if gpu.count <= 4
    ]
    factors = physics.fit_factors(pairs)
    assert factors == physics.fit_factors(pairs)
    assert 1.35 < factors["weights"] < 1.6
    assert 0.4 < factors["sequence.flash"] < 0.6


def test_errors_are_judged_where_they_should_be(tmp_path: Path) -> None:
    write_campaign(tmp_path / "r.parquet", (1, 2))
    one, two = read_recordings(tmp_path / "r.parquet")
    wrong = replace(one.truth, itl_ms_p50=one.truth.itl_ms_p50 * 3)
    judged = [Judged(one, wrong), Judged(replace(two, failure_rate=0.5), two.truth)]
    assert calibrated_errors(judged)["itl_ms_p50"] == 0, "the level of one user was fitted on"
    assert unseen_errors(judged)["itl_ms_p50"] == pytest.approx(1.0), "the mean of 2 and 0"
    assert [item.recording.users for item in healthy(judged)] == [1]
