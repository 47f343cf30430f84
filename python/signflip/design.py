"""How a behaviour's prompts hang together, and the numbers that are computed, and resampled, over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from signflip.errors import BehaviourError
from signflip.resample import cluster_weights

if TYPE_CHECKING:
    from signflip.behaviours.prompts import Prompt

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What one run answers, prompt by prompt, each `[prompts]`.

    Attributes
    ----------
    correct, opposite
        Logits of the two answers at the last position.
    mass
        Probability of the two answers together; NaN where it was not read.
    """

    correct: Array
    opposite: Array
    mass: Array

    @property
    def margin(self) -> Array:
        """Logit of the correct answer minus that of the opposite one."""
        return self.correct - self.opposite

    def take(self, index: Sequence[int]) -> Answers:
        """These prompts only."""
        at = np.asarray(index, np.int64)
        return Answers(self.correct[at], self.opposite[at], self.mass[at])


@dataclass(frozen=True, eq=False)
class Design:
    """How prompts hang together: which side, item, template and answer pair each belongs to.

    Attributes
    ----------
    name, half
        The behaviour, and its half.
    sides
        Names of the two sides.
    side
        0 or 1, `[prompts]`.
    group
        Number of the answer pair, `[prompts]`.
    sign
        +1 where the pair's first answer is the correct one, −1 where its second is, `[prompts]`.
    items, templates
        The clusters. Prompts without an item are items of their own.
    pairs
        The answer pairs, as text.
    """

    name: str
    half: str | None
    sides: tuple[str, str]
    side: NDArray[np.int64]
    group: NDArray[np.int64]
    sign: Array
    items: tuple[str, ...]
    templates: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    _weights: dict[tuple[int, int], Array] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, name: str, prompts: Sequence[Prompt], half: str | None = None) -> Design:
        """The structure of prompts.

        Raises
        ------
        BehaviourError
            If they are not of two sides.
        """
        sides = sorted({prompt.side for prompt in prompts})
        if len(sides) != 2:
            raise BehaviourError(f"behaviour {name!r}: expected prompts of two sides, found {sides}")
        pairs = sorted({tuple(sorted((str(p.correct), str(p.opposite)))) for p in prompts})
        place = {pair: k for k, pair in enumerate(pairs)}
        keys = [tuple(sorted((str(p.correct), str(p.opposite)))) for p in prompts]
        return cls(
            name,
            half,
            (sides[0], sides[1]),
            np.asarray([sides.index(p.side) for p in prompts], np.int64),
            np.asarray([place[key] for key in keys], np.int64),
            np.asarray([1.0 if str(p.correct) == key[0] else -1.0 for p, key in zip(prompts, keys, strict=True)]),
            tuple(p.item or f"#{i}" for i, p in enumerate(prompts)),
            tuple(p.template for p in prompts),
            tuple((pair[0], pair[1]) for pair in pairs),
        )

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def strata(self) -> list[tuple[int, ...]]:
        """The sides that each prompt's item occurs on."""
        on: dict[str, set[int]] = {}
        for item, side in zip(self.items, self.side, strict=True):
            on.setdefault(item, set()).add(int(side))
        return [tuple(sorted(on[item])) for item in self.items]

    @cached_property
    def n_clusters(self) -> int:
        """Items on the side that has fewer."""
        return min(len({i for i, s in zip(self.items, self.side, strict=True) if s == side}) for side in (0, 1))

    def weights(self, replicates: int, seed: int) -> Array:
        """Bootstrap weights `[replicates, prompts]`; the same for every score of this design, so that they pair."""
        key = (replicates, seed)
        if key not in self._weights:
            self._weights[key] = cluster_weights(self.items, self.templates, self.strata, replicates, seed)
        return self._weights[key]


# Everything that is bootstrapped: each function takes weights [R, n] and returns [R] (or a dict of them).


def side_means(weights: Array, design: Design, values: Array) -> Array:
    """Weighted mean of each side, `[R, 2]`."""
    out = np.empty((len(weights), 2))
    for side in (0, 1):
        own = weights[:, design.side == side]
        with np.errstate(invalid="ignore", divide="ignore"):
            out[:, side] = own @ values[design.side == side] / own.sum(1)
    return out


