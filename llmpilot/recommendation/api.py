"""`llmpilot.recommend`: the recommendation as a function, for notebooks."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import Field, PositiveFloat

from llmpilot import catalog
from llmpilot.config import DEFAULT_TRACKING_URI, Facts, Model, Sla, Tracking, build, parse
from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.predict.predictor import Predictor
from llmpilot.recommendation.advice import Question, advise
from llmpilot.recommendation.learn import FOLDER, learn
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.prices import profiles_at
from llmpilot.recommendation.sources import PUBLISHED, data_of, model_of
from llmpilot.workload import load_workload

SEED = 42
WORKLOAD = "paper"


class Asked(Facts):
    """The numbers of a question, as far as any may be impossible."""

    users: Annotated[int, Field(ge=1, le=1_000_000)]
    risk: Annotated[float, Field(gt=0, lt=1)] = 0.1
    hours: PositiveFloat = 720.0


def recommend(
    model: str | Path | Mapping[str, Any] | Model,
    users: int,
    *,
    itl_ms: float | None = 50.0,
    nttft_ms: float | None = 100.0,
    risk: float = 0.1,
    gpus: Sequence[str] | None = None,
    prices: str | Path | None = None,
    dataset: str | Path | Dataset = PUBLISHED,
    tracking_uri: str | None = None,
    runs: bool = True,
    simulated: bool = False,
    predictor: str | Predictor = "pilot",
    hours: float = 720.0,
    seed: int = SEED,
) -> pd.DataFrame:
    """Return the ranking of all GPU profiles for serving a model to so many concurrent users, the best first.

    Args:
        model: a name of the catalogue, facts, or the path or content of a Hugging Face config.json.
        users: concurrent users, each sending a request when the last one has ended.
        itl_ms: largest median inter-token latency [ms]; None: any.
        nttft_ms: largest median time to first token per input token [ms]; None: any.
        risk: largest probability with which the SLA may be missed.
        gpus: GPU types to choose from, as on the command line (`a100`); None: all of the catalogue.
        prices: whose: the name of a list that ships ("aws", "runpod", "verda_spot"), or a CSV or YAML file of
            gpu, count, price_per_hour, which replaces it; None: the default list.
        dataset: what to learn from: "published", a file that `task=dataset` wrote, or a data set.
        tracking_uri: where own runs are; None: MLFLOW_TRACKING_URI, else `mlflow.db` in this directory.
        runs: whether to read them. Those of this very model condition the prediction.
        simulated: whether to learn from simulated rows, too.
        predictor: an option of the predictor group, or a predictor.
        hours: how long the service will run, for what a further measurement may cost.
        seed: of every random choice.

    Returns:
        One row a GPU profile: gpu, count, pods, cost_per_hour [$, all pods], users_per_pod, p_sla
        (probability that the SLA holds), nttft_ms and itl_ms at that load with 80% intervals, users_max (what
        one pod takes at this risk), feasible, reason. `attrs` holds model, users, sla, recommended (None:
        nothing will do), reason, trust, next_measurement, measured and serve, as the result_file does.

    Raises:
        PilotError: a name that there is not, a file that cannot be read, an impossible value.

    Example:
        >>> from llmpilot import recommend
        >>> ranking = recommend("llama_3_1_8b", users=500, itl_ms=40, gpus=["a100", "h100"], runs=False)
        >>> best = ranking.iloc[0]
        >>> bool(best["feasible"] and best["p_sla"] >= 0.9)
        True
        >>> bool(best["pods"] * best["users_per_pod"] >= 500)
        True
        >>> ranking.attrs["recommended"]["gpu"] == best["gpu"]
        True
    """
    asked = parse(Asked, {"users": users, "risk": risk, "hours": hours}, "recommend")
    sla = parse(Sla, {"nttft_ms": nttft_ms, "itl_ms": itl_ms}, "sla")
    need_of(asked.users, sla)
    facts = model_of(model)
    profiles = profiles_at(prices, gpus)
    workload = load_workload({"name": WORKLOAD, "model": f"shipped:{WORKLOAD}"})
    data = (
        dataset
        if isinstance(dataset, Dataset)
        else data_of(dataset, _store(tracking_uri) if runs else None, simulated=simulated)
    )
    how = predictor if isinstance(predictor, Predictor) else _predictor(predictor)
    learned = learn(data, facts, how, workload=WORKLOAD, seed=seed, folder=FOLDER)
    question = Question(
        facts,
        asked.users,
        sla,
        tuple(profiles),
        workload.heaviest_weight,
        asked.risk,
        asked.hours,
    )
    result = advise(question, learned).to_dict()
    ranking = pd.DataFrame(result.pop("ranking"))
    whole = ["pods", "users_per_pod"]
    ranking[whole] = ranking[whole].astype("Int64")
    attrs: dict[Hashable | None, Any] = dict(result.items())
    ranking.attrs = attrs
    return ranking


def _store(uri: str | None) -> Tracking:
    found = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    return parse(Tracking, {"uri": found}, "tracking")


def _predictor(name: str) -> Predictor:
    known = catalog.options("predictor")
    if name not in known:
        raise ConfigError(
            f"there is no predictor {name!r}",
            cure=f"{did_you_mean(name, known)}there are {', '.join(known)}",
        )
    node = yaml.safe_load((catalog.conf_dir() / "predictor" / f"{name}.yaml").read_text(encoding="utf-8"))
    built: Predictor = build(node, "predictor")
    return built
