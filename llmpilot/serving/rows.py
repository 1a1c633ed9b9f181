"""From the rows of a request to questions: every cell checked, every refusal names row, column and cure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd

from llmpilot.config import Gpu, Model, parse
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.predict.decision import Need
from llmpilot.recommendation.sources import model_of

TASKS = ("auto", "recommend", "predict")
FACTS = tuple(name for name in Model.model_fields if name not in ("name", "source"))
"""Columns that describe a model which has no name here."""
NEEDED_FACTS = ("parameters_b", "n_layers", "d_model", "n_heads", "n_kv_heads")
WHOLE_FACTS = tuple(name for name, field in Model.model_fields.items() if field.annotation is int)
MOST_USERS = 1_000_000
MOST_MS = 1e9

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """Which of the profiles of these GPU types (None: of all), and how many, keep the need at this risk."""

    model: Model
    need: Need
    risk: float
    gpus: frozenset[str] | None


@dataclass(frozen=True)
class Cell:
    """What latencies one pod of this profile has under so many users."""

    model: Model
    profile: Gpu
    users: int


@dataclass(frozen=True)
class Known:
    """What names a request may use: of models by name or Hugging Face id, in lower case, and of profiles."""

    models: Mapping[str, Model]
    profiles: tuple[Gpu, ...]
    most_users: int

    def read(self, table: pd.DataFrame, task: str) -> list[Question | Cell]:
        """Return a question for each row; the column `task` of a row wins over `task`.

        Raises:
            ConfigError: no row, or one that cannot be answered: says which row and column, and the cure.
        """
        if not len(table):
            raise ConfigError(
                "the request has no rows, or none of its columns is known",
                cure="send a row for each question, with the columns model, users, nttft_ms, itl_ms",
            )
        questions = []
        for number, row in enumerate(table.to_dict("records")):
            try:
                questions.append(self._question({str(key): value for key, value in row.items()}, task))
            except ConfigError as error:
                raise ConfigError(
                    f"row {number}: {error.wrong}", given=error.given, cure=error.cure
                ) from None
        return questions

    def _question(self, row: Row, task: str) -> Question | Cell:
        kind = text_in(row, "task") or task
        if kind not in TASKS:
            raise ConfigError(
                f"column task: there is no task {kind!r}", given=kind, cure=f"one of {', '.join(TASKS)}"
            )
        if kind == "auto":
            kind = "predict" if text_in(row, "gpu") else "recommend"
        model = self._model(row)
        if kind == "predict":
            profile = self._profile(row)
            return Cell(model, profile, int(number_in(row, "users", most=self.most_users, whole=True)))
        need = Need(
            users=int(number_in(row, "users", most=MOST_USERS, whole=True)),
            nttft_ms=number_in(row, "nttft_ms", least=1e-6, most=MOST_MS),
            itl_ms=number_in(row, "itl_ms", least=1e-6, most=MOST_MS),
            count_failures=True,
        )
        risk = number_in(row, "risk", least=1e-6, most=1 - 1e-6, default=0.1)
        return Question(model, need, risk, self._gpus(row))

    # --- the model -----------------------------------------------------------------------------------------

    def _model(self, row: Row) -> Model:
        name, facts = text_in(row, "model"), text_in(row, "model_facts")
        if facts is not None:
            return _of_facts(_json_object(facts), "model_facts", name)
        given = {key: row[key] for key in FACTS if not _is_missing(row.get(key))}
        known = None if name is None else self.models.get(name.lower())
        if given and known is not None:
            return parse(Model, known.model_dump() | given, "model")
        if given:
            return _of_facts(given, "model", name)
        if known is not None:
            return known
        if name is None:
            raise ConfigError(
                "column model is missing",
                cure=f"a name (starcoder) or a Hugging Face id; or the columns {', '.join(NEEDED_FACTS)}; "
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

    def _profile(self, row: Row) -> Gpu:
        name = text_in(row, "gpu")
        if name is None:
            raise ConfigError("column gpu is missing", cure=f"one of {', '.join(self._types())}")
        wanted = self._type(name, "gpu")
        count = int(number_in(row, "count", whole=True, default=1))
        for profile in self.profiles:
            if profile.name == wanted and profile.count == count:
                return profile
        sold = sorted(profile.count for profile in self.profiles if profile.name == wanted)
        raise ConfigError(
            f"column count: there is no profile of {count} x {wanted}",
            given=count,
            cure=f"one of {', '.join(map(str, sold))}; others need a price: task=train prices=FILE",
        )

    def _gpus(self, row: Row) -> frozenset[str] | None:
        value = row.get("gpus")
        if isinstance(value, list | tuple):
            names = [str(name) for name in value]
        else:
            text = text_in(row, "gpus")
            if text is None:
                return None
            names = text.split(",")
        if not names:
            raise ConfigError(
                "column gpus names no GPU type", given=value, cure="leave it out for all, or name some"
            )
        return frozenset(self._type(name.strip(), "gpus") for name in names)

    def _type(self, name: str, column: str) -> str:
        """Return the GPU type's own name; a name may leave out the memory and case: a100 is A100-40GB."""
        types = self._types()
        plain = name.lower().replace("_", "-")
        exact = [known for known in types if known.lower() == plain]
        alike = exact or [known for known in types if known.lower().rpartition("-")[0] == plain]
        if not alike:
            raise ConfigError(
                f"column {column}: there is no GPU type {name!r}",
                given=name,
                cure=f"{did_you_mean(name, types)}there are {', '.join(types)}",
            )
        return alike[0]

    def _types(self) -> list[str]:
        return list(dict.fromkeys(profile.name for profile in self.profiles))


def text_in(row: Row, column: str) -> str | None:
    """Return the text of a cell; None where it is missing or empty."""
    value = row.get(column)
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        raise ConfigError(f"column {column} is no text", given=value, cure=f"{column} as a string")
    return value.strip() or None


def number_in(
    row: Row,
    column: str,
    *,
    least: float = 1,
    most: float = MOST_MS,
    whole: bool = False,
    default: float | None = None,
) -> float:
    """Return the number in a cell.

    Raises:
        ConfigError: it is missing without a default, no number, or beyond its bounds.
    """
    kind = "a whole number" if whole else "a number"
    cure = f"{kind} from {least:g} to {most:g}"
    value: Any = row.get(column)
    if _is_missing(value):
        if default is None:
            raise ConfigError(f"column {column} is missing", cure=cure)
        return default
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not (least <= number <= most) or (whole and number != int(number)):
        raise ConfigError(f"column {column} is not possible", given=value, cure=cure)
    return number


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


def _json_object(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"column model_facts is no JSON: {error}", given=text[:80], cure='{"parameters_b": 7.6, ...}'
        ) from None
    if not isinstance(facts, dict):
        raise ConfigError(
            "column model_facts is no JSON object", given=text[:80], cure='{"parameters_b": 7.6, ...}'
        )
    return facts


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and isnan(value))


def names_of(models: Sequence[Model]) -> dict[str, Model]:
    """Return each model by its name and its Hugging Face id, in lower case."""
    by_id = {hf_id.lower(): model for model in models for hf_id in (*model.aliases, model.hf_id) if hf_id}
    return {model.name.lower(): model for model in models} | by_id
