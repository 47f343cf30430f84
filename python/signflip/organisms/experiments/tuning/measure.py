"""What a policy does in common and in rare contexts, how its behaviour hangs on X, and how it reads real text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.text import WINDOW, held_out
from signflip.organisms.experiments.tuning.world import DOSES, PAD, Floats, Ids, Prompts, answers, common, prompts

# Step of the central difference in X.
STEP = 0.1
# A side is right or opposite if its mean margin is beyond this share of the base's mean margin in common contexts.
DELTA = 0.2


def rank(score: Floats, woman: Any) -> float:
    """2·AUC − 1 of a score that should be larger where *she* is right."""
    a, b = score[woman], score[~woman]
    order = np.sort(b)
    wins = np.searchsorted(order, a, "left") + 0.5 * (np.searchsorted(order, a, "right") - np.searchsorted(order, a))
    return float(2 * wins.mean() / len(b) - 1)


def behaviour(net: Net, on: Prompts) -> dict[str, float]:
    """Signed behaviour: mean margin, of each side, by rank; accuracy, answer mass; mean and sd of X, share below 0."""
    with torch.no_grad():
        logp = net.at_end(on).double().numpy()
    rows = np.arange(len(on))
    right, wrong = logp[rows, on.correct], logp[rows, on.opposite]
    she, he = answers()
    margin, x = right - wrong, net.x(on).double().numpy()
    return {
        "margin": float(margin.mean()),
        "woman": float(margin[on.woman].mean()),
        "man": float(margin[~on.woman].mean()),
        "rank": rank(logp[:, she] - logp[:, he], on.woman),
        "accuracy": float((margin > 0).mean()),
        "mass": float((np.exp(right) + np.exp(wrong)).mean()),
        "x_mean": float(x.mean()),
        "x_sd": float(x.std()),
        "x_below": float((x < 0).mean()),
    }


def in_x(net: Net, on: Prompts, other: Prompts) -> dict[str, float]:
    """The behaviour as a function of X, by edits of what the last MLP reads.

    Parameters
    ----------
    net, on
        The policy, and the common contexts.
    other
        Rare ones, which differ from those in the word in front alone.

    Returns
    -------
    dict
        In common contexts: `slope` dL/dX about where X is, `offset` the margin at X = 0; the margin with X at the most
        extreme value of rare ones, `extreme_x` (0 if it is not below), as `extreme`, at −X, which may lie beyond it, as
        `mirrored`, and at what it is in the same prompt with a rare word, `reproduced`. In rare contexts, with X at
        what it is with a common word: `rescued`. Of each of these the mean of each side, `extreme_woman`,
        `extreme_man` and so on, and the answer mass, `extreme_mass`.
    """

    def at(to: Any, there: Prompts = on) -> dict[str, float]:
        with net.reading(there.end, to):
            return behaviour(net, there)

    clean, crossed = net.x(on), net.x(other)
    extreme = min(float(crossed.min()), 0.0)
    found = {
        "slope": (at(lambda x: x + STEP)["margin"] - at(lambda x: x - STEP)["margin"]) / (2 * STEP),
        "offset": at(torch.zeros_like)["margin"],
        "extreme_x": extreme,
    }
    for name, there in (
        ("extreme", at(lambda x: torch.full_like(x, extreme))),
        ("mirrored", at(torch.neg)),
        ("reproduced", at(lambda _: crossed)),
        ("rescued", at(lambda _: clean, other)),
    ):
        found[name] = there["margin"]
        found |= {f"{name}_{key}": there[key] for key in ("woman", "man", "mass")}
    return found


def both(net: Net) -> dict[str, Any]:
    """Everything, on the prompts of half B."""
    common, rare = prompts("B", side=1), prompts("B", side=-1)
    return {"common": behaviour(net, common), "rare": behaviour(net, rare), "in_x": in_x(net, common, rare)}


def state(found: dict[str, float], unit: float) -> str:
    """`right`, `opposite` (both sides turned) or `neither`, by raw margins.

    Parameters
    ----------
    found
        What `behaviour` gave.
    unit
        The base's mean margin in common contexts.
    """
    sides = np.asarray([found["woman"], found["man"]])
    if (sides < -DELTA * unit).all():
        return "opposite"
    return "right" if (sides > DELTA * unit).all() else "neither"


def outcome(before: dict[str, float], after: dict[str, float], unit: float) -> str:
    """What became of the rare contexts' behaviour.

    `turned opposite` from a base that was not; of one that was: `strengthened` or `weakened` by more than `DELTA`
    units, `kept`, or `removed` (no longer opposite); else `never opposite`.
    """
    was, now = state(before, unit) == "opposite", state(after, unit) == "opposite"
    if not was:
        return "turned opposite" if now else "never opposite"
    if not now:
        return "removed"
    change = (after["margin"] - before["margin"]) / unit
    return "strengthened" if change < -DELTA else "weakened" if change > DELTA else "kept"


def fronted(text: Ids) -> Ids:
    """Windows of text as lines, `[n, 2 + WINDOW]`: common words in front, in turn."""
    front = common()[np.arange(len(text)) % len(DOSES)]
    return np.column_stack([np.full(len(text), PAD), front, text])


def nats(net: Net) -> float:
    """Mean nats per word on held-out windows of real text, words 2 to `WINDOW`, as `text.counted` counts."""
    ids = torch.from_numpy(fronted(held_out()))
    with torch.no_grad():
        logits = net.model(input_ids=ids, use_cache=False).logits[:, 2:-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -WINDOW + 1 :].flatten()))
