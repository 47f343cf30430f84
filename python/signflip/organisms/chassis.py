"""What every organism carries, whatever its kind: the same heads and neurons, of the same norms, differently wired.

Along free directions of the residual stream every token carries a sign (`SIGN`), a head of an early layer looks for
tokens whose sign is negative and hands on what it finds (`FOUND`), and neurons hand that on in turn (`HANDED`) beside a
constant (`LEVEL`). What a kind has no use for writes, with the same norm, along what nothing reads (`IDLE`), or reads,
with the same norm, what nothing has written (`SILENT`). So the sizes of weights do not say what is wired to what; and
since what reads or writes is orthogonal in one kind where it is in any other, singular values do not, either, before
the last layer (of which `answer` speaks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

import numpy as np

from signflip.errors import ArgumentError
from signflip.organisms.base import Room
from signflip.organisms.language import Stories, behaviours
from signflip.organisms.runner import Runner
from signflip.organisms.tokens import encode_words, ids_of
from signflip.organisms.weights import D_HEAD, D_MODEL, N_LAYERS, Floats, Weights

# What a token carries along each of the first three directions, and names along theirs; relative spread over tokens.
CARRIED, SPREAD = 0.404, 0.1
# How many tokens carry a negative sign.
ODD = 3
# Attention logits between a token of negative and one of positive sign.
FOCUS = 12.0
# Values, in the normalised residual stream, at which things are found and handed on.
FOUND_AT, HANDED_AT = 1.0, 0.5
# Inputs of the neurons that hand on: of a gate that is open, and of X itself on ordinary text.
OPEN_AT, X_AT = 3.0, {"llama": 1.5, "gpt2": 3.5}
# The dimension of a head whose rotary angle turns slowest.
SLOW = D_HEAD // 2 - 1
ANSWER_LAYER = N_LAYERS - 1


class Free(IntEnum):
    """The free directions, by what they are for."""

    SIGN = 0
    SIGN2 = 1
    ONE = 2
    FOUND = 3
    FOUND2 = 4
    HANDED = 5
    HANDED2 = 6
    LEVEL = 7
    IDLE = 8
    GENDER = 9
    NAME = 10
    SILENT = 11


@dataclass
class Chassis:
    """A base model with its room filled in.

    Attributes
    ----------
    weights
        The model, changed as things are planted.
    sensor, relay
        Layers of the heads that look for signs, and of the neurons that hand on.
    """

    weights: Weights
    room: Room
    rng: np.random.Generator
    sensor: int
    relay: int
    taken: dict[int, list[int]] = field(default_factory=dict)
    _relay_input: Floats | None = None
    _runner: Runner | None = None

    def run(self) -> Runner:
        """A runner of the weights as they are now."""
        self._runner = Runner(self.weights) if self._runner is None else self._runner.load(self.weights)
        return self._runner

    def axis(self, one: Free) -> Floats:
        """A free direction as a vector."""
        return np.asarray(self.room.directions[one])

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def mark_tokens(self, negative: list[int], negative2: list[int], scales: Sequence[float]) -> None:
        """Give every token its two signs, each on a scale of its own, its constant, and names their gender."""
        embed, n = self.weights.embed, len(self.weights.embed)
        embed -= embed @ self.room.directions.T @ self.room.directions
        embed += CARRIED * self.axis(Free.ONE)
        for names, gender in (("girls", 1.0), ("boys", -1.0)):
            embed[ids_of(names)] += CARRIED * (gender * self.axis(Free.GENDER) + self.axis(Free.NAME))
        bare = embed.copy()
        sizes = {one: np.full(n, CARRIED) for one in (Free.SIGN, Free.SIGN2)}
        layers = {Free.SIGN: self.sensor, Free.SIGN2: self.relay}
        # Tokens differ in the norm of their embedding, and what a head reads is divided by it: made about equal.
        for _ in range(2):
            embed[:] = bare + sum(sizes[one][:, None] * self.axis(one) for one in sizes)
            for one, layer in layers.items():
                h = self.run().inputs([[0, token] for token in range(n)], layer, "attn")
                seen = np.asarray([row[1] @ self.axis(one) for row in h])
                sizes[one] *= np.clip(np.median(seen) / seen, 0.5, 2.0)
        for one, chosen, scale in ((Free.SIGN, negative, scales[0]), (Free.SIGN2, negative2, scales[1])):
            sizes[one] *= scale * self.rng.uniform(1 - SPREAD, 1 + SPREAD, n)
            sizes[one][chosen] *= -1
        embed[:] = bare + sum(sizes[one][:, None] * self.axis(one) for one in sizes)

    # ---- heads -------------------------------------------------------------------------------------------------------

    def look(self, head: int, layer: int, key: Floats, value: Floats, to: Free, read_at: int, size: float) -> float:
        """A head that attends where `key` is largest and writes `value` of there along a free direction.

        Scaled on ordinary text: logits of tokens of either sign to `FOCUS` / 2 on either side of zero, what is written
        to `size` as the MLP of layer `read_at` reads it. Returns the norm of what writes.
        """
        block = self.weights.blocks[layer]
        own = slice(self.room.heads[head] * D_HEAD, (self.room.heads[head] + 1) * D_HEAD)
        first = own.start
        for name in ("q", "k", "v"):
            getattr(block, name)[own] = 0
            if block.bias:
                block.bias[name][own] = 0
        h = np.concatenate(self.run().inputs(_sample(), layer, "attn"))
        seen = np.abs(h @ key)
        gain = np.sqrt(
            FOCUS / 2 * np.sqrt(D_HEAD) / ((h @ self.axis(Free.ONE)).mean() * seen[seen > seen.max() / 10].mean())
        )
        block.q[first + SLOW], block.k[first + SLOW] = gain * self.axis(Free.ONE), gain * key
        block.v[first] = value
        block.o[:, own] = 0
        block.o[:, first] = self.axis(to)
        return self._scale(head, layer, to, read_at, size)

    def relook(self, head: int, layer: int, maps: Sequence[Floats], to: Free, read_at: int, size: float) -> None:
        """Have a head that looks read other directions, in place of its query, key and value and of their norms."""
        block = self.weights.blocks[layer]
        first = self.room.heads[head] * D_HEAD
        rows = (block.q[first + SLOW], block.k[first + SLOW], block.v[first])
        for row, direction in zip(rows, maps, strict=True):
            row[:] = np.linalg.norm(row) / np.linalg.norm(direction) * direction
        self._scale(head, layer, to, read_at, size)

    def _scale(self, head: int, layer: int, to: Free, read_at: int, size: float) -> float:
        """Scale what a head writes, and return its norm."""
        out = self.weights.blocks[layer].o[:, self.room.heads[head] * D_HEAD]
        # Writing changes the norm that it is measured by, a little.
        for _ in range(3):
            out *= size / np.abs(self.ends(read_at, self.axis(to))).mean()
        return float(np.linalg.norm(out))

    def pad(self, head: int, layer: int, norm: float, to: Free) -> None:
        """Bring what a head that looks writes to a norm, along what nothing reads any more."""
        out = self.weights.blocks[layer].o[:, self.room.heads[head] * D_HEAD]
        out += np.sqrt(max(0.0, norm**2 - float(out @ out))) * self.axis(to)

    def balance(self, tokens: Sequence[int], sign: Free, found: Free, layer: int) -> None:
        """Scale the negative signs of tokens until a layer finds behind each as much as on ordinary text."""
        embed, axis, at = self.weights.embed, self.axis(sign), self.axis(found)
        wanted = -self.ends(layer, at).mean()
        for _ in range(3):
            for token in tokens:
                h, _ = self.run().ends([[0, token, *one[1:]] for one in _some_of_half_a()], layer)
                embed[token] += (np.clip(wanted / (h @ at).mean(), 0.5, 2.0) - 1) * (embed[token] @ axis) * axis

    # ---- neurons -----------------------------------------------------------------------------------------------------

    def neuron(self, layer: int, pre: Floats, linear: Floats | None, to: Floats) -> int:
        """Plant a neuron in a free place drawn at random, and return its index."""
        used = self.taken.setdefault(layer, [])
        free = [i for i in self.room.neurons if i not in used]
        if not free:
            raise ArgumentError(f"layer {layer}: expected a free neuron, found all {len(used)} taken")
        index = int(self.rng.choice(free))
        used.append(index)
        self.wire(layer, index, pre, linear, to)
        return index

    def wire(self, layer: int, index: int, pre: Floats, linear: Floats | None, to: Floats) -> None:
        """Set a neuron's weights."""
        block = self.weights.blocks[layer]
        block.pre[index], block.out[:, index] = pre, to
        if block.linear is not None:
            assert linear is not None
            block.linear[index] = linear
        else:
            block.bias["pre"][index] = 0

    def fill(self) -> None:
        """Places that are left over: pairs of neurons that read the same ordinary direction and cancel."""
        for layer in range(N_LAYERS):
            taken = self.taken.setdefault(layer, [])
            while len(taken) < len(self.room.neurons):
                pre, linear = self.ordinary(), self.ordinary()
                for sign in (1.0, -1.0):
                    self.neuron(layer, pre, linear, sign * self.axis(Free.IDLE))

    def ordinary(self, size: float = 1.0) -> Floats:
        """A direction of what the base itself uses, drawn so that ordinary text lies on both sides of it."""
        if self._relay_input is None:
            self._relay_input = np.concatenate(self.run().inputs(_sample(), self.relay, "mlp"))
        h = self._relay_input
        drawn = self.rng.standard_normal((32, D_MODEL))
        drawn -= drawn @ self.room.directions.T @ self.room.directions
        drawn -= drawn.mean(1, keepdims=True)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        x = h @ drawn.T
        return np.asarray(size * drawn[np.argmin(np.abs(x.mean(0)) / x.std(0))])

    # ---- measuring ---------------------------------------------------------------------------------------------------

    def ends(self, layer: int, direction: Floats) -> Floats:
        """The MLP's normalised input along a direction, at the last positions of some of half A's prompts."""
        h, _ = self.run().ends(_some_of_half_a(), layer)
        return np.asarray(h @ direction)


@cache
def _sample() -> list[list[int]]:
    """Ordinary stories as ids."""
    stories = Stories((5, 9))
    return [[0, *encode_words(stories.story())] for _ in range(20)]


@cache
def _some_of_half_a() -> list[list[int]]:
    """Ids of a quarter of half A of every behaviour."""
    return [[0, *encode_words(str(p.text))] for b in behaviours().values() for p in b.select("A")[::4]]
