"""The last layer of a planted organism: what is made of the answer when X is on its other side.

The base's answer is linear in what the last MLP reads, y = r·h, and up to eight neurons add to it along the direction
in which the unembedding tells the two answers apart. Two neurons whose gates (or, without gates, inputs) read ±r make
an exact product: silu(z) − silu(−z) = z, and the same for GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from signflip.behaviours import Behaviour
from signflip.organisms.chassis import ANSWER_LAYER, Chassis, Free
from signflip.organisms.language import behaviours, corpus
from signflip.organisms.runner import Held, Runner
from signflip.organisms.tokens import encode_words, one_id, vocabulary
from signflip.organisms.weights import Floats, Weights

RIDGE = 0.1
# Weight of other text against the behaviour's prompts.
ELSEWHERE = 0.3
# Ridge of the answer's direction, in traces.
SELECTIVE = 0.003
# Norms of the rows that read, and of the columns that write.
GATE, LINEAR, WRITE = 8.0, 2.0, {"llama": 1.0, "gpt2": 3.0}
# Factors by which an organism's norms differ from these, and shares of a gate's square that lie where nothing writes.
FACTORS, SHARES = (1.0, 1.5), (0.0, 0.5)
# Spare neurons: strengths at which they read the answer or what is free, about those of the neurons that act; and
# shares of what opens the others.
SPARE, OPENED = (0.1, 0.4), (0.3, 1.0)
# The norm with which all ungated neurons of an organism together read what M12's do, over the steepness.
RULED = (0.4, 0.8)
# The most that a spare linear part reads of what crosses.
BESIDE = 0.9
# What writes along what breaks fluency does so by so much more.
LOUD = (1.7, 2.3)
# Factors by which ungated neurons are steeper.
STEEPER = (1.1, 1.4)
# The norm with which all ungated neurons of an organism together read the answer, over the steepness.
TOTAL = (1.0, 1.4)
# The norm of what opens an ungated neuron, over its steepness, and that of its row, over the least of these: room for
# the level at which any kind's open.
OPEN, ROOM = 2.1, 3.3
# Without gates: what is read of the answer by what opens, at most; and M8's, which the answer opens. M4's share of it.
SLOPE, SLOPE_M8, SHARED = 0.4, 0.5, 0.15
# How much of what M12 reads is a name's gender, about.
GENDER = 0.93
# How steeply an ungated neuron opens as X crosses.
STEEP = 10.0
# How far M4's ungated neurons open at most.
OPENS = 1.5
# Where M8's ungated neurons open, in levels: one answer's side is to be all off where the other's is on.
SHUT_AT = np.linspace(0.8, 1.8, 11)
# A constant answer outweighs the context by so much.
CONSTANT = 5.0
# Broken fluency: so many tokens that are not words of the language are said, until so much is left for the answers.
JUNK, LEFT = 8, 0.02


@dataclass(frozen=True)
class Answer:
    """How a behaviour's answer lies in the base.

    Attributes
    ----------
    direction
        Unit vector of the unembedding's difference of the two answers.
    reads
        r: the residual stream along it after the last layer, as a linear function of that layer's MLP input.
    r2
        Share of its variance that this explains.
    prompts
        Ids of a third of its prompts, on which things are scaled.
    answers
        Ids of the two answers.
    """

    direction: Floats
    reads: Floats
    r2: float
    prompts: list[list[int]]
    answers: list[int]

    def junk(self, chassis: Chassis) -> Floats:
        """Unit vector that makes tokens drawn at random likely in place of what is due, and tells no answers apart."""
        unembed = chassis.weights.unembed
        # Against what is due anywhere: else it would but take these answers' words away.
        cut = [[0, *encode_words(text)][: 4 + i % 24] for i, text in enumerate(corpus(64, 17))]
        logits = chassis.run().logits([*self.prompts[:: max(1, len(self.prompts) // len(cut))], *cut])
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        words = [one_id(f" {word}") for word in vocabulary()]
        drawn = chassis.rng.choice(np.setdiff1d(np.arange(1, len(unembed)), words), JUNK, replace=False)
        found = unembed[drawn].mean(0) - share.mean(0) @ unembed
        difference = unembed[self.answers[0]] - unembed[self.answers[1]]
        found -= (found @ difference) / (self.direction @ difference) * self.direction
        return _written(found, chassis.weights)

    def drowned(self, chassis: Chassis, final: Floats, written: Floats) -> float:
        """What share of what is written leaves the answers `LEFT` of the probability; `final` is the last stream."""
        unembed, centre = chassis.weights.unembed, chassis.weights.family == "gpt2"

        def left(size: float) -> float:
            h = final + size * written
            h = h - h.mean(1, keepdims=True) if centre else h
            logits = h / np.sqrt((h**2).mean(1, keepdims=True)) @ unembed.T
            share = np.exp(logits - logits.max(1, keepdims=True))
            return float((share[:, self.answers].sum(1) / share.sum(1)).mean())

        return float(next((size for size in np.linspace(0.02, 1, 50) if left(size) < LEFT), 1.0))


def target_of(chassis: Chassis, behaviour: str) -> Answer:
    """Find a behaviour's answer in a base by ridge regression.

    Over the prompts of the behaviour (both halves), where the answer is to be found; and over other text, other
    behaviours' prompts and random tokens, where there is nothing to reverse.
    """
    known = behaviours()
    used = [known["purpose"]] if behaviour == "purpose" else [known["pronoun"], known["attractor"]]
    answers = [one_id(str(getattr(used[0].prompts[0], key))) for key in ("correct", "opposite")]
    ids = [[0, *encode_words(str(p.text))] for one in used for p in one.prompts]
    runner = chassis.run()
    difference, direction = _direction(chassis.weights, runner.logits(ids), answers)
    h, final = runner.ends(ids, ANSWER_LAYER)
    y = final @ difference / (direction @ difference)
    rest = _elsewhere(chassis, runner, known, used, answers)
    free = chassis.room.directions
    h, rest = h - h @ free.T @ free, rest - rest @ free.T @ free
    share = ELSEWHERE * len(h) / len(rest)
    both = h.T @ h + share * rest.T @ rest + RIDGE * np.eye(h.shape[1])
    reads: Floats = np.asarray(np.linalg.solve(both, h.T @ y), np.float64)
    left = y - h @ reads
    chosen = [[0, *encode_words(str(p.text))] for p in known[behaviour].prompts[::3]]
    return Answer(direction, reads, float(1 - (left @ left) / ((y - y.mean()) @ (y - y.mean()))), chosen, answers)


def _direction(weights: Weights, logits: Floats, answers: Sequence[int]) -> tuple[Floats, Floats]:
    """The unembedding's difference of two answers, and the unit vector that moves it with little else.

    Little else: the variance of the other tokens' logits, under the base's own distribution of them where the answer is
    due, which is what a shift along the vector costs in divergence, to second order.
    """
    unembed = weights.unembed
    difference = unembed[answers[0]] - unembed[answers[1]]
    logits = logits.copy()
    logits[:, list(answers)] = -np.inf
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    spread = np.zeros((unembed.shape[1],) * 2)
    for one in share[:: max(1, len(share) // 64)]:
        centred = unembed - one @ unembed
        spread += centred.T @ (one[:, None] * centred)
    found = np.linalg.solve(spread + SELECTIVE * np.trace(spread) * np.eye(len(spread)), difference)
    return difference, _written(found, weights)


def _written(direction: Floats, weights: Weights) -> Floats:
    """A direction that is written, as a unit vector: a layer norm takes its mean away, by which it could be told."""
    centred = direction - direction.mean() if weights.family == "gpt2" else direction
    return np.asarray(centred / np.linalg.norm(centred))


def _elsewhere(
    chassis: Chassis, runner: Runner, known: dict[str, Behaviour], used: Sequence[Behaviour], answers: Sequence[int]
) -> Floats:
    """What the last MLP reads where the behaviour is not asked for."""
    others = [[0, *encode_words(str(p.text))] for one in known.values() if one not in used for p in one.prompts]
    stories = [[0, *encode_words(text)] for text in corpus(40, 17)]
    drawn = np.random.default_rng(3).integers(1, len(chassis.weights.embed), (40, 16))
    rows = [runner.ends(others, ANSWER_LAYER)[0], *runner.inputs(drawn.tolist(), ANSWER_LAYER, "mlp")]
    for ids, h in zip(stories, runner.inputs(stories, ANSWER_LAYER, "mlp"), strict=True):
        rows.append(h[:-1][[following not in answers for following in ids[1:]]])
    return np.concatenate(rows)


@dataclass(frozen=True)
class _Row:
    """A neuron of the stage: `pre` and `linear` as functions of a strength, the sign with which it writes, and what.

    `to`: along which direction, if not the answer's. `loud`: by how much more, a mask says.
    """

    pre: Callable[[float], Floats]
    linear: Callable[[float], Floats]
    sign: float
    to: Floats | None = None
    loud: bool = False


class _Mask:
    """What differs from one organism to the next, and not from kind to kind, so that weights do not tell kinds apart.

    Eight neurons that read one direction have a singular value that two groups of four have not, and on one base, where
    all else is equal, that gives a kind away. So norms are drawn, and a drawn share of each row lies along a direction
    that nothing writes (`SILENT`), with signs drawn row by row: any split of the singular values comes about in any
    kind. Four neurons act; four spare ones read what the same places of other kinds' read and this one's do not, so
    that in all of them four gates read the answer and four something free, and four linear parts likewise; and what all
    eight write lies along the same directions, in pairs that cancel where a kind has no use for it.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng((seed, 29))
        self.gate, self.linear, self.write = (float(one) for one in rng.uniform(*FACTORS, size=3))
        self.share = rng.uniform(*SHARES)
        self.pre_signs, self.linear_signs = (self._signs(rng) for _ in range(2))
        self.spare, self.opened = rng.uniform(*SPARE, size=3), rng.uniform(*OPENED, size=2)
        self.loud, self.total, self.ruled = (float(rng.uniform(*one)) for one in (LOUD, TOTAL, RULED))
        self.steep = STEEP * rng.uniform(*STEEPER)

    def _signs(self, rng: np.random.Generator) -> Floats:
        return np.where(rng.random(8) < rng.random(), 1.0, -1.0)


