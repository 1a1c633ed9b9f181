"""The figures of a training: predicted against measured, and how each LLM fared when it was left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot.files import replacing
from llmpilot.predict.evaluation import Fold

METRICS = {"nttft_ms": "nTTFT [ms per token]", "itl_ms": "ITL [ms]"}


def plot_predictions(folds: Sequence[Fold], path: Path) -> None:
    """Predicted over measured latencies of the first seed, every LLM predicted without its own rows."""
    from matplotlib.figure import Figure

    first = [fold for fold in folds if fold.seed == folds[0].seed]
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        ends = []
        for fold in first:
            measured = getattr(fold.truth, metric)[fold.scored]
            predicted = getattr(fold.prediction, metric)[fold.scored]
            axes.scatter(measured, predicted, s=10, alpha=0.6, label=fold.model)
            ends += [*measured, *predicted]
        span = [np.nanmin(ends), np.nanmax(ends)]
        axes.plot(span, span, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=f"measured {label}", ylabel=f"predicted {label}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle("each LLM predicted without its own measurements")
    _save(figure, path)


def plot_by_model(per_model: Sequence[dict[str, Any]], path: Path) -> None:
    """Success rate and efficiency over the grid of each LLM left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.45 * len(per_model)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(per_model))
    for offset, key, label in (
        (-0.2, "grid_success_rate", "success rate"),
        (0.2, "grid_efficiency", "efficiency: least cost / cost, 0 without success"),
    ):
        axes.barh(places + offset, [row[key] for row in per_model], height=0.4, label=label)
    axes.set_yticks(places, [row["model"] for row in per_model])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), title="recommendations for each LLM left out, mean over the grid")
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
