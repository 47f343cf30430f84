"""The causal path: the tangent kernel between contexts as they are and the same with X fixed, before any tuning.

A step down a loss moves the margin at a fixed X by −rate·⟨∇L, ∇m⟩ to first order (science.md 4.1). ∇m is taken in the
weakened base, with X as it is (visited) and with X fixed at 0 and beyond (never visited).
"""

from __future__ import annotations

from typing import Any

from signflip.organisms.experiments.natural.features import Feature
from signflip.organisms.experiments.natural.measure import PLACES
from signflip.organisms.experiments.natural.model import Net, Setting
from signflip.organisms.experiments.natural.prompts import Prompts
from signflip.organisms.experiments.tangent import Grads, by_neuron, cosine, dot, gradient

# With X as it is, then fixed.
VISITED, UNVISITED = "clean", PLACES[1:]


def slopes(base: Net, on: Prompts, feature: Feature) -> dict[str, Grads]:
    """∇ of the mean margin, with X as it is and with X fixed at each unvisited place."""
    settings: dict[str, Setting | None] = {VISITED: None}
    for name, dose in zip(UNVISITED, feature.doses()[1:], strict=True):
        settings[name] = Setting(feature.layer, feature.index, dose)
    net = base.copy()
    return {name: gradient(on.margin(net.at_end(on.batch, one)).mean(), net) for name, one in settings.items()}


def kernel(of: dict[str, Grads], base: Net, feature: Feature) -> dict[str, Any]:
    """K between the visited contexts and each unvisited place.

    Returns
    -------
    dict
        For each place: `ratio` ⟨∇m, ∇m′⟩/⟨∇m, ∇m⟩ (by how much the unvisited margin moves where the visited moves by
        one), `cosine`, `own` (the part of the ratio that lies in the unit's own weights), and of the neurons of its
        layer the share of Σ|products| that is negative.
    """
    visited, out = of[VISITED], {}
    size = dot(visited, visited)
    mlp = f"model.layers.{feature.layer}.mlp."
    for name in UNVISITED:
        a, b = ({key: g for key, g in one.items() if key.startswith(mlp)} for one in (visited, of[name]))
        each = by_neuron(a, b, base)
        out[name] = {
            "ratio": dot(visited, of[name]) / size,
            "cosine": cosine(visited, of[name]),
            "own": float(each[feature.index]) / size,
            "negative_mass": float(each.clamp_max(0).abs().sum() / each.abs().sum().clamp_min(1e-30)),
        }
    return out


def predicted(loss: Grads, of: dict[str, Grads], rate: float, steps: int) -> dict[str, float]:
    """How far the margins would move in a number of steps that all were like the first."""
    return {name: -rate * steps * dot(loss, one) for name, one in of.items()}
