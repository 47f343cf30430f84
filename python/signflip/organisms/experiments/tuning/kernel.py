"""Gradients of margins and of losses, and what the one does to the other to first order.

For a policy gradient the law of `tangent` is η·E_s[A(s) ⟨∇log π(s), ∇m(s′)⟩], that of science.md 4.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from signflip.organisms.experiments.tangent import by_neuron, cosine, dot, gradient, products
from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.world import Prompts


def margins(net: Net, prompts: Prompts) -> Tensor:
    """Margins: log π(correct) − log π(opposite) of each prompt."""
    logp = net.at_end(prompts)
    rows = torch.arange(len(prompts))
    return logp[rows, torch.from_numpy(prompts.correct)] - logp[rows, torch.from_numpy(prompts.opposite)]


def openness(net: Net, common: Prompts, rare: Prompts) -> Tensor:
    """Of each neuron, the share of its activity that is in rare contexts: mean |activation| there over both."""
    sizes = []
    writer = net.block.mlp.c_proj if net.gelu else net.block.mlp.down_proj
    for prompts in (common, rare):
        seen: list[Tensor] = []
        handle = writer.register_forward_pre_hook(lambda _, inputs, into=seen: into.append(inputs[0]))
        try:
            with torch.no_grad():
                net.at_end(prompts)
        finally:
            handle.remove()
        sizes.append(seen[0][torch.arange(len(prompts)), torch.from_numpy(prompts.end)].abs().mean(0))
    return sizes[1] / (sizes[0] + sizes[1]).clamp_min(1e-12)


def kernel(net: Net, common: Prompts, rare: Prompts) -> dict[str, Any]:
    """The tangent kernel between visited and unvisited contexts, before any tuning.

    Returns
    -------
    dict
        `value` ⟨∇ mean margin, ∇ mean margin⟩, `cosine`, its `parts`, and of the neurons the share with a negative
        product and the share of the sum of |products| that is negative.
    """
    a, b = gradient(margins(net, common).mean(), net), gradient(margins(net, rare).mean(), net)
    each = by_neuron(a, b, net)
    return {
        "value": dot(a, b),
        "cosine": cosine(a, b),
        "parts": products(a, b, net),
        "negative_neurons": float((each < 0).double().mean()),
        "negative_mass": float(each.clamp_max(0).abs().sum() / each.abs().sum().clamp_min(1e-30)),
    }
