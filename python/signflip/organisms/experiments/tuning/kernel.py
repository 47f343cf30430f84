"""Gradients of margins and of losses, and what the one does to the other to first order.

For a policy gradient the law of `tangent` is η·E_s[A(s) ⟨∇log π(s), ∇m(s′)⟩], that of science.md 4.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments.statistics import pearson
from signflip.organisms.experiments.tangent import Grads, by_neuron, cosine, dot, gradient, next_neuron, products
from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.world import Prompts


def margins(net: Net, prompts: Prompts) -> Tensor:
    """Margins: log π(correct) − log π(opposite) of each prompt."""
    logp = net.at_end(prompts)
    rows = torch.arange(len(prompts))
    return logp[rows, torch.from_numpy(prompts.correct)] - logp[rows, torch.from_numpy(prompts.opposite)]


def openness(net: Net, common: Prompts, rare: Prompts) -> Tensor:
    """Of each neuron, the share of its activity that is in rare contexts: mean |activation| there over both."""
    sizes = [_activations(net, prompts).abs().mean(0) for prompts in (common, rare)]
    return sizes[1] / (sizes[0] + sizes[1]).clamp_min(1e-12)


def _writer(net: Net) -> Any:
    return net.block.mlp.c_proj if net.gelu else net.block.mlp.down_proj


def _activations(net: Net, prompts: Prompts) -> Tensor:
    """What the last MLP's neurons are at the end of each prompt, `[n, d_mlp]`."""
    seen: list[Tensor] = []
    handle = _writer(net).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            net.at_end(prompts)
    finally:
        handle.remove()
    return seen[0]


def units(before: Net, after: Net, common: Prompts, rare: Prompts) -> dict[str, float]:
    """How the change of the mean margin in rare contexts splits over the last MLP's neurons i, about the base.

    To first order neuron i's change Δv_i of what it writes moves the margin by E[a_i ⟨Δv_i, ∇m⟩], ∇m in the MLP's
    output (science.md 4.4, "delta_v · direction × sign(a)"). That is ⟨Δv_i, ∇_{v_i} mean margin⟩: nothing is computed
    of what the MLP writes at other positions, as there is one layer.

    Returns
    -------
    dict
        Neurons are of opposite sign if their mean activations in common and in rare contexts are. `neurons`: their
        share; `share`: theirs of the sum of |contributions|; `opposite`, `same`: summed contributions, nats. Of all:
        `net`, |sum| over the sum of |contributions|, 0 where they cancel; `spread`, the participation ratio
        (Σ|c|)² / (n Σc²), 1 where every neuron has the same part.
    """
    weight = _writer(before).weight
    (by,) = torch.autograd.grad(margins(before, rare).mean(), weight)
    delta = (_writer(after).weight - weight).detach()
    each = (by * delta).double().sum(1 if before.gelu else 0)
    opposite = _activations(before, common).mean(0) * _activations(before, rare).mean(0) < 0
    size = each.abs().sum().clamp_min(1e-30)
    return {
        "neurons": float(opposite.double().mean()),
        "share": float(each[opposite].abs().sum() / size),
        "opposite": float(each[opposite].sum()),
        "same": float(each[~opposite].sum()),
        "net": float(each.sum().abs() / size),
        "spread": float(size.square() / (len(each) * each.square().sum().clamp_min(1e-30))),
    }


def neurons(before: Net, after: Net, m_common: Grads, m_rare: Grads) -> dict[str, float | None]:
    """The law neuron by neuron: whether what the kernel says of a neuron's own weights is what they did.

    Of neuron i of the last MLP, ⟨∇_i m, ∇_i m′⟩ before the tuning (m, m′ mean margins in common and in rare contexts)
    against ⟨Δ_i, ∇_i m′⟩, what the change Δ_i of its weights does to m′ to first order.

    Returns
    -------
    dict
        `pearson` over neurons; `other`, the same with every neuron's ∇_i m replaced by the next one's, which tells
        what ∇_i m′, in both, gives by itself; `same`: of the sum of |⟨Δ_i, ∇_i m′⟩| the share of neurons where both
        have one sign. None where nothing changed.
    """
    now = after.parameters()
    delta = {name: (now[name] - p).detach() for name, p in before.parameters().items()}
    said, came, of_next = (
        by_neuron(one, m_rare, before).tolist() for one in (m_common, delta, next_neuron(m_common, before))
    )
    agree, control, size = pearson(said, came), pearson(of_next, came), sum(map(abs, came))
    same = sum(abs(b) for a, b in zip(said, came, strict=True) if a * b > 0)
    return {
        "pearson": agree if np.isfinite(agree) else None,
        "other": control if np.isfinite(control) else None,
        "same": same / size if size > 0 else None,
    }


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
