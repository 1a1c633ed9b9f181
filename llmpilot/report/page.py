"""The page of a run: what it came to, charts to hover over, and every figure. Needs no network."""

import html
from collections.abc import Callable
from typing import Any

from llmpilot.config import STATISTICS
from llmpilot.report.words import (
    COLOURS,
    LATENCY_LABELS,
    STREAMS,
    Result,
    conclusion,
    dollars_per_million,
    figure_of,
    goodput,
    latency_figure,
    mark,
    other_workload,
    per_dollar,
    seen,
    server_figure,
    share_of,
    short_windows,
    shown_statistics,
    sla_of,
    stream_problems,
    title,
    turn_name,
    turns_of,
)
from llmpilot.schema import exactly

SERVER_ROWS: dict[str, tuple[str, str, int]] = {
    "server: requests running, mean": ("running", "mean", 1),
    "server: requests waiting, mean": ("waiting", "mean", 1),
    "server: share of the KV cache in use, mean": ("kv_usage", "mean", 3),
    "server: share of the KV cache in use, most": ("kv_usage", "max", 3),
    "server: GPU power [W], mean": ("gpu_power_w", "mean", 0),
    "server: GPU memory in use [GB], most": ("gpu_memory_gb", "max", 1),
}
FIDELITY_ROWS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("output tokens asked for, mean", "output_tokens_asked", lambda value: figure_of(value, 1)),
    ("output tokens received, mean", "output_tokens_received", lambda value: figure_of(value, 1)),
    ("answers that ended early", "ended_early_share", share_of),
    ("answers that were longer", "longer_share", share_of),
    ("input tokens asked for, mean", "input_tokens_asked", lambda value: figure_of(value, 1)),
    ("input tokens by the server's count, mean", "input_tokens_counted", lambda value: figure_of(value, 1)),
)
STREAM_ROWS = {
    "answers in one piece": "one_piece_share",
    "gaps between tokens below 0.1 ms": "short_gap_share",
}


