"""Levels of a table that a recommendation learns from, and what is left out of it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llmpilot.dataset import MeasurementsError, measurements_of, save_measurements
from llmpilot.dataset.measurements import BATCH, CLOSED
from llmpilot.predict.service.own_levels import levels_in
from llmpilot.recommendation.sources import knowledge_of

ROW: dict[str, Any] = {
    **{"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "h100", "n_gpus": 1, "engine": "vllm"},
    **{"input_tokens": 512, "output_tokens": 64, "load_kind": CLOSED, "concurrency": 4},
    **{"measurement": "measured", "ttft_ms_p50": 40.0, "tpot_ms_mean": 8.5},
}


def test_rows_that_tell_nothing_are_left_out_with_their_reason() -> None:
    rows = [
        ROW,
        ROW | {"measurement": "simulated"},
        ROW | {"in_doubt": "an ITL of 0 ms"},
        ROW | {"load_kind": BATCH},
        ROW | {"engine": None},
        ROW | {"tpot_ms_mean": None, "itl_ms_mean": 9.0, "ttft_ms_p50": None, "ttft_ms_mean": 50.0},
    ]
    levels, left_out = levels_in(measurements_of(pd.DataFrame(rows)), {})
    assert [(one.tpot_ms, one.ttft_ms) for one in levels] == [(8.5, 40.0), (9.0, 50.0)]
    assert [one.level.users for one in levels] == [4, 4]
    assert left_out == {
        "simulated": 1,
        "in doubt": 1,
        "no time per output token under a steady load": 1,
        "engine not given": 1,
    }


def test_a_table_conditions_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    save_measurements(measurements_of(pd.DataFrame([ROW])), path)
    known = knowledge_of(None, path)
    assert len(known.own) == len(knowledge_of(None).own) + 1
    save_measurements(measurements_of(pd.DataFrame([ROW | {"engine": None}])), path)
    with pytest.raises(MeasurementsError, match="engine not given: 1"):
        knowledge_of(None, path)
