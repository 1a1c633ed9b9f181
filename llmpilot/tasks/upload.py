"""Send to MLflow what was measured while it could not be reached."""

from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from llmpilot import tracking
from llmpilot.config import Tracking, parse
from llmpilot.console import say
from llmpilot.errors import ConfigError
from llmpilot.runfolder import ROOT, RunFolder
from llmpilot.secrets import redact


def run(cfg: DictConfig) -> dict[str, Any]:
    """Upload the run folders that `folders` names, or all that wait; return their run ids.

    Raises:
        PilotError: a folder is not one of ours. TrackingError: MLflow cannot be used.
    """
    settings = parse(Tracking, cfg.tracking, "tracking")
    named = [Path(str(path)) for path in cfg.folders]
    paths = named or sorted(path.parent for path in ROOT.glob("*/run.json"))
    if not paths:
        raise ConfigError(f"nothing to upload: there is no run folder under {ROOT}", cure="folders=[PATH]")
    folders = [RunFolder.open(path) for path in paths]
    uploaded = []
    for folder in folders:
        meant, given = folder.state.get("tracking_uri"), redact(settings.uri)
        if meant not in (None, given) and not cfg.elsewhere:
            raise ConfigError(
                f"{folder.path} was measured for {meant}",
                given=f"tracking.uri={given}",
                cure=f"tracking.uri={meant}, or elsewhere=true to send it to {given} all the same",
            )
        with closing(folder):
            folder.lock()
            run_id = tracking.upload(folder, settings)
        kept = "" if folder.state["status"] == "FINISHED" else "; unfinished, so kept to be gone on with"
        say(f"uploaded {folder.path}: run {run_id}{kept}")
        uploaded.append({"folder": str(folder.path), "run_id": run_id})
    return {"uploaded": uploaded}
