"""The user's own measured levels of today's engines, and what each says of its service beside the factors."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import ValidationError

from llmpilot.config import Gpu, Model, Tracking
from llmpilot.dataset.measurements import CLOSED, OPEN, Measurements
from llmpilot.dataset.runs import Collected, collect
from llmpilot.predict.service.kin import by_datasheet
from llmpilot.predict.service.levels import OUR_CLIENT, Level, described
from llmpilot.predict.service.simulated import Run, simulated
from llmpilot.simulator.factors import NAMES, family_of, service_key
from llmpilot.simulator.service_settings import ENGINE_NAMES, service_settings
from llmpilot.simulator.step_model import StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

if TYPE_CHECKING:
    from llmpilot.predict.service.knowledge import Knowledge, OwnResidual

TRIALS = 3
"""Simulations of an open loop, whose times do not rise in proportion with the steps'."""
STEEPEST = 10.0
"""Times of an open loop near its limit rise so many times as much as the steps', at most."""
MOST_REQUESTS = 2000
"""Of a simulated open loop."""
AS_MEASURED = 0.01
"""A simulated time per output token so near to the measured one (log units) is the same."""


@dataclass(frozen=True)
class OwnLevel:
    """A level of load that the user measured: mean time per output token, median time to the first token."""

    level: Level
    tpot_ms: float
    ttft_ms: float | None = None


def own_levels(tracking: Tracking) -> list[OwnLevel]:
    """Return the levels of the user's own runs as `levels_of` does.

    Raises:
        TrackingError: MLflow cannot be read.
    """
    return levels_of(collect(tracking))


def levels_of(collected: Collected) -> list[OwnLevel]:
    """Return the measured levels of the user's own runs that can be simulated as they were.

    Those of vLLM, SGLang and TensorRT-LLM, which state a time per output token and how many tokens the
    requests had.
    """
    table = collected.measurements.table
    found = []
    for row, record in enumerate(table.to_dict("records")):
        values = {str(name): value for name, value in record.items()}
        facts = collected.facts.get(str(values["run_id"]))
        tpot_ms = _first(values, "tpot_ms_mean", "itl_ms_mean", "tpot_ms_p50")
        if facts is None or tpot_ms is None or values["measurement"] == "simulated":
            continue
        level = _level(row, values, *facts)
        if level is not None:
            found.append(OwnLevel(level, tpot_ms, _first(values, "ttft_ms_p50", "ttft_ms_mean")))
    return found


def levels_in(
    measurements: Measurements, models: Mapping[str, Model]
) -> tuple[list[OwnLevel], dict[str, int]]:
    """Return a table's measured levels that can be simulated as they were, and why how many rows are none.

    `models`: of LLMs that the catalogue lacks, by the names that rows have.
    """
    doubted, table = measurements.in_doubt(), measurements.table
    found = described(measurements, models)
    left_out = Counter(reason for reason in found.skipped if reason is not None)
    levels = []
    for level in found.levels:
        values = {str(name): value for name, value in table.iloc[level.row].items()}
        tpot_ms = _first(values, "tpot_ms_mean", "itl_ms_mean", "tpot_ms_p50")
        if values["measurement"] == "simulated":
            left_out["simulated"] += 1
        elif doubted[level.row]:
            left_out["in doubt"] += 1
        elif level.at_once is not None or tpot_ms is None:
            left_out["no time per output token under a steady load"] += 1
        else:
            levels.append(OwnLevel(level, tpot_ms, _first(values, "ttft_ms_p50", "ttft_ms_mean")))
    return levels, dict(left_out)


def residual_of(knowledge: "Knowledge", own: OwnLevel) -> "OwnResidual":
    """Return how far a level is from what the factors say, simulated as it was measured."""
    from llmpilot.predict.service.knowledge import OwnResidual

    service = own.level.service
    steps, ttft_ms = _as_measured(knowledge, own)
    slopes = dict(zip(NAMES, knowledge.slopes(service).tolist(), strict=True))
    first_token = None
    if own.ttft_ms is not None and ttft_ms > 0:
        seen_ms = knowledge.first_token(service).ttft_ms(ttft_ms, own.tpot_ms)
        first_token = log(own.ttft_ms / seen_ms)
    return OwnResidual(
        service_key(service),
        service.settings.engine,
        service.gpu.name if by_datasheet(service) else None,
        {name: slope for name, slope in slopes.items() if slope},
        steps,
        first_token,
    )


def _as_measured(knowledge: "Knowledge", own: OwnLevel) -> tuple[float, float]:
    """Return the log of the steps' times over what factors say at which the level's time per output token is
    the measured one, and the median time to the first token [ms] there.

    Of users in a closed loop all times rise with the steps' in proportion; in an open loop requests pile up.
    """
    service = own.level.service
    times = OperatorStepTimes(service, knowledge.factors)
    steps = tried = log(knowledge.scale(service))
    seen: list[tuple[float, float]] = []
    run: Run
    for _ in range(1 if own.level.users is not None else TRIALS):
        run, tried = simulated(own.level, times.scaled(exp(steps)), gaps=False), steps
        off = log(own.tpot_ms / run.figure("tpot", "mean"))
        rise = 1.0
        if seen and seen[-1][0] != tried:
            rise = min(max((seen[-1][1] - off) / (tried - seen[-1][0]), 1.0), STEEPEST)
        seen.append((tried, off))
        steps = tried + off / rise
        if abs(off) < AS_MEASURED:
            break
    return steps, run.figure("ttft", "p50") * exp(steps - tried)


def _level(row: int, values: Mapping[str, Any], model: Model, gpu: Gpu) -> Level | None:
    """Return a row's load on its service; None where it cannot be simulated."""
    rate, out, total = (
        _first(values, name)
        for name in ("throughput_req_s", "throughput_out_tok_s", "throughput_total_tok_s")
    )
    lengths = (_first(values, "input_tokens"), _first(values, "output_tokens"))
    if rate and out and total and None in lengths:
        lengths = ((total - out) / rate, out / rate)
    given, put_out = lengths
    users = _first(values, "concurrency") if values["load_kind"] == CLOSED else None
    arrivals = _first(values, "request_rate") if values["load_kind"] == OPEN else None
    if values["engine"] not in ENGINE_NAMES or not given or not put_out or not (users or arrivals):
        return None
    try:
        settings = service_settings(
            values["engine"],
            gpu,
            **{name: _plain(values[column]) for name, column in _SETTINGS.items()},
        )
    except ValidationError:
        return None
    n = _first(values, "n_requests")
    return Level(
        row=row,
        service=StepModel(model, gpu, settings),
        family=family_of(model),
        input_tokens=given,
        output_tokens=max(1.0, put_out),
        least_share=1.0,
        users=users,
        rate_per_s=arrivals,
        at_once=None,
        n_requests=None if n is None else min(int(n), MOST_REQUESTS),
        client=OUR_CLIENT,
        wide=values["length_kind"] != "fixed",
    )


_SETTINGS = {
    "version": "engine_version",
    "tensor_parallel": "tp",
    "pipeline_parallel": "pp",
    "data_parallel": "dp",
    "expert_parallel": "ep",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "chunked_prefill": "chunked_prefill",
    "prefix_hit_share": "prefix_hit_share",
}
"""Settings of a service by the columns of a table of measurements."""


def _first(values: Mapping[str, Any], *names: str) -> float | None:
    """Return the first of some columns that holds a number above zero."""
    return next((float(values[name]) for name in names if pd.notna(values[name]) and values[name] > 0), None)


def _plain(value: Any) -> Any:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value
