"""How figures of the experiments are begun."""

from __future__ import annotations

from typing import Any


def axes_of(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure and its axes, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
