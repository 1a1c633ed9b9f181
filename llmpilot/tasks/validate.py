"""Task `validate`: how far the simulator is from real services: those of a table, or the paper's."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import PositiveInt
from rich.table import Table

from llmpilot import console
from llmpilot.config import Facts, parse
from llmpilot.errors import ConfigError
from llmpilot.processes import Map, workers
from llmpilot.simulator import accuracy, physics
from llmpilot.simulator.accuracy import FITTED_LEVELS, Judged, Pair, Tables
from llmpilot.simulator.calibration import SHIPPED, THREE_LEVELS, read_calibrations
from llmpilot.simulator.recordings import Recording, read_recordings
from llmpilot.tasks import validate_measurements


class Validation(Facts):
    """The task's part of the configuration."""

    data: str | None
    refit: bool = False
    workers: PositiveInt = 2


def run(cfg: DictConfig) -> dict[str, Any]:
    """Judge today's engines on a table of measurements, or TGIS on the paper's requests; return the errors.

    Raises:
        ConfigError: neither is named, or a pair that the tables lack.
        MeasurementsError, TraceError: the data cannot be used.
    """
    settings = parse(Validation, {key: cfg[key] for key in ("data", "refit", "workers")}, "validate")
    if cfg.measurements is not None:
        if settings.data is not None:
            raise ConfigError(
                "task validate judges a table of measurements or the paper's requests, one at a time",
                given=f"measurements={cfg.measurements} data={settings.data}",
                cure="leave one of them out",
            )
        if settings.refit:
            raise ConfigError(
                "refit fits TGIS anew on the paper's requests: a table of measurements is only judged by",
                given=f"measurements={cfg.measurements} refit=true",
                cure="leave refit out, or name the paper's requests in place of the table: "
                "data=PATH/requests.parquet refit=true",
            )
        return validate_measurements.run(cfg)
    if settings.data is None:
        raise ConfigError(
            "task validate needs measurements to judge by",
            cure="python -m llmpilot task=validate measurements=FILE.parquet (or measurements=shipped), "
            "or data=PATH/requests.parquet for the paper's",
        )
    return _judge_tgis(settings)


def _judge_tgis(settings: Validation) -> dict[str, Any]:
    """Judge the shipped tables of TGIS, or with `refit` newly fitted ones, on the paper's requests."""
    assert settings.data is not None
    with console.err.status(f"reading {settings.data}"):
        pairs = accuracy.by_pair(read_recordings(Path(settings.data).expanduser()))
    with workers(settings.workers) as run_on:
        tables = accuracy.refit(pairs, run_on, console.note) if settings.refit else _shipped(pairs)
        result = _judge(pairs, tables, run_on)
    result["peak_memory_mb"] = _peak_memory_mb(settings.workers)
    _print(result)
    return result


def _shipped(pairs: dict[Pair, list[Recording]]) -> Tables:
    factors = physics.read_factors(physics.SHIPPED)
    tables = Tables(
        three_levels=read_calibrations(THREE_LEVELS),
        all_levels=read_calibrations(SHIPPED),
        factors=factors["factors"],
        unseen_llm=factors["unseen_llm"],
        unseen_gpu=factors["unseen_gpu"],
    )
    for pair in pairs:
        model, gpu = accuracy.facts_of(pair)
        if (model.name, gpu.name, gpu.count) not in tables.three_levels:
            raise ConfigError(
                "the data holds a pair that the shipped calibrations lack",
                given=f"{model.name} on {gpu.label}",
                cure="add refit=true: fit everything on this data",
            )
    return tables


def _judge(pairs: dict[Pair, list[Recording]], tables: Tables, run_on: Map) -> dict[str, Any]:
    # The processes start and import before the clock does: the campaign is what is timed.
    list(run_on(accuracy.facts_of, list(pairs)[:2]))
    started = time.perf_counter()
    with console.err.status("simulating the campaign under the three-level calibrations"):
        calibrated = accuracy.judge_calibrated(pairs, tables.three_levels, run_on)
    seconds = time.perf_counter() - started
    with console.err.status("simulating it as if each LLM, then each GPU type, had not been measured"):
        unseen_llm = accuracy.judge_unseen(pairs, tables.unseen_llm, 0, run_on)
        unseen_gpu = accuracy.judge_unseen(pairs, tables.unseen_gpu, 1, run_on)
        every_level = accuracy.judge_calibrated(pairs, tables.all_levels, run_on)
    return {
        "calibrated": accuracy.calibrated_errors(calibrated),
        "unseen_llm": accuracy.unseen_errors(unseen_llm),
        "unseen_gpu": accuracy.unseen_errors(unseen_gpu),
        "campaign_seconds": round(seconds, 2),
        "peak_memory_mb": 0.0,
        "cells": len(calibrated),
        "healthy": {
            "cells": len(accuracy.healthy(calibrated)),
            "calibrated": accuracy.calibrated_errors(accuracy.healthy(calibrated)),
            "unseen_llm": accuracy.unseen_errors(accuracy.healthy(unseen_llm)),
            "unseen_gpu": accuracy.unseen_errors(accuracy.healthy(unseen_gpu)),
        },
        "lossy": {
            "cells": len(calibrated) - len(accuracy.healthy(calibrated)),
            "calibrated": accuracy.calibrated_errors(_lossy(calibrated)),
            "unseen_llm": accuracy.unseen_errors(_lossy(unseen_llm)),
            "unseen_gpu": accuracy.unseen_errors(_lossy(unseen_gpu)),
        },
        "all_levels_fitted": accuracy.unseen_errors(every_level),
        "requests": sum(len(level.input_tokens) for levels in pairs.values() for level in levels),
        "requests_simulated": sum(item.simulated.requests for item in calibrated),
    }


def _lossy(judged: list[Judged]) -> list[Judged]:
    kept = {id(item) for item in accuracy.healthy(judged)}
    return [item for item in judged if id(item) not in kept]


def _peak_memory_mb(count: int) -> float:
    """Return the largest memory of this process, plus that of the largest worker for each of them [MB]."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if count > 1 else 0
    return round((own + count * child) * unit / 1e6, 1)


def _print(result: dict[str, Any]) -> None:
    table = Table(title="error of the simulator: |simulated / measured - 1|")
    for column in ("", "figure", "all levels", "at most 1% failed", "more failed"):
        table.add_column(column, justify="left" if column in ("", "figure") else "right")
    seen = ", ".join(map(str, FITTED_LEVELS))
    titles = {
        "calibrated": f"calibrated on users {seen}; median over the others",
        "unseen_llm": "LLM left out; mean over all levels",
        "unseen_gpu": "GPU type left out; mean over all levels",
    }
    for key, title in titles.items():
        parts = (result[key], result["healthy"][key], result["lossy"][key])
        for row, name in enumerate(parts[0]):
            cells = [f"{part[name]:.1%}" if part else "-" for part in parts]
            table.add_row("" if row else title, name, *cells)
    console.out.print(table)
    lossy = result["lossy"]["cells"]
    console.say(
        f"{result['cells']} levels, {lossy} of them lost more than 1% of their requests; the campaign of "
        f"{result['requests']:,} requests was simulated in {result['campaign_seconds']:.1f} s; "
        f"peak memory {result['peak_memory_mb']:.0f} MB"
    )
