"""Task `calibrate`: fit the simulator to a user's own services, from closed-loop runs of `characterize`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from llmpilot import catalog
from llmpilot.config import Facts, Gpu, Load, Model, Tracking, parse
from llmpilot.console import err, say
from llmpilot.errors import ConfigError, TrackingError
from llmpilot.simulator.accuracy import Judged
from llmpilot.simulator.calibration import write_calibrations
from llmpilot.simulator.calibration_fit import TOLERANCES, Fit, fit_pair, usable
from llmpilot.simulator.recordings import Recording, summarize
from llmpilot.simulator.replay import replay

FILES = ("config.yaml", "requests.parquet", "result.json")


class Calibrating(Facts):
    """The task's part of the configuration."""

    runs: list[str]
    simulated: bool = False
    output: str = "calibration.csv"


def run(cfg: DictConfig) -> dict[str, Any]:
    """Fit one calibration per (model, GPU profile) of the runs; return them with their remaining errors.

    Raises:
        ConfigError: no runs, or one that cannot be used.
        TrackingError: a run's artifacts could not be fetched.
    """
    keys = ("runs", "simulated", "output")
    settings = parse(Calibrating, {key: cfg[key] for key in keys}, "calibrate")
    if not settings.runs:
        raise ConfigError("task calibrate needs runs", cure="'runs=[RUN_ID,...]' from the task characterize")
    pairs: dict[tuple[str, str, int], tuple[Model, Gpu, list[Recording]]] = {}
    for name in settings.runs:
        model, gpu, levels = read_run(_folder(name, cfg), simulated=settings.simulated)
        pair = (model.name, gpu.name, gpu.count)
        pairs.setdefault(pair, (model, gpu, []))[2].extend(levels)
    fits: list[Fit] = []
    report = []
    for model, gpu, levels in pairs.values():
        if not any(usable(level) for level in levels):
            raise ConfigError("every level lost most of its requests", given=f"{model.name} on {gpu.label}")
        with err.status(f"fitting {model.name} on {gpu.label}, {len(levels)} levels"):
            fit = fit_pair(levels, model, gpu)
        fits.append(fit)
        service = fit.calibration.service(model, gpu)
        judged = [Judged(level, replay(service, level)) for level in levels]
        errors = {name: round(float(np.median([j.error(name) for j in judged])), 4) for name in TOLERANCES}
        report.append({"model": model.name, "gpu": gpu.label, "levels": len(levels), "median_error": errors})
        say(f"{model.name} on {gpu.label}: " + ", ".join(f"{k} {v:.1%}" for k, v in errors.items()))
    comment = f"Fitted by task=calibrate on {', '.join(settings.runs)}."
    write_calibrations(Path(settings.output).expanduser(), [fit.calibration for fit in fits], comment)
    say(f"written to {settings.output}; to use it: engine=tgis engine.calibration={settings.output}")
    return {"output": settings.output, "pairs": report}


def read_run(folder: Path, *, simulated: bool = False) -> tuple[Model, Gpu, list[Recording]]:
    """Return what a run measured: its model, its GPU profile and its levels as recordings.

    Raises:
        ConfigError: it lacks a file, was no closed loop, or is itself simulated and that was not asked for.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"the run has no {missing[0]}", given=folder, cure="finish it, or take another run")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    model, gpu = catalog.served_model(config), catalog.build_gpu(config.gpu)
    load = parse(Load, config.load, "load")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if result.get("measurement") == "simulated" and not simulated:
        raise ConfigError(
            "the run was simulated: it says nothing about a real engine",
            given=folder,
            cure="take a measured run, or add simulated=true to try this out",
        )
    if load.arrival != "closed":
        raise ConfigError(
            "calibrations need closed-loop runs", given=f"{folder}: {load.arrival}", cure="load=closed_loop"
        )
    if load.think_time_s:
        raise ConfigError(
            "calibrations need users who do not think between their requests",
            given=f"{folder}: load.think_time_s={load.think_time_s:g}",
            cure="load.think_time_s=0",
        )
    table = pq.read_table(folder / "requests.parquet")
    levels = table["level"].to_numpy()
    until_s = load.warmup_s + load.duration_s
    recordings = [
        _recording(
            table.filter(pa.array(levels == level)), int(level), until_s, (model.name, gpu.name, gpu.count)
        )
        for level in np.unique(levels).tolist()
    ]
    return model, gpu, recordings


def _recording(table: pa.Table, users: int, until_s: float, pair: tuple[str, str, int]) -> Recording:
    sent_us = table["sent_us"].to_numpy()
    table, sent_us = table.filter(pa.array(sent_us < until_s * 1e6)), sent_us[sent_us < until_s * 1e6]
    if (table["batch_size"].to_numpy() > 1).any():
        raise ConfigError("calibrations need single sequences", cure="a workload whose batch_size is 1")
    good = table.filter(pa.array([failure == "" for failure in table["failure"].to_pylist()]))
    inputs, outputs = (table[name].to_numpy().astype(np.int64) for name in ("input_tokens", "output_tokens"))
    truth = summarize(
        (good["first_token_us"].to_numpy() - good["sent_us"].to_numpy()) / 1e3,
        good["token_gaps_us"].combine_chunks().flatten().to_numpy() / 1e3,
        good["input_tokens"].to_numpy().astype(np.int64),
        good["output_tokens"].to_numpy().astype(np.int64),
        until_s,
    )
    model, gpu, count = pair
    none = np.zeros(len(inputs), dtype=bool)
    return Recording(
        model=model,
        gpu=gpu,
        count=count,
        users=users,
        input_tokens=inputs,
        output_tokens=outputs,
        silent_first=none,
        unanswered=none,
        failure_rate=1.0 - len(good) / max(1, len(table)),
        overhead_ms=0.0,  # these clients' TTFT starts with the sending
        truth=truth,
        window_s=until_s,
    )


def _folder(name: str, cfg: DictConfig) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    import mlflow  # slow to import

    tracking = parse(Tracking, cfg.tracking, "tracking")
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=name, tracking_uri=tracking.uri))
    except Exception as error:
        raise TrackingError(
            "there is no such folder, and MLflow did not give such a run",
            given=f"{name} at {tracking.uri}: {error}",
            cure="runs=[FOLDER] with config.yaml and requests.parquet, or a run id of this tracking server",
        ) from None
