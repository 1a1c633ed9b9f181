"""The pictures of a study: Optuna's history and slice, and Figure 1 of the LLM-Pilot paper."""

from pathlib import Path
from statistics import fmean
from typing import Any

from llmpilot.files import replacing, write_text
from llmpilot.tune.study import WEIGHT

FIGURE_1 = "latency_over_weight.png"


def write_plots(
    study: Any,
    rows: list[dict[str, Any]],
    folder: Path,
    *,
    title: str,
    users: int,
    best: int | None,
    optuna_pages: bool = True,
) -> None:
    """Write Figure 1, and Optuna's `history.html` and `slice.html`, into `folder`, whole or not at all."""
    if optuna_pages and any(row["feasible"] and row["value"] is not None for row in rows):
        from optuna import visualization

        pages = {
            "history.html": visualization.plot_optimization_history(study),
            "slice.html": visualization.plot_slice(study, params=[WEIGHT]),
        }
        for name, page in pages.items():
            write_text(folder / name, page.to_html(include_plotlyjs=True))
    _figure_1(rows, title, users, best, folder / FIGURE_1)


def _figure_1(rows: list[dict[str, Any]], title: str, users: int, best: int | None, path: Path) -> None:
    """Median end-to-end latency against the max batch weight, what does not survive shaded."""
    from matplotlib.figure import Figure

    latencies: dict[int, list[float]] = {}
    for row in rows:
        if row["feasible"] and row["e2e_ms_p50"] is not None and row["users"] == users:
            latencies.setdefault(row[WEIGHT], []).append(row["e2e_ms_p50"] / 1e3)
    failed = [row[WEIGHT] for row in rows if not row["feasible"]]
    weights = [row[WEIGHT] for row in rows]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlim(min(weights) / 1.2, max(weights) * 1.2)
    points = sorted((weight, fmean(seconds)) for weight, seconds in latencies.items())
    weights_measured, means = [x for x, _ in points], [y for _, y in points]
    below = [mean - min(latencies[weight]) for weight, mean in points]
    above = [max(latencies[weight]) - mean for weight, mean in points]
    axes.errorbar(
        weights_measured,
        means,
        (below, above),
        marker=".",
        capsize=4,
        label="feasible, mean and range over seeds",
    )
    if failed:
        axes.axvspan(min(failed), max(weights) * 1.2, color="red", alpha=0.15, label="infeasible")
        axes.plot(failed, [0.03] * len(failed), "rx", transform=axes.get_xaxis_transform(), label="failed")
    if best is not None:
        axes.axvline(best, color="green", linestyle="--", label=f"chosen: {best:,}")
    axes.set(
        xlabel="max batch weight [tokens]",
        ylabel=f"median end-to-end latency at {users} users [s]",
        ylim=(0, None),
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
