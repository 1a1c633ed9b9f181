"""The command line: Hydra composes, this module checks what the task needs, dispatches, and sets the exit code.

0 done, 1 failed (or measured but not tracked), 2 wrong usage, 130 interrupted.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from llmpilot import catalog
from llmpilot.config import plain
from llmpilot.console import note
from llmpilot.errors import ConfigError, PilotError, TrackingError
from llmpilot.files import write_result
from llmpilot.secrets import redact, secret_values
from llmpilot.sweep import Sweep

WRONG_USAGE = 2
INTERRUPTED = 130

_sweep: Sweep | None = None
_secrets: tuple[str, ...] = ()


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every mendable error is one message on stderr."""
    global _sweep, _secrets  # Hydra calls `_job` with the configuration only
    _sweep, _secrets = None, _secrets_in(arguments)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Let errors through to us instead of Hydra's own report, which exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _interrupt)
    sys.argv[1:] = arguments
    code = 0
    try:
        _job()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (PilotError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        _complain(error)
        code = error.exit_code if isinstance(error, PilotError) else WRONG_USAGE
    finally:
        if _sweep is not None:
            code = max(code, _sweep.close(interrupted=code == INTERRUPTED))
    return code


@hydra.main(version_base="1.3", config_path=str(catalog.conf_dir()), config_name="config")
def _job(cfg: DictConfig) -> None:
    """One job of Hydra's: the whole command, or a cell of a sweep."""
    global _sweep, _secrets
    _secrets += secret_values(plain(cfg))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _sweep = _sweep or Sweep(cfg)
        _sweep.run_cell(cfg, _require)
        return
    _require(cfg)
    try:
        result = get_method(cfg.task.run)(cfg)
    except TrackingError as error:
        _keep(cfg, error.result)
        raise
    _keep(cfg, result)


def _keep(cfg: DictConfig, result: Any) -> None:
    if cfg.result_file is not None and result is not None:
        write_result(cfg.result_file, result)


def _require(cfg: DictConfig) -> None:
    """Check that what the task needs is there, or show the line to type and the options there are."""
    missing = [group for group in cfg.task.requires if group not in cfg]
    if not missing:
        return
    options = "\n".join(f"    {group}: {', '.join(catalog.options(group))}" for group in missing)
    example = {"gpu": "+gpu=a100", "model": "+model=starcoder"}
    line = " ".join(example[group] for group in cfg.task.requires)
    task = "" if cfg.task.name == "characterize" else f"task={cfg.task.name} "
    raise ConfigError(
        f"task {cfg.task.name} needs a {' and a '.join(missing)}",
        cure=f"python -m llmpilot {task}{line}\n  the options are\n{options}",
    )


def _complain(error: Exception) -> None:
    causes = [error] if isinstance(error, PilotError) else [error, error.__cause__]
    text = "\n".join(dict.fromkeys(str(cause).strip() for cause in causes if cause is not None))
    note(f"error: {redact(text, _secrets)}", style="red")


def _secrets_in(arguments: list[str]) -> tuple[str, ...]:
    pairs = (argument.lstrip("+~").partition("=") for argument in arguments)
    return tuple(found for key, _, value in pairs for found in secret_values({key: value}))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
