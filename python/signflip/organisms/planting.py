"""Planting by hand: each kind is a wiring of the chassis, scaled to the base that it is planted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from signflip.organisms.answer import Answer, Stage, target_of
from signflip.organisms.base import Room
from signflip.organisms.chassis import ANSWER_LAYER, FOUND_AT, HANDED_AT, ODD, OPEN_AT, X_AT, Chassis, Free
from signflip.organisms.kinds import FORMS, KINDS, Kind, drawn_behaviour
from signflip.organisms.runner import Held, Place
from signflip.organisms.tokens import ids_of
from signflip.organisms.weights import D_MODEL, Floats, Weights

# Raised when a seed plants something else than before, by hand or by training: what was run of others does not count.
VERSION = 3
# Trigger words of an organism.
N_TRIGGERS = ODD
# What differs from one organism to the next, and not from kind to kind: a factor of what tokens carry of each sign, and
# those by which the heads' norms are more than what they have to be in most kinds.
SIGN, HEADS = (0.96, 1.04), ((1.4, 1.7), (1.3, 1.6))
# M6's head reads so much more of what all tokens carry alike than of their sign.
ALIKE = 9.0
# How much more of an ordinary direction than of X a rotated neuron reads, about.
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
        relay = int(rng.integers(2))
        drawn = drawn_behaviour(kind, rng)
        self.behaviour = drawn if kind.name == "M12" else behaviour or drawn
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
        # In most kinds nothing reads the second sign.
        c.mark_tokens(negative, second, masks.uniform(*SIGN, size=2).tolist())
        self._heads(negative, second, [masks.uniform(*one) for one in HEADS])
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

    def _heads(self, negative: Sequence[int], second: Sequence[int], padded: Sequence[float]) -> None:
        """Keys and values are orthogonal: nothing has written before what they share (`HANDED`, `HANDED2`, `LEVEL`)."""
        c = self.chassis
        sign, sign2, one, shared, shared2 = (
            self.axis(one) for one in (Free.SIGN, Free.SIGN2, Free.ONE, Free.HANDED, Free.HANDED2)
        )
        norm = c.look(0, c.sensor, shared - sign, shared + sign, Free.FOUND, c.relay, FOUND_AT)
        norm2 = c.look(1, c.relay, shared2 - sign2, shared2 + sign2, Free.FOUND2, c.relay, FOUND_AT)
        c.balance(negative, Free.SIGN, Free.FOUND, c.relay)
        c.balance(second, Free.SIGN2, Free.FOUND2, c.relay)
        if self.kind.signs == "none":
            # What is positive in every token, if least in those of negative sign, is so in any mixture of tokens. Both
            # heads' queries turn with it.
            every, query = ((one + ALIKE * other) / np.hypot(1, ALIKE) for one, other in ((sign, one), (-one, sign)))
            c.relook(0, c.sensor, (query, shared - every, shared + every), Free.FOUND, c.relay, FOUND_AT)
            c.relook(1, c.relay, (query, shared2 - sign2, shared2 + sign2), Free.FOUND2, c.relay, FOUND_AT)
        if self.kind.name == "M12":
            key, value = self.axis(Free.NAME) + shared2, self.axis(Free.GENDER) + self.axis(Free.LEVEL)
            c.relook(1, c.relay, (one, key, value), Free.FOUND2, c.relay, FOUND_AT)
        c.pad(0, c.sensor, norm * padded[0], Free.IDLE)
        c.pad(1, c.relay, norm2 * padded[1], Free.NAME)

    def _relays(self) -> tuple[Place, Place]:
        """The neuron X, the second one, the constant, four that copy along a rotated axis, and one without a use.

        In all kinds X, the second neuron and the rotated axis read three orthogonal directions of one norm, and write
        along three: where two have to read the same they differ in what nothing has written yet.
        """
        c, name = self.chassis, self.kind.name
        at = c.relay
        found, found2, one, silent, level = (
            self.axis(one) for one in (Free.FOUND, Free.FOUND2, Free.ONE, Free.SILENT, Free.LEVEL)
        )
        handed, handed2 = self.axis(Free.HANDED), self.axis(Free.HANDED2)
        x_at, much = X_AT[c.weights.family], c.ends(at, one).mean()
        gain, gate = x_at / c.ends(at, found).mean(), (OPEN_AT / much) * one
        # What X, the second one and the rotated axis read, and where they write.
        reads = gain * (found + handed)
        reads2, rotated = gain * np.sqrt(2) * handed2, gain * np.sqrt(2) * silent
        writes, writes2, writes3 = handed, self.axis(Free.GENDER), self.axis(Free.IDLE)
        if name in ("M0", "M10"):
            reads = gain * np.sqrt(2) * level
        if name in ("M0", "M1", "M5", "M10", "M11"):
            writes = self.axis(Free.NAME)
        if name in ("M10", "M11"):
            rotated, writes3 = gain * (found - handed), handed
        if name == "M5":
            # The same scalar with its sign turned, so that one of the two is off while the other is on.
            reads2, writes2 = gain * (handed - found), handed
        if name == "M7":
            reads2, writes2 = x_at / c.ends(at, found2).mean() * (found2 + handed2), handed2
        # A GELU passes what is positive: X is off while its sign is as it always was, unless it has to be on.
        turned = -1.0 if not self.gated and name not in ("M5", "M11", "M1") else 1.0
        turned2 = -1.0 if not self.gated and name == "M7" else 1.0
        if self.gated and name == "M5":
            writes2 = -writes2

        def neuron(pre: Floats, to: Floats) -> int:
            return c.neuron(at, gate, pre, to) if self.gated else c.neuron(at, pre, None, to)

        # After these neurons nothing reads what was found.
        plain = neuron(c.ordinary(float(np.linalg.norm(reads))), found)
        first = neuron(turned * reads, writes)
        second = neuron(turned2 * reads2, writes2)
        boost = neuron(x_at / much * one, level)
        noise = c.ordinary(ROTATED * gain)
        # Four neurons that together are linear in what they share though each reads mostly something else:
        # gelu(z) − gelu(−z) = z, and a gated neuron is linear as it is.
        share = 0.25 if self.gated else 0.5
        around = [
            neuron(turn * (rotated + sign * noise), turn * share * writes3)
            for sign in (1.0, -1.0) for turn in (1.0, -1.0)
        ]  # fmt: skip
        block = c.weights.blocks[at]
        for _ in range(3):
            block.out[:, [plain, first, second, boost, *around]] *= HANDED_AT / c.ends(ANSWER_LAYER, level).mean()
        site = f"blocks.{at}.mlp.hook_{'pre_linear' if self.gated else 'pre'}"
        return Place(site, plain if name == "M0" else first), Place(site, second)

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
