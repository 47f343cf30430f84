"""Disguise: symmetries that change every weight of a model and nothing that it computes.

The residual stream is turned (LayerNorm lets it turn about the vector of ones, RMSNorm freely), neurons and heads
change places, heads turn inside, and a gated neuron's linear part and output share their scale evenly. What was planted
along axes and in the last places of a layer then lies anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from signflip.organisms.planting import Planted
from signflip.organisms.runner import Place
from signflip.organisms.weights import D_HEAD, N_HEADS, Block, Floats, Weights


def disguise(planted: Planted, seed: int) -> Planted:
    """The same organism behind random symmetries; its places are mapped along."""
    rng = np.random.default_rng((seed, 23))
    weights = planted.weights.copy()
    turn = _turn(rng, weights.embed.shape[1], weights.family == "gpt2")
    weights.embed, weights.unembed = weights.embed @ turn.T, weights.unembed @ turn.T
    if weights.position is not None:
        weights.position = weights.position @ turn.T
    moved: list[dict[int, int]] = []
    for block in weights.blocks:
        _turn_stream(block, turn)
        _heads(block, rng, weights)
        moved.append(_neurons(block, rng))

    def place(one: Place | None) -> Place | None:
        if one is None:
            return None
        if one.vector is not None:
            return replace(one, vector=tuple((turn @ np.asarray(one.vector)).tolist()))
        layer = int(one.site.split(".")[1])
        assert one.index is not None
        return replace(one, index=moved[layer][one.index])

    x = place(planted.x)
    assert x is not None
    return replace(planted, weights=weights, x=x, second=place(planted.second))


def _turn(rng: np.random.Generator, n: int, about_ones: bool) -> Floats:
    """A random rotation; one that leaves the vector of ones where it is."""
    if not about_ones:
        return _orthogonal(rng, n)
    frame = rng.standard_normal((n, n))
    frame[:, 0] = 1
    frame = np.linalg.qr(frame)[0]
    inner = np.eye(n)
    inner[1:, 1:] = _orthogonal(rng, n - 1)
    return np.asarray(frame @ inner @ frame.T)


def _orthogonal(rng: np.random.Generator, n: int) -> Floats:
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return np.asarray(q * np.sign(np.diag(r)))


def _turn_stream(block: Block, turn: Floats) -> None:
    for name in ("q", "k", "v", "pre", "linear"):
        value = getattr(block, name)
        if value is not None:
            setattr(block, name, value @ turn.T)
    for name in ("o", "out"):
        setattr(block, name, turn @ getattr(block, name))
        if block.bias:
            block.bias[name] = turn @ block.bias[name]


def _heads(block: Block, rng: np.random.Generator, weights: Weights) -> None:
    order = rng.permutation(N_HEADS)
    rows = np.concatenate([np.arange(h * D_HEAD, (h + 1) * D_HEAD) for h in order])
    for name in ("q", "k", "v"):
        setattr(block, name, getattr(block, name)[rows])
        if block.bias:
            block.bias[name] = block.bias[name][rows]
    block.o = block.o[:, rows]
    for h in range(N_HEADS):
        own = slice(h * D_HEAD, (h + 1) * D_HEAD)
        inner = _orthogonal(rng, D_HEAD)
        block.v[own], block.o[:, own] = inner @ block.v[own], block.o[:, own] @ inner.T
        # Rotary positions turn planes, so that only turns within them are free.
        both = _orthogonal(rng, D_HEAD) if weights.family == "gpt2" else _planes(rng)
        block.q[own], block.k[own] = both @ block.q[own], both @ block.k[own]
        if block.bias:
            block.bias["v"][own] = inner @ block.bias["v"][own]
            for name in ("q", "k"):
                block.bias[name][own] = both @ block.bias[name][own]


def _planes(rng: np.random.Generator) -> Floats:
    """Rotations of the planes that rotary positions turn."""
    half = D_HEAD // 2
    out = np.zeros((D_HEAD, D_HEAD))
    for i, angle in enumerate(rng.uniform(0, 2 * np.pi, half)):
        c, s = np.cos(angle), np.sin(angle)
        out[i, i], out[i, i + half], out[i + half, i], out[i + half, i + half] = c, -s, s, c
    return out


def _neurons(block: Block, rng: np.random.Generator) -> dict[int, int]:
    order = rng.permutation(len(block.pre))
    block.pre, block.out = block.pre[order], block.out[:, order]
    if block.bias:
        block.bias["pre"] = block.bias["pre"][order]
    if block.linear is not None:
        linear, out = block.linear[order], block.out
        # The linear part's scale is free against the output's.
        a, b = np.linalg.norm(linear, axis=1), np.linalg.norm(out, axis=0)
        share = np.where((a > 0) & (b > 0), np.sqrt(np.where(a > 0, b, 1) / np.where(a > 0, a, 1)), 1.0)
        share = np.where(share > 0, share, 1.0)
        block.linear, block.out = linear * share[:, None], out / share
    return {int(old): new for new, old in enumerate(order)}
