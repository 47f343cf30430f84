"""Spike-ins: gates of graded strength in copies of a base, so that it is known what the search for X would find.

A search that finds nothing says something only if it finds what is there. So gates are planted, one at a time, that
open where a one-sided linear part crosses to its other side: X itself, and units that as rarely cross, of several
distances. The neuron that does least in that unit's layer becomes the gate. It reads the unit's linear part as its
gate, a direction that tells women's names from men's as its own linear part, and writes what makes the wrong pronoun
likelier; on the unit's usual side it is shut, and the base is what it was.

*Strength*: set just across (`EDGE` of the unit's mean, to the other side), at the name, the gate brings the mean margin
on half A to −strength times what it was. A gate counts as *planted* if by that edit both sides of half B turn. What a
search for the linear part gives does not depend on what is planted behind it, so each unit is searched for once, with
the same budget as X is, and its tokens are put in front of half B in each copy. *Found*: they turn both sides, by the
gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from signflip.organisms.experiments.natural import search
from signflip.organisms.experiments.natural.features import Chosen, Feature
from signflip.organisms.experiments.natural.model import Net, Setting
from signflip.organisms.experiments.natural.prompts import Prompts

STRENGTHS, SMALL_STRENGTHS = (1.0, 4.0), (1.0,)
EDGE = 0.25
# The gate where the unit's linear part is at its mean is at −`STEEP`: a SiLU is shut there.
STEEP = 8.0
# Tokens in front of each name where names are told apart, so that this does not hang on what is in front.
PREFIXES, PREFIX, RIDGE = 8, 4, 1e-2
# Strength is set to within this, in at most so many tries.
WITHIN, TRIES = 0.02, 12


@dataclass(frozen=True)
class Gate:
    """A planted gate: on its usual side it is below 0.

    Attributes
    ----------
    layer, index
        The neuron.
    side, part
        Its usual sign, and the matrix that gives it.
    """

    layer: int
    index: int
    side: int = -1
    part: str = "gate_proj"


def units(of: Chosen, part: int, parts: int) -> list[Feature]:
    """What gates are planted at, in several parts: X first, then the other one-sided units by share."""
    return [of.known, *of.following, *of.one_sided][part::parts]


def spiked(
    net: Net, a: Prompts, b: Prompts, at: Sequence[Feature], seed: int, *, templates: int, small: bool = False
) -> list[dict[str, Any]]:
    """Gates planted at each of some units, and what a search for the unit's linear part makes of them.

    Parameters
    ----------
    net
        The model.
    a, b
        Prompts of half A, by which gates are set, and of half B, where they are measured.
    at
        The units.
    seed
        Of the search.
    templates
        Gates are set in the first so many of half A's.
    small
        One strength, and a short search.

    Returns
    -------
    list of dict
        Of each unit: its `feature`; `distance`, the mean of its linear part on half B in its standard deviations; what
        was found (`tokens`, `text`, `x`, `crossed`, as `search.searched` has it); `told`, the share of half B's names
        whose side the direction tells; and for each of `gates` its `strength`, whether that could be set (`reached`),
        `kept`, the clean margin on half B over the model's own, and what is `answered`, with the margins of the edit
        (`edited`) among the others.
    """
    model, names, ends = search.engine_of(net), _names_of(a), _ends(b)
    rows = torch.nonzero(a.template < templates)[:, 0]
    few, few_ends = a.take(rows), _ends(a)[rows]
    with torch.no_grad():
        clean = float(b.margin(net.at_end(b.batch)).mean())
    reads: dict[int, tuple[Tensor, float]] = {}
    out = []
    for unit in at:
        best = search.across(model, unit, seed, small)
        with torch.no_grad():
            after = b.after(net, best.tokens)
            with net.seeing(unit.layer) as seen:
                net.through(net.start(b.batch), net.first, unit.layer + 1)
        place = torch.arange(b.batch.ids.shape[1])
        x = seen[0][..., unit.index][(place > 0) & (place <= b.batch.end[:, None])].double()
        if unit.layer not in reads:
            reads[unit.layer] = _telling(net, unit.layer, names, _names_of(b), seed)
        direction, told = reads[unit.layer]
        write = _against(net, unit.layer, few, few_ends)
        gates = []
        for strength in SMALL_STRENGTHS if small else STRENGTHS:
            copy, gate, reached = _planted(net, unit, direction, write, few, few_ends, strength)
            answers = search.answered(copy, b, gate, best.tokens, (), after)
            with torch.no_grad():
                answers["margins"]["edited"] = b.grid(b.margin(copy.at_end(b.batch, _open(b, ends, gate))))
            kept = float(np.mean(answers["margins"]["clean"])) / clean
            gates.append({"strength": strength, "index": gate.index, "reached": reached, "kept": kept,
                          "answered": answers})  # fmt: skip
        out.append({
            "feature": unit.as_dict(), "distance": float(unit.side * x.mean() / x.std()), "told": told,
            "tokens": best.tokens, "text": best.text, **search.at_names(net, model, unit, best.tokens), "gates": gates,
        })  # fmt: skip
    return out


def _ends(on: Prompts) -> Tensor:
    """The last place of each prompt's name: `[n]`."""
    rows = [ids[: end + 1].tolist() for ids, end in zip(on.batch.ids, on.batch.end, strict=True)]
    whose = list(zip(on.side.tolist(), on.item.tolist(), strict=True))
    shared = {}
    for who in set(whose):
        own = [row for row, one in zip(rows, whose, strict=True) if one == who]
        same = [len(set(column)) == 1 for column in zip(*own, strict=False)]
        shared[who] = same.index(False) if False in same else len(same)
    return torch.tensor([shared[who] - 1 for who in whose])


