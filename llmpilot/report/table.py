"""The tables on the terminal: a run's levels, a sweep's cells."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

from llmpilot.boundary import AT_LEAST
from llmpilot.console import out, say
from llmpilot.metrics import BURSTS, ONE_PIECE, kind_of
from llmpilot.report.words import (
    NOT_SHOWN,
    Result,
    dollars_per_million,
    figure_of,
    goodput,
    largest,
    latency_figure,
    mark,
    server_figure,
    share_of,
    turn_name,
    turns_of,
)
from llmpilot.schema import exactly

Column = tuple[str, bool, Callable[[dict[str, Any]], str]]
"""Its head, whether it stays on a narrow terminal, and what it shows of a level."""
USERS = "users"
DOLLARS = "$/1M tok"
"""Stays while there is another to go: the conclusion says what it comes to at the largest load."""
SWEPT = (
    ("max batch\nweight", 1),
    ("u_max", 0),
    ("$/h", 4),
    ("$/1M tokens\nat u_max", 3),
    ("$/h\nper user", 2),
)
"""The figures of a sweep's table, and in which order they go on a narrow terminal; 0: they stay."""


def print_table(result: Result) -> None:
    """Print one row per level; on a narrow terminal, fewer columns. Levels beyond u_max are dim.

    A `!` marks a level whose steady window was too short, a `*` a latency that its streams do not show.
    Conversations have a second table, of TTFT by turn.
    """
    columns = _columns(result)
    table = _table(result, columns)
    while not _fits(table) and (less := _without_the_last_that_can_go(columns)) is not None:
        columns = less
        table = _table(result, columns)
    out.print(table)
    if any(level.get("stream_problem") for level in result["levels"]):
        say(f"{NOT_SHOWN} the streams do not show it, see below")
    _print_turns(result)


def _columns(result: Result) -> list[Column]:
    levels = result["levels"]
    kinds = {kind_of(level) for level in levels}
    thought = any("ttfa_ms" in level for level in levels)
    columns: list[Column] = [
        (
            "\n".join(result["level_unit"].rsplit(" ", 1)),
            True,
            lambda level: f"{exactly(level['level'])}{mark(level)}",
        ),
        ("ok", True, lambda level: f"{level['requests_ok']:,}"),
        ("failed", True, lambda level: f"{level['requests_failed']:,}"),
        ("TTFT p50\n[ms]", True, lambda level: latency_figure(level, "ttft_ms", "p50", 0)),
        ("p95\n[ms]", False, lambda level: latency_figure(level, "ttft_ms", "p95", 0)),
    ]
    if thought:
        columns.append(
            ("TTFA p50\n[ms]", True, lambda level: figure_of(level.get("ttfa_ms", {}).get("p50"), 0))
        )
    columns += [
        (
            "nTTFT p50\n[ms/token]",
            kinds == {None} and not thought,
            lambda level: latency_figure(level, "nttft_ms", "p50", 2),
        ),
        ("ITL p50\n[ms]", True, lambda level: latency_figure(level, "itl_ms", "p50", 1)),
        ("p95\n[ms]", False, lambda level: latency_figure(level, "itl_ms", "p95", 1)),
    ]
    if BURSTS in kinds:
        columns.append(("TPOT p50\n[ms]", True, lambda level: latency_figure(level, "tpot_ms", "p50", 1)))
    columns += [
        ("E2E p50\n[ms]", ONE_PIECE in kinds, lambda level: figure_of(level["e2e_ms"]["p50"], 0)),
        ("tokens/s", True, lambda level: figure_of(level["throughput_tok_s"], 0)),
        ("requests/s", False, lambda level: figure_of(level["requests_per_s"], 2)),
        ("goodput/s", False, lambda level: goodput(level, result)),
    ]
    if result["cost_per_hour"] is not None:
        columns.append((DOLLARS, True, lambda level: figure_of(dollars_per_million(level, result), 2)))
    if any("cached_share" in level for level in levels):
        columns.append(("cached", False, lambda level: share_of(level.get("cached_share"))))
    if any("server" in level for level in levels):
        columns += [
            ("running", False, lambda level: server_figure(level, "running", "mean", 1)),
            ("waiting", False, lambda level: server_figure(level, "waiting", "mean", 1)),
            ("KV use", False, lambda level: server_figure(level, "kv_usage", "mean", 2)),
        ]
    return columns


def _table(result: Result, columns: list[Column]) -> Table:
    table = Table(header_style="bold")
    for name, _, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for level in result["levels"]:
        style = None if level["level"] <= result["level_max"] else "dim"
        table.add_row(*(show(level) for _, _, show in columns), style=style)
    return table


