"""The workload models that come with LLM-Pilot, and the `workload` part of the configuration."""

from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import Field, model_validator

from llmpilot.config import Facts, parse
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.workload.joint import WorkloadModel, fit
from llmpilot.workload.requests import from_lengths

FOLDER = Path(__file__).parent / "models"
SHIPPED = ("paper", "production", "azure_code", "azure_conv")
PREFIX = "shipped:"
FIXED = "fixed"
LENGTHS = ("input_tokens", "output_tokens")
Tokens = Annotated[int, Field(gt=0, le=10_000_000)]


class Workload(Facts):
    """Which workload model to draw requests from: `shipped:<name>`, the path of a fitted one, or `fixed`:
    every request of `input_tokens` and `output_tokens`, one sequence, decoded greedily."""

    name: str
    model: str | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _lengths_where_they_count(self) -> "Workload":
        for key in LENGTHS:
            given = getattr(self, key)
            if self.model != FIXED and given is not None:
                raise ValueError(
                    f"workload.{key}={given} is for requests that are all alike: workload=fixed; "
                    "all others have lengths of their own"
                )
        return self


def load_workload(node: DictConfig | dict[str, Any]) -> WorkloadModel:
    """Return the workload model that the composed `workload` part of the configuration names.

    Raises:
        ConfigError: an unknown key, no model, or an unknown shipped one.
        TraceError: the file is missing, foreign or damaged.
    """
    facts = parse(Workload, node, "workload")
    if facts.model is None:
        raise ConfigError(
            "workload.model is missing: the path of a fitted workload model",
            cure="fit one with `python -m llmpilot task=workload trace.path=<your trace>`, then set "
            "workload.model=workload.parquet; or take a shipped one: workload=" + " | ".join(SHIPPED),
        )
    if facts.model == FIXED:
        if missing := [f"workload.{key}" for key in LENGTHS if getattr(facts, key) is None]:
            example = " ".join(f"{key}=64" for key in missing)
            raise ConfigError(f"{' and '.join(missing)} is missing", cure=f"workload=fixed {example}")
        alike = from_lengths(*([getattr(facts, key)] for key in LENGTHS))
        return fit(lambda: [alike])
    if not facts.model.startswith(PREFIX):
        return WorkloadModel.load(Path(facts.model).expanduser())
    name = facts.model.removeprefix(PREFIX)
    if name not in SHIPPED:
        raise ConfigError(
            "no such shipped workload",
            given=facts.model,
            cure=f"{did_you_mean(name, SHIPPED)}there are {', '.join(PREFIX + n for n in SHIPPED)}",
        )
    return WorkloadModel.load(FOLDER / f"{name}.parquet")
