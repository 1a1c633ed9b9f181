"""What a person looks at: the table on the terminal, plots as PNG, and one interactive HTML page."""

from pathlib import Path

from llmpilot.files import write_text
from llmpilot.report.page import page
from llmpilot.report.plots import plot_latency, plot_throughput
from llmpilot.report.table import print_sweep, print_table
from llmpilot.report.words import (
    STREAMS,
    Result,
    conclusion,
    figure_of,
    made_up_answers,
    other_workload,
    short_windows,
    stream_problems,
)

__all__ = [
    "STREAMS",
    "conclusion",
    "figure_of",
    "made_up_answers",
    "other_workload",
    "print_sweep",
    "print_table",
    "short_windows",
    "stream_problems",
    "write",
]


def write(result: Result, folder: Path) -> None:
    """Write `plots/*.png` and `report.html` into `folder`, whole or not at all."""
    plots = folder / "plots"
    plot_latency(result, plots / "latency_over_load.png")
    plot_throughput(result, plots / "latency_over_throughput.png")
    write_text(folder / "report.html", page(result))
