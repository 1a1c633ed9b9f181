"""Offline batches of 2024's engines: in closed form, simulated, and in the factors' second stage."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from llmpilot.dataset.measurements import BATCH, Measurements
from llmpilot.predict.service.batches import at_once, fit_batches, tabulated_batches
from llmpilot.predict.service.fitting import prior
from llmpilot.predict.service.levels import Level, described
from llmpilot.predict.service.nearby import places
from llmpilot.predict.service.simulated import simulated
from llmpilot.predict.service.validation import of_2024
from llmpilot.simulator.factors import FACTORS, NAMES, design
from llmpilot.simulator.service_settings import EngineName, is_of_2024
from llmpilot.simulator.step_times import OperatorStepTimes

OLD = np.array([factor.of_2024 for factor in FACTORS])


def _levels(rows: Sequence[dict[str, object]]) -> list[Level]:
    common = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "h100",
        "n_gpus": 1,
        "engine": "vllm",
        "engine_version": "0.6.1",
        "load_kind": BATCH,
        "input_tokens": 512,
        "output_tokens": 256,
        "client": "offline",
    }
    found = described(Measurements(pd.DataFrame([common | row for row in rows])), {})
    assert not [reason for reason in found.skipped if reason]
    return found.levels


@pytest.mark.parametrize(
    ("engine", "version", "old"),
    [
        ("vllm", "0.6.x (2024-11)", True),
        ("vllm", "2023 (not stated)", True),
        ("vllm", "0.8.0", False),
        ("vllm", None, False),
        ("trtllm", "0.11.0 or 0.12.0", True),
        ("trtllm", "0.21", False),
        ("sglang", "0.5.10", False),
    ],
)
def test_versions_of_2024_are_known_by_number_or_year(
    engine: EngineName, version: str | None, old: bool
) -> None:
    assert is_of_2024(engine, version) is old


def test_the_closed_form_of_a_batch_is_close_to_its_simulation() -> None:
    levels = _levels([{"concurrency": count} for count in (1, 16, 64)])
    levels += _levels([{"concurrency": 32, "engine": "trtllm", "engine_version": "0.12.0", "n_gpus": 2}])
    batches = tabulated_batches(levels)
    formed = batches.e2e_ms(prior().logs)
    for level, e2e_ms in zip(levels, formed.tolist(), strict=True):
        times = OperatorStepTimes(level.service, {})
        assert simulated(level, times).e2e_ms.max() == pytest.approx(e2e_ms, rel=0.06)


def test_a_batch_is_as_large_as_its_concurrency_however_often_it_was_repeated() -> None:
    (level,) = _levels([{"concurrency": 4, "n_requests": 15}])
    assert level.at_once == 4


def test_the_second_stage_finds_a_factor_again_and_moves_no_other() -> None:
    counts = (1, 4, 16, 32, 64)
    levels = _levels([{"concurrency": n, "n_gpus": g} for n in counts for g in (1, 2, 4) for _ in range(10)])
    batches = tabulated_batches(levels)
    known = prior()
    true = known.logs.copy()
    true[NAMES.index("sequence.vllm_v0")] = np.log(8.0)
    found = fit_batches(batches, batches.e2e_ms(true), np.arange(len(levels)), known)
    # The prior's median is 3; attention, which grows with the batch as well, takes the rest.
    assert 5.5 < found.factors()["sequence.vllm_v0"] < 9.0
    np.testing.assert_allclose(batches.e2e_ms(found.logs), batches.e2e_ms(true), rtol=0.03)
    np.testing.assert_array_equal(found.logs[~OLD], known.logs[~OLD])
    at = NAMES.index("sequence.vllm_v0")
    assert found.covariance[at, at] < known.covariance[at, at]


def test_the_factors_of_2024_act_on_no_engine_of_today() -> None:
    today = _levels([{"concurrency": 1, "engine_version": version} for version in ("0.8.5", "0.19", None)])
    assert not any(design(level.service)[OLD].any() for level in today)
    (old,) = _levels([{"concurrency": 1, "gpu": "mi300x"}])
    assert design(old.service)[[NAMES.index("launches.eager"), NAMES.index("step.vllm_v0")]].any(1).all()


def test_an_old_engine_is_no_neighbour_of_the_one_of_today() -> None:
    levels = _levels([{"concurrency": 1}, {"concurrency": 1, "engine_version": "0.19"}])
    assert [of_2024(level) for level in levels] == [True, False]
    old, new = places(levels).engine
    assert old != new


def test_boards_are_what_the_row_states() -> None:
    stated = [("a100", "A100-SXM"), ("a100", "A100-PCIE-40GB"), ("mi250", "MI250")]
    gpus = [
        _levels([{"concurrency": 1, "gpu": gpu, "gpu_as_stated": words, "n_gpus": 2}])[0].service.gpu
        for gpu, words in stated
    ]
    assert [gpu.link for gpu in gpus[:2]] == ["nvlink", "pcie4"]
    assert gpus[2].memory_gb == 128


def test_a_batch_beyond_the_memory_is_not_at_once() -> None:
    small, large = _levels(
        [{"concurrency": count, "input_tokens": 2048, "output_tokens": 2048} for count in (4, 250)]
    )
    assert at_once(small)
    assert not at_once(large)
