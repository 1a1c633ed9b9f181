"""What a person sees of tuning: what will happen, each trial, the table, and the answer."""

from typing import Any

from rich.table import Table

from llmpilot import console
from llmpilot.console import note, say
from llmpilot.schema import at_level
from llmpilot.secrets import redact
from llmpilot.tasks.cell import Cell
from llmpilot.tune import Bounds, Outcome, Tuner, TuningStudy
from llmpilot.tune.settings import COST

Result = dict[str, Any]


def announce(cell: Cell, settings: Tuner, bounds: Bounds, study: TuningStudy) -> None:
    """Say first what is simulated, then what will happen."""
    if cell.deployment.measurement == "simulated":
        say(f"SIMULATED: tuning {cell.name}, no GPU and no engine is used", style="bold yellow")
    else:
        say(f"MEASURED: tuning {cell.name}", style="bold")
    note(
        f"max batch weight between {bounds.lower:,} and {bounds.upper:,} tokens, for {settings.objective} at "
        f"{at_level(settings.users, 'users')}; workload {cell.workload_name}; "
        f"study {study.name!r} in {redact(study.url)}"
    )


def in_words(outcome: Outcome, settings: Tuner) -> str:
    """Return what a trial came to."""
    if not outcome.feasible:
        return f"infeasible, {outcome.reason}"
    if outcome.pruned or outcome.value is None:
        return outcome.reason or "feasible"
    value = f"{settings.objective} {outcome.value:,.2f}"
    if settings.objective != COST or not outcome.reports:
        return value
    users = outcome.reports[-1][0]  # a level that breaks the SLA has none
    still = ", the largest load tried, which keeps the SLA" if outcome.levels[-1]["level"] == users else ""
    return f"{value} at {at_level(users, 'users')}{still}"


def show(result: Result, *, brief: bool) -> None:
    """Print the trials and the answer; in a sweep the answer only."""
    if not brief:
        _print_trials(result)
    best = result["best_max_batch_weight"]
    if best is None:
        say(f"no max batch weight: {result['stopped_because']}", style="bold")
        return
    noise = "" if result["noise"] is None else f", noise {result['noise']:.2%}"
    value = "" if result["value"] is None else f": {result['objective']} {result['value']:,.2f}{noise}"
    say(f"max_batch_weight={best}{value}; {in_numbers(result)}", style="bold")
    note(f"stopped because {result['stopped_because']}")
    if (steps := result.get("steps")) is not None:
        gain = "" if steps["value"] is None else f": {steps['objective']} {steps['value']:,.2f}"
        own = steps["value_of_defaults"]
        than = "" if own is None else f", with the engine's own settings {own:,.2f}"
        if steps["value"] == 0 and steps["objective"] == "goodput_per_s":
            load = at_level(steps["users"], "users")
            note(f"at {load} nothing keeps the SLA: tuner.users=N with fewer tells more")
        say(f"to use what was found: {result['use']}{gain}{than}", style="bold")


def in_numbers(result: Result) -> str:
    """Return what the search took."""
    deployments = result["deployments"]
    return f"{len(result['trials'])} trials in {deployments} deployment{'s' * (deployments != 1)}"


def _print_trials(result: Result) -> None:
    table = Table(header_style="bold")
    for name in ("trial", "max batch\nweight", "feasible", "E2E p50\n[ms]", "tokens/s", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("question")
    for row in sorted(result["trials"], key=lambda row: (row["max_batch_weight"], row["number"])):
        e2e, rate, failed = row["e2e_ms_p50"], row["throughput_tok_s"], row["failure_rate"]
        table.add_row(
            str(row["number"]),
            f"{row['max_batch_weight']:,}",
            "yes" if row["feasible"] else "no",
            "-" if e2e is None else f"{e2e:,.0f}",
            "-" if rate is None else f"{rate:,.0f}",
            "-" if failed is None else f"{failed:.1%}",
            row["question"] + (", given up" if row["pruned"] else ""),
            style=None if row["feasible"] else "dim",
        )
    console.out.print(table)
