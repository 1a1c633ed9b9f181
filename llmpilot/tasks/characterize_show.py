"""What a person sees of a characterization: what will happen, and what it has come to."""

from typing import Any

from llmpilot import report
from llmpilot.boundary import AT_LEAST
from llmpilot.config import Tracking
from llmpilot.console import note, say
from llmpilot.runfolder import RunFolder
from llmpilot.schema import exactly
from llmpilot.tasks import client_check
from llmpilot.tasks.cell import Cell
from llmpilot.tracking import Tracker


def announce(cell: Cell, settings: Tracking) -> None:
    """Say first what is simulated, then what will happen and where the results go."""
    simulated = cell.deployment.measurement == "simulated"
    say(
        f"{'SIMULATED' if simulated else 'MEASURED'}: {cell.name}, by "
        f"{cell.deployment.headline(cell.engine, cell.model, cell.gpu)}",
        style="bold yellow" if simulated else "bold",
    )
    note(
        f"{cell.traffic.unit}: {_levels(cell)}; "
        f"{cell.load.duration_s:g} s each after {cell.load.warmup_s:g} s warm-up; "
        f"workload {cell.workload_name}; max batch weight {_tokens(cell)}; "
        f"tracked in {settings.uri}"
    )


def show(result: dict[str, Any], folder: RunFolder, tracker: Tracker, *, brief: bool) -> None:
    """Print the table, the conclusion and where to look further; in a sweep the conclusion only."""
    if not brief:
        report.print_table(result)
    say(report.conclusion(result), style="bold")
    if "search" in result and result["level_max_is"] == AT_LEAST:
        note(f"the search came to the end of its range: {_wider(result)} lets it go on")
    for text in report.short_windows(result):
        say(f"WINDOW TOO SHORT at {text}", style="bold red")
    for kind, text in report.stream_problems(result):
        say(f"{report.STREAMS[kind].upper()} at {text}", style="bold red")
    if (differs := report.other_workload(result)) is not None:
        say(f"ANOTHER WORKLOAD THAN CONFIGURED at {differs}", style="bold red")
    if made_up := report.made_up_answers(result):
        note(
            f"the server told no token ids of {made_up:,} answers: others stand for them in later turns, so "
            "its cache finds prompts again and no answers; engine=openai engine.api=chat sends their words"
        )
    if "client" in result:
        client_check.show(result)
    if tracker.problem is None and not brief:
        say(f"run {folder.state['run_id']}; look and compare: {_how_to_look(tracker.tracking)}")


def _wider(result: dict[str, Any]) -> str:
    """Return what to type for a wider range; how fast a trace can be replayed depends on its length."""
    if result["level_unit"] == "x trace speed":
        return "a larger last value of load.speedups"
    tried = [level["level"] for level in result["levels"]]
    key = "users" if result["level_unit"] == "users" else "rates_per_s"
    return f"load.{key}=[{exactly(min(tried))},{exactly(8 * max(tried))}]"


def _levels(cell: Cell) -> str:
    load = cell.load
    if not load.search:
        return ", ".join(map(exactly, load.levels))
    return (
        f"searched from {exactly(load.levels[0])} to {exactly(load.levels[-1])} for the most within the SLA, "
        f"to {load.search_until:.1%}, measured {load.search_repeats} times there"
    )


def _tokens(cell: Cell) -> str:
    if cell.tuned_by is not None:
        return "to be tuned"
    return "the server's own" if cell.max_batch_weight is None else f"{cell.max_batch_weight:,} tokens"


def _how_to_look(settings: Tracking) -> str:
    if settings.uri.startswith(("http://", "https://")):
        return settings.uri
    return f"mlflow ui --backend-store-uri {settings.uri}"
