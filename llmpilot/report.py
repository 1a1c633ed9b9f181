"""What a person looks at: the table on the terminal, plots as PNG, and one interactive HTML page."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from llmpilot.console import out, say
from llmpilot.files import replacing, write_text
from llmpilot.metrics import STATISTICS

Result = dict[str, Any]
LATENCY_LABELS = {
    "ttft_ms": "TTFT [ms]",
    "nttft_ms": "nTTFT [ms per input token]",
    "itl_ms": "ITL [ms]",
    "e2e_ms": "E2E [ms]",
}
SHORT = {"ttft_ms": "TTFT", "nttft_ms": "nTTFT", "itl_ms": "ITL", "tpot_ms": "TPOT", "e2e_ms": "E2E"}
COLOURS = {"p50": "#1f77b4", "p90": "#2ca02c", "p95": "#ff7f0e", "p99": "#d62728"}


NARROW = 110


def print_table(result: Result) -> None:
    """Print one row per level; on a narrow terminal, fewer columns. Levels beyond u_max are dim."""
    columns: list[tuple[str, bool, Callable[[dict[str, Any]], str]]] = [
        (result["level_unit"], True, lambda level: f"{level['level']:g}"),
        ("ok", True, lambda level: f"{level['requests_ok']:,}"),
        ("failed", True, lambda level: f"{level['requests_failed']:,}"),
        ("TTFT p50", True, lambda level: _figure(level["ttft_ms"]["p50"], 0)),
        ("p95 [ms]", False, lambda level: _figure(level["ttft_ms"]["p95"], 0)),
        ("nTTFT p50", True, lambda level: _figure(level["nttft_ms"]["p50"], 2)),
        ("ITL p50", True, lambda level: _figure(level["itl_ms"]["p50"], 1)),
        ("p95 [ms]", False, lambda level: _figure(level["itl_ms"]["p95"], 1)),
        ("E2E p50", False, lambda level: _figure(level["e2e_ms"]["p50"], 0)),
        ("tokens/s", True, lambda level: _figure(level["throughput_tok_s"], 0)),
        ("requests/s", False, lambda level: _figure(level["requests_per_s"], 2)),
        ("goodput/s", False, lambda level: _figure(level["goodput_per_s"], 2)),
        ("$/1M tok", True, lambda level: _figure(_dollars_per_million(level, result), 2)),
    ]
    shown = [column for column in columns if column[1] or out.width >= NARROW]
    table = Table(header_style="bold")
    for name, _, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for level in result["levels"]:
        style = None if level["level"] <= result["level_max"] else "dim"
        table.add_row(*(show(level) for _, _, show in shown), style=style)
    out.print(table)


def conclusion(result: Result) -> str:
    """Return the answer in one sentence."""
    service = f"{result['model']} on {result['count']} x {result['gpu']}"
    limits = ", ".join(
        f"{SHORT[key]} <= {value:g} ms"
        for key, value in result["sla"].items()
        if key in SHORT and value is not None
    )
    promise = f"the SLA ({limits or 'no latency limit'} at p{result['sla']['percentile']}"
    promise += f", failures <= {result['sla']['max_failure_rate']:.1%})"
    if not result["level_max"]:
        return f"{service} keeps {promise} at no measured level (${result['cost_per_hour']:.2f}/h)."
    price = result["cost_per_million_output_tokens"]
    cost = f", ${price:.2f} per million output tokens there" if price is not None else ""
    return (
        f"{service} takes {result['level_max']:g} {result['level_unit']} within {promise}; "
        f"${result['cost_per_hour']:.2f}/h{cost}."
    )


def print_sweep(cells: list[dict[str, Any]]) -> None:
    """Print one row per cell of a sweep: its answer, or why it has none."""
    table = Table(title="sweep", header_style="bold")
    for name in ("cell", "status", "u_max", "$/h", "$/1M tokens at u_max", "$/h per user"):
        table.add_column(name, justify="left" if name in ("cell", "status") else "right")
    for entry in cells:
        result = entry.get("result") or {}
        largest, cost = result.get("level_max"), result.get("cost_per_hour")
        table.add_row(
            entry["cell"],
            entry["status"],
            _figure(largest, 0),
            _figure(cost, 2),
            _figure(result.get("cost_per_million_output_tokens"), 2),
            _figure(cost / largest if cost and largest else None, 3),
        )
    say()
    out.print(table)


def write(result: Result, folder: Path) -> None:
    """Write `plots/*.png` and `report.html` into `folder`, whole or not at all."""
    plots = folder / "plots"
    _plot_latency(result, plots / "latency_over_load.png")
    _plot_throughput(result, plots / "latency_over_throughput.png")
    write_text(folder / "report.html", _page(result))


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _dollars_per_million(level: dict[str, Any], result: Result) -> float | None:
    tokens_per_hour = level["throughput_tok_s"] * 3600
    return result["cost_per_hour"] / tokens_per_hour * 1e6 if tokens_per_hour else None


def _title(result: Result) -> str:
    weight = result["max_batch_weight"]
    return (
        f"{result['model']} on {result['count']} x {result['gpu']} ({result['measurement']}), "
        f"workload {result['workload']}" + (f", max batch weight {weight:,}" if weight else "")
    )


def _series(result: Result, latency: str, stat: str) -> tuple[list[float], list[float]]:
    points = [(level["level"], level[latency][stat]) for level in result["levels"]]
    points = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in points], [y for _, y in points]


def _limit(result: Result, latency: str) -> float | None:
    value: float | None = result["sla"].get(latency)
    return value


def _plot_latency(result: Result, path: Path) -> None:
    """Latency percentiles over the load, one panel per latency, the SLA's limit dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    ticks = [level["level"] for level in result["levels"]]
    for axes, (latency, label) in zip(figure.subplots(2, 2).flat, LATENCY_LABELS.items(), strict=True):
        for stat, colour in COLOURS.items():
            axes.plot(*_series(result, latency, stat), marker="o", label=stat, color=colour)
        limit = _limit(result, latency)
        if limit is not None:
            axes.axhline(limit, color="black", linestyle="--", label=f"SLA, p{result['sla']['percentile']}")
        _label(axes, result["level_unit"], label, _series(result, latency, "p50")[1])
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    figure.suptitle(_title(result))
    _save(figure, path)


