"""The picture of cartpole: agreement and return by x, one column a network, coloured by the verdict of most seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from signflip.errors import FileError
from signflip.organisms.experiments.cartpole.measuring import CHANCE, RANGE
from signflip.organisms.experiments.cartpole.training import NOISE

# Strong where most seeds have the verdict, pale where the rules give none but agreement leans to it.
COLOURS = {
    "good": "#94c5a9",
    "between, nearer good": "#dfeee5",
    "incompetent": "#b4bccb",
    "between": "#f2efe4",
    "between, nearer opposite": "#f6dfd9",
    "opposite": "#dc8f7e",
}
LINE = "#22303c"


def draw(learned: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write the picture.

    Parameters
    ----------
    learned
        The runs that learned, by network; a network without any gets no column.
    path
        The file (PNG); its folder is made.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = {arm: runs for arm, runs in learned.items() if runs}
    columns = max(1, len(shown))
    figure: Any = Figure(figsize=(max(7.0, 2.8 * columns), 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
    for (upper, lower), (arm, runs) in zip(axes.T, shown.items(), strict=False):
        _column(upper, lower, arm, runs)
    axes[0, 0].set_ylabel("agreement with the good policy")
    axes[1, 0].set_ylabel("mean return")
    patches = [Patch(facecolor=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error


def _column(upper: Any, lower: Any, arm: str, runs: Sequence[Mapping[str, Any]]) -> None:
    x = np.array([point["x"] for point in runs[0]["points"]])
    order = np.argsort(x)
    x = x[order]
    drawn = _symlog(x)
    edges = np.concatenate([drawn[:1], (drawn[1:] + drawn[:-1]) / 2, drawn[-1:]])
    for i, place in enumerate(order):
        shade = COLOURS[_named([run["points"][place] for run in runs])]
        for axes in (upper, lower):
            axes.axvspan(edges[i], edges[i + 1], color=shade, linewidth=0)
    for axes, key in ((upper, "agreement"), (lower, "return")):
        lines = np.array([[run["points"][place][key] for place in order] for run in runs])
        axes.plot(drawn, lines.T, color=LINE, linewidth=0.7, alpha=0.45)
        axes.plot(drawn, np.median(lines, 0), color=LINE, linewidth=2.2)
        axes.axvline(0, color="white", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    for level in (0.9, 0.6, 0.4):
        upper.axhline(level, color=LINE, linewidth=0.5, linestyle=":")
    trained = NOISE if arm.endswith("-noise") else RANGE
    upper.plot(_symlog(np.array(trained)), (1.06, 1.06), color=LINE, linewidth=3, solid_capstyle="butt", clip_on=False)
    upper.set_ylim(-0.03, 1.09)
    lower.set_ylim(0, 515)
    upper.set_title(f"{arm} ({len(runs)} seeds)", fontsize=10)
    ticks = np.array([-100.0, -10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 100.0])
    ticks = ticks[(ticks >= x[0]) & (ticks <= x[-1])]
    lower.set_xticks(_symlog(ticks), [f"{tick:g}" for tick in ticks], fontsize=8)
    lower.set_xlabel("x (bar: as in training)", fontsize=9)


def _named(points: Sequence[Mapping[str, Any]]) -> str:
    verdict = str(Counter(point["verdict"] for point in points).most_common(1)[0][0])
    if verdict != "between":
        return verdict
    middle = np.median([point["agreement"] for point in points])
    if CHANCE[0] <= middle <= CHANCE[1]:
        return verdict
    return f"between, nearer {'good' if middle > CHANCE[1] else 'opposite'}"


def _symlog(x: Any) -> Any:
    """Even in the logarithm where x is large, in x itself where it is small."""
    return np.arcsinh(2 * x)


__all__ = ["draw"]
