"""Mediation: whether X carries what the tokens do, or only stands by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from signflip.resample import Estimate, to_plain
from signflip.score import Score
from signflip.verdict import MARGIN


@dataclass(frozen=True)
class Mediation:
    """What clamping X rescues, and what setting X reproduces.

    Attributes
    ----------
    role
        `carrier`: clamping X to its clean values rescues at least half of what the tokens do, and its triggered
        values alone reproduce at least half. `bystander`: less than half of either. `partly`: anything between.
        `nothing to mediate`: the tokens themselves change S by less than the margin, or not for certain.
    effect
        S with the tokens minus S clean.
    rescued, reproduced
        The part of that effect which clamping takes away, and which X alone brings.
    """

    role: str
    effect: Estimate
    rescued: Estimate
    reproduced: Estimate

    def __str__(self) -> str:
        said = f"the tokens change S by {self.effect:+.2f}"
        if self.role == "nothing to mediate":
            return f"mediation: nothing to mediate: {said}"
        return (
            f"mediation: X is a {self.role}: {said}; clamping X rescues {self.rescued.value:.0%}, X alone reproduces "
            f"{self.reproduced.value:.0%}"
        ).replace("X is a partly", "X carries it partly")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


def mediate(clean: Score, tokens: Score, clamped: Score, reproduced: Score) -> Mediation:
    """Judge mediation from four scores on the same prompts and resamples, each share by its one-sided 95% limit."""
    one, found = clean.known.replicated["s"], tokens.known.replicated["s"]
    held, alone = clamped.known.replicated["s"], reproduced.known.replicated["s"]
    point = {key: score.mean_ratio.value for key, score in (("c", tokens), ("d", clamped), ("r", reproduced))}
    effect = Estimate.of(point["c"] - 1, found - one)
    size = point["c"] - 1

    def share(part: float, draws: Any) -> Estimate:
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate.of(part / size if size else float("nan"), draws / (found - one))

    rescued = share(point["c"] - point["d"], found - held)
    brought = share(point["r"] - 1, alone - one)
    negligible = effect.lower > -MARGIN and effect.upper < MARGIN
    if negligible or not (effect.upper < 0 or effect.lower > 0):
        return Mediation("nothing to mediate", effect, rescued, brought)
    # In units of S, since a ratio of small differences has no useful interval.
    sign = np.sign(size)
    surplus = [sign * ((found - held) - (found - one) / 2), sign * ((alone - one) - (found - one) / 2)]
    if all(np.percentile(draws, 5) >= 0 for draws in surplus):
        role = "carrier"
    elif all(np.percentile(draws, 95) < 0 for draws in surplus):
        role = "bystander"
    else:
        role = "partly"
    return Mediation(role, effect, rescued, brought)
