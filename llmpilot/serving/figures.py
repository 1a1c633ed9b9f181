"""The figures of a training: predicted against measured, and how each LLM fared when it was left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpilot.files import replacing
from llmpilot.predict.service.validation import Prediction

METRICS = {"tpot": "time per output token [ms]", "ttft": "time to the first token [ms]"}


def plot_predictions(prediction: Prediction, path: Path) -> None:
    """Predicted over measured latencies, every LLM predicted without its own rows; colours are engines."""
    from matplotlib.figure import Figure

    judged = prediction.judged
    engines = prediction.table["engine"].to_numpy()
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        part = judged[judged["metric"] == metric]
        of_engine = engines[part["row"].to_numpy(dtype=int)]
        for engine in sorted(set(of_engine.tolist())):
            some = part[of_engine == engine]
            axes.scatter(some["measured"], some["predicted"], s=8, alpha=0.5, label=engine)
        ends = part[["measured", "predicted"]].to_numpy(dtype=float)
        if np.isfinite(ends).any():
            span = [np.nanmin(ends), np.nanmax(ends)]
            axes.plot(span, span, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=f"measured {label}", ylabel=f"predicted {label}")
        axes.legend(fontsize="small")
    figure.suptitle("each LLM predicted without its own measurements")
    _save(figure, path)


def plot_by_model(per_model: Sequence[dict[str, Any]], path: Path) -> None:
    """Share of the promises kept and mean overspend, limits on TPOT and TTFT, of each LLM left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.45 * len(per_model)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(per_model))
    for offset, key, label in (
        (-0.2, "kept", "promises kept"),
        (0.2, "overspend", "more than the least possible price, where kept"),
    ):
        shares = [float(row["tpot_ttft"][key] or 0.0) for row in per_model]
        bars = axes.barh(places + offset, shares, height=0.4, label=label)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize="small")
    axes.set_yticks(places, [str(row["model"]).rpartition("/")[2] for row in per_model])
    axes.invert_yaxis()
    axes.set(xlim=(0, max(1.1, axes.get_xlim()[1])), title="recommendations for each LLM left out")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
