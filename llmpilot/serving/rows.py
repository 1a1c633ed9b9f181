"""From the rows of a request to what they ask. A refusal names row, column and cure."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from llmpilot import catalog
from llmpilot.architecture import Precision
from llmpilot.config import LATENCIES, STATISTICS, Gpu, Model, Sla, parse
from llmpilot.errors import ConfigError, PilotError, did_you_mean
from llmpilot.prices import PriceList
from llmpilot.recommendation.question import MOST_USERS, Choosing, Demand
from llmpilot.recommendation.sources import model_of
from llmpilot.serving.cells import (
    Row,
    is_missing,
    json_object,
    list_in,
    number_in,
    number_or_none,
    several_in,
    text_in,
)
from llmpilot.serving.price_cells import prices_in

TASKS = ("auto", "recommend", "predict")
FACTS = tuple(name for name in Model.model_fields if name not in ("name", "source"))
"""Columns that describe a model which has no name here."""
NEEDED_FACTS = ("parameters_b", "n_layers", "d_model", "n_heads", "n_kv_heads")
WHOLE_FACTS = tuple(name for name, field in Model.model_fields.items() if field.annotation is int)
WORKLOADS = ("azure_conv", "azure_code", "paper", "production")
BY_TOKENS = ("lengths", "fixed")
"""Workloads that are told by tokens: drawn around means, or all alike."""
TOKENS = ("input_tokens", "output_tokens", "input_stdev_tokens", "output_stdev_tokens")
WORKLOAD = WORKLOADS[0]
"""What is sent where nothing is said of it."""
PERCENTILES = (50, 90, 95, 99)
PERCENTILE = 95
"""Of limits that do not say their statistic themselves."""
MOST_MS = 1e9
MOST_TOKENS = 1_000_000
STATISTIC_LIMITS = tuple(f"{latency}_{statistic}" for latency in LATENCIES for statistic in STATISTICS)
COLUMNS: dict[str, str] = {
    "model": "a name of the catalogue, or a Hugging Face id",
    "model_facts": "instead: the text of its config.json, or of its facts as JSON",
    "requests_per_s": "the load of all pods together: requests that arrive in a second",
    "users": "instead: users who send their next request when the last one has ended",
    "think_time_s": "and when they have thought for so long on average; 0",
    "arrival": "of requests_per_s: poisson, or gamma for bursts; poisson",
    "burstiness": "of gamma: the shape of the gaps, 1 is Poisson; 0.5",
    "workload": f"what is sent: {', '.join((*WORKLOADS, *BY_TOKENS))}; {WORKLOAD}",
    "input_tokens": "instead: the mean tokens of a prompt; of workload fixed, those of every prompt",
    "output_tokens": "and those of an answer",
    "input_stdev_tokens": "the standard deviation of a prompt's tokens; as large as the mean",
    "output_stdev_tokens": "and that of an answer's",
    "cached_share": "the share of every prompt that the server has in its cache; 0",
    **dict.fromkeys(LATENCIES, "a limit [ms] on the statistic that percentile names"),
    **dict.fromkeys(STATISTIC_LIMITS, "a limit [ms] on this very statistic"),
    "percentile": f"{', '.join(map(str, PERCENTILES))} or mean: of limits that do not say it; {PERCENTILE}",
    "max_failure_rate": "the share of requests that may fail; 0.01",
    "risk": "the largest probability with which the SLA may be missed; none: price and certainty are weighed",
    "max_gpus": "in all pods together",
    "gpus": "GPU types to choose from: h100,l4; all that have a price",
    "engine": "engines to choose from: vllm,sglang,trtllm; vllm",
    "precision": "number formats of the weights to choose from: bf16,fp8; what the checkpoint says",
    "prices": 'the name of a price list, or $ per hour as JSON: {"h100": {"1": 2.5}}, {"h100": 2.5} a GPU',
    "gpu": "what one pod of this GPU type does under the load, in place of a recommendation",
    "count": "its GPUs; 1",
    "task": "recommend, predict, or auto: predict where a gpu is given",
    **dict.fromkeys(FACTS, "a fact of a model that has no name here, or in place of what its name says"),
}
"""Every column of a request, and what it is; behind the semicolon what holds where it is not given."""
INDEX = "Unnamed: 0"
"""How pandas reads the index that its `to_csv` writes."""


@dataclass(frozen=True)
class Sent:
    """What is sent: an option of the workload group, and of `fixed` and `lengths` the tokens of a request."""

    option: str = WORKLOAD
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_stdev_tokens: float | None = None
    output_stdev_tokens: float | None = None
    cached_share: float | None = None

    @property
    def name(self) -> str:
        """As the command line calls it: `azure_conv`, `lengths_2000_300`."""
        if self.input_tokens is None:
            return self.option
        return f"{self.option}_{self.input_tokens}_{self.output_tokens}"

    @property
    def node(self) -> dict[str, Any]:
        """The `workload` part of a configuration that says the same."""
        given = {key: value for key, value in vars(self).items() if key != "option" and value is not None}
        if self.input_tokens is None:
            return catalog.option("workload", self.option) | given
        return {"name": self.name, "model": self.option, **given}


@dataclass(frozen=True)
class Asked:
    """What a row asks: `recommend` of all profiles of the GPU types `gpus` (None: of all with a price), or
    `predict` of one pod with `count` GPUs of the one type in `gpus`.
    """

    number: int
    task: Literal["recommend", "predict"]
    model: Model
    named: str
    demand: Demand
    sent: Sent
    sla: Sla
    choosing: Choosing
    engines: tuple[str, ...]
    precisions: tuple[Precision | None, ...]
    prices: PriceList
    gpus: tuple[str, ...] | None
    count: int


@contextmanager
def in_row(number: int) -> Iterator[None]:
    """Say of what is refused which row it is in."""
    try:
        yield
    except PilotError as error:
        raise ConfigError(f"row {number}: {error.wrong}", given=error.given, cure=error.cure) from None


@dataclass(frozen=True)
class Known:
    """What a request may name: models by name or Hugging Face id, in lower case; GPU types by option."""

    models: Mapping[str, Model]
    gpus: Mapping[str, Gpu]
    prices: PriceList

    def read(self, table: pd.DataFrame, task: str) -> list[Asked]:
        """Return what each row asks; the column `task` of a row wins over `task`.

        Raises:
            ConfigError: no row, an unknown column, or a row that cannot be answered: says which row and
                column, and the cure.
        """
        if not len(table):
            raise ConfigError(
                "the request has no rows",
                cure="send a row for each question, with the columns model, requests_per_s, ttft_ms, itl_ms",
            )
        rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
        for name in rows[0]:
            if name not in COLUMNS and name != INDEX:
                raise ConfigError(
                    f"there is no column {name!r}",
                    given=name,
                    cure=f"{did_you_mean(name, COLUMNS)}there are {', '.join(COLUMNS)}",
                )
        found = []
        for number, row in enumerate(rows):
            with in_row(number):
                found.append(self._asked(number, row, task))
        return found

    def _asked(self, number: int, row: Row, task: str) -> Asked:
        kind = text_in(row, "task") or task
        if kind not in TASKS:
            raise ConfigError(
                f"column task: there is no task {kind!r}", given=kind, cure=f"one of {', '.join(TASKS)}"
            )
        if kind == "auto":
            kind = "recommend" if is_missing(row.get("gpu")) else "predict"
        model, named = self._model(row)
        demand = _demand(row)
        options = {key.lower(): option for option, gpu in self.gpus.items() for key in (option, gpu.name)}
        prices = prices_in(row.get("prices"), self.prices, self.gpus, options)
        engines = several_in(row, "engine", catalog.options("engine")) or ("vllm",)
        precisions = several_in(row, "precision", get_args(Precision)) or (None,)
        gpus, count = self._gpus(row, options), 1
        if kind == "predict":
            gpus, count = self._one_pod(row, options, (engines, precisions))
        return Asked(
            number=number,
            task="predict" if kind == "predict" else "recommend",
            model=model,
            named=named,
            demand=demand,
            sent=_sent(row),
            sla=_sla(row),
            choosing=_choosing(row),
            engines=engines,
            precisions=precisions,  # type: ignore[arg-type]
            prices=prices,
            gpus=gpus,
            count=count,
        )

    # --- the model -----------------------------------------------------------------------------------------

    def _model(self, row: Row) -> tuple[Model, str]:
        """Return the model, and how the command line names it."""
        name, facts = text_in(row, "model"), text_in(row, "model_facts")
        if facts is not None:
            return _of_facts(json_object(facts, "model_facts"), "model_facts", name), "hf"
        given = {key: row[key] for key in FACTS if not is_missing(row.get(key))}
        known = None if name is None else self.models.get(name.lower())
        if given and known is not None:
            return parse(Model, known.model_dump() | given, "model"), "hf"
        if given:
            return _of_facts(given, "model", name), "hf"
        if known is not None:
            return known, known.name
        if name is None:
            raise ConfigError(
                "column model is missing",
                cure=f"a name (llama_3_1_8b) or a Hugging Face id; or the columns {', '.join(NEEDED_FACTS)}; "
                "or model_facts, a JSON text of these or of a config.json",
            )
        names = [known for known in self.models if "/" not in known]
        cure = f"{did_you_mean(name.lower(), self.models)}there are {', '.join(names)}"
        raise ConfigError(
            f"column model: there is no model {name!r}",
            given=name,
            cure=f"{cure}; describe any other with the columns {', '.join(NEEDED_FACTS)}, or model_facts",
        )

    # --- GPUs ----------------------------------------------------------------------------------------------

    def _one_pod(
        self, row: Row, options: Mapping[str, str], choice: tuple[tuple[Any, ...], tuple[Any, ...]]
    ) -> tuple[tuple[str, ...], int]:
        """Return the GPU type of one pod, and how many it has."""
        name = text_in(row, "gpu")
        if name is None:
            raise ConfigError("column gpu is missing", cure=f"one of {', '.join(self.gpus)}")
        for column, several in zip(("engine", "precision"), choice, strict=True):
            if len(several) > 1:
                raise ConfigError(
                    f"column {column} names more than one, and one pod has one",
                    given=",".join(map(str, several)),
                    cure="one of them; or leave gpu out, and the best of all is found",
                )
        option = self._option(name, "gpu", options)
        count = int(number_in(row, "count", whole=True, default=1))
        there = self.gpus[option].possible_counts
        if count not in there:
            raise ConfigError(
                f"column count: there is no pod with {count} x {self.gpus[option].name}",
                given=count,
                cure=f"one of {', '.join(map(str, there))}",
            )
        return (option,), count

    def _gpus(self, row: Row, options: Mapping[str, str]) -> tuple[str, ...] | None:
        names = list_in(row, "gpus")
        if names is None:
            return None
        return tuple(dict.fromkeys(self._option(name, "gpus", options) for name in names))

    def _option(self, name: str, column: str, options: Mapping[str, str]) -> str:
        """Return a GPU type's option, named as on the command line (a100) or in results (A100-40GB)."""
        option = options.get(name.lower()) or options.get(name.lower().replace("-", "_"))
        if option is None:
            raise ConfigError(
                f"column {column}: there is no GPU type {name!r}",
                given=name,
                cure=f"{did_you_mean(name.lower(), options)}there are {', '.join(self.gpus)}",
            )
        return option


