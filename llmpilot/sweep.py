"""A sweep (`-m`): one parent run in MLflow, cells that go on after a failing one, and a verdict at the end."""

from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig

from llmpilot.config import Tracking, parse
from llmpilot.console import note, say
from llmpilot.errors import DoesNotFitError, PilotError, TrackingError
from llmpilot.files import write_result
from llmpilot.report import print_sweep
from llmpilot.tracking import Tracker


class Sweep:
    """The state of one `-m` command, from its first cell to its verdict."""

    def __init__(self, cfg: DictConfig) -> None:
        self._tracker = Tracker(parse(Tracking, cfg.tracking, "tracking"))
        self._result_file = cfg.result_file
        self._task = cfg.task.name
        self._cells: list[dict[str, Any]] = []
        self._parent_run_id = self._tracker.start_parent(cfg.task.name, f"sweep: {_swept()}", {})

    def run_cell(self, cfg: DictConfig, require: Callable[[DictConfig], None]) -> None:
        """Run one cell; what goes wrong with it is kept for the verdict and stops nothing."""
        cell = f"cell {len(self._cells) + 1}: {' '.join(HydraConfig.get().overrides.task)}"
        say(f"\n{cell}", style="bold")
        entry: dict[str, Any] = {"cell": ", ".join(HydraConfig.get().overrides.task), "status": "done"}
        self._cells.append(entry)
        try:
            require(cfg)
            task = get_method(cfg.task.run)
            options = {"parent_run_id": self._parent_run_id, "skip_finished": bool(cfg.resume)}
            entry["result"] = task(cfg, **options) if cfg.task.name == "characterize" else task(cfg)
        except DoesNotFitError as error:
            # An outcome of the grid, not a failure of ours.
            entry |= {"status": "does not fit", "reason": str(error)}
            note(str(error))
        except TrackingError as error:
            entry |= {"status": "not tracked", "reason": str(error), "result": error.result}
        except KeyboardInterrupt:
            entry |= {"status": "interrupted"}
            raise
        except PilotError as error:
            entry |= {"status": "failed", "reason": str(error)}
            note(f"error: {error}", style="red")
        except Exception as error:
            from llmpilot.console import err

            entry |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            err.print_exception()

    def close(self, *, interrupted: bool) -> int:
        """Print the verdict, write the result file, end the parent run; return the exit code."""
        failed = [entry for entry in self._cells if entry["status"] in ("failed", "not tracked")]
        print_sweep(self._cells)
        if self._result_file is not None:
            write_result(self._result_file, {"parent_run_id": self._parent_run_id, "cells": self._cells})
        status = "KILLED" if interrupted else "FAILED" if failed else "FINISHED"
        self._tracker.end(self._parent_run_id, status)
        if failed:
            note(f"{len(failed)} of {len(self._cells)} cells failed:", style="red")
            for entry in failed:
                note(f"  {entry['cell']}: {entry['reason']}", style="red")
        return 1 if failed else 0


def _swept() -> str:
    """Return what the command varied, for the parent run's name."""
    return " ".join(str(override) for override in HydraConfig.get().overrides.task)
