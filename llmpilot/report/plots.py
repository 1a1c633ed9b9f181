"""The plots of a run: latency over load, and over throughput."""

from pathlib import Path
from typing import Any

from llmpilot.files import replacing
from llmpilot.report.words import (
    COLOURS,
    LATENCY_LABELS,
    Result,
    per_dollar,
    seen,
    series,
    shown_statistics,
    sla_of,
    title,
)


def plot_latency(result: Result, path: Path) -> None:
    """Latency percentiles over the load, one panel a latency; limits dashed, in their statistic's colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    ticks = [level["level"] for level in result["levels"]]
    for axes, (latency, label) in zip(figure.subplots(2, 2).flat, LATENCY_LABELS.items(), strict=True):
        for stat in shown_statistics(result, latency):
            axes.plot(*series(result, latency, stat), marker="o", label=stat, color=COLOURS[stat])
        for limit in sla_of(result).limits_on(latency):
            dashed = {"color": COLOURS[limit.statistic], "linestyle": "--"}
            axes.axhline(limit.limit_ms, label=f"SLA, {limit.statistic}", **dashed)
        _label(axes, result["level_unit"], label, series(result, latency, "p50")[1])
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    figure.suptitle(title(result))
    _save(figure, path)


def plot_throughput(result: Result, path: Path) -> None:
    """Latency against throughput, and per dollar where a price is known: the knee is where to run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    columns = [(1.0, "output tokens/s")]
    if (dollars := per_dollar(result)) is not None:
        columns.append((dollars, "million output tokens per $"))
    axes = figure.subplots(2, len(columns), squeeze=False)
    for row, latency in zip(axes, ("ttft_ms", "itl_ms"), strict=True):
        levels = seen(result, latency)
        for panel, (scale, label) in zip(row, columns, strict=True):
            x = [level["throughput_tok_s"] * scale for level in levels]
            for stat in ("p50", "p95"):
                y = [level[latency][stat] for level in levels]
                panel.plot(x, y, marker="o", label=stat, color=COLOURS[stat])
            for position, level in zip(x, levels, strict=True):
                where = (position, level[latency]["p50"])
                panel.annotate(f"{level['level']:g}", where, textcoords="offset points", xytext=(4, -11))
            _label(panel, label, LATENCY_LABELS[latency], [level[latency]["p50"] for level in levels])
    figure.suptitle(f"{title(result)}\nnumbers at the points: {result['level_unit']}")
    _save(figure, path)


def _label(axes: Any, x: str, y: str, values: list[float]) -> None:
    """Label a panel; latencies on a logarithmic axis, unless there are none to draw there."""
    axes.set(xlabel=x, ylabel=y, title="" if values else "no request shows it")
    if any(value > 0 for value in values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend()


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
