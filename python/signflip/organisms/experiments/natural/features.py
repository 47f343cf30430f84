"""Which units are watched: the known one, the next five by share, and twenty controls; chosen before any tuning.

A unit's share p is what of the behaviour is lost when its linear part is set to 0: 1 − (mean margin at 0) / (mean
margin). It is screened for all units by gradient times value and then measured by edits, on the names and templates
that are tuned on (half A), in the model as it was shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signflip.organisms.experiments.natural.model import Net, Setting, engine, smollm2
from signflip.organisms.experiments.natural.prompts import Prompts, pronouns

Floats = NDArray[np.float64]
# The known unit: layer and neuron.
KNOWN = (24, 115)
FROM = 20
NEXT, CONTROLS = 5, 20
# One-sided: the rarer sign on at most this share of the tokens surveyed; two-sided: on at least that.
ONE_SIDED, TWO_SIDED = 0.01, 0.05
# How many of the screened have their share measured.
SCREENED = 60
TOKENS, SMALL_TOKENS = 20_000, 1_500
PASSAGES = 400


@dataclass(frozen=True)
class Feature:
    """A unit's linear part.

    Attributes
    ----------
    layer, index
        Which.
    side
        The sign that it mostly has, 1 or -1.
    rate
        Of the tokens surveyed, the share with the other sign.
    extreme
        The value seen that is farthest on the other side; 0 where none was.
    mean
        Over the tokens of the prompts of half A.
    gate
        Share of the tokens surveyed on which its gate is open.
    share
        p.
    """

    layer: int
    index: int
    side: int
    rate: float
    extreme: float
    mean: float
    gate: float
    share: float

    def doses(self) -> list[float]:
        """Its mean, 0, the most extreme value seen on the other side, three times that."""
        return [self.mean, 0.0, self.extreme, 3 * self.extreme]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Chosen:
    """The units: the known one, the next by share, controls with one side, controls with both."""

    known: Feature
    following: tuple[Feature, ...]
    one_sided: tuple[Feature, ...]
    two_sided: tuple[Feature, ...]
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@cache
def chosen(small: bool) -> Chosen:
    """Survey, screen, measure, choose; once in a process.

    Parameters
    ----------
    small
        A short survey, and the known unit alone.
    """
    # On the CPU whatever the tunings run on, so that the same units are chosen.
    with torch.device("cpu"):
        return _chosen(small)


def _chosen(small: bool) -> Chosen:
    net = Net(smollm2(), FROM).copy()
    on = pronouns(net, engine(), "A")
    layers = range(net.first, len(net.layers))
    seen, tokens = _survey(layers, SMALL_TOKENS if small else TOKENS)
    first, means, clean = _screen(net, on)

    def feature(layer: int, index: int) -> Feature:
        linear, gate = seen[f"blocks.{layer}.mlp.hook_pre_linear"], seen[f"blocks.{layer}.mlp.hook_pre"]
        above, below, count = (float(one[index]) for one in (linear["positive"], linear["negative"], linear["count"]))
        side = 1 if above > below else -1
        extreme = min(float(linear["min"][index]), 0.0) if side > 0 else max(float(linear["max"][index]), 0.0)
        with torch.no_grad():
            at_zero = on.margin(net.at_end(on.batch, Setting(layer, index, 0.0))).double().mean()
        return Feature(
            layer, index, side, min(above, below) / count, extreme, float(means[layer][index]),
            float(gate["positive"][index]) / count, 1 - float(at_zero) / clean,
        )  # fmt: skip

    known = feature(*KNOWN)
    if small:
        return Chosen(known, (), (), (), tokens)
    # The largest shares first; half of those measured are of either kind, so that there is something to choose from.
    order = sorted(((layer, int(i)) for layer in layers for i in range(len(first[layer]))),
                   key=lambda at: -float(first[at[0]][at[1]]))  # fmt: skip
    kinds: dict[bool, list[Feature]] = {True: [], False: []}
    for at in order:
        if at == KNOWN or all(len(own) >= SCREENED // 2 for own in kinds.values()):
            continue
        linear = seen[f"blocks.{at[0]}.mlp.hook_pre_linear"]
        rate = min(linear["positive"][at[1]], linear["negative"][at[1]]) / linear["count"][at[1]]
        if not ONE_SIDED < rate < TWO_SIDED and len(kinds[bool(rate <= ONE_SIDED)]) < SCREENED // 2:
            kinds[bool(rate <= ONE_SIDED)].append(feature(*at))
    following = sorted(kinds[True], key=lambda f: -f.share)[:NEXT]
    left = [f for f in kinds[True] if f not in following]
    return Chosen(known, tuple(following), _nearest(known, left), _nearest(known, kinds[False]), tokens)


def _nearest(known: Feature, among: Sequence[Feature]) -> tuple[Feature, ...]:
    """Half of the controls: those nearest to the known unit in share and in how often the gate is open.

    Both in standard deviations of those that there are to choose from. None has the known unit's share.
    """

    def distance(one: Feature) -> float:
        pairs = ((getattr(one, of) - getattr(known, of), np.std([getattr(f, of) for f in among]))
                 for of in ("share", "gate"))  # fmt: skip
        return float(sum(abs(difference) / max(sd, 1e-9) for difference, sd in pairs))

    return tuple(sorted(among, key=distance)[: CONTROLS // 2])


def _survey(layers: Sequence[int], tokens: int) -> tuple[dict[str, dict[str, Any]], int]:
    """Signs and extremes of every unit on passages of plays and on requests, by `signflip.survey`."""
    import signflip as sf
    from signflip.demo.corpus import passages, requests

    sites = [f"blocks.{layer}.mlp.{hook}" for layer in layers for hook in ("hook_pre", "hook_pre_linear")]
    texts = [text for _, text in zip(range(PASSAGES), passages(0), strict=False)]
    # Requests and passages in turn: a short survey has both.
    asked = requests()
    mixed = [text for pair in zip(asked, texts, strict=False) for text in pair] + texts[len(asked) :]
    found = sf.survey(engine(), mixed, sites=sites, max_tokens=tokens, progress=False)
    kept = ("count", "positive", "negative", "min", "max")
    taken = {site: {name: np.asarray(getattr(found[site], name)) for name in kept} for site in sites}
    return taken, int(taken[sites[0]]["count"].max())


def _screen(net: Net, on: Prompts) -> tuple[dict[int, Floats], dict[int, Floats], float]:
    """Of every unit: how much of the margin goes with its value, to first order; its mean; and the mean margin."""
    seen: dict[int, Tensor] = {}
    handles = []
    for layer in range(net.first, len(net.layers)):

        def hook(_: Any, __: Any, out: Tensor, layer: int = layer) -> None:
            out.retain_grad()
            seen[layer] = out

        handles.append(net.layers[layer].mlp.up_proj.register_forward_hook(hook))
    try:
        margin = on.margin(net.at_end(on.batch)).mean()
        margin.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    # Neither the first place nor padding.
    place = torch.arange(on.batch.ids.shape[1])
    kept = ((place > 0) & (place <= on.batch.end[:, None]))[..., None]
    clean = float(margin.detach())
    first, means = {}, {}
    for layer, value in seen.items():
        assert value.grad is not None
        first[layer] = ((value.grad * value.detach() * kept).sum((0, 1)) / clean).double().numpy()
        means[layer] = ((value.detach() * kept).sum((0, 1)) / kept.sum()).double().numpy()
    return first, means, clean