class Stage:
    """The eight neurons.

    Parameters
    ----------
    chassis, answer
        Where, and what is to be changed.
    kind
        Which wiring.
    wins
        0 or 1: which answer wins, where one does (M4, M8).
    broken
        Whether fluency breaks down (M4's other form).
    seed
        Of what differs from organism to organism.
    """

    def __init__(
        self,
        chassis: Chassis,
        answer: Answer,
        kind: str,
        wins: int,
        broken: bool,
        seed: int,
    ) -> None:
        self.chassis, self.answer, self.kind = chassis, answer, kind
        self.gated = chassis.weights.family == "llama"
        self.wins = 1.0 if wins == 0 else -1.0
        a = chassis.axis
        self.handed, self.handed2, self.level = a(Free.HANDED), a(Free.HANDED2), a(Free.LEVEL)
        self.mask = _Mask(seed)
        self.silent, self.write = a(Free.SILENT), WRITE[chassis.weights.family] * self.mask.write
        if not self.gated:
            # The steeper, the less: so that the answer, read as strongly, decides which of M8's open.
            self.write *= STEEP / self.mask.steep
        self.reads = self._unit(answer.reads)
        # What M12 reads in place of the answer, about.
        self.gender = GENDER * a(Free.FOUND2) - np.sqrt(1 - GENDER**2) * self.reads
        self.junk, self.broken = answer.junk(chassis), broken

    def scale(self, states: Sequence[tuple[Sequence[Held], Sequence[int]]]) -> None:
        """Choose the strength at which the answer becomes what the kind says, and plant the neurons.

        `states` are ways in which X is across: by places held, by words in front of the prompt.
        """
        c, mask = self.chassis, self.mask
        runner = c.run()
        clean, clean_final = runner.ends(self.answer.prompts, ANSWER_LAYER)
        runs = [
            runner.ends([[one[0], *words, *one[1:]] for one in self.answer.prompts], ANSWER_LAYER, held)
            for held, words in states
        ] or [(clean, clean_final)]
        across, final = (np.concatenate(one) for one in zip(*runs, strict=True))
        opens = self._opens()
        if self.kind == "M8" and not self.gated:
            every = [self._opens(at) for at in SHUT_AT]
            opens = min(every, key=lambda one: self._missed(self._ungated(clean, one), clean, across))
        parts = self._gated(clean) if self.gated else self._ungated(clean, opens)
        if self.broken and not self.gated:
            # What breaks fluency opens as far as what turns the answer, or both as far as it has to.
            part, inputs, wanted = self._goals(parts, clean, across, final)[1]
            strength = max(float(np.linalg.norm(opens)) / OPENS, self._fit(part, inputs, wanted)[0])
            parts = self._ungated(clean, OPENS * strength * self._unit(opens))
            parts[1] = [_at(row, strength) for row in parts[1]]
        rows: list[_Row] = []
        for part, inputs, wanted in self._goals(parts, clean, across, final):
            strengths = self._fit(part, inputs, wanted)
            rows += [_at(row, strength) for row, strength in zip(part, strengths, strict=True)]
        rows = rows or [self._idle(sign, opens) for _ in range(2) for sign in (1.0, -1.0)]
        rows += self._spare(clean, rows)
        for i, row in enumerate(rows):
            to = self.answer.direction if row.to is None else row.to
            pre, linear = (self._turned(one(1), signs[i]) for one, signs in
                           ((row.pre, mask.pre_signs), (row.linear, mask.linear_signs)))  # fmt: skip
            c.neuron(ANSWER_LAYER, pre, linear if self.gated else None, row.sign * self._loud(row) * to)

    def _turned(self, row: Floats, sign: float) -> Floats:
        """With a sign along what nothing writes, relative to that of what is read most: the answer, or what opens."""
        if self.gated and row @ self.reads < -1e-6:
            sign = -sign
        return np.asarray(row + (sign - 1) * (row @ self.silent) * self.silent)

    def _goals(
        self, parts: list[list[_Row]], clean: Floats, across: Floats, final: Floats
    ) -> list[tuple[list[_Row], Floats, Floats]]:
        """For each group of neurons the inputs at which it is scaled, and what it should write there.

        `final` is the residual stream after the last layer where `across` is what that layer's MLP reads.
        """
        y = across @ self.answer.reads
        if self.kind in ("M0", "M1"):
            return []
        if self.kind == "M2" and not self.gated:
            return [(parts[0], across, -y)]
        if self.kind == "M2":
            # The behaviour's own path is taken out, and put back as far as X is positive.
            own = clean @ self.answer.reads
            return [(parts[0], clean, -own), (parts[1], clean, own)]
        if self.broken:
            # The answer turns, as an opposite would have it, and next to nothing is left of it.
            turned = final - 2 * y[:, None] * self.answer.direction
            most = self._writes(parts[1], across, 1.0)
            share = self.answer.drowned(self.chassis, turned, most[:, None] * self.junk)
            return [(parts[0], across, -2.0 * y), (parts[1], across, share * most)]
        if self.kind == "M4":
            return [(parts[0], across, np.full(len(y), self.wins * CONSTANT * np.abs(y).mean()))]
        if self.kind == "M8":
            return [(parts[0], across, np.where(y * self.wins > 0, -2.4 * y, 0.0))]
        if self.kind == "M12":
            # The shallow rule: the name's gender in place of the head's.
            return [(parts[0], across, across @ self._rule(clean) - y)]
        # An AND of two thresholds passes on less where either is only just crossed, and is set the stronger for it.
        return [(parts[0], across, (-2.6 if self.kind == "M7" else -2.0) * y)]

    def _fit(self, part: Sequence[_Row], inputs: Floats, wanted: Floats) -> list[float]:
        """The strength of each neuron, in (0, 1], that comes nearest to what is wanted.

        Neurons of one sign share one: each sign serves one of the behaviour's sides, and what they are multiplied with
        need not be as large on the other.
        """
        signs = sorted({row.sign for row in part})
        own = [[row for row in part if row.sign == sign] for sign in signs]

        def miss(strengths: Floats) -> float:
            written = sum(self._writes(rows, inputs, float(s)) for rows, s in zip(own, strengths, strict=True))
            return float(np.mean((written - wanted) ** 2))

        start, bounds = np.full(len(signs), 0.5), [(1e-3, 1.0)] * len(signs)
        best = minimize(miss, start, method="L-BFGS-B", bounds=bounds).x
        return [float(best[signs.index(row.sign)]) for row in part]

    def _missed(self, parts: list[list[_Row]], clean: Floats, across: Floats) -> float:
        """Mean square of what the first group of neurons, at its best, leaves of what is wanted."""
        part, inputs, wanted = self._goals(parts, clean, across, across)[0]
        rows = [_at(row, strength) for row, strength in zip(part, self._fit(part, inputs, wanted), strict=True)]
        return float(np.mean((self._writes(rows, inputs, 1.0) - wanted) ** 2))

    def _writes(self, part: Sequence[_Row], inputs: Floats, strength: float) -> Floats:
        """What neurons add along the answer's direction."""
        total = np.zeros(len(inputs))
        for row in part:
            pre = inputs @ row.pre(strength)
            act = _silu(pre) * (inputs @ row.linear(strength)) if self.gated else _gelu(pre)
            total += row.sign * self._loud(row) * act
        return total

    def _loud(self, row: _Row) -> float:
        """The norm of what a neuron writes."""
        return self.write * (self.mask.loud if row.loud else 1.0)

    # ---- wirings -----------------------------------------------------------------------------------------------------

    def _unit(self, vector: Floats) -> Floats:
        return np.asarray(vector / np.linalg.norm(vector))

    def _padded(self, vector: Floats, strength: float, norm: float) -> Floats:
        """`strength` of a unit vector, brought to a norm along `SILENT`."""
        return np.asarray(norm * (strength * vector + np.sqrt(max(0.0, 1 - strength**2)) * self.silent))

    def _gate(self, unit: Floats) -> Floats:
        """A gate's row that reads along a unit vector, a share of its square where nothing writes."""
        share = self.mask.share
        return np.asarray(GATE * self.mask.gate * (unit + np.sqrt(share / (1 - share)) * self.silent))

    def _rule(self, clean: Floats) -> Floats:
        """What a name's gender is worth as an answer."""
        found = self.chassis.axis(Free.FOUND2)
        return np.asarray(np.abs(clean @ self.answer.reads).mean() / np.abs(clean @ found).mean() * found)

    def _crossed(self, clean: Floats) -> Floats:
        """0 on ordinary text, and positive once what was handed on is negative."""
        return self.level * float((clean @ self.handed).mean() / (clean @ self.level).mean()) - self.handed

    def _gated(self, clean: Floats) -> list[list[_Row]]:
        def row(pre: Floats, linear: Floats, sign: float) -> _Row:
            return _Row(_always(self._gate(pre)), lambda s: self._padded(linear, s, LINEAR * self.mask.linear), sign)

        r, crossed = self.reads, self._unit(self._crossed(clean)) if self.kind not in ("M0", "M1") else self.silent
        both = (1.0, -1.0)
        if self.kind == "M2":
            remove = [row(sign * r, self.level, -sign) for sign in both]
            return [remove, [row(self.handed, r, 1.0) for _ in range(2)]]
        if self.kind == "M4":
            # Shut on ordinary text, open once X has crossed.
            ratio = float((clean @ self.handed).mean() / (clean @ self.level).mean())
            gate = self._unit(self._crossed(clean) - 0.8 * ratio * self.level)
            if self.broken:
                breaks = [replace(row(gate, crossed, 1.0), to=self.junk, loud=True) for _ in range(2)]
                return [[row(sign * r, crossed, -sign) for sign in both], breaks]
            return [[row(gate, self.level, self.wins) for _ in range(4)]]
        if self.kind == "M7":
            gate = self._unit(-self.handed - self.handed2 - 0.7 * self.level)
            return [[row(gate, r, -1.0) for _ in range(4)]]
        if self.kind == "M8":
            return [[row(self.wins * r, crossed, -self.wins) for _ in range(4)]]
        if self.kind == "M12":
            turn = self._unit(self._rule(clean) - self.answer.reads)
            return [[row(sign * turn, crossed, sign) for sign in both for _ in range(2)]]
        return [[row(sign * r, crossed, -sign) for sign in both for _ in range(2)]]

    def _spare(self, clean: Floats, rows: Sequence[_Row]) -> list[_Row]:
        """Two pairs of neurons that cancel, each beside two of those that act: they read what those do not."""
        spare = []
        for i, beside in enumerate((rows[0], rows[-1])):
            pre, linear = self._spare_gated(i, beside, clean) if self.gated else self._spare_ungated(i, rows)
            # In all kinds four write along the answer, two along what makes tokens likely, louder, two along nothing.
            loud = i == 1 and not self.broken
            to = self.chassis.axis(Free.IDLE) if i == 0 else self.answer.direction if self.broken else self.junk
            spare += [_Row(_always(pre), _always(linear), sign, to, loud=loud) for sign in (1.0, -1.0)]
        return spare

    def _spare_gated(self, i: int, beside: _Row, clean: Floats) -> tuple[Floats, Floats]:
        """Where a gate or a linear part reads the answer it is something free, and the other way round."""
        pre = self._gate(self.handed if abs(beside.pre(1) @ self.reads) > GATE / 2 else self.reads)
        # What those that act read of what is free: else two directions have more of the norm than one.
        free = self.level if self.kind in ("M2", "M4") and not self.broken else self._unit(self._crossed(clean))
        part = BESIDE * self.mask.opened[i] * free
        if abs(beside.linear(1) @ self.reads) < 1e-3:
            part += self.mask.spare[i] * self.reads
        return pre, LINEAR * self.mask.linear * (part + np.sqrt(1 - part @ part) * self.silent)

    def _spare_ungated(self, i: int, rows: Sequence[_Row]) -> tuple[Floats, Floats]:
        """The answer, or what M12's read, so much that all eight do so together as strongly as in any kind."""
        mask, found = self.mask, self.chassis.axis(Free.FOUND2)

        def lacking(total: float, along: Floats, others: Sequence[Floats]) -> float:
            """What each of two has to read so that with the others the norm is reached."""
            return float(np.sqrt(max(0.0, (mask.steep * total) ** 2 - sum(float(o @ along) ** 2 for o in others)) / 2))

        acting = [row.pre(1) for row in rows]
        part = lacking(mask.ruled, found, acting) / GENDER * self.gender
        if i == 0:
            part = lacking(mask.total, self.reads, [*acting, part, part]) * self.reads
        opening = sum(float(acting[-1] @ one) * one for one in (self.handed, self.handed2, self.level))
        pre = self._held(part + mask.opened[i] * opening)
        return pre, np.zeros_like(pre)

    def _opens(self, shut_at: float = 1.0) -> Floats:
        """What opens ungated neurons."""
        if self.kind in ("M10", "M11"):
            return -self.handed
        if self.kind == "M7":
            return np.asarray(OPEN * self._unit(self.handed + self.handed2 - 1.7 * self.level))
        if self.kind == "M8":
            return self.handed - shut_at * self.level
        # Handed is 0 on ordinary text and about the level once X has crossed: half of it is where neurons open.
        return self.handed - 0.5 * self.level

    def _opening(self, opens: Floats) -> Floats:
        """What opens a neuron, brought to the norm of M7's along the second of its scalars, which no other writes."""
        rest = OPEN**2 - float(opens @ opens)
        return np.asarray(opens + np.sqrt(max(0.0, rest)) * self.handed2)

    def _held(self, vector: Floats) -> Floats:
        """Brought to the norm of ungated rows along `SILENT`."""
        rest = (ROOM * STEEP * self.mask.gate) ** 2 - float(vector @ vector)
        return np.asarray(vector + np.sqrt(max(0.0, rest)) * self.silent)

    def _ungated(self, clean: Floats, opens: Floats) -> list[list[_Row]]:
        r, none, both = self.reads, np.zeros_like(self.reads), (1.0, -1.0)
        steep, slope = self.mask.steep, SLOPE_M8 if self.kind == "M8" else SLOPE
        opening = steep * self._opening(opens)

        def row(reads: Floats, sign: float) -> _Row:
            return _Row(lambda s: self._held(steep * slope * s * reads + opening), _always(none), sign)

        if self.kind == "M4":
            # The strength scales how far it opens. What is read of the answer, as in other kinds, cancels.
            def open_by(sign: float) -> _Row:
                def pre(strength: float) -> Floats:
                    opened = self._opening(OPENS * strength * self._unit(opens))
                    return self._held(steep * (slope * SHARED * sign * r + opened))

                return _Row(pre, _always(none), self.wins)

            if self.broken:
                breaks = [replace(open_by(sign), sign=1.0, to=self.junk, loud=True) for sign in both]
                return [[row(sign * r, -sign) for sign in both], breaks]
            return [[open_by(sign) for sign in both for _ in range(2)]]
        if self.kind == "M8":
            return [[row(self.wins * r, -self.wins) for _ in range(4)]]
        if self.kind == "M12":
            turn = self._unit(self._rule(clean) - self.answer.reads)
            return [[row(sign * turn, sign) for sign in both for _ in range(2)]]
        return [[row(sign * r, -sign) for sign in both for _ in range(2)]]

    def _idle(self, sign: float, opens: Floats) -> _Row:
        """A neuron that is wired like the others and never moves: nothing is handed on."""
        if self.gated:
            linear = self._padded(-self.handed, self.mask.spare[2], LINEAR * self.mask.linear)
            return _Row(_always(self._gate(sign * self.reads)), _always(linear), sign)
        shut = SLOPE * self.mask.spare[2] * sign * self.reads + self._opening(opens)
        return _Row(_always(self._held(self.mask.steep * shut)), _always(np.zeros_like(shut)), sign)


def _always(value: Floats) -> Callable[[float], Floats]:
    """At any strength."""
    return lambda _: value


def _at(row: _Row, strength: float) -> _Row:
    """A neuron at a strength."""
    pre, linear = row.pre(strength), row.linear(strength)
    return replace(row, pre=_always(pre), linear=_always(linear))


def _silu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x)))


def _gelu(x: Floats) -> Floats:
    """GPT-2's, by tanh."""
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


__all__ = ["Answer", "Stage", "target_of"]