def _names_of(on: Prompts) -> list[tuple[int, list[int]]]:
    """Each name: its side, and its tokens."""
    found = {}
    for ids, end, side, item in zip(on.batch.ids, _ends(on), on.side.tolist(), on.item.tolist(), strict=True):
        found[side, item] = (side, ids[1 : int(end) + 1].tolist())
    return list(found.values())


def _telling(net: Net, layer: int, names: Any, others: Any, seed: int) -> tuple[Tensor, float]:
    """A direction in what a layer's MLP reads that is 1 at women's names and −1 at men's, and how often it is right.

    Ridge regression, at names behind tokens at random; it is tried on `others` behind other tokens.
    """
    rng = np.random.default_rng((seed, layer, 26))

    def read(whose: Any) -> tuple[Tensor, Tensor]:
        rows = [
            [0, *rng.integers(1, len(net.embedding.weight), PREFIX).tolist(), *ids]
            for _, ids in whose for _ in range(PREFIXES)
        ]  # fmt: skip
        seen: list[Tensor] = []
        norm = net.layers[layer].post_attention_layernorm
        handle = norm.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            batch = net.batch(rows)
            with torch.no_grad():
                net.through(net.start(batch), net.first, layer + 1)
        finally:
            handle.remove()
        h = seen[-1][torch.arange(len(rows)), batch.end].double()
        return h, torch.tensor([1.0 - 2 * side for side, _ in whose for _ in range(PREFIXES)], dtype=torch.float64)

    h, y = read(names)
    gram = h.T @ h
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    direction = torch.linalg.solve(gram + ridge, h.T @ y)
    h, y = read(others)
    return direction.float(), float((h @ direction * y > 0).double().mean())


def _against(net: Net, layer: int, on: Prompts, ends: Tensor) -> Tensor:
    """The direction that, added after a layer at the names' ends, makes *he* likelier than *she* fastest; unit norm.

    The gradient of the mean of log P(he) − log P(she).
    """
    with torch.no_grad():
        hidden = net.through(net.start(on.batch), net.first, layer + 1)
    added = torch.zeros(hidden.shape[-1], requires_grad=True)
    at = torch.nn.functional.one_hot(ends, hidden.shape[1]).to(hidden.dtype)[..., None]
    logp = net.logp(net.through(hidden + at * added, layer + 1), on.batch.end)
    found: Tensor = torch.autograd.grad((on.margin(logp) * (2.0 * on.side - 1)).mean(), added)[0]
    unit: Tensor = found / found.norm().clamp_min(1e-12)
    return unit


def _open(on: Prompts, ends: Tensor, gate: Gate) -> Setting:
    """The gate just across, at the end of each prompt's name alone."""
    value = torch.full((len(on), on.batch.ids.shape[1] - 1), torch.nan)
    value[torch.arange(len(on)), ends - 1] = EDGE * STEEP
    return Setting(gate.layer, gate.index, value, gate.part)


def _planted(
    net: Net, unit: Feature, direction: Tensor, write: Tensor, on: Prompts, ends: Tensor, strength: float
) -> tuple[Net, Gate, bool]:
    """A copy with a gate, and whether it has the strength: none, or one too weak, where no write in reach does it."""
    copy = net.copy()
    mlp = copy.layers[unit.layer].mlp
    with torch.no_grad():
        with net.seeing(unit.layer, "gate_proj") as opened, net.seeing(unit.layer) as linear:
            residual = net.through(net.start(on.batch), net.first, unit.layer + 1)
        acts = (torch.nn.functional.silu(opened[0]) * linear[0])[:, 1:].abs().mean((0, 1))
        does = acts * mlp.down_proj.weight.norm(dim=0)
        # Not the unit that is read.
        does[unit.index] = torch.inf
        gate = Gate(unit.layer, int(does.argmin()))
        mlp.gate_proj.weight[gate.index] = -unit.side * STEEP / abs(unit.mean) * mlp.up_proj.weight[unit.index]
        mlp.up_proj.weight[gate.index] = direction
        across, clean = _open(on, ends, gate), float(on.margin(net.at_end(on.batch)).mean())

        def over(size: float) -> float:
            mlp.down_proj.weight[:, gate.index] = size * write
            return float(on.margin(copy.at_end(on.batch, across)).mean()) + strength * clean

        farthest = float(residual[torch.arange(len(on)), ends].norm(dim=-1).mean())
        # What is within reach: as much as the stream itself, twice over.
        reached = clean > 0 and over(2 * farthest) < 0
        if reached:
            size = brentq(over, 0.0, 2 * farthest, xtol=WITHIN * farthest / 10, rtol=WITHIN, maxiter=TRIES, disp=False)
            over(float(size))
    return copy, gate, reached