def _fits(table: Table) -> bool:
    unlimited = out.options.update(max_width=1_000)
    return out.measure(table, options=unlimited).maximum <= out.width


def _without_the_last_that_can_go(columns: list[Column]) -> list[Column] | None:
    can_go = [i for i, (_, stays, _) in enumerate(columns) if not stays]
    can_go = can_go or [i for i, (name, _, _) in enumerate(columns) if name == DOLLARS]
    return columns[: can_go[-1]] + columns[can_go[-1] + 1 :] if can_go else None


def _print_turns(result: Result) -> None:
    """Print how long each turn of a conversation waited for its first token, and what was cached of it."""
    turns = turns_of(result)
    if not turns:
        return
    say("by turn: TTFT p50 [ms], and the share of the prompt that was cached")
    table = Table(header_style="bold")
    for name in (result["level_unit"], *(turn_name(turn, later) for turn, later in turns.items())):
        table.add_column(name, justify="right")
    for level in result["levels"]:
        own = {entry["turn"]: entry for entry in level.get("turns", ())}
        table.add_row(exactly(level["level"]), *(_of_turn(level, own.get(turn)) for turn in turns))
    out.print(table)


def _of_turn(level: dict[str, Any], entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    ttft = latency_figure(level | entry, "ttft_ms", "p50", 0)
    return ttft if entry["cached_share"] is None else f"{ttft}, {share_of(entry['cached_share'])}"


def print_sweep(cells: list[dict[str, Any]]) -> None:
    """Print one row per cell of a sweep: its answer, or why it has none; on a narrow terminal less of it."""
    if any("recommended" in (entry.get("result") or {}) for entry in cells):
        _print_recommended(cells)
        return
    say()
    table = _sweep_table(cells, len(SWEPT), by_line=False)
    for fewer in range(len(SWEPT)):
        if _fits(table):
            break
        table = _sweep_table(cells, len(SWEPT) - fewer, by_line=True)
    out.print(table)


def _sweep_table(cells: list[dict[str, Any]], most: int, *, by_line: bool) -> Table:
    """Return a sweep's table with at most so many figures; `by_line`, each override has its own line."""
    going = sorted((rank, i) for i, (_, rank) in enumerate(SWEPT) if rank)
    gone = {i for _, i in going[: len(SWEPT) - most]}
    table = Table(title="sweep", header_style="bold")
    table.add_column("cell", overflow="fold")
    table.add_column("status")
    for i, (name, _) in enumerate(SWEPT):
        if i not in gone:
            table.add_column(name, justify="right")
    for entry in cells:
        figures = [figure for i, figure in enumerate(_figures(entry)) if i not in gone]
        cell = entry["cell"].replace(" ", "\n") if by_line else entry["cell"]
        table.add_row(cell, entry["status"], *figures)
    return table


def _figures(entry: dict[str, Any]) -> list[str]:
    result = entry.get("result") or {}
    most, cost = result.get("level_max"), result.get("cost_per_hour")
    unit = result.get("level_unit", USERS)
    at_most = "<= " if result.get("level_max_is") == AT_LEAST else ""
    weight = result.get("max_batch_weight", result.get("best_max_batch_weight"))
    return [
        figure_of(weight, 0),
        largest(result) if unit == USERS else f"{largest(result)} {unit}",
        figure_of(cost, 2),
        figure_of(result.get("cost_per_million_output_tokens"), 2),
        f"{at_most}{cost / most:,.3f}" if cost and most and unit == USERS else "-",
    ]


def _print_recommended(cells: list[dict[str, Any]]) -> None:
    """Print what is recommended in each cell of a sweep, and what it costs."""
    table = Table(title="sweep", header_style="bold")
    for name in ("cell", "status", "recommended", "$/h", "P(SLA)"):
        table.add_column(name, justify="right" if name in ("$/h", "P(SLA)") else "left")
    for entry in cells:
        best = (entry.get("result") or {}).get("recommended")
        what = "nothing" if entry.get("result") else "-"
        if best is not None:
            what = f"{best['pods']:,} x ({best['count']} x {best['gpu']}), {best['precision']}"
        table.add_row(
            entry["cell"],
            entry["status"],
            what,
            "-" if best is None else f"{best['cost_per_hour']:,.2f}",
            "-" if best is None else ">99%" if best["p_sla"] >= 0.995 else f"{best['p_sla']:.0%}",
        )
    say()
    out.print(table)