# --- the load and the promise ----------------------------------------------------------------------------


def _demand(row: Row) -> Demand:
    rate = number_or_none(row, "requests_per_s", least=1e-6, most=1e6)
    users = number_or_none(row, "users", most=MOST_USERS, whole=True)
    if (rate is None) == (users is None):
        said = "the load is not given" if rate is None else "the load is given twice"
        raise ConfigError(
            f"columns requests_per_s and users: {said}",
            cure="one of them: requests_per_s, or users with think_time_s for people who read",
        )
    think_time_s = number_in(row, "think_time_s", least=0.0, most=1e6, default=0.0)
    if think_time_s and users is None:
        raise ConfigError(
            "column think_time_s is of users, and the load is not given in users",
            given=think_time_s,
            cure="users with think_time_s, or leave it out",
        )
    arrival = text_in(row, "arrival") or "poisson"
    if arrival not in ("poisson", "gamma"):
        raise ConfigError(f"column arrival: there is no {arrival!r}", given=arrival, cure="poisson or gamma")
    return Demand(
        requests_per_s=rate,
        users=None if users is None else int(users),
        think_time_s=think_time_s,
        arrival=arrival,
        burstiness=number_in(row, "burstiness", least=0.01, most=100, default=0.5),
    )


def _sent(row: Row) -> Sent:
    name = text_in(row, "workload")
    cached_share = number_or_none(row, "cached_share", least=0.0, most=0.99)
    given = [column for column in TOKENS if not is_missing(row.get(column))]
    if name is not None and name not in (*WORKLOADS, *BY_TOKENS):
        raise ConfigError(
            f"column workload: there is no workload {name!r}",
            given=name,
            cure=f"{did_you_mean(name, WORKLOADS)}there are {', '.join((*WORKLOADS, *BY_TOKENS))}; "
            "or leave it out, and give input_tokens and output_tokens",
        )
    if given and name in WORKLOADS:
        raise ConfigError(
            f"columns workload and {given[0]}: what is sent is said twice", given=name, cure="one of them"
        )
    if not given and name not in BY_TOKENS:
        return Sent(name or WORKLOAD, cached_share=cached_share)
    given_in, given_out = (round(number_in(row, column, most=MOST_TOKENS)) for column in TOKENS[:2])
    spread_in, spread_out = (number_or_none(row, column, least=0, most=MOST_TOKENS) for column in TOKENS[2:])
    return Sent(name or BY_TOKENS[0], given_in, given_out, spread_in, spread_out, cached_share)


