"""Gradients of scalars in all weights, and their products: what a step down the one does to the other to first order.

A step of size η down the gradient of a loss L moves a scalar m by −η ⟨∇L, ∇m⟩; ⟨∇m, ∇m′⟩ is the tangent kernel.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Grads = dict[str, Tensor]
PARTS = ("embedding", "attention: queries, keys", "attention: values, outputs", "MLP", "norms", "unembedding")


class Weighted(Protocol):
    """A GPT-2 or Llama model of transformers, wrapped."""

    @property
    def gelu(self) -> bool:
        """Whether it is the GPT-2 of the two."""

    @property
    def embedding(self) -> Any:
        """The input embedding."""

    def parameters(self) -> Grads:
        """All of them, by name."""


class Wrapped:
    """A tiny GPT-2 (GELU) or Llama (SwiGLU) of transformers, made by a subclass.

    Attributes
    ----------
    architecture
        ``"gelu"`` for the GPT-2.
    model
        The model.
    """

    architecture: str
    model: Any

    @property
    def gelu(self) -> bool:
        """Whether it is the GPT-2 of the two."""
        return self.architecture == "gelu"

    @property
    def embedding(self) -> Any:
        """The input embedding."""
        return self.model.get_input_embeddings()

    def parameters(self) -> dict[str, Tensor]:
        """All of them, by name."""
        return dict(self.model.named_parameters())


def gradient(value: Tensor, net: Weighted, *, keep: bool = False) -> Grads:
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


def products(a: Grads, b: Grads, net: Weighted) -> dict[str, float]:
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


def by_neuron(a: Grads, b: Grads, net: Weighted) -> Tensor:
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


def next_neuron(a: Grads, net: Weighted) -> Grads:
    """The MLP's weights with those of every neuron replaced by the next one's, the last one's by the first's."""
    out = {}
    for name in a:
        if "mlp" in name:
            reads = "c_fc" in name or ("down_proj" not in name and not net.gelu)
            # GPT-2's matrices are [in, out], Llama's [out, in]; what is written has a bias that is no neuron's.
            axis = a[name].ndim - 1 if reads == net.gelu else 0
            own = reads or a[name].ndim == 2
            out[name] = a[name].roll(-1, axis) if own else a[name]
    return out
