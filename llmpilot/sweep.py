"""A sweep (`-m`): one parent run in MLflow, cells that go on after a failing one, a verdict at the end."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig

from llmpilot import tracking
from llmpilot.arguments import is_swept, key_of
from llmpilot.config import Tracking, parse
from llmpilot.console import err, note, say
from llmpilot.errors import DoesNotFitError, PilotError, TrackingError
from llmpilot.files import require_writable, write_result
from llmpilot.report import print_sweep
from llmpilot.report.result_fields import SWEEP
from llmpilot.runfolder import ROOT
from llmpilot.secrets import hide_argument, redact
from llmpilot.sla_overrides import FORCED
from llmpilot.tracking import Tracker


class Sweep:
    """The state of one `-m` command, from its first cell to its verdict."""

    def __init__(self, cfg: DictConfig, arguments: Sequence[str]) -> None:
        self._typed = [argument for argument in arguments if not argument.startswith("-")]
        self._swept = {key_of(argument) for argument in self._typed if is_swept(argument)}
        self._result_file = cfg.result_file
        if self._result_file is not None:
            require_writable(self._result_file)
        self._tracker = Tracker(parse(Tracking, cfg.tracking, "tracking"))
        self._task = cfg.task.name
        self._cells: list[dict[str, Any]] = []
        self._upload = ""
        self._parent_run_id: str | None = None

    def run_cell(self, cfg: DictConfig, require: Callable[[DictConfig], None]) -> None:
        """Run one cell; what goes wrong with it is kept for the verdict and stops nothing."""
        if not self._cells:
            name = f"sweep: {' '.join(_hide(argument) for argument in self._typed)}"
            self._parent_run_id = self._tracker.start_parent(self._task, name, {})
        # Hydra escapes what it splits, such as the colon of a URL.
        overrides = [override.replace("\\", "") for override in HydraConfig.get().overrides.task]
        varied = [_hide(override) for override in overrides if key_of(override) in self._swept]
        entry: dict[str, Any] = {"cell": " ".join(varied or map(_hide, overrides)), "status": "done"}
        self._cells.append(entry)
        say(f"cell {len(self._cells)}: {entry['cell']}", style="bold")
        try:
            require(cfg)
            task = get_method(cfg.task.run)
            in_sweep = {"parent_run_id": self._parent_run_id, "in_sweep": True}
            tracked = self._task in (tracking.CHARACTERIZE, tracking.TUNE)
            entry["result"] = task(cfg, **in_sweep) if tracked else task(cfg)
        except DoesNotFitError as error:
            # An outcome of the grid, not a failure of ours.
            entry |= {"status": "does not fit", "reason": redact(str(error))}
            self._tracker.log_infeasible(self._task, entry["cell"], entry["reason"], self._parent_run_id)
            note(str(error))
        except TrackingError as error:
            entry |= {"status": "not tracked", "reason": redact(error.wrong), "result": error.result}
            upload = error.cure.splitlines()[-1]
            self._upload = re.sub(r" 'folders=\[[^\]]*\]'", "", upload).strip()
        except KeyboardInterrupt:
            entry |= {"status": "interrupted"}
            raise
        except PilotError as error:
            entry |= {"status": "failed", "reason": redact(str(error))}
            note(f"error: {error}", style="red")
        except Exception as error:
            entry |= {"status": "failed", "reason": redact(f"{type(error).__name__}: {error}")}
            err.print_exception()

    def close(self, *, interrupted: bool) -> int:
        """Print the verdict, write the result file, end the parent run; return the exit code."""
        failed = [entry for entry in self._cells if entry["status"] in ("failed", "not tracked")]
        print_sweep(self._cells)
        if self._result_file is not None:
            result = {"schema": SWEEP, "parent_run_id": self._parent_run_id, "cells": self._cells}
            write_result(self._result_file, result)
        status = "KILLED" if interrupted else "FAILED" if failed else "FINISHED"
        self._tracker.end(self._parent_run_id, status)
        if failed:
            note(f"{len(failed)} of {len(self._cells)} cells failed:", style="red")
            for entry in failed:
                note(f"  {entry['cell']}: {entry['reason']}", style="red")
        if self._upload:
            note(f"{self._tracker.when} what is kept in {ROOT} is uploaded by", style="red")
            note(f"    {self._upload}", style="red")
        return 1 if failed else 0


def _hide(override: str) -> str:
    """Return an override as it may be shown: without the value of a secret, or the mark of a forced key."""
    return hide_argument(override.removeprefix(FORCED))