def _sla(row: Row) -> Sla:
    """Return the limits of a row; without any, those that task=recommend has without any."""
    percentile = _percentile(row)
    limits: dict[str, dict[str, float]] = {}
    for latency in LATENCIES:
        for column, statistic in (
            (latency, f"p{percentile}" if percentile != "mean" else percentile),
            *((f"{latency}_{statistic}", statistic) for statistic in STATISTICS),
        ):
            limit = number_or_none(row, column, least=1e-6, most=MOST_MS)
            if limit is None:
                continue
            of_latency = limits.setdefault(latency, {})
            if statistic in of_latency:
                raise ConfigError(
                    f"columns {latency} and {column} are limits on the same statistic",
                    given=limit,
                    cure="one of them",
                )
            of_latency[statistic] = limit
    failures = {"max_failure_rate": number_in(row, "max_failure_rate", least=0.0, most=1.0, default=0.01)}
    chosen = limits or {
        name: value for name, value in catalog.option("sla", "interactive").items() if name in LATENCIES
    }
    none = dict.fromkeys(LATENCIES)
    return parse(Sla, none | chosen | failures | {"percentile": percentile}, "sla")


def _percentile(row: Row) -> int | str:
    value = row.get("percentile")
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return PERCENTILE
    said = str(value).strip().lower().removeprefix("p").removesuffix(".0")
    if said == "mean":
        return said
    if said not in map(str, PERCENTILES):
        raise ConfigError(
            "column percentile is not possible",
            given=value,
            cure=f"one of {', '.join(map(str, PERCENTILES))}, or mean",
        )
    return int(said)


