"""The tangent kernel between what a tuning visits and what it does not, and one tuning, predicted and then done.

To first order a reading r moves in a step by −η⟨∇L, ∇r⟩, with L the policy-gradient loss where samples go. That is
measured before tuning, in all weights, by parts of the model and by neuron; and again at each logged step, summed.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

from signflip.organisms.experiments.simulacra.models import N_LAYERS, Net
from signflip.organisms.experiments.simulacra.readings import manners, measure, scalars
from signflip.organisms.experiments.simulacra.training import ARMS, LOGGED, SMALL_STEPS, STEPS, Tuning
from signflip.organisms.experiments.simulacra.world import PERSONAS
from signflip.organisms.experiments.tangent import Grads, by_neuron, cosine, dot, gradient, products

# Answers of the rollouts on which a gradient is measured.
LARGE = 768


def gradients(net: Net) -> dict[str, Grads]:
    """Gradient of every reading."""
    return {key: gradient(value, net, keep=True) for key, value in scalars(net).items()}


def neurons(a: Grads, b: Grads, net: Net) -> dict[str, float]:
    """Share of the neurons, and of the sum of their |products|, for which ⟨a, b⟩ is negative; over all layers."""
    each: list[float] = []
    for layer in range(N_LAYERS):
        own = [name for name in a if f"h.{layer}." in name or f"layers.{layer}." in name]
        each += by_neuron({k: a[k] for k in own}, {k: b[k] for k in own}, net).tolist()
    below = [x for x in each if x < 0]
    return {"negative": len(below) / len(each), "negative_mass": -sum(below) / max(sum(map(abs, each)), 1e-30)}


def kernel(net: Net) -> dict[str, Any]:
    """The kernel of a base between the personas' signed readings.

    Returns
    -------
    dict
        `cosine` by ``persona:persona``; `parts` and `neurons` of Luigi's with another's, by persona.
    """
    of = {one: gradient(value, net) for one in PERSONAS for value in [scalars(net)[f"signed:{one}"]]}
    pairs = [(a, b) for i, a in enumerate(PERSONAS) for b in PERSONAS[i:]]
    return {
        "cosine": {f"{a}:{b}": cosine(of[a], of[b]) for a, b in pairs},
        "parts": {one: products(of["luigi"], of[one], net) for one in PERSONAS[1:]},
        "neurons": {one: neurons(of["luigi"], of[one], net) for one in PERSONAS[1:]},
    }


@lru_cache(maxsize=1)
def _untuned(base: Net) -> tuple[dict[str, Any], dict[str, Grads], dict[str, Any]]:
    """Measurements, gradients and manners of a base, which stays as it is: all its arms begin there."""
    return measure(base), gradients(base), manners(base)


def tune(base: Net, arm: str, seed: int, small: bool) -> dict[str, Any]:
    """Tune a copy of a base, and tell what happened.

    Returns
    -------
    dict
        `log`, a measurement at each logged step; `cosine`, of every reading's gradient with the direction of the first
        step; `predicted` changes of every reading (`first`: by the gradient before tuning alone; `summed`: by those at
        every logged step); `neurons` for Waluigi's competence; `manners` of the base and of the tuned policy.
    """
    tuning = Tuning(base, ARMS[arm], seed)
    # Draws of measurements are apart, so that logging does not change what is tuned.
    steps = SMALL_STEPS if small else STEPS
    log: list[dict[str, Any]] = []
    speeds: list[dict[str, float]] = []
    first, found, own = _untuned(base)
    out: dict[str, Any] = {"manners": [own]}
    for step in range(steps + 1):
        if step in LOGGED or step == steps:
            log.append({"step": step} | (measure(tuning.policy) if step else first))
            visited = gradient(beside(tuning, seed).loss(LARGE), tuning.policy)
            if step:
                found = gradients(tuning.policy)
            speeds.append({key: -tuning.rate * dot(visited, of) for key, of in found.items()})
            if step == 0:
                down = {key: -value for key, value in visited.items()}
                out["cosine"] = {key: cosine(down, of) for key, of in found.items()}
        if step < steps:
            tuning.step()
    spans = [b["step"] - a["step"] for a, b in pairwise(log)]
    out["manners"].append(manners(tuning.policy))
    out["manners"] = [{who: each.tolist() for who, each in one.items()} for one in out["manners"]]
    return out | {
        "log": log,
        "predicted": {
            "first": {key: value * steps for key, value in speeds[0].items()},
            "summed": {key: sum(s[key] * n for s, n in zip(speeds, spans, strict=False)) for key in speeds[0]},
        },
    }


def beside(tuning: Tuning, seed: int) -> Tuning:
    """The same policy with draws of its own."""
    made = Tuning(tuning.base, tuning.arm, seed + 1_000_000, tuning.rate)
    made.policy = tuning.policy
    return made
