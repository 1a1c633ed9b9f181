"""The project's own characterizations as rows of both tables: read from MLflow, with what was left out.

A row enters only under the hardware that it was really measured on. Tuning trials are not read.
"""

import ast
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from llmpilot import tracking
from llmpilot.config import LATENCIES, STATISTICS, Gpu, Model, Tracking, parse
from llmpilot.dataset.conversion import gpu_option, model_id
from llmpilot.dataset.facts import keyed, known_gpus, known_models, single
from llmpilot.dataset.hardware import runs_on
from llmpilot.dataset.measured_words import engine as engine_named
from llmpilot.dataset.measurements import (
    CLOSED,
    COUNTS,
    KV_PRECISIONS,
    OPEN,
    PRECISIONS,
    SHARES,
    YES_OR_NO,
    Measurements,
    joined,
)
from llmpilot.dataset.table import Dataset, frame_of, merge
from llmpilot.errors import ConfigError, TrackingError
from llmpilot.schema import exactly
from llmpilot.secrets import redact
from llmpilot.tracking import CHARACTERIZE, Tracker

SOURCE = "llmpilot characterize"
LEVELS_FILE = "levels.json"
PAGE = 500

INFEASIBLE = "runs that were infeasible"
NOT_SIMULATED = "runs that were simulated"
OTHER_HARDWARE = "runs on other hardware than their GPU profile"
OPEN_LOOP = "runs without closed-loop users"
THINKING = "runs whose users thought between their requests"
TALKS = "runs of conversations, whose prompts were cached in part"
NO_LEVELS = "runs without levels"
NO_FACTS = "runs whose facts cannot be read"
SHORT_WINDOW = "levels whose window was too short"
HELD_BACK = "levels whose streams do not show when single tokens came"
CLIENT = "levels at which the client was the bottleneck"
NO_LATENCIES = "levels without latencies, or with a median gap of 0 ms"

SETTINGS = {
    "tp": ("service.tensor_parallel", "engine.tensor_parallel"),
    "pp": ("service.pipeline_parallel", "engine.pipeline_parallel"),
    "dp": ("service.data_parallel", "engine.data_parallel"),
    "ep": ("service.expert_parallel", "engine.expert_parallel"),
    "engine_version": ("service.version", "engine.version"),
    "max_num_seqs": (
        *("service.max_num_seqs", "engine.max_num_seqs"),
        *("engine.max_running_requests", "engine.max_batch_size"),
    ),
    "max_num_batched_tokens": (
        *("service.max_num_batched_tokens", "engine.max_num_batched_tokens"),
        *("engine.chunked_prefill_size", "engine.max_num_tokens"),
    ),
    "chunked_prefill": ("service.chunked_prefill", "engine.enable_chunked_prefill"),
    "prefix_caching": ("engine.enable_prefix_caching",),
    "prefix_hit_share": ("engine.prefix_hit_share",),
    "memory_share": (
        *("service.memory_share", "engine.gpu_memory_utilization"),
        *("engine.mem_fraction_static", "engine.kv_cache_free_gpu_memory_fraction"),
    ),
    "eager": ("engine.enforce_eager",),
    "max_batch_weight": ("max_batch_weight",),
    "kv_precision": ("model.kv_format",),
}
"""Columns of a table of measurements, and the params of a run that say them: the first that is there."""
LENGTHS = re.compile(r"(fixed|lengths)_(\d+)_(\d+)")
"""How a workload is called whose requests are all alike, or have these mean lengths."""
LENGTH_KIND = {"fixed": "fixed", "lengths": "mean"}


