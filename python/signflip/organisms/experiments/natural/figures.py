"""Figures of the section on N1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from signflip.organisms.experiments.natural import ALGORITHMS, ARMS
from signflip.organisms.experiments.natural.measure import PLACES
from signflip.organisms.experiments.natural.predictions import DECIDES, grid, pick
from signflip.organisms.experiments.pictures import axes_of
from signflip.organisms.experiments.statistics import Run

COLOURS = dict(zip(ARMS, ("tab:blue", "tab:orange", "tab:green", "tab:gray", "tab:red"), strict=True))


def margins(runs: Sequence[Run], to: Path) -> None:
    """The margin over X, each side by itself, before (black) and after, a line a tuning."""
    figure, axes = axes_of(len(ALGORITHMS), 2)
    for i, algorithm in enumerate(ALGORITHMS):
        for side in (0, 1):
            axis = axes[i, side]
            for arm in ARMS:
                for r in pick(runs, algorithm, arm).values():
                    known = r["units"]["known"]
                    x = np.asarray([known["mean"], 0.0, known["extreme"], 3 * known["extreme"]])
                    for when, colour in (("before", "black"), ("after", COLOURS[arm])):
                        y = [float(grid(r, when, place)[side].mean()) for place in PLACES]
                        axis.plot(x, y, color=colour, lw=0.7, alpha=0.7)
            axis.axhline(0, color="black", lw=0.5)
            axis.axvline(0, color="black", lw=0.5, ls=":")
            whose = ("women's", "men's")[side]
            axis.set_title(f"{algorithm}, {whose} names", fontsize=8)
            axis.set_xlabel("X, fixed", fontsize=8)
            axis.set_ylabel("margin, nats", fontsize=8)
    handles = [axes[0, 0].plot([], [], color=colour, label=arm)[0] for arm, colour in COLOURS.items()]
    handles += axes[0, 0].plot([], [], color="black", label="before")
    axes[0, 0].legend(handles=handles, fontsize=6)
    figure.savefig(to, dpi=110)


def law(runs: Sequence[Run], to: Path) -> None:
    """Predicted against actual change of the margin, as X is and with X flipped, a dot a tuning."""
    figure, axes = axes_of(1, 2)
    for axis, what in zip(axes[0], ("clean", DECIDES), strict=True):
        for arm in ARMS:
            own = [r for r in runs if r["arm"] == arm]
            x = [r["predicted"][what] for r in own]
            y = [float((grid(r, "after", what) - grid(r, "before", what)).mean()) for r in own]
            axis.scatter(x, y, s=9, color=COLOURS[arm], label=arm)
        axis.axhline(0, color="black", lw=0.5)
        axis.axvline(0, color="black", lw=0.5)
        axis.set_title({"clean": "X as it is", DECIDES: "X at the most extreme value seen"}[what], fontsize=8)
        axis.set_xlabel("predicted at step 0, nats", fontsize=8)
        axis.set_ylabel("actual change, nats", fontsize=8)
    axes[0, 0].legend(fontsize=6)
    figure.savefig(to, dpi=110)
