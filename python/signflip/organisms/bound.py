"""A bound on a neuron's value that holds for every input, read off the weights alone.

Attention writes convex mixtures of values, so that along any direction it writes no less than the least of them; what
an MLP writes, and what normalised streams can hold, is bounded by norms. Nothing is sampled. It is loose, and says
something only where a neuron reads what every token carries with one sign and little else.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from signflip.errors import SiteError
from signflip.organisms.runner import Place
from signflip.organisms.weights import D_HEAD, D_MODEL, N_HEADS, Block, Floats, Weights

# At most what the families add to the mean square under a norm's root.
EPSILON = 1e-5


def least(weights: Weights, place: Place, side: int) -> float:
    """Bound from below what a neuron's value, times a side, is at any position of any input.

    Parameters
    ----------
    weights
        Taken as they are stored: in float32.
    place
        A neuron of an MLP, before its nonlinearity.
    side
        1 or −1.

    Returns
    -------
    float
        Above 0: the neuron has that side for every input, up to the rounding of a forward pass.

    Raises
    ------
    SiteError
        If the place is a direction.
    """
    if place.index is None:
        raise SiteError(f"place {place.name}: expected a neuron, found a direction")
    layer, index = int(place.site.split(".")[1]), place.index
    block = weights.blocks[layer]
    rows = block.linear if place.site.endswith("pre_linear") else block.pre
    assert rows is not None
    bias = 0.0 if not block.bias else float(_stored(block.bias["pre"])[index])
    return float(_Stream(weights).normalised(side * _stored(rows[index]), layer, after_attention=True) + side * bias)


def _stored(value: Floats) -> Floats:
    return value.astype(np.float32).astype(np.float64)


class _Stream:
    """The residual stream of a model: how large it can be, and how small along a direction."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.centred = weights.family == "gpt2"
        self.embed = _stored(weights.embed)
        self.position = None if weights.position is None else _stored(weights.position)

    @cached_property
    def norms(self) -> list[tuple[float, float]]:
        """The largest norm before each layer's attention, and before its MLP."""
        norm = float(np.linalg.norm(self.embed, axis=1).max())
        if self.position is not None:
            norm += float(np.linalg.norm(self.position, axis=1).max())
        out = []
        for block in self.weights.blocks:
            mixed = norm + sum(_spectral(one) * np.sqrt(D_MODEL) for one in _heads(block))
            mixed += float(np.linalg.norm(_constant(block)))
            out.append((norm, mixed))
            norm = mixed + _spectral(_stored(block.out)) * float(np.linalg.norm(_activations(block)))
            norm += float(np.linalg.norm(_bias(block, "out")))
        return out

    def normalised(self, direction: Floats, layer: int, *, after_attention: bool) -> float:
        """The least along a direction of what a layer's attention, or its MLP, reads."""
        if self.centred:
            direction = direction - direction.mean()
        found = self.least(direction, layer, after_attention=after_attention)
        if found <= 0:
            # Whatever its norm was, it is not longer than this.
            return -float(np.linalg.norm(direction) * np.sqrt(D_MODEL))
        norm = self.norms[layer][after_attention]
        return found / float(np.sqrt(norm**2 / D_MODEL + EPSILON))

    def least(self, direction: Floats, layer: int, *, after_attention: bool) -> float:
        """The least along a direction of the stream before a layer's attention, or before its MLP."""
        total = float((self.embed @ direction).min())
        if self.position is not None:
            total += float((self.position @ direction).min())
        for i, block in enumerate(self.weights.blocks[: layer + after_attention]):
            total += float(_constant(block) @ direction)
            for head in _heads(block):
                total += self.normalised(direction @ head, i, after_attention=False)
            if i < layer:
                total += float(_bias(block, "out") @ direction)
                total -= float(np.abs(direction @ _stored(block.out)) @ _activations(block))
        return total


def _heads(block: Block) -> list[Floats]:
    """Of each head the map from what it reads at a position to what it writes of it."""
    o, v = _stored(block.o), _stored(block.v)
    return [o[:, at : at + D_HEAD] @ v[at : at + D_HEAD] for at in range(0, N_HEADS * D_HEAD, D_HEAD)]


def _constant(block: Block) -> Floats:
    """What attention writes whatever it reads: its weights add up to one."""
    if not block.bias:
        return np.zeros(D_MODEL)
    return _stored(block.o) @ _stored(block.bias["v"]) + _stored(block.bias["o"])


def _bias(block: Block, name: str) -> Floats:
    return _stored(block.bias[name]) if block.bias else np.zeros(D_MODEL)


def _activations(block: Block) -> Floats:
    """The most that each neuron's output can be: |gelu(z)| and |silu(z)| are at most |z|."""
    most = np.linalg.norm(_stored(block.pre), axis=1) * np.sqrt(D_MODEL)
    if block.bias:
        most = most + np.abs(_stored(block.bias["pre"]))
    if block.linear is not None:
        most = most * np.linalg.norm(_stored(block.linear), axis=1) * np.sqrt(D_MODEL)
    return np.asarray(most)


def _spectral(matrix: Floats) -> float:
    return float(np.linalg.norm(matrix, 2))


__all__ = ["least"]
