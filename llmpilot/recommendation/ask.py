"""From what a person gives to a question: on the command line, in a notebook, in a row of a request."""

from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np
from omegaconf import OmegaConf

from llmpilot import catalog
from llmpilot.architecture import Precision
from llmpilot.config import Gpu, Model, Sla, build
from llmpilot.console import note
from llmpilot.engine.scheduled import ScheduledEngine
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.predict.service.curves import Traffic
from llmpilot.recommendation.offers import offers_of
from llmpilot.recommendation.question import Asked, Choosing, Demand, Question
from llmpilot.workload import WorkloadModel, concatenate, open_trace

SAMPLED = 4096
"""Requests that stand for a workload."""
MOST_TRACED = 2_000_000
"""Requests of a trace that are read at most."""


def asked_of(demand: Demand, workload: WorkloadModel, name: str) -> Asked:
    """Return what is sent: the workload's requests at the demand's load, or a trace as it is.

    Raises:
        ConfigError, TraceError: the trace cannot be used.
    """
    if demand.requests_per_s is None and demand.users is None:
        return _traced(demand)
    if demand.users is not None:
        traffic = Traffic(workload, think_time_s=demand.think_time_s)
        load = float(demand.users)
    else:
        assert demand.requests_per_s is not None
        load = demand.requests_per_s
        shape = demand.burstiness if demand.arrival == "gamma" else 1.0
        traffic = Traffic(workload, burstiness=shape)
    means = (workload.mean("input_tokens"), workload.mean("output_tokens"))
    return Asked(traffic, load, *means, name, _answer_tokens(workload))


def _answer_tokens(workload: WorkloadModel) -> float:
    """Return the mean output tokens of a request, all of its sequences together."""
    requests = workload.spread(SAMPLED, seed=0)
    if (requests.batch_size == 1).all():
        return workload.mean("output_tokens")
    return float((requests.batch_size * requests.output_tokens).mean())


def _traced(demand: Demand) -> Asked:
    trace = open_trace(demand.trace or {}, timed=True)
    parts, times, count = [], [], 0
    for chunk in trace.chunks():
        assert chunk.timestamps_s is not None
        parts.append(chunk.requests)
        times.append(chunk.timestamps_s)
        count += len(chunk.requests)
        if count >= MOST_TRACED:
            break
    for remark in trace.remarks():
        note(remark)
    timestamps_s = np.concatenate([np.empty(0), *times])
    lasts_s = float(timestamps_s[-1] - timestamps_s[0]) if count else 0.0  # which rise, or are refused
    if lasts_s <= 0:
        raise ConfigError(
            "the trace has no duration: its requests all have one time",
            given=f"trace.path={trace.path}",
            cure="give requests_per_s instead",
        )
    requests = concatenate(parts)
    traffic = Traffic(requests, timestamps_s=timestamps_s - timestamps_s[0])
    means = (float(requests.input_tokens.mean()), float(requests.output_tokens.mean()))
    answer_tokens = float((requests.batch_size * requests.output_tokens).mean())
    return Asked(traffic, count / lasts_s, *means, f"replay of {trace.path.name}", answer_tokens)


def engines_of(names: Sequence[str] | None, given: Any) -> list[ScheduledEngine]:
    """Return the engines to choose from: those named, options of the engine group, or the one given.

    Raises:
        ConfigError: there is no such engine, or it is not simulated from operators.
    """
    if not names:
        return [_scheduled(given, getattr(given, "name", str(given)))]
    engines = []
    for name in dict.fromkeys(names):
        if getattr(given, "name", None) == name:
            engines.append(_scheduled(given, name))
            continue
        if name not in catalog.options("engine"):
            raise ConfigError(
                f"there is no engine {name!r}",
                given=f"engines={list(names)}",
                cure=f"{did_you_mean(name, catalog.options('engine'))}engines=[vllm,sglang,trtllm]",
            )
        engines.append(_scheduled(build(OmegaConf.create(catalog.option("engine", name)), "engine"), name))
    return engines


def _scheduled(engine: Any, name: str) -> ScheduledEngine:
    if isinstance(engine, ScheduledEngine):
        return engine
    raise ConfigError(
        f"services of {name} are not simulated from operators: none can be recommended",
        given=f"engine={name}",
        cure="engine=vllm, sglang or trtllm; engine=tgis sla=default workload=paper asks as the paper did",
    )


def models_of(model: Model, precisions: Sequence[str | None] | str | None, kv_precision: Any) -> list[Model]:
    """Return the model in each precision that may be chosen; null: as its checkpoint says.

    Raises:
        ConfigError: there is no such precision, or the model cannot have it.
    """
    wanted = [precisions] if isinstance(precisions, str) or precisions is None else list(precisions)
    known = get_args(Precision)
    for one in wanted:
        if one is not None and one not in known:
            raise ConfigError(
                f"there is no precision {one!r}",
                given=f"precision={precisions}",
                cure=f"{did_you_mean(str(one), known)}there are {', '.join(known)}; null is what the "
                "checkpoint says",
            )
    variants = [model.at_precision(cast(Precision | None, one), kv_precision) for one in wanted]
    return list({variant.name: variant for variant in variants}.values())


def question_of(
    model: Model,
    model_option: str,
    demand: Demand,
    asked: Asked,
    *,
    sla: Sla,
    engines: Sequence[ScheduledEngine],
    precisions: Sequence[str | None] | str | None = None,
    kv_precision: Any = None,
    profiles: Sequence[Gpu],
    choosing: Choosing,
    prices: str,
    cached_share: float | None = None,
    seed: int = 42,
) -> Question:
    """Return the question, every engine, precision and profile put together.

    Raises:
        ConfigError: there is no such precision, or an engine is told another share of cached prompts.
    """
    variants = models_of(model, precisions, kv_precision)
    return Question(
        model=model,
        model_option=model_option,
        demand=demand,
        asked=asked,
        cached_share=cached_share or 0.0,
        sla=sla,
        offered=offers_of([one.with_cached_share(cached_share) for one in engines], variants, profiles),
        choosing=choosing,
        prices=prices,
        seed=seed,
    )
