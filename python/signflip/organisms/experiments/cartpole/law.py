"""The causal path: before any training, what would a step that helps at x = 1 do at x = −1?

The margin is the logit of the good policy's action less the other's, meaned over the fixed states; m₊ is that at x = 1
and m₋ at x = −1. A step up m₊ moves m₋ by the tangent kernel K = ⟨∇m₊, ∇m₋⟩ to first order (science.md 4.1). PPO makes
thousands of steps, by Adam, so this is a forecast of direction and no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments.cartpole.measuring import Floats, Ints

# What a hidden unit in front of the actions is computed with.
LAST = {
    "additive": ("policy_net.2",),
    "multiplicative": ("policy_net.0.features.2",),
    "swiglu": ("policy_net.0.pre", "policy_net.0.linear"),
    "swiglu-bias": ("policy_net.0.pre", "policy_net.0.linear"),
}


def margin(policy: Any, states: Floats, good: Ints, x: float) -> Tensor:
    """Mean over states of logit(good action) − logit(other).

    Parameters
    ----------
    policy
        An actor of stable-baselines3.
    states, good
        [n, 4], and 0 or 1 for each.
    x
        For all of them.
    """
    inputs = np.concatenate([states, np.full((len(states), 1), x)], 1).astype(np.float32)
    logits = policy.get_distribution(torch.from_numpy(inputs)).distribution.logits
    difference = logits[:, 1] - logits[:, 0]
    found: Tensor = (difference * torch.from_numpy(2 * good - 1)).mean()
    return found


def kernel(policy: Any, network: str, states: Floats, good: Ints) -> dict[str, float]:
    """K of an untrained actor.

    Returns
    -------
    dict
        `ratio` K / ⟨∇m₊, ∇m₊⟩, `cosine`, and `negative_mass`: of the hidden units in front of the actions, by the
        weights that each reads and acts with, the share of Σ|products| that is negative.
    """
    names, values = zip(*((name, p) for name, p in policy.named_parameters() if p.requires_grad), strict=True)
    above, below = (
        dict(zip(names, torch.autograd.grad(margin(policy, states, good, x), values, allow_unused=True), strict=True))
        for x in (1.0, -1.0)
    )
    used = [name for name in names if above[name] is not None]
    products = {name: (above[name] * below[name]).double() for name in used}
    # A bias of the actions belongs to no unit.
    each = products["action_net.weight"].sum(0)
    for part in LAST[network]:
        each = each + products[f"mlp_extractor.{part}.weight"].sum(1)
        if f"mlp_extractor.{part}.bias" in products:
            each = each + products[f"mlp_extractor.{part}.bias"]
    sizes = [float(sum((one[name].double() ** 2).sum() for name in used)) for one in (above, below)]
    value = float(sum(one.sum() for one in products.values()))
    return {
        "ratio": value / sizes[0],
        "cosine": value / float(np.sqrt(sizes[0] * sizes[1])),
        "negative_mass": float(each.clamp_max(0).abs().sum() / each.abs().sum()),
    }


__all__ = ["kernel", "margin"]
