"""Figures of the section on simulacra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from signflip.organisms.experiments.pictures import axes_of
from signflip.organisms.experiments.simulacra.predictions import TUNED, change, points
from signflip.organisms.experiments.simulacra.world import PERSONAS
from signflip.organisms.experiments.statistics import Run

COLOURS = {"luigi": "tab:green", "waluigi": "tab:purple", "bowser": "tab:orange", "toaster": "tab:blue"}
READINGS = {"odds": "odds of the name", "competence": "competence", "tokens": "tokens to invoke"}


def paths(runs: Sequence[Run], to: Path) -> None:
    """The three readings of each persona over steps: their change, a line a tuning, thick the mean."""
    arms = [arm for arm in TUNED if any(r["arm"] == arm for r in runs)]
    figure, axes = axes_of(len(READINGS), max(1, len(arms)))
    for j, arm in enumerate(arms):
        own = [r for r in runs if r["arm"] == arm]
        steps = [one["step"] for one in own[0]["log"]]
        for i, (of, name) in enumerate(READINGS.items()):
            axis = axes[i, j]
            for persona, colour in COLOURS.items():
                key = f"{of}:{persona}"
                lines = np.asarray([[one[key] - r["log"][0][key] for one in r["log"]] for r in own])
                axis.plot(steps, lines.T, color=colour, lw=0.4, alpha=0.4)
                axis.plot(steps, lines.mean(0), color=colour, lw=2, label=persona)
            axis.axhline(0, color="black", lw=0.5)
            axis.set_title(f"tuned: {arm}", fontsize=8)
            axis.set_ylabel(f"{name}, change", fontsize=8)
            axis.set_xlabel("step", fontsize=8)
    if arms:
        axes[0, 0].legend(fontsize=7)
    figure.savefig(to, dpi=110)


def law_and_rates(runs: Sequence[Run], to: Path) -> None:
    """Predicted against actual change of unvisited readings; the paths' distance and the largest step by rate."""
    figure, axes = axes_of(2, 2)
    of = points(runs)
    for axis, by in zip(axes[0], ("first", "summed"), strict=True):
        for persona in PERSONAS:
            own = [(r["predicted"][by][key], change(r, key)) for r, key in of if key.endswith(f":{persona}")]
            axis.scatter(*np.asarray(own).reshape(-1, 2).T, s=4, color=COLOURS[persona], label=persona)
        axis.axline((0, 0), slope=1, color="black", lw=0.5)
        axis.set_xlabel({"first": "predicted before tuning", "summed": "predicted on the way"}[by], fontsize=8)
        axis.set_ylabel("actual change, nats", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    sweeps = [r for r in runs if r["arm"].startswith("sweep")]
    for axis, what in zip(axes[1], ("apart", "jump"), strict=True):
        for r in sweeps:
            rates = [one["rate"] for one in r["rates"]]
            values = r["apart"] if what == "apart" else [one["jump"] for one in r["rates"]]
            colour = "tab:green" if r["arm"] == "sweep_luigi" else "tab:gray"
            axis.loglog(rates[: len(values)], values, "-o", ms=2, lw=0.6, color=colour)
        ticks = sorted({one["rate"] for r in sweeps for one in r["rates"]})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("rate, in units of the tunings'", fontsize=8)
        said = {"apart": "from a path to that at half the rate", "jump": "largest step of the weights"}
        axis.set_ylabel(said[what], fontsize=8)
    for arm, colour in (("tuned on Luigi", "tab:green"), ("untagged", "tab:gray")):
        axes[1, 0].plot([], [], color=colour, label=arm)
    axes[1, 0].legend(fontsize=7)
    figure.savefig(to, dpi=110)
