"""What a model does at fixed X: margins of each side, their offset and slope, how far tokens bring X, by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments.natural.features import Feature
from signflip.organisms.experiments.natural.model import Batch, Net, Setting
from signflip.organisms.experiments.natural.prompts import Prompts

# Places at which X is fixed: its mean in half A, 0, the most extreme value seen, three times that.
PLACES = ("mean", "zero", "extreme", "triple")
# How many one-token prefixes are tried in front of a name, a name a side.
PREFIXES, SMALL_PREFIXES = 500, 20


def slope(doses: tuple[float, float], margins: Tensor) -> float:
    """Of the mean margin in X between two doses, the first on the side that is seen: positive where farther is better.

    Parameters
    ----------
    doses
        The usual one, and another.
    margins
        `[2, n]`: at each.
    """
    (usual, other), (there, elsewhere) = doses, margins.double().mean(1).tolist()
    return (there - elsewhere) / (usual - other) * (1 if usual > 0 else -1) if usual != other else 0.0


def at_doses(
    net: Net, on: Prompts, feature: Feature, doses: Sequence[float | None], below: Tensor
) -> tuple[Tensor, Tensor]:
    """Margins and answer mass with X fixed, or as it is where the dose is None: `[doses, n]` each.

    `below` is the residual stream in front of the unit's layer.
    """
    margins, masses = [], []
    with torch.no_grad():
        for dose in doses:
            with net.set(None if dose is None else Setting(feature.layer, feature.index, dose)):
                logp = net.logp(net.through(below, feature.layer), on.batch.end)
            margins.append(on.margin(logp))
            masses.append(on.mass(logp))
    return torch.stack(margins), torch.stack(masses)


def sides(values: Tensor, on: Prompts) -> list[float]:
    """The mean of each side."""
    return [float(values[on.side == side].double().mean()) for side in (0, 1)]


def known(net: Net, on: Prompts, feature: Feature) -> dict[str, Any]:
    """The unit that the experiment is about.

    Returns
    -------
    dict
        Margins without an edit (`clean`) and at each of `PLACES`, as side × name × template; answer mass; mean, sd and
        largest value of X, and the share of tokens on the rare side.
    """
    doses = feature.doses()
    with torch.no_grad(), net.seeing(feature.layer) as seen:
        below = net.through(net.start(on.batch), net.first, feature.layer)
        # As it is comes first: what is seen of later runs is not looked at.
        margins, masses = at_doses(net, on, feature, [None, *doses], below)
    place = torch.arange(on.batch.ids.shape[1])
    x = seen[0][..., feature.index][(place > 0) & (place <= on.batch.end[:, None])].double()
    names = ("clean", *PLACES)
    found = {name: on.grid(one) for name, one in zip(names, margins, strict=True)}
    mass = {name: float(one.mean()) for name, one in zip(names, masses, strict=True)}
    crossed = x * feature.side < 0
    return {
        "margins": found,
        "mass": mass,
        "x": {"mean": float(x.mean()), "sd": float(x.std()), "rarest": float((x * -feature.side).max() * -feature.side),
              "crossed": float(crossed.double().mean())},
    }  # fmt: skip


def controls(net: Net, on: Prompts, features: Sequence[Feature]) -> list[dict[str, Any]]:
    """Other units: margins of each side where their linear part is fixed at its mean and at its extreme, and slope."""
    with torch.no_grad():
        below = {net.first: net.start(on.batch)}
        for layer in range(net.first, max((f.layer for f in features), default=net.first)):
            below[layer + 1] = net.through(below[layer], layer, layer + 1)
    found = []
    for one in features:
        doses = one.mean, one.extreme
        margins, _ = at_doses(net, on, one, doses, below[one.layer])
        found.append({"margins": [sides(each, on) for each in margins], "slope": slope(doses, margins)})
    return found


@dataclass(frozen=True)
class Prefixed:
    """Names with one token in front.

    Attributes
    ----------
    batch
        A prefix and a name each; prefixes in order, then names.
    names
        How many names.
    """

    batch: Batch
    names: int


def prefixed(net: Net, engine: Any, n: int) -> Prefixed:
    """A name of each side after each of `n` tokens, drawn once for all runs."""
    tokens = np.random.default_rng(24).choice(engine.cfg.d_vocab, n, replace=False)
    names = [engine.to_tokens(name)[0].tolist() for name in (" Mary", " John")]
    rows = [[0, int(token), *name] for token in tokens for name in names]
    return Prefixed(net.batch(rows, 500), len(names))


def reach(net: Net, tried: Prefixed, feature: Feature) -> dict[str, float]:
    """How far one token in front of a name brings X there: the farthest mean over the names, and how many cross.

    Every prefix of the list is tried, so this is what a search of one token at this budget would find.
    """
    size = 1000
    found = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(tried.batch)), size):
            part = tried.batch.take(rows)
            with net.seeing(feature.layer) as seen:
                net.through(net.start(part), net.first, feature.layer + 1)
            found.append(seen[0][torch.arange(len(part)), part.end, feature.index])
    x = -feature.side * torch.cat(found).reshape(-1, tried.names).double()
    # Of either name, and of both at once.
    return {
        "farthest": float(x.mean(1).max()) * -feature.side,
        "median": float(x.mean(1).median()) * -feature.side,
        "crossed": float((x > 0).all(1).double().mean()),
        "crossed_once": float((x > 0).any(1).double().mean()),
    }