@dataclass
class Collected:
    """What was found in the finished runs: rows, how much was left out for which reason, and remarks.

    `dataset` has the levels of closed loops, which `left_out` is about; `measurements` those of closed and
    open loops, with every statistic and the engine's settings. `facts` are the LLM and the GPU profile of
    each run that measured some, by its id.
    """

    dataset: Dataset
    measurements: Measurements = field(default_factory=joined)
    facts: dict[str, tuple[Model, Gpu]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    """A finished characterization: its id, params and tags, and its levels; None where it kept none."""

    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    levels: list[dict[str, Any]] | None
    date: str | None = None


def from_runs(settings: Tracking, *, simulated: bool = False) -> Dataset:
    """Return the rows of the project's own finished characterizations: none, where there is no such run.

    Raises:
        TrackingError: MLflow cannot be read.
    """
    return collect(settings, simulated=simulated).dataset


def collect(settings: Tracking, *, simulated: bool = False) -> Collected:
    """Return the same as `from_runs`, with what was left out.

    Every level of a finished closed-loop run is a row, but for levels at which the client was the bottleneck,
    those whose window was too short to be judged by, those whose streams do not show when single tokens came,
    and those without latencies. Runs on other hardware than their label says are left out, and simulated ones
    unless asked for. A service that was not started by us is taken for what its run says it is.

    Raises:
        TrackingError: MLflow cannot be read.
    """
    found = Collected(merge())
    parts: list[Dataset] = []
    measured: list[Measurements] = []
    for run in _finished(settings, simulated=simulated):
        if (part := _dataset(run, found, measured, simulated=simulated)) is not None:
            parts.append(part)
    found.dataset = merge(*parts)
    found.measurements = joined(*measured)
    return found


def _dataset(run: _Run, found: Collected, measured: list[Measurements], *, simulated: bool) -> Dataset | None:
    """Return one run's rows, or None; what is left out is counted in `found`, all levels go to `measured`."""
    measurement = run.tags.get(tracking.TAG_MEASUREMENT)
    if run.tags.get(tracking.TAG_OUTCOME) == "infeasible":
        found.left_out[INFEASIBLE] += 1
        return None
    if measurement == "simulated" and not simulated:
        found.left_out[NOT_SIMULATED] += 1
        return None
    try:
        model = parse(Model, _part(run.params, "model"), "model")
        gpu = parse(Gpu, _part(run.params, "gpu"), "gpu")
    except ConfigError as error:
        found.left_out[NO_FACTS] += 1
        found.remarks.append(f"run {run.run_id}: {error.wrong}")
        return None
    hardware = run.tags.get(tracking.TAG_HARDWARE)
    slow_client = set(run.tags.get(tracking.TAG_CLIENT_BOTTLENECK, "").split(", "))
    if hardware is not None and not runs_on(gpu, hardware):
        found.left_out[OTHER_HARDWARE] += 1
        found.remarks.append(f"run {run.run_id} is labelled {gpu.label}, but was measured on {hardware}")
        return None
    measured.append(_measurements(run, model, gpu, slow_client))
    found.facts[run.run_id] = (model, gpu)
    if run.params.get("load.arrival") != "closed":
        found.left_out[OPEN_LOOP] += 1
        return None
    if _thinks(run):
        found.left_out[THINKING] += 1
        return None
    if _talks(run):
        found.left_out[TALKS] += 1
        return None
    if not run.levels:
        found.left_out[NO_LEVELS] += 1
        return None
    weight = run.params.get("max_batch_weight", "None")
    same = {
        "model": model.name,
        "gpu": gpu.name,
        "count": gpu.count,
        "max_batch_weight": int(weight) if weight.isdigit() else None,
        "engine": _engine(run),
        "workload": run.params.get("workload.name"),
        "measurement": measurement,
        "hardware": hardware,
        "source": SOURCE,
        "run_id": run.run_id,
    }
    rows = []
    for level in run.levels:
        if exactly(level["level"]) in slow_client:
            found.left_out[CLIENT] += 1
        elif level.get("window_problem") is not None:  # which runs of earlier versions do not state
            found.left_out[SHORT_WINDOW] += 1
        elif level.get("stream_problem") is not None:  # likewise
            found.left_out[HELD_BACK] += 1
        elif not level["nttft_ms"]["p50"] or not level["itl_ms"]["p50"]:
            found.left_out[NO_LATENCIES] += 1
        else:
            rows.append(same | _figures(level))
    return Dataset(frame_of(rows), {model.name: model}, {gpu.name: single(gpu)})


def _figures(level: dict[str, Any]) -> dict[str, Any]:
    return {
        "users": level["users"],
        "nttft_ms": level["nttft_ms"]["p50"],
        "itl_ms": level["itl_ms"]["p50"],
        "ttft_ms": level["ttft_ms"]["p50"],
        "e2e_ms": level["e2e_ms"]["p50"],
        "nttft_ms_p95": level["nttft_ms"]["p95"],
        "itl_ms_p95": level["itl_ms"]["p95"],
        "throughput_tok_s": level["throughput_tok_s"],
        "failure_rate": level["failure_rate"],
        "requests": level["requests_ok"] + level["requests_failed"],
    }


def _thinks(run: _Run) -> bool:
    """Whether users thought between their requests; runs of earlier versions do not say, and did not."""
    return float(run.params.get("load.think_time_s", 0)) > 0


def _talks(run: _Run) -> bool:
    """Whether its requests were turns of conversations."""
    return run.params.get("workload.conversations") == "True"


def _measurements(run: _Run, model: Model, gpu: Gpu, slow_client: set[str]) -> Measurements:
    """Return a row for each level of users or of a rate that was measured well, with the settings behind it.

    Levels of a replayed trace have no rate that stands for them, and users who think no concurrency; what is
    cached differs from turn to turn of conversations.
    """
    arrival = run.params.get("load.arrival")
    if arrival not in ("closed", "poisson", "gamma") or _thinks(run) or _talks(run):
        return joined()
    (model_key, _), *_ = keyed([model], known_models()).values()
    (gpu_key, gpu_type), *_ = keyed([single(gpu)], known_gpus()).values()
    workload = run.params.get("workload.name")
    known = LENGTHS.fullmatch(workload or "")
    settings = {name: _setting(run.params, name) for name in SETTINGS}
    same = settings | {
        "model": model_id(model, model_key),
        "gpu": gpu_option(gpu_type, gpu_key),
        "hardware": run.tags.get(tracking.TAG_HARDWARE),
        "precision": model.precision if model.precision in PRECISIONS else None,
        "n_gpus": gpu.count,
        "tp": settings["tp"] or gpu.count // ((settings["pp"] or 1) * (settings["dp"] or 1)),
        "engine": engine_named(_engine(run) or "") or None,
        "workload": workload,
        "length_kind": LENGTH_KIND[known[1]] if known else "workload",
        "input_tokens": int(known[2]) if known else None,
        "output_tokens": int(known[3]) if known else None,
        "load_kind": CLOSED if arrival == "closed" else OPEN,
        "measurement": run.tags.get(tracking.TAG_MEASUREMENT),
        "source": SOURCE,
        "run_id": run.run_id,
        "date": run.date,
    }
    load = "concurrency" if arrival == "closed" else "request_rate"
    rows = [
        same | {load: level["level"]} | _all_figures(level)
        for level in run.levels or []
        if exactly(level["level"]) not in slow_client
        and level.get("window_problem") is None
        and level.get("stream_problem") is None
        and level["requests_ok"]
    ]
    return Measurements(pd.DataFrame(rows)) if rows else joined()


def _engine(run: _Run) -> str | None:
    """Return the engine that was measured: of a server that was there already, the one it was said to run."""
    said = run.params.get("engine.serves", "None")
    return run.params.get("engine.name") if said == "None" else said


def _setting(params: dict[str, str], column: str) -> Any:
    """Return what the run's params say for a column, or None."""
    for name in SETTINGS[column]:
        said = params.get(name, "None")
        if said == "None":
            continue
        if column in YES_OR_NO:
            return said == "True"
        if column in (*COUNTS, *SHARES):
            return float(said)
        return said if column != "kv_precision" or said in KV_PRECISIONS else None
    return None


def _all_figures(level: dict[str, Any]) -> dict[str, Any]:
    figures = {
        f"{latency}_{statistic}": level[latency][statistic]
        for latency in LATENCIES
        for statistic in STATISTICS
    }
    return figures | {
        "throughput_req_s": level["requests_per_s"],
        "throughput_out_tok_s": level["throughput_tok_s"],
        "throughput_total_tok_s": level["total_tok_s"],
        "failures": level["failure_rate"],
        "n_requests": level["requests_ok"] + level["requests_failed"],
    }


def _part(params: dict[str, str], name: str) -> dict[str, Any]:
    """Return the facts under `name` of a run's flat params; they hold what `+model=hf` derived, too."""
    facts: dict[str, Any] = {}
    for key, value in params.items():
        group, _, path = key.partition(".")
        if group == name:
            outer, _, inner = path.partition(".")
            plain = _plain(value)
            if inner:
                facts.setdefault(outer, {})[inner] = plain
            else:
                facts[outer] = plain
    return facts


def _plain(value: str) -> Any:
    """Return what a param says; layers of a model are a Python literal, all else is left to its schema."""
    if value == "None":
        return None
    if not value.startswith(("(", "[")):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _finished(settings: Tracking, *, simulated: bool) -> list[_Run]:
    reader = _Reader(settings)
    runs = reader.runs(simulated=simulated)
    if runs is None:
        raise TrackingError(
            f"your own runs cannot be read: {reader.problem}",
            given=f"tracking.uri={redact(settings.uri)}",
            cure="start MLflow, or name another with tracking.uri=...; runs=false does without your runs",
        )
    return runs


class _Reader(Tracker):
    """Reads characterizations from MLflow; makes no experiment of its own there."""

    def runs(self, *, simulated: bool) -> list[_Run] | None:
        """Return all finished characterizations but parents of sweeps; None: MLflow cannot be read."""
        return self._attempt(lambda: list(self._runs(simulated=simulated)))

    def _runs(self, *, simulated: bool) -> Iterator[_Run]:
        client = self._connect()
        experiment = client.get_experiment_by_name(f"{self.tracking.experiment_prefix}/{CHARACTERIZE}")
        # `mlflow run` puts its runs into an experiment of its own choice.
        candidates = [experiment and experiment.experiment_id, os.environ.get("MLFLOW_EXPERIMENT_ID")]
        experiments = sorted({id_ for id_ in candidates if id_})
        token: str | None = ""
        while experiments and token is not None:
            page = client.search_runs(
                experiments,
                f"attributes.status = 'FINISHED' and tags.`{tracking.TAG_TASK}` = '{CHARACTERIZE}'",
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token or None,
            )
            for run in page:
                # The parent of a sweep measured nothing itself.
                if tracking.TAG_CONFIG_HASH in run.data.tags:
                    skipped = run.data.tags.get(tracking.TAG_MEASUREMENT) == "simulated" and not simulated
                    levels = None if skipped else self._levels(run.info.run_id)
                    started = datetime.fromtimestamp(run.info.start_time / 1e3, UTC).date().isoformat()
                    yield _Run(run.info.run_id, dict(run.data.params), dict(run.data.tags), levels, started)
            token = page.token or None

    def _levels(self, run_id: str) -> list[dict[str, Any]] | None:
        client = self._connect()
        if LEVELS_FILE not in {file.path for file in client.list_artifacts(run_id)}:
            return None
        with tempfile.TemporaryDirectory(prefix="llmpilot-") as folder:
            path = Path(client.download_artifacts(run_id, LEVELS_FILE, folder))
            levels: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return levels
