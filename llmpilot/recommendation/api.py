"""`llmpilot.recommend`: the recommendation as a function, for notebooks."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llmpilot import catalog
from llmpilot.config import DEFAULT_TRACKING_URI, Model, Sla, Tracking, parse
from llmpilot.recommendation.ask import asked_of, engines_of, question_of
from llmpilot.recommendation.prices import profiles_at
from llmpilot.recommendation.question import Choosing, Demand
from llmpilot.recommendation.sources import knowledge_of, model_of
from llmpilot.recommendation.today import answered, require_limits
from llmpilot.workload import load_workload

SEED = 42


def recommend(
    model: str | Path | Mapping[str, Any] | Model,
    requests_per_s: float | None = None,
    *,
    users: int | None = None,
    think_time_s: float = 0.0,
    workload: str | Mapping[str, Any] = "azure_conv",
    sla: Mapping[str, Any] | None = None,
    engines: Sequence[str] = ("vllm",),
    precision: str | Sequence[str] | None = None,
    gpus: Sequence[str] | None = None,
    max_gpus: int | None = None,
    prices: str | Path | None = None,
    risk: float | None = None,
    hours: float = 730.0,
    tracking_uri: str | None = None,
    runs: bool = True,
    seed: int = SEED,
) -> pd.DataFrame:
    """Return the ranking of all services for carrying a load of a model within an SLA, the best first.

    Args:
        model: a name of the catalogue or of Hugging Face, facts, or the path or content of a config.json.
        requests_per_s: requests that arrive in a second, at random (Poisson).
        users: in place of it, users that send their next request when the last one has ended and they have
            thought for `think_time_s` on average.
        think_time_s: see there; 0 keeps as many requests in flight as there are users.
        workload: an option of the workload group (`azure_conv`, `azure_code`, `paper`, `production`), or its
            keys: `{"model": "fixed", "input_tokens": 2000, "output_tokens": 300}`.
        sla: limits as on the command line: `{"ttft_ms": {"p95": 1000}, "itl_ms": 50, "percentile": 95}`;
            None: TTFT p95 of 1 s and ITL p95 of 50 ms.
        engines: options of the engine group to choose from: vllm, sglang, trtllm.
        precision: number formats of the weights to choose from; None: what the checkpoint says.
        gpus: GPU types to choose from, as on the command line (`a100`); None: all that have a price.
        max_gpus: in all pods together.
        prices: the name of a price list, or a file of your own.
        risk: the largest probability with which the SLA may be missed; None: price and certainty are weighed.
        hours: how long the service will run, for what a further measurement may cost.
        tracking_uri: where own runs are; None: MLFLOW_TRACKING_URI, else `mlflow.db` in this directory.
        runs: whether to read them: measured ones of today's engines condition the prediction.
        seed: of every random choice.

    Returns:
        One row a service and GPU profile: the columns of the result_file's `ranking`. `attrs` holds the rest
        of the answer: recommended (None: nothing will do), alternatives, reason, trust, next_measurement,
        serve, limits, notes.

    Raises:
        PilotError: a name that there is not, a file that cannot be read, an impossible value.

    Example:
        >>> from llmpilot import recommend
        >>> ranking = recommend("llama_3_1_8b", 20, gpus=["h100", "l40s"], risk=0.1, runs=False)
        >>> best = ranking.iloc[0]
        >>> bool(best["feasible"] and best["p_sla"] >= 0.9)
        True
        >>> bool(best["pods"] * best["requests_per_s_per_pod"] >= 20)
        True
        >>> ranking.attrs["recommended"]["gpu"] == best["gpu"]
        True
    """
    demand = parse(
        Demand,
        {"requests_per_s": requests_per_s, "users": users, "think_time_s": think_time_s},
        "recommend",
    )
    choosing = parse(Choosing, {"risk": risk, "max_gpus": max_gpus, "hours": hours}, "recommend")
    promise = parse(Sla, catalog.option("sla", "interactive") if sla is None else _only(sla), "sla")
    require_limits(promise)
    sent = catalog.option("workload", workload) if isinstance(workload, str) else _named(workload)
    sent_model = load_workload(sent)
    prices_of = catalog.price_list(prices)
    facts = model_of(model)
    question = question_of(
        facts,
        str(model) if isinstance(model, str) else facts.name,
        demand,
        asked_of(demand, sent_model, str(sent["name"])),
        sla=promise,
        engines=engines_of(list(engines), None),
        precisions=precision if precision is None or isinstance(precision, str) else list(precision),
        profiles=profiles_at(prices_of, None if gpus is None else list(gpus)),
        choosing=choosing,
        prices=prices_of.label,
        cached_share=sent_model.cached_share,
        seed=seed,
    )
    result = answered(question, knowledge_of(_store(tracking_uri) if runs else None)).answer.to_dict()
    ranking = pd.DataFrame(result.pop("ranking"))
    ranking["pods"] = ranking["pods"].astype("Int64")
    ranking.attrs.update(result)
    return ranking


def _only(sla: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits that are given and no others: the defaults of the schema are the paper's."""
    return {"nttft_ms": None, "itl_ms": None} | dict(sla)


def _named(workload: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": str(workload.get("model", "own"))} | dict(workload)


def _store(uri: str | None) -> Tracking:
    named = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    return parse(Tracking, catalog.option("tracking", "default") | {"uri": named}, "tracking")