def _choosing(row: Row) -> Choosing:
    gpus = number_or_none(row, "max_gpus", most=1e6, whole=True)
    return Choosing(
        risk=number_or_none(row, "risk", least=1e-6, most=1 - 1e-6),
        max_gpus=None if gpus is None else int(gpus),
    )


# --- the model's facts ----------------------------------------------------------------------------------


def _of_facts(facts: dict[str, Any], column: str, name: str | None) -> Model:
    """Return a model of the facts given; what follows from them, or decides no speed, may be left out."""
    if "model_type" in facts:
        return model_of(facts)
    for key in NEEDED_FACTS:
        if key not in facts:
            raise ConfigError(
                f"column {key} is missing" if column == "model" else f"column {column}: {key} is missing",
                cure=f"a model without a name needs {', '.join(NEEDED_FACTS)}",
            )
    numbers = {key: number_in(facts, key, least=1e-6, whole=key in WHOLE_FACTS) for key in NEEDED_FACTS}
    head_dim = number_in(facts, "head_dim", default=max(1, round(numbers["d_model"] / numbers["n_heads"])))
    assumed = {
        "name": name or "unnamed",
        "hf_id": "",
        "architecture": "unknown",
        "active_parameters_b": numbers["parameters_b"],
        "head_dim": head_dim,
        "kv_bytes_per_token": 4.0 * numbers["n_layers"] * numbers["n_kv_heads"] * head_dim,
        "vocabulary_size": 32000,
        "source": "a request",
    }
    return parse(Model, assumed | facts, column)


def names_of(models: Sequence[Model]) -> dict[str, Model]:
    """Return each model by its name and its Hugging Face id, in lower case."""
    by_id = {hf_id.lower(): model for model in models for hf_id in (*model.aliases, model.hf_id) if hf_id}
    return {model.name.lower(): model for model in models} | by_id
