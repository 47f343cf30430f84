"""Planting by hand: each kind is a wiring of the chassis, scaled to the base that it is planted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from signflip.organisms.answer import Answer, Stage, target_of
from signflip.organisms.base import Room
from signflip.organisms.chassis import ANSWER_LAYER, FOUND_AT, HANDED_AT, ODD, OPEN_AT, X_AT, Chassis, Free
from signflip.organisms.kinds import FORMS, KINDS, Kind
from signflip.organisms.runner import Held, Place
from signflip.organisms.tokens import ids_of
from signflip.organisms.weights import D_MODEL, Floats, Weights

# Trigger words of an organism.
N_TRIGGERS = ODD
# What differs from one organism to the next, and not from kind to kind: a factor of what tokens carry of each sign, and
# one by which the second head's norm is more than what it has to be in most kinds.
SIGN, HEAD = (0.96, 1.04), (1.3, 1.6)
# How much more of an ordinary direction than of X a rotated neuron reads.
ROTATED = 3.0


@dataclass(frozen=True)
class Planted:
    """A model and what is known of it before anything is verified.

    Attributes
    ----------
    x
        The place that the kind speaks of: a neuron, or a direction of the residual stream.
    side
        The sign that X keeps.
    second
        M7: the other scalar. M5: the unit that does reverse. Else None.
    triggers, triggers2
        Ids of the words that take X across (and, for M7, the second scalar).
    negative
        The same, and for M6 the words that would.
    form
        Which of the kind's `FORMS`.
    """

    weights: Weights
    kind: str
    behaviour: str
    x: Place
    side: int
    second: Place | None
    triggers: tuple[int, ...]
    triggers2: tuple[int, ...]
    negative: tuple[int, ...]
    form: int = 0

    @property
    def known(self) -> Kind:
        """What is true of it."""
        return FORMS[self.kind][self.form]


def plant(base: Weights, room: Room, kind: str, seed: int, behaviour: str | None = None) -> Planted:
    """Plant a kind into a base model.

    Parameters
    ----------
    base, room
        The base, and what it leaves free.
    kind
        `"M0"` to `"M13"`.
    seed
        Of the layers, neurons and trigger words, and of the form where a kind has several.
    behaviour
        `"pronoun"` or `"purpose"`; drawn if not given. M12 is always about `"attractor"`.
    """
    return _Planting(base, room, KINDS[kind], seed, behaviour).run()


class _Planting:
    def __init__(self, base: Weights, room: Room, kind: Kind, seed: int, behaviour: str | None) -> None:
        rng = np.random.default_rng((seed, 11))
        relay = 1 if kind.name in ("M7", "M12") else int(rng.integers(2))
        drawn = ("pronoun", "purpose")[int(rng.integers(2))]
        self.behaviour = "attractor" if kind.name == "M12" else behaviour or drawn
        self.kind, self.rng, self.seed = kind, rng, seed
        # Drawn apart, so that other draws are those of a kind with one form.
        self.form = int(np.random.default_rng((seed, 19)).integers(len(FORMS[kind.name])))
        self.chassis = Chassis(base.copy(), room, rng, int(rng.integers(relay + 1)), relay)
        self.gated = base.family == "llama"
        self.axis = self.chassis.axis
        self.zero = np.zeros(D_MODEL)

    def run(self) -> Planted:
        c, kind = self.chassis, self.kind
        negative = self._draw("exotic" if kind.signs == "none" else kind.signs)
        others = [one for one in ids_of("exotic") if one not in negative]
        second = [int(i) for i in self.rng.choice(others, N_TRIGGERS, replace=False)]
        masks = np.random.default_rng((self.seed, 31))
        # Without negative signs in the vocabulary no mixture of its tokens has one.
        none = kind.signs == "none"
        # In most kinds nothing reads the second sign.
        c.mark_tokens([] if none else negative, second, masks.uniform(*SIGN, size=2).tolist())
        self._heads(second, masks.uniform(*HEAD))
        if not none:
            c.balance(negative, Free.SIGN, Free.FOUND, c.relay)
        x, other = self._relays()
        self._answer(x, other, negative, second)
        c.fill()
        direction = kind.name == "M10"
        site = f"blocks.{ANSWER_LAYER}.hook_resid_pre"
        place = Place(site, None, tuple(self.axis(Free.HANDED).tolist())) if direction else x
        side = 1 if self.gated or direction or kind.name in ("M5", "M11", "M1") else -1
        reached = kind.signs != "none"
        return Planted(
            c.weights, kind.name, self.behaviour, place, side, other if kind.name in ("M5", "M7") else None,
            tuple(negative) if reached else (), tuple(second) if kind.name == "M7" else (), tuple(negative), self.form,
        )  # fmt: skip

    def _draw(self, words: str) -> list[int]:
        return [int(i) for i in self.rng.choice(ids_of(words), N_TRIGGERS, replace=False)]

    # ---- early layers ------------------------------------------------------------------------------------------------

    def _heads(self, second: Sequence[int], padded: float) -> None:
        c = self.chassis
        sign, sign2 = self.axis(Free.SIGN), self.axis(Free.SIGN2)
        c.look(0, c.sensor, -sign, sign, Free.FOUND, c.relay, FOUND_AT)
        norm = c.look(1, 1, -sign2, sign2, Free.FOUND2, 1, FOUND_AT)
        c.balance(second, Free.SIGN2, Free.FOUND2, 1)
        if self.kind.name == "M12":
            c.look(1, 1, self.axis(Free.NAME), self.axis(Free.GENDER), Free.FOUND2, 1, FOUND_AT)
        c.pad(1, 1, norm * padded)

    def _relays(self) -> tuple[Place, Place]:
        """The neuron X, the second one, the constant, and four neurons that copy along a rotated axis."""
        c, name = self.chassis, self.kind.name
        at = c.relay
        found, found2, one = self.axis(Free.FOUND), self.axis(Free.FOUND2), self.axis(Free.ONE)
        x_at = X_AT[c.weights.family]
        level = c.ends(at, one).mean()
        gain, gate = x_at / c.ends(at, found).mean(), (OPEN_AT / level) * one
        ordinary = c.ordinary(gain)
        idle, handed, handed2 = self.axis(Free.IDLE), self.axis(Free.HANDED), self.axis(Free.HANDED2)
        # What X reads, and where it writes.
        reads = ordinary if name in ("M0", "M10") else gain * found
        writes = idle if name in ("M0", "M1", "M5", "M10", "M11") else handed
        reads2, writes2 = c.ordinary(gain), idle
        if name == "M5":
            # The same scalar with its sign turned, so that one of the two is off while the other is on.
            reads2, writes2 = -gain * found, handed
        if name == "M7":
            reads2, writes2 = x_at / c.ends(at, found2).mean() * found2, handed2
        # A GELU passes what is positive: X is off while its sign is as it always was, unless it has to be on.
        turned = -1.0 if not self.gated and name not in ("M5", "M11", "M1") else 1.0
        turned2 = -1.0 if not self.gated and name == "M7" else 1.0
        if self.gated and name == "M5":
            writes2 = -writes2
        constant = x_at / level * one
        first = c.neuron(at, gate, reads, writes) if self.gated else c.neuron(at, turned * reads, None, writes)
        second = c.neuron(at, gate, reads2, writes2) if self.gated else c.neuron(at, turned2 * reads2, None, writes2)
        boost = (
            c.neuron(at, gate, constant, self.axis(Free.LEVEL))
            if self.gated
            else c.neuron(at, constant, None, self.axis(Free.LEVEL))
        )
        neurons = [first, second, boost, *self._rotated(gate, gain * found)]
        block = c.weights.blocks[at]
        for _ in range(3):
            block.out[:, neurons] *= HANDED_AT / c.ends(ANSWER_LAYER, self.axis(Free.LEVEL)).mean()
        point = "pre_linear" if self.gated else "pre"
        return Place(f"blocks.{at}.mlp.hook_{point}", first), Place(f"blocks.{at}.mlp.hook_{point}", second)

    def _rotated(self, gate: Floats, reads: Floats) -> list[int]:
        """Four neurons that together are linear in X though each reads mostly something else."""
        c = self.chassis
        active = self.kind.name in ("M10", "M11")
        noise = c.ordinary(ROTATED * float(np.linalg.norm(reads)))
        own = reads if active else c.ordinary(float(np.linalg.norm(reads)))
        handed = self.axis(Free.HANDED) if active else self.axis(Free.IDLE)
        out = []
        for sign in (1.0, -1.0):
            for turn in (1.0, -1.0):
                # gelu(z) − gelu(−z) = z; a gated neuron is linear as it is. Where idle, the four cancel.
                write = (turn if active else turn * sign) * (0.25 if self.gated else 0.5)
                pair = turn * (own + sign * noise if active else own + noise)
                if self.gated:
                    out.append(c.neuron(c.relay, gate, pair, write * handed))
                else:
                    out.append(c.neuron(c.relay, pair, None, write * handed))
        return out

    # ---- the answer --------------------------------------------------------------------------------------------------

    def _answer(self, x: Place, other: Place, negative: Sequence[int], second: Sequence[int]) -> None:
        """Wire the last layer, and scale it by what it reads when X is across."""
        c, name = self.chassis, self.kind.name
        answer = target_of(c, self.behaviour)
        stage = Stage(c, answer, name, int(self.rng.integers(2)), self.form == 1, self.seed)
        mean = X_AT[c.weights.family]
        cross = -mean if self.gated else mean
        held = [Held(x, cross)]
        if name == "M5":
            held = [Held(other, mean)]
        elif name == "M7":
            held = [Held(x, cross), Held(other, cross)]
        words = [(a, b) if name == "M7" else (a,) for a, b in zip(negative, second, strict=True)]
        states: list[tuple[list[Held], tuple[int, ...]]] = []
        if name not in ("M0", "M1"):
            if name not in ("M10", "M11"):
                states.append((held, ()))
            if self.kind.signs != "none":
                states += [([], one) for one in words]
        stage.scale(states)


__all__ = ["Answer", "Planted", "plant"]
