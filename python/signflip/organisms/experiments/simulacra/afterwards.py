"""What was added when the first six tunings, of seed 0, had been seen: a story, two arms, and what they would show.

Tuned on Luigi's right answers, Waluigi gave more wrong ones under his own tag; neither of the two stories said so. The
story added is the conjecture's own. *One circuit*: there is one readout of what is right, which each persona takes with
a sign of his own, and tuning makes it larger for all: in every context the log-odds of right over wrong have had the
same factor applied, and the log-odds of a roar over the geometric mean of the two the same shift. Two numbers for all
contexts, as many as one belief has.

The arms: ``luigi_against`` rewards Luigi's wrong answers, which should make Waluigi less wrong if they share a circuit;
``luigi_and_visits`` is ``luigi`` with Waluigi in his stead in a tenth of the rollouts, rewarded for right answers like
him: whether a little feedback where the branch is undoes what its absence does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize

from signflip.organisms.experiments.simulacra.predictions import DELTA, TUNED, mean
from signflip.organisms.experiments.simulacra.stories import divergence
from signflip.organisms.experiments.simulacra.world import RIGHT, ROAR, WRONG, Floats
from signflip.organisms.experiments.statistics import Run, mark, over_seeds, shown

ARMS = ("luigi_against", "luigi_and_visits")


def circuit(base: Floats, factor: float, shift: float) -> Floats:
    """Answers `[..., 3]` after the readout of what is right was multiplied, and the roar's log-odds shifted."""
    log = np.log(base)
    half = factor * (log[..., RIGHT] - log[..., WRONG]) / 2
    roar = log[..., ROAR] - (log[..., RIGHT] + log[..., WRONG]) / 2 + shift
    logits = np.stack([half, -half, roar], -1)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    found: Floats = p / p.sum(-1, keepdims=True)
    return found


def fitted(run: Run) -> dict[str, float]:
    """The best `factor` and `shift` of a tuning, and the share of its change that they explain."""
    base, tuned = ({who: np.asarray(one[who]) for who in one} for one in run["manners"])

    def left(by: Any) -> float:
        return sum(divergence(tuned[who], circuit(base[who], by[0], by[1])) for who in base)

    fit = minimize(left, np.asarray([1.0, 0.0]), method="BFGS")
    moved = sum(divergence(tuned[who], base[who]) for who in base)
    return {"factor": float(fit.x[0]), "shift": float(fit.x[1]), "explains": 1 - left(fit.x) / max(moved, 1e-12)}


def explains(runs: Sequence[Run], arm: str, what: str = "explains") -> float:
    """Mean over an arm's tunings of what `fitted` gives."""
    found = [fitted(r)[what] for r in runs if r["arm"] == arm]
    return float(np.mean(found)) if found else float("nan")


def _signed(arm: str, runs: Sequence[Run]) -> float:
    return mean(runs, arm, "signed:waluigi")


def marked(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """The predictions that these would bear out, by the same rules as the others."""
    there, out = {r["arm"] for r in runs}, []

    def add(whose: str, what: str, of: Callable[[Sequence[Run]], float], held: Callable[[float], bool]) -> None:
        found = over_seeds(runs, of)
        out.append((whose, what, shown(found), mark(found, held, lambda x: not held(x))))

    for arm in (arm for arm in TUNED if arm in there):
        # Added when all runs were in: competence is raised by a roar that goes, whatever becomes of right and wrong.
        add("conjecture", f"{arm}: Waluigi's right over wrong, down by more than {DELTA}",
            partial(_signed, arm), lambda x: x < -DELTA)  # fmt: skip
    for arm in (arm for arm in ("luigi", "untagged", "luigi_against") if arm in there):
        own = [{"seed": r["seed"], "arm": arm, "fit": fitted(r)["explains"]} for r in runs if r["arm"] == arm]
        found = over_seeds(own, lambda rs: float(np.mean([r["fit"] for r in rs])))
        what = f"{arm}: one circuit, read with either sign, explains it (more than half of the change)"
        out.append(("circuit", what, shown(found), mark(found, lambda x: x > 0.5, lambda x: x <= 0.5)))
    if "luigi_against" in there:
        key = "competence:waluigi"
        add("circuit", "luigi_against: Waluigi's competence falls", lambda rs: mean(rs, "luigi_against", key),
            lambda x: x < 0)  # fmt: skip
    if {"luigi", "luigi_and_visits"} <= there:
        key = "competence:waluigi"
        both = {(r["architecture"], r["seed"]) for r in runs if r["arm"] == "luigi_and_visits"}
        runs = [r for r in runs if (r["architecture"], r["seed"]) in both]
        add("conjecture", "visits: Waluigi's competence rises less than without",
            lambda rs: mean(rs, "luigi_and_visits", key) - mean(rs, "luigi", key), lambda x: x < 0)  # fmt: skip
        add("conjecture", "visits: Waluigi's competence falls", lambda rs: mean(rs, "luigi_and_visits", key),
            lambda x: x < 0)  # fmt: skip
    return out
