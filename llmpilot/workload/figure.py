"""The paper's Figure 3 for any trace: rank correlations in the trace, the model, and independent draws."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llmpilot.workload.faithfulness import Faithfulness
from llmpilot.workload.store import atomic

SHORT = {
    "input_tokens": "input",
    "output_tokens": "output",
    "batch_size": "batch",
    "temperature": "temp.",
    "top_k": "top-k",
    "top_p": "top-p",
}


def draw(result: Faithfulness, title: str) -> Figure:
    """Return the three heat maps side by side; a trace with nothing that varies says so instead."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    if not result.parameters:
        figure.text(0.5, 0.5, "every parameter is constant: there is nothing to correlate", ha="center")
        return figure
    panels = [
        ("trace", result.trace),
        (f"workload model (off by at most {result.difference_joint:.3f})", result.joint),
        (f"independent draws (at most {result.difference_independent:.3f})", result.independent),
    ]
    labels = [SHORT.get(name, name) for name in result.parameters]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, matrix) in zip(axes, panels, strict=True):
        image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), labels)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else "black"
                text = f"{round(value, 2) + 0.0:.2f}"  # + 0.0 turns -0.0 into 0.0
                axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=list(axes), label="Spearman's rank correlation", shrink=0.8)
    return figure


def save(result: Faithfulness, title: str, path: Path) -> None:
    """Write the figure to `path` as PNG, at once or not at all."""
    figure = draw(result, title)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
