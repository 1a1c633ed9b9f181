"""The workload models that come with LLM-Pilot, and the `workload` part of the configuration."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from llmpilot.config import Facts, parse
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.workload.joint import WorkloadModel

FOLDER = Path(__file__).parent / "models"
SHIPPED = ("paper", "production", "azure_code", "azure_conv")
PREFIX = "shipped:"


class Workload(Facts):
    """Which workload model to draw requests from: `shipped:<name>`, or the path of a fitted one."""

    name: str
    model: str | None = None


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
