"""The two stories of what tuning does, each as a form that the tuned answers must have, fitted as well as it can be.

*Selection*: the simulacra are fixed, and tuning picks among them: in any context the tuned policy's answers are some
mixture of what the base's personas answer. The weights are free in each context: three numbers for six.

*One belief*: there is one thing that tuning moves, everywhere alike: in every context the log-probabilities of the base
have had the same vector added. Two numbers for all contexts.

How much of the change a story explains, in a context: one less KL(tuned ‖ the story's best) over KL(tuned ‖ base), over
the answers to everyday items and about ovens; 1 if it says all, 0 if no more than that nothing changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize

from signflip.organisms.experiments.simulacra.world import PERSONAS, Floats

ROUNDS = 3000


def divergence(p: Floats, q: Floats) -> float:
    """KL(p ‖ q), summed over rows."""
    return float((p * (np.log(p) - np.log(q))).sum())


def selected(tuned: Floats, personas: Floats) -> Floats:
    """Weights of the mixture of personas `[4, 2, 3]` nearest to `[2, 3]` answers: by EM, the problem is convex."""
    w = np.full(len(personas), 1 / len(personas))
    for _ in range(ROUNDS):
        mixture = np.tensordot(w, personas, 1)
        w = w * (tuned / mixture * personas).sum((1, 2))
        w /= w.sum()
    return w


def shifted(base: Floats, by: Floats) -> Floats:
    """Answers after the same vector is added to all log-probabilities."""
    logits = np.log(base) + np.append(by, 0.0)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    found: Floats = p / p.sum(-1, keepdims=True)
    return found


def stories(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What each story explains.

    Parameters
    ----------
    before, after
        `readings.manners` of the base and of the tuned policy.

    Returns
    -------
    dict
        Of each context, `moved` (KL of tuned and base), and what `selection` and `belief` explain of it; under
        ``all`` the same over all contexts.
    """
    base, tuned = ({who: np.asarray(of[who]) for who in before} for of in (before, after))
    personas = np.stack([base[who] for who in PERSONAS])
    fit = minimize(
        lambda by: sum(divergence(tuned[who], shifted(base[who], by)) for who in base), np.zeros(2), method="BFGS"
    )
    rows: dict[str, tuple[float, float, float]] = {}
    for who in base:
        mixture = np.tensordot(selected(tuned[who], personas), personas, 1)
        # Not picking anew is one of the choices: the base itself may be no mixture of personas to the last digit.
        left = min(divergence(tuned[who], mixture), divergence(tuned[who], base[who]))
        rows[who] = divergence(tuned[who], base[who]), left, divergence(tuned[who], shifted(base[who], fit.x))
    rows["all"] = tuple(np.sum(list(rows.values()), 0).tolist())
    return {
        who: {"moved": moved, "selection": 1 - a / max(moved, 1e-12), "belief": 1 - b / max(moved, 1e-12)}
        for who, (moved, a, b) in rows.items()
    }
