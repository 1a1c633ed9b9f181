"""The command line: Hydra composes; this module checks what the task needs, dispatches, sets the exit code.

0 done, 1 failed (or measured but not tracked), 2 wrong usage, 130 interrupted.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC, EROFS
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmpilot import catalog, interrupts
from llmpilot.arguments import (
    fixed_in_each_cell,
    refers_to_nothing,
    refuse_unknown_options,
    refuse_unreadable,
    unknown_key,
)
from llmpilot.config import plain
from llmpilot.console import note
from llmpilot.deployment_overrides import as_hydra_takes_it
from llmpilot.errors import ConfigError, PilotError, TrackingError, did_you_mean
from llmpilot.files import require_apart, require_writable, write_result
from llmpilot.hub_overrides import name_options
from llmpilot.runfolder import ROOT
from llmpilot.secrets import redact, secret_values
from llmpilot.sla_overrides import force_statistics
from llmpilot.sweep import Sweep
from llmpilot.tracking_store import sqlite_file
from llmpilot.tune.study import beside

FAILED = 1
WRONG_USAGE = 2
DISK_TROUBLE = (ENOSPC, EDQUOT, EROFS, EFBIG)
ALIASES = {"model.weights": "engine.weights"}
"""Keys that may be spelled another way: random weights are asked for of the model, but made by the server."""
READ = (
    *(
        "measurements",
        "models",
        "dataset",
        "prices",
        "raw",
        "data",
        "trace.path",
        "load.trace.path",
        "workload.model",
        "model.config",
    ),
    *("engine.calibration", "engine.binary", "engine.model_path", "gpu.profile"),
)
WRITTEN = ("output", "refresh", "samples_file", "predictions_file", "manifest", "send_log", "script")
"""Keys of files, of whatever task has them. An option's name among them (published, auto) does no harm."""


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every mendable error is one message on stderr."""
    state = _State(secrets=_secrets_in(arguments))
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    interrupts.install()
    sys.argv[1:] = as_hydra_takes_it([_by_its_name(argument) for argument in arguments])
    code = 0
    try:
        refuse_unreadable(sys.argv[1:])
        _refuse_null_groups(sys.argv[1:])
        _refuse_what_was_renamed(sys.argv[1:])
        refuse_unknown_options(sys.argv[1:])
        sys.argv[1:] = force_statistics(sys.argv[1:])
        state.arguments = sys.argv[1:]
        sys.argv[1:] = fixed_in_each_cell(sys.argv[1:])
        _hydra_main(state)
        if state.error is not None:
            raise state.error
    except KeyboardInterrupt:
        if interrupts.acknowledge():
            note("interrupted", style="yellow")
        code = interrupts.EXIT_CODE
    except (PilotError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        note(f"error: {redact(explain(error, state.arguments), state.secrets)}", style="red")
        code = error.exit_code if isinstance(error, PilotError) else WRONG_USAGE
    except OSError as error:
        if wants_traceback or error.errno not in DISK_TROUBLE:
            raise
        note(f"error: {error.strerror}: {error.filename or os.curdir}", style="red")
        note(
            f"  what was measured before is kept in {ROOT}; make room, then give the same command again",
            style="red",
        )
        code = FAILED
    finally:
        if state.sweep is not None:
            code = max(code, state.sweep.close(interrupted=code == interrupts.EXIT_CODE))
    return code


@dataclass
class _State:
    """What one command line has come to, beside what Hydra knows of it."""

    secrets: tuple[str, ...]
    arguments: Sequence[str] = ()
    error: BaseException | None = None
    sweep: Sweep | None = None


def _hydra_main(state: _State) -> None:
    """Let Hydra compose the configuration and call back, once a job."""

    def job(cfg: DictConfig) -> None:
        try:
            config = plain(cfg)
            state.secrets += secret_values(config)
            _refuse_clashes(config)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                state.sweep = state.sweep or Sweep(cfg, state.arguments)
                state.sweep.run_cell(cfg, _require)
            else:
                _run_task(cfg)
        except BaseException as error:
            # Hydra would print the overrides, which may hold secrets; `run` raises it again.
            state.error = error
            if isinstance(error, KeyboardInterrupt):
                raise

    with (
        tempfile.TemporaryDirectory(prefix="llmpilot-") as folder,
        _environment(
            # Let errors of the composition through to us: Hydra's own report exits with 1.
            HYDRA_FULL_ERROR="1",
            LLMPILOT_SWEEP_DIR=folder,
        ),
    ):
        sys.argv[1:] = name_options(sys.argv[1:], Path(folder))
        hydra.main(version_base="1.3", config_path=str(catalog.conf_dir()), config_name="config")(job)()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_task(cfg: DictConfig) -> None:
    _require(cfg)
    if cfg.result_file is not None:
        require_writable(cfg.result_file)
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
    known = catalog.root_keys(cfg.task.name)
    for key in map(str, cfg):
        if key not in known:
            cure = f"{did_you_mean(key, known)}there are {', '.join(sorted(known))}"
            raise ConfigError(f"{key} is not a key of the configuration", cure=cure)
    defaults = plain(OmegaConf.load(catalog.conf_dir() / "task" / f"{cfg.task.name}.yaml"))
    for part, default in defaults.items():
        if isinstance(default, dict) and cfg.get(part) is None:
            keys = ", ".join(f"{part}.{key}" for key in default)
            raise ConfigError(f"{part} cannot be null", given=f"{part}=null", cure=f"its keys are {keys}")
    there = plain(cfg.get("deployment") or {}).get("_target_", "").endswith(".ExternalDeployment")
    required = cfg.task.get("requires_of_external", cfg.task.requires) if there else cfg.task.requires
    missing = [group for group in required if group not in cfg]
    if not missing:
        return
    options = "\n".join(f"    {group}: {', '.join(catalog.options(group))}" for group in missing)
    example = {"gpu": "+gpu=a100", "model": "+model=starcoder"}
    line = " ".join(example[group] for group in required)
    task = "" if cfg.task.name == "characterize" else f"task={cfg.task.name} "
    raise ConfigError(
        f"task {cfg.task.name} needs a {' and a '.join(missing)}",
        cure=f"python -m llmpilot {task}{line}\n  the options are\n{options}",
    )


def _refuse_clashes(config: dict[str, Any]) -> None:
    """Refuse a file to be written that is also read or written as another, or one of the databases."""
    kept, written = _paths(config, READ), _paths(config, WRITTEN)
    if "predictions_file" in written and _value(config, "task.name") == "evaluate":
        path = Path(written["predictions_file"])
        second = path.parent / f"{path.stem}.recommendations{path.suffix}"
        written["the recommendations beside predictions_file"] = str(second)
    if _value(config, "task.name") == "workload" and "output" in written:
        if "trace.path" in kept:
            path = Path(written["output"])
            written["the figure of output"] = str(path.parent / f"{path.stem}.png")
        else:
            del written["output"]  # a workload is only described
    if _value(config, "task.name") == "dataset":  # which writes what task=validate reads
        kept.pop("measurements", None)
        written |= _paths(config, ("measurements",))
    written |= _paths(config, ("result_file",))  # last: it is the one to be named anew
    runs = str(_value(config, "tracking.uri") or "")
    studies = str(_value(config, "tuner.storage") or beside(runs))
    databases = {"tracking.uri": sqlite_file(runs), "tuner.storage": sqlite_file(studies)}
    kept |= {key: str(file) for key, file in databases.items() if file is not None}
    require_apart(kept, written)


def _paths(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    """Return key -> value of those keys that are there and are text."""
    found = {key: _value(config, key) for key in keys}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def explain(error: Exception, arguments: Sequence[str] = ()) -> str:
    """Return what a user should read of an error: ours as it is, Hydra's with a better cure where we know."""
    if isinstance(error, PilotError):
        return str(error)
    causes = (error, error.__cause__)
    text = "\n".join(dict.fromkeys(str(cause).strip() for cause in causes if cause is not None))
    if (reference := re.search(r"Interpolation key '([^']*)' not found\s+full_key: (\S+)", text)) is not None:
        return str(refers_to_nothing(reference[1], reference[2], arguments))
    if (gone := re.match(r"Could not delete from config\. '([^']+)' does not exist", text)) is not None:
        return str(unknown_key(gone[1], arguments))
    unknown = re.search(r"Could not override '([^']+)'.*not in struct", text, re.DOTALL)
    if unknown is None:
        appended = re.search(r"append to your default list use (\+\S+)", text)
        if appended is not None:
            group = appended.group(1).lstrip("+").partition("=")[0]
            return str(
                ConfigError(f"{group} has no default option: it is appended", cure=f"use {appended.group(1)}")
            )
        if twice := re.match(r"(\w+) appears more than once in the final defaults list", text):
            group = twice.group(1)
            return str(
                ConfigError(f"{group} is chosen already", cure=f"once, and without a plus: {group}=...")
            )
        return text.partition("Config search path:")[0].rstrip()
    return str(unknown_key(unknown.group(1), arguments))


def _refuse_null_groups(arguments: list[str]) -> None:
    """Refuse a group of the configuration set to null: Hydra would take its whole part away."""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        group = key.partition("@")[0]
        nulls = any(choice.strip().lower() == "null" for choice in value.split(","))
        if nulls and group.isidentifier() and (options := catalog.options(group)):
            raise ConfigError(
                f"{group} cannot be null", given=argument, cure=f"the options are {', '.join(options)}"
            )


def _refuse_what_was_renamed(arguments: list[str]) -> None:
    """Say what an option of before is called now."""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "engine" and "simulated" in value.split(","):
            raise ConfigError(
                "engine=simulated is no engine any more: engines have their names, and "
                "deployment=simulated (the default) says that one is simulated",
                given=argument,
                cure="engine=tgis, which is what it was; or leave it out for the default engine",
            )


def _by_its_name(argument: str) -> str:
    key, given, value = argument.partition("=")
    return ALIASES.get(key, key) + given + value


def _secrets_in(arguments: list[str]) -> tuple[str, ...]:
    pairs = (argument.lstrip("+~").partition("=") for argument in arguments)
    return tuple(found for key, _, value in pairs for found in secret_values({key: value}))
