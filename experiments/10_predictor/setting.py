"""What the scripts of this experiment have in common: the shipped predictor, and the grid of settings."""

import yaml

from llmpilot import catalog
from llmpilot.config import build
from llmpilot.predict.decision import Need
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.predict.scores import grid_of


def shipped_pilot() -> Pilot:
    """Return the predictor as conf/predictor/pilot.yaml has it."""
    text = (catalog.conf_dir() / "predictor" / "pilot.yaml").read_text(encoding="utf-8")
    pilot = build(yaml.safe_load(text), "predictor")
    assert isinstance(pilot, Pilot)
    return pilot


def grid() -> list[Need]:
    """Return the settings of conf/task/evaluate.yaml."""
    text = (catalog.conf_dir() / "task" / "evaluate.yaml").read_text(encoding="utf-8")
    return grid_of(**yaml.safe_load(text)["evaluate"]["grid"])
