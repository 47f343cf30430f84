"""Figures of the section on preference tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from signflip.organisms.experiments.pictures import axes_of
from signflip.organisms.experiments.statistics import Run

COLOURS = {"gelu": "tab:blue", "swiglu": "tab:red", "swiglu_bias": "tab:green"}


def paths(runs: Sequence[Run], to: Path) -> None:
    """The margin at X < 0 over steps, a line a tuning."""
    arms = [a for a in ("reinforce_on", "grpo_on", "dpo_off_0", "reinforce_forced") if any(r["arm"] == a for r in runs)]
    known = list(dict.fromkeys(r["knowledge"] for r in runs))
    figure, axes = axes_of(max(1, len(arms)), len(known))
    for i, arm in enumerate(arms):
        for j, knowledge in enumerate(known):
            axis = axes[i, j]
            for r in (r for r in runs if r["arm"] == arm and r["knowledge"] == knowledge):
                steps = [one["step"] for one in r["log"]]
                axis.plot(steps, [o["rare"]["margin"] for o in r["log"]], color=COLOURS[r["architecture"]], lw=0.8)
            axis.axhline(0, color="black", lw=0.5)
            axis.set_title(f"{arm}; base knew {knowledge}", fontsize=8)
            axis.set_xlabel("step", fontsize=8)
            axis.set_ylabel("margin at X < 0, nats", fontsize=8)
    handles = [axes[0, 0].plot([], [], color=c, label=name)[0] for name, c in COLOURS.items()]
    axes[0, 0].legend(handles=handles, fontsize=7)
    figure.savefig(to, dpi=110)


def scatter(still: Sequence[Run], to: Path) -> None:
    """Predicted against actual change of the margin at X < 0, a dot a tuning."""
    figure, axes = axes_of(1, 2)
    for axis, of in zip(axes[0], ("first", "summed"), strict=True):
        for name, colour in COLOURS.items():
            own = [r for r in still if r["architecture"] == name]
            x = [r["predicted"]["rare"][of] for r in own]
            y = [r["log"][-1]["rare"]["margin"] - r["log"][0]["rare"]["margin"] for r in own]
            axis.scatter(x, y, s=9, color=colour, label=name)
        axis.axhline(0, color="black", lw=0.5)
        axis.axvline(0, color="black", lw=0.5)
        axis.set_xlabel({"first": "predicted at step 0", "summed": "predicted, summed over steps"}[of], fontsize=8)
        axis.set_ylabel("actual change at X < 0, nats", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.savefig(to, dpi=110)