def leans(weights: Array, design: Design, clean: Array) -> Array:
    """The clean model's constant preference for the first answer of each prompt's pair, signed as its margin, `[R, n]`.

    It is what both contexts of a pair have in common: the clean decision point lies there, and margins are counted
    from it.
    """
    out = np.zeros((len(weights), len(design)))
    for group in range(len(design.pairs)):
        first = (design.group == group) & (design.sign > 0)
        second = (design.group == group) & (design.sign < 0)
        total = weights[:, first].sum(1), weights[:, second].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            lean = (weights[:, first] @ clean[first] / total[0] - weights[:, second] @ clean[second] / total[1]) / 2
        lean = np.where(np.isfinite(lean), lean, 0.0)
        out[:, first] = lean[:, None]
        out[:, second] = -lean[:, None]
    return out


def auc(weights: Array, design: Design, margin: Array) -> Array:
    """Probability that the logit difference of a pair ranks a prompt of one context above one of the other, `[R]`.

    Counted within answer pairs, ties as a half, pairs weighted by the number of comparisons.
    """
    oriented = margin * design.sign
    above, total = np.zeros(len(weights)), np.zeros(len(weights))
    for group in range(len(design.pairs)):
        first = (design.group == group) & (design.sign > 0)
        second = (design.group == group) & (design.sign < 0)
        a, b = oriented[first], oriented[second]
        wins = (a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])
        above += ((weights[:, first] @ wins) * weights[:, second]).sum(1)
        total += weights[:, first].sum(1) * weights[:, second].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above / total)


def information(weights: Array, design: Design, margin: Array) -> Array:
    """Mutual information of context and answer in bits, `[R]`; the answer is the one with the larger logit."""
    oriented = margin * design.sign
    says_first = (oriented > 0) + 0.5 * (oriented == 0)
    context = design.sign > 0
    cells = [weights[:, own] @ share[own] for own in (context, ~context) for share in (says_first, 1 - says_first)]
    table = np.stack(cells, 1).reshape(-1, 2, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        joint = table / table.sum((1, 2), keepdims=True)
        independent = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
        terms = np.where(joint > 0, joint * np.log2(joint / independent), 0.0)
    bits: Array = np.maximum(terms.sum((1, 2)), 0.0)
    return bits


def average(weights: Array, values: Array) -> Array:
    """Weighted mean, `[R]`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ values / weights.sum(1))


def statistics(weights: Array, design: Design, clean: Answers, run: Answers) -> dict[str, Array]:
    """Every number of a score, `[R]` each."""
    base = side_means(weights, design, clean.margin)
    raw = side_means(weights, design, run.margin)
    lean = leans(weights, design, clean.margin)
    # [R, n] about the decision point; the lean of a replicate is that of its own weights.
    centred = np.empty((len(weights), 2))
    reference = np.empty((len(weights), 2))
    for side in (0, 1):
        own = design.side == side
        w = weights[:, own]
        with np.errstate(invalid="ignore", divide="ignore"):
            shift = (w * lean[:, own]).sum(1) / w.sum(1)
        centred[:, side] = raw[:, side] - shift
        reference[:, side] = base[:, side] - shift
    right = (run.margin > 0) + 0.5 * (run.margin == 0)
    says_first = np.where(design.sign > 0, right, 1 - right)
    spoken = side_means(weights, design, says_first)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "s": raw.sum(1) / base.sum(1),
            "rank": 2 * auc(weights, design, run.margin) - 1,
            "clean_rank": 2 * auc(weights, design, clean.margin) - 1,
            "clean_margin": base.sum(1) / 2,
            "side0": centred[:, 0] / reference[:, 0],
            "side1": centred[:, 1] / reference[:, 1],
            "raw0": raw[:, 0],
            "raw1": raw[:, 1],
            "clean_raw0": base[:, 0],
            "clean_raw1": base[:, 1],
            "bits": information(weights, design, run.margin),
            "clean_bits": information(weights, design, clean.margin),
            "accuracy": average(weights, right),
            "mass": average(weights, run.mass),
            "clean_mass": average(weights, clean.mass),
            "first0": spoken[:, 0],
            "first1": spoken[:, 1],
        }