def _plot_throughput(result: Result, path: Path) -> None:
    """Latency against throughput and against throughput per dollar: the knee is where to run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    per_dollar = 3600 / result["cost_per_hour"] / 1e6
    for row, latency in zip(axes, ("ttft_ms", "itl_ms"), strict=True):
        levels = [level for level in result["levels"] if level[latency]["p50"] is not None]
        for panel, scale, label in (
            (row[0], 1.0, "output tokens/s"),
            (row[1], per_dollar, "million output tokens per $"),
        ):
            x = [level["throughput_tok_s"] * scale for level in levels]
            for stat in ("p50", "p95"):
                y = [level[latency][stat] for level in levels]
                panel.plot(x, y, marker="o", label=stat, color=COLOURS[stat])
            for position, level in zip(x, levels, strict=True):
                where = (position, level[latency]["p50"])
                panel.annotate(f"{level['level']:g}", where, textcoords="offset points", xytext=(4, -11))
            _label(panel, label, LATENCY_LABELS[latency], [level[latency]["p50"] for level in levels])
    figure.suptitle(f"{_title(result)}\nnumbers at the points: {result['level_unit']}")
    _save(figure, path)


def _label(axes: Any, x: str, y: str, values: list[float]) -> None:
    """Label a panel; latencies on a logarithmic axis, unless there are none to draw there."""
    axes.set(xlabel=x, ylabel=y, title="" if values else "no request succeeded")
    if any(value > 0 for value in values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend()


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _page(result: Result) -> str:
    """Return a page that needs no network: conclusion, charts to hover over, and the table of levels."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = [*LATENCY_LABELS.items(), ("itl_ms", "ITL [ms]"), ("ttft_ms", "TTFT [ms]")]
    titles = [f"{label} over {result['level_unit']}" for label in LATENCY_LABELS.values()]
    titles += ["ITL over output tokens/s", "TTFT over million output tokens per $"]
    figure = make_subplots(rows=3, cols=2, subplot_titles=titles, vertical_spacing=0.09)
    scales = {4: 1.0, 5: 3600 / result["cost_per_hour"] / 1e6}
    for index, (latency, _) in enumerate(panels):
        where = {"row": index // 2 + 1, "col": index % 2 + 1}
        levels = [level for level in result["levels"] if level[latency]["p50"] is not None]
        scale = scales.get(index)
        x = [level["level"] if scale is None else level["throughput_tok_s"] * scale for level in levels]
        for stat, colour in COLOURS.items():
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=[level[latency][stat] for level in levels],
                    name=stat,
                    legendgroup=stat,
                    showlegend=index == 0,
                    line={"color": colour},
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
            if _limit(result, latency) is not None:
                figure.add_hline(y=_limit(result, latency), line_dash="dash", line_color="black", **where)
    figure.update_layout(height=1050, margin={"t": 60, "b": 40})
    charts = figure.to_html(full_html=False, include_plotlyjs=True, div_id="charts")
    return PAGE.format(
        title=html.escape(_title(result)),
        conclusion=html.escape(conclusion(result)),
        charts=charts,
        table=_html_table(result),
    )


def _html_table(result: Result) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        result["level_unit"]: lambda level: f"{level['level']:g}",
        "requests ok": lambda level: f"{level['requests_ok']:,}",
        "failed": lambda level: ", ".join(f"{n} {kind}" for kind, n in level["failures"].items()) or "0",
        "left out: warm-up": lambda level: f"{level['excluded']['warmup']:,}",
        "left out: drain": lambda level: f"{level['excluded']['drain']:,}",
        "output tokens/s": lambda level: _figure(level["throughput_tok_s"], 0),
        "input tokens/s": lambda level: _figure(level["input_tok_s"], 0),
        "requests/s": lambda level: _figure(level["requests_per_s"], 2),
        "goodput/s": lambda level: _figure(level["goodput_per_s"], 2),
        "$ per 1M output tokens": lambda level: _figure(_dollars_per_million(level, result), 2),
    }
    rows = {name: [show(level) for level in result["levels"]] for name, show in columns.items()}
    for latency, label in {**LATENCY_LABELS, "tpot_ms": "TPOT [ms]"}.items():
        for stat in STATISTICS:
            rows[f"{label} {stat}"] = [_figure(level[latency][stat], 2) for level in result["levels"]]
    lines = []
    for name, figures in rows.items():
        cells = "".join(f"<td>{html.escape(figure)}</td>" for figure in figures)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-size: .85rem; }}
th {{ text-align: left; font-weight: 600; padding-right: 1rem; }}
td {{ text-align: right; padding: .15rem .6rem; font-variant-numeric: tabular-nums; }}
tr {{ border-bottom: 1px solid #ddd; }}
.answer {{ font-size: 1.1rem; font-weight: 600; }}
</style></head><body>
<h1>{title}</h1>
<p class="answer">{conclusion}</p>
{charts}
<h2>Levels</h2>
{table}
</body></html>
"""
