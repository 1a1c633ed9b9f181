"""Task `workload`: fit a workload model on a trace and say how faithful it is, or describe a given one."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import Field
from rich.table import Table

from llmpilot import console
from llmpilot.config import Facts, parse, plain
from llmpilot.errors import ConfigError
from llmpilot.tasks.conversing import described
from llmpilot.workload import (
    PARAMETERS,
    Requests,
    Trace,
    WorkloadModel,
    fit,
    load_conversations,
    load_workload,
    open_trace,
)
from llmpilot.workload.faithfulness import MAX_ROWS, Faithfulness, faithfulness, row_sample
from llmpilot.workload.joint import MAX_BINS, MIN_BINS
from llmpilot.workload.seeds import random_words
from llmpilot.workload.store import refuse_suffix, refuse_unwritable, write_samples


class Fitting(Facts):
    """How a workload model is fitted on a trace."""

    max_bins: Annotated[int, Field(ge=MIN_BINS, le=MAX_BINS)] = 64


def run(cfg: DictConfig) -> dict[str, Any]:
    """Fit on `trace.path`, or describe the composed `workload`; return what was found, as JSON values.

    Raises:
        ConfigError: an impossible option.
        TraceError: the trace cannot be used, or a file cannot be written; nothing is left half-written.
    """
    given = dict(plain(cfg.trace))
    fitting = parse(Fitting, {"max_bins": given.pop("max_bins")} if "max_bins" in given else {}, "trace")
    trace = open_trace(given) if given.get("path") else None
    samples = _count("samples", cfg.samples)
    random_words(cfg.seed)  # refuses an impossible seed before the trace is read
    samples_file = Path(cfg.samples_file).expanduser() if cfg.samples_file else None
    output = Path(str(cfg.output)).expanduser() if trace else None
    figure = output.with_suffix(".png") if output else None
    for path in (output, figure, samples_file):
        if path is not None:
            refuse_unwritable(path)
    if samples_file:
        refuse_suffix(samples_file)

    started = time.perf_counter()
    if trace is None and (talks := load_conversations(cfg.workload, cfg.seed)) is not None:
        if samples_file:
            raise ConfigError(
                "samples are of requests that have nothing in common, which turns of conversations are not",
                given=f"samples_file={samples_file}",
                cure="leave it out",
            )
        result, table = described(talks, str(cfg.workload.name))
        console.out.print(table)
        return result | {"seconds": round(time.perf_counter() - started, 3)}
    if trace is None or output is None or figure is None:
        model = load_workload(cfg.workload)
        result = _describe(model)
        console.out.print(_description(model, result))
    else:
        with console.err.status(f"fitting on {trace.path}"):
            model, compared = _fit(trace, fitting.max_bins, samples, cfg.seed)
        for remark in trace.remarks():
            console.note(remark)
        model.save(output)
        from llmpilot.workload import figure as pictures  # matplotlib is slow to import

        pictures.save(compared, f"{trace.path.name}: {model.rows:,} requests", figure)
        result = (
            _describe(model)
            | {"remarks": trace.remarks()}
            | _findings(compared)
            | {"output": str(output), "figure": str(figure)}
        )
        console.out.print(_comparison(model, compared, result))
    if samples_file:
        write_samples(model, samples, cfg.seed, samples_file)
        result |= {"samples_file": str(samples_file), "samples": samples}
        console.say(f"{samples:,} requests written to {samples_file}")
    result["seconds"] = round(time.perf_counter() - started, 3)
    if output:
        use = f"python -m llmpilot +gpu=... +model=... workload=file workload.model={output}"
        console.say(f"to measure with it: {use}")
    return result


def _fit(trace: Trace, max_bins: int, samples: int, seed: int) -> tuple[WorkloadModel, Faithfulness]:
    def chunks() -> Iterator[Requests]:
        for chunk in trace.chunks():
            yield chunk.requests

    model = fit(chunks, max_bins, {"name": trace.path.stem, "source": trace.path.name})
    return model, faithfulness(row_sample(chunks(), MAX_ROWS, seed), model, seed, samples)


def _describe(model: WorkloadModel) -> dict[str, Any]:
    longest_input, longest_output = model.longest()
    return {
        "workload": model.name,
        "about": dict(model.about),
        "rows": model.rows,
        "cells": len(model.weights),
        "bins": {name: len(bins) for name, bins in zip(PARAMETERS, model.bins, strict=True)},
        "mean": {name: model.mean(name) for name in PARAMETERS},
        "longest_input_tokens": longest_input,
        "longest_output_tokens": longest_output,
        "heaviest_weight_tokens": model.heaviest_weight,
        "content_hash": model.content_hash,
    }


def _findings(compared: Faithfulness) -> dict[str, Any]:
    return {
        "rows_compared": compared.rows,
        "samples_compared": compared.samples,
        "constant": list(compared.constant),
        "ks_joint": compared.ks_joint,
        "ks_independent": compared.ks_independent,
        "correlation_difference_joint": compared.difference_joint,
        "correlation_difference_independent": compared.difference_independent,
    }


def _description(model: WorkloadModel, result: dict[str, Any]) -> Table:
    table = Table(title=f"workload {model.name}: {model.rows:,} requests in {len(model.weights):,} cells")
    for heading in ("parameter", "bins", "mean", "smallest", "largest"):
        table.add_column(heading, justify="left" if heading == "parameter" else "right")
    for name, bins in zip(PARAMETERS, model.bins, strict=True):
        per_unit = model.steps(name)
        ends = (f"{value / per_unit:g}" for value in (bins[:, 0].min(), bins[:, 1].max()))
        table.add_row(name, str(len(bins)), f"{result['mean'][name]:.4g}", *ends)
    table.caption = f"heaviest request {model.heaviest_weight:,} tokens; {model.about.get('source', '')}"
    return table


def _comparison(model: WorkloadModel, compared: Faithfulness, result: dict[str, Any]) -> Table:
    table = Table(title=f"{model.name}: {model.rows:,} requests, {len(model.weights):,} cells")
    for heading in ("parameter", "bins", "mean", "KS distance", "KS independent"):
        table.add_column(heading, justify="left" if heading == "parameter" else "right")
    for name in PARAMETERS:
        ks = (f"{found[name]:.4f}" for found in (compared.ks_joint, compared.ks_independent))
        table.add_row(name, str(result["bins"][name]), f"{result['mean'][name]:.4g}", *ks)
    table.caption = (
        f"largest difference of a rank correlation: {compared.difference_joint:.3f} with the model, "
        f"{compared.difference_independent:.3f} with independent draws"
    )
    return table


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} is not possible", given=value, cure=f"set {key}=<whole number above 0>")
    return value
