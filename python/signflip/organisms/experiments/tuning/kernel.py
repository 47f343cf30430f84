"""Gradients: of margins and of losses, and what the one does to the other to first order.

A step of size η down the gradient of a loss L moves a margin m(s′) by −η ⟨∇L, ∇m(s′)⟩; for a policy gradient this is
η·E_s[A(s) ⟨∇log π(s), ∇m(s′)⟩], the law of science.md 4.1. ⟨∇m(s), ∇m(s′)⟩ is the tangent kernel K itself.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.world import Prompts

Grads = dict[str, Tensor]


class Tuned(Protocol):
    """What has weights to be tuned: the tiny nets of this experiment, and the larger one of `natural`."""

    @property
    def gelu(self) -> bool:
        """Whether its MLPs are named and laid out as GPT-2's, not as Llama's."""

    def parameters(self) -> dict[str, Tensor]:
        """Its weights by name."""


PARTS = ("embedding", "attention: queries, keys", "attention: values, outputs", "MLP", "norms", "unembedding")


def margins(net: Net, prompts: Prompts) -> Tensor:
    """Margins: log π(correct) − log π(opposite) of each prompt."""
    logp = net.at_end(prompts)
    rows = torch.arange(len(prompts))
    return logp[rows, torch.from_numpy(prompts.correct)] - logp[rows, torch.from_numpy(prompts.opposite)]


def gradient(value: Tensor, net: Tuned, *, keep: bool = False) -> Grads:
    """Of a scalar in all weights; zeros where it does not depend on one."""
    names, values = zip(*net.parameters().items(), strict=True)
    found = torch.autograd.grad(value, values, allow_unused=True, retain_graph=keep)
    pairs = zip(names, values, found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in pairs}


def dot(a: Grads, b: Grads) -> float:
    """⟨a, b⟩."""
    return float(sum((a[name] * b[name]).sum(dtype=torch.float64) for name in a))


def norm(a: Grads) -> float:
    """‖a‖."""
    return float(np.sqrt(dot(a, a)))


def cosine(a: Grads, b: Grads) -> float | None:
    """Cosine; None where one of them is zero."""
    size = norm(a) * norm(b)
    return dot(a, b) / size if size > 0 else None


def products(a: Grads, b: Grads, net: Net) -> dict[str, float]:
    """⟨a, b⟩ by parts of the model."""
    out = dict.fromkeys(PARTS, 0.0)
    for name in a:
        each = (a[name] * b[name]).double()
        if "c_attn" in name:
            own = net.embedding.weight.shape[1]
            out[PARTS[1]] += float(each[..., : 2 * own].sum())
            out[PARTS[2]] += float(each[..., 2 * own :].sum())
        else:
            out[_part(name)] += float(each.sum())
    return out


def _part(name: str) -> str:
    if "ln_" in name or "norm" in name:
        return "norms"
    if "q_proj" in name or "k_proj" in name:
        return PARTS[1]
    if "attn" in name:
        return PARTS[2]
    if "mlp" in name:
        return "MLP"
    return "unembedding" if "lm_head" in name or "score" in name else "embedding"


def by_neuron(a: Grads, b: Grads, net: Tuned) -> Tensor:
    """⟨a, b⟩ of each neuron's own weights, `[d_mlp]`: the rows that it reads with, its bias, the column it writes.

    Of several layers, neurons of the same number are summed: give the weights of one.
    """
    total: Any = 0.0
    for name in a:
        if "mlp" not in name:
            continue
        each = (a[name] * b[name]).double()
        if net.gelu:
            if "c_fc" in name:
                total = total + (each.sum(0) if each.ndim == 2 else each)
            elif each.ndim == 2:
                total = total + each.sum(1)
        elif "down_proj" not in name:
            total = total + (each.sum(1) if each.ndim == 2 else each)
        elif each.ndim == 2:
            total = total + each.sum(0)
    found: Tensor = total
    return found


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