def page(result: Result) -> str:
    """Return a page that needs no network: conclusion, charts to hover over, and the table of levels."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = [*LATENCY_LABELS.items(), ("itl_ms", "ITL [ms]"), ("ttft_ms", "TTFT [ms]")]
    titles = [f"{label} over {result['level_unit']}" for label in LATENCY_LABELS.values()]
    dollars = per_dollar(result)
    titles += ["ITL over output tokens/s"]
    titles += ["TTFT over output tokens/s" if dollars is None else "TTFT over million output tokens per $"]
    figure = make_subplots(rows=3, cols=2, subplot_titles=titles, vertical_spacing=0.09)
    scales = {4: 1.0, 5: 1.0 if dollars is None else dollars}
    for index, (latency, _) in enumerate(panels):
        where = {"row": index // 2 + 1, "col": index % 2 + 1}
        levels = seen(result, latency)
        scale = scales.get(index)
        x = [level["level"] if scale is None else level["throughput_tok_s"] * scale for level in levels]
        for stat in shown_statistics(result, latency):
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=[level[latency][stat] for level in levels],
                    name=stat,
                    legendgroup=stat,
                    showlegend=index == 0,
                    line={"color": COLOURS[stat]},
                    mode="lines+markers",
                    customdata=[[level["level"], level["throughput_tok_s"]] for level in levels],
                    hovertemplate=f"%{{customdata[0]}} {result['level_unit']}: %{{y:.4g}} ms, "
                    "%{customdata[1]:.0f} tokens/s",
                ),
                **where,
            )
        figure.update_yaxes(type="log", **where)
        if scale is None:
            figure.update_xaxes(type="log", tickvals=x, ticktext=[f"{tick:g}" for tick in x], **where)
            for limit in sla_of(result).limits_on(latency):
                figure.add_hline(
                    y=limit.limit_ms, line_dash="dash", line_color=COLOURS[limit.statistic], **where
                )
    figure.update_layout(height=1050, margin={"t": 60, "b": 40})
    charts = figure.to_html(full_html=False, include_plotlyjs=True, div_id="charts")
    return PAGE.format(
        title=html.escape(title(result)),
        conclusion=html.escape(conclusion(result)),
        warnings="".join(f'<p class="warning">{html.escape(text)}.</p>' for text in _warnings(result)),
        charts=charts,
        table=_html_table(result),
    )


def _warnings(result: Result) -> list[str]:
    """Return what a reader must know before the figures, each without its full stop."""
    warnings = [f"Window too short at {text}" for text in short_windows(result)]
    warnings += [f"{STREAMS[kind]} at {text}" for kind, text in stream_problems(result)]
    if (differs := other_workload(result)) is not None:
        warnings.append(f"Another workload than configured at {differs}")
    return warnings


def _html_table(result: Result) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        result["level_unit"]: lambda level: f"{exactly(level['level'])}{mark(level)}",
        "requests ok": lambda level: f"{level['requests_ok']:,}",
        "failed": lambda level: ", ".join(f"{n} {kind}" for kind, n in level["failures"].items()) or "0",
        "left out: warm-up": lambda level: f"{level['excluded']['warmup']:,}",
        "left out: drain": lambda level: f"{level['excluded']['drain']:,}",
        "output tokens/s": lambda level: figure_of(level["throughput_tok_s"], 0),
        "input tokens/s": lambda level: figure_of(level["input_tok_s"], 0),
        "requests/s": lambda level: figure_of(level["requests_per_s"], 2),
        "goodput/s": lambda level: goodput(level, result),
    }
    if result["cost_per_hour"] is not None:
        columns["$ per 1M output tokens"] = lambda level: figure_of(dollars_per_million(level, result), 2)
    levels = result["levels"]
    rows = {name: [show(level) for level in levels] for name, show in columns.items()}
    for latency, label in {**LATENCY_LABELS, "tpot_ms": "TPOT [ms]"}.items():
        for stat in STATISTICS:
            rows[f"{label} {stat}"] = [latency_figure(level, latency, stat, 2) for level in levels]
    rows |= _rows_of_answers(result)
    for label, (gauge, statistic, digits) in SERVER_ROWS.items():
        if any(gauge in level.get("server", {}) for level in result["levels"]):
            rows[label] = [server_figure(level, gauge, statistic, digits) for level in result["levels"]]
    if any("preemptions" in level.get("server", {}) for level in result["levels"]):
        counts = [level.get("server", {}).get("preemptions") for level in result["levels"]]
        rows["server: preemptions"] = [figure_of(count, 0) for count in counts]
    lines = []
    for name, figures in rows.items():
        cells = "".join(f"<td>{html.escape(figure)}</td>" for figure in figures)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _rows_of_answers(result: Result) -> dict[str, list[str]]:
    """Return the rows of what answers were beside what was asked for, as far as any level has them."""
    levels = result["levels"]
    rows: dict[str, list[str]] = {}
    if any("ttfa_ms" in level for level in levels):
        rows["answers behind thoughts"] = [figure_of(level.get("thought_aloud"), 0) for level in levels]
        for stat in STATISTICS:
            figures = [figure_of(level.get("ttfa_ms", {}).get(stat), 2) for level in levels]
            rows[f"time to the first answer token [ms] {stat}"] = figures
    if any("hidden_tokens" in level for level in levels):
        shares = [level.get("hidden_tokens", {}).get("share") for level in levels]
        rows["output tokens never shown"] = [share_of(share) for share in shares]
    if any("client" in level for level in levels):
        rows["tokens counted by"] = [_counted_by(level) for level in levels]
        for label, name, show in FIDELITY_ROWS:
            rows[label] = [show(level.get("fidelity", {}).get(name)) for level in levels]
        for label, name in STREAM_ROWS.items():
            rows[label] = [share_of(level.get("streams", {}).get(name)) for level in levels]
    if any("cached_share" in level for level in levels):
        rows["prompt tokens cached"] = [share_of(level.get("cached_share")) for level in levels]
    for turn, later in turns_of(result).items():
        own = [next((e for e in level.get("turns", ()) if e["turn"] == turn), None) for level in levels]
        name = f"turn {turn_name(turn, later)}"
        rows[f"{name}: TTFT [ms] p50"] = [
            "-" if entry is None else latency_figure(level | entry, "ttft_ms", "p50", 2)
            for level, entry in zip(levels, own, strict=True)
        ]
        rows[f"{name}: prompt tokens cached"] = [share_of((entry or {}).get("cached_share")) for entry in own]
    return rows


def _counted_by(level: dict[str, Any]) -> str:
    """Return by what the tokens of how many answers were counted."""
    counted = level.get("client", {}).get("tokens_counted_by", {})
    return ", ".join(f"{count:,} by {method}" for method, count in counted.items()) or "-"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-size: .85rem; }}
th {{ text-align: left; font-weight: 600; padding-right: 1rem; }}
td {{ text-align: right; padding: .15rem .6rem; font-variant-numeric: tabular-nums; }}
tr {{ border-bottom: 1px solid #ddd; }}
.answer {{ font-size: 1.1rem; font-weight: 600; }}
.warning {{ color: #b00; }}
</style></head><body>
<h1>{title}</h1>
<p class="answer">{conclusion}</p>
{warnings}
{charts}
<h2>Levels</h2>
{table}
</body></html>
"""
