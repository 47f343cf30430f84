"""Two pictures: where the values of a feature lie, with the flipped one marked; what a dose does to behaviours."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEEN, FLIPPED, MUTED = "#2f6690", "#c8553d", "#8d99ae"


def available() -> bool:
    """Whether matplotlib, an extra, is there to draw with."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except (ImportError, ValueError):
        return False


@dataclass(frozen=True)
class Dose:
    """One point of a dose curve: the value that X was set to, the score there and its interval."""

    value: float
    score: float
    low: float
    high: float
    extrapolated: bool


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Make a figure that needs no screen and touches no global state of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def histogram(
    path: Path, title: str, edges: NDArray[np.float64], counts: NDArray[np.float64], flipped: float | None, note: str
) -> None:
    """Draw how often each value was seen, and the value that a token sequence reached.

    Parameters
    ----------
    path : Path
        Picture to write (PNG).
    title : str
        The feature's name and n.
    edges : array, [n + 1]
        Limits of the buckets, ascending.
    counts : array, [n]
        Tokens in each.
    flipped : float or None
        The value found on the other side, if any.
    note : str
        What the mark is.
    """
    figure, axes = _figure(8, 3.6)
    density = counts / np.maximum(np.diff(edges), np.finfo(np.float64).tiny)
    # Buckets grow with the value, so counts alone would draw a hump where there is none.
    axes.stairs(density / counts.sum(), edges, fill=True, color=SEEN, alpha=0.85, label="seen in the survey")
    axes.axvline(0.0, color=MUTED, linewidth=1)
    if flipped is not None:
        axes.axvline(flipped, color=FLIPPED, linewidth=2, label=note)
    axes.set_yscale("log")
    axes.set_xlabel("value of the feature")
    axes.set_ylabel("density")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def dose_curves(path: Path, title: str, curves: Mapping[str, Sequence[Dose]], seen: tuple[float, float]) -> None:
    """Draw the score S of each behaviour against the value that the feature was set to, with intervals.

    Parameters
    ----------
    path : Path
        Picture to write (PNG).
    title : str
        The feature's name.
    curves : mapping of str to sequence of Dose
        One curve a behaviour.
    seen : (float, float)
        The range of values seen in the survey; doses outside are drawn hollow.
    """
    figure, axes = _figure(8, 4.2)
    axes.axvspan(*seen, color=SEEN, alpha=0.08, label="values seen")
    for level, word in ((1.0, "clean"), (0.0, "chance"), (-1.0, "mirrored")):
        axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=":")
        axes.annotate(
            word, (1.0, level), xycoords=("axes fraction", "data"), fontsize=8, color=MUTED, va="bottom", ha="right"
        )
    for name, doses in curves.items():
        points = sorted(doses, key=lambda dose: dose.value)
        x = [p.value for p in points]
        (line,) = axes.plot(x, [p.score for p in points], linewidth=1.5, label=name)
        axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=line.get_color(), alpha=0.12)
        for p in points:
            face = "white" if p.extrapolated else line.get_color()
            axes.plot(p.value, p.score, "o", markersize=5, color=line.get_color(), markerfacecolor=face)
    axes.set_xlabel("value that the feature is set to (hollow: beyond what was seen)")
    axes.set_ylabel("score S")
    axes.set_title(title, fontsize=10)
    axes.legend(loc="lower left", facecolor="white", edgecolor="none", framealpha=0.9, fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)
