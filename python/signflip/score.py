"""Scores: what a model answers over a behaviour's prompts, against what the clean model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip.edits import Edit, PerSequence
from signflip.errors import BehaviourError
from signflip.resample import Estimate, cluster_weights, to_plain

if TYPE_CHECKING:
    from signflip.behaviours.prompts import ModelPrompt, Prompt
    from signflip.model import Model

Array = NDArray[np.float64]

# Fewer clusters than this on a side, and a ratio of means has no interval worth the name.
MIN_CLUSTERS = 12


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


def answers(
    model: Model,
    prompts: Sequence[ModelPrompt],
    edits: Sequence[Edit] = (),
    sequences: Sequence[Sequence[int]] | None = None,
) -> Answers:
    """Run prompts, or sequences made of them, and read their answers.

    Raises
    ------
    ContextLengthError
        If a sequence is longer than the model's context.
    """
    from signflip.model import Logits, LogProb, Read

    ids = [list(prompt.ids) for prompt in prompts] if sequences is None else [list(one) for one in sequences]
    pairs = PerSequence([[prompt.correct, prompt.opposite] for prompt in prompts])
    reads: list[Read] = [Logits(-1, pairs), LogProb([[prompt.correct] for prompt in prompts])]
    logits, log_probs = model.read(ids, reads, [list(edits)])[0]
    return from_reads(np.concatenate(logits), np.concatenate(log_probs))


def answer_tokens(prompts: Sequence[ModelPrompt]) -> list[int]:
    """Every token that is an answer to some prompt."""
    return sorted({one.correct for one in prompts} | {one.opposite for one in prompts})


def from_reads(logits: NDArray[Any], log_prob: NDArray[Any] | None) -> Answers:
    """Answers from the two logits `[prompts, 2]` and the log-probability of the correct answer `[prompts]`."""
    both = np.asarray(logits, np.float64).reshape(-1, 2)
    correct, opposite = both[:, 0], both[:, 1]
    if log_prob is None:
        return Answers(correct, opposite, np.full(len(correct), np.nan))
    mass = np.exp(np.minimum(np.asarray(log_prob, np.float64), 0.0)) * (1 + np.exp(opposite - correct))
    return Answers(correct, opposite, np.minimum(mass, 1.0))


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


def _statistics(weights: Array, design: Design, clean: Answers, run: Answers) -> dict[str, Array]:
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


@dataclass(frozen=True, eq=False)
class Detail:
    """What a score was computed from: needed to compare it with others, not kept in files.

    Attributes
    ----------
    design, clean, run
        The prompts' structure, and both runs' answers.
    replicated
        Bootstrap replicates of the numbers that verdicts compare, `[replicates]` each.
    """

    design: Design
    clean: Answers
    run: Answers
    replicated: dict[str, Array]


@dataclass(frozen=True, eq=False)
class Score:
    """What a run scored on a behaviour. Intervals resample items and templates jointly; S is 1 for the clean model.

    Attributes
    ----------
    behaviour, half, n_prompts, n_items, n_templates
        What it rests on.
    refusal
        Why S is refused (the clean model is at chance), or None.
    rank
        2·AUC − 1 within groups that share an answer pair, in [−1, 1]; blind to a constant lean.
    sides
        For each side, mean margin about the clean decision point, over its clean value.
    margins, clean_margins
        For each side, the mean raw margin, in logits, of this run and of the clean one.
    bits, clean_bits
        Information of the context in the answer.
    accuracy
        Share of prompts whose correct answer has the larger logit.
    mass, clean_mass
        Probability of the two answers together.
    spoken
        For each side, how often the pair's first answer is given (where all prompts share one pair).
    share
        p = 1 − S(X = 0), where that was asked for.
    detail
        What it was computed from; None for a score read from a file.
    """

    behaviour: str
    half: str | None
    n_prompts: int
    n_items: int
    n_templates: int
    n_clusters: int
    refusal: str | None
    mean_ratio: Estimate
    rank: Estimate
    clean_rank: Estimate
    sides: dict[str, Estimate]
    margins: dict[str, Estimate]
    clean_margins: dict[str, Estimate]
    bits: Estimate
    clean_bits: Estimate
    accuracy: Estimate
    mass: Estimate
    clean_mass: Estimate
    spoken: dict[str, Estimate]
    answers: tuple[str, str] | None
    share: Estimate | None
    detail: Detail | None = field(repr=False)

    @property
    def s(self) -> Estimate:
        """S by mean margin: +1 the clean model, 0 chance, −1 its mirror image.

        Raises
        ------
        BehaviourError
            If it is refused; the message says why.
        """
        if self.refusal is not None:
            raise BehaviourError(f"behaviour {self.behaviour!r}: S is refused: {self.refusal}")
        return self.mean_ratio

    @property
    def lowest_side(self) -> float:
        """The smaller of the two sides' relative margins."""
        return min(side.value for side in self.sides.values())

    @property
    def known(self) -> Detail:
        """What it was computed from.

        Raises
        ------
        BehaviourError
            If it was read from a file, which does not hold that.
        """
        if self.detail is None:
            raise BehaviourError(f"behaviour {self.behaviour!r}: a score from a file can not be compared with others")
        return self.detail

    def with_share(self, zero: Score) -> Score:
        """The same score with p = 1 − S(X = 0) of another on the same prompts."""
        value = 1 - zero.mean_ratio.value
        return replace(self, share=Estimate.of(value, 1 - zero.known.replicated["s"]))

    def difference(self, other: Score) -> Estimate:
        """The difference of S to another's, on the same prompts and resamples."""
        draws = self.known.replicated["s"] - other.known.replicated["s"]
        return Estimate.of(self.mean_ratio.value - other.mean_ratio.value, draws)

    def __str__(self) -> str:
        where = f", half {self.half}" if self.half else ""
        head = f"{self.behaviour}{where} ({self.n_prompts} prompts, {self.n_items} items, {self.n_templates} templates)"
        s = f"S refused: {self.refusal}" if self.refusal else f"S {self.mean_ratio:+.2f}"
        sides = ", ".join(f"{name} {value:+.2f}" for name, value in self.sides.items())
        return (
            f"{head}: {s}; rank {self.rank:+.2f}; sides {sides}; bits {self.bits:.2f} (clean "
            f"{self.clean_bits.value:.2f}); accuracy {self.accuracy:.2f}; mass {self.mass:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "S": to_plain(self.mean_ratio) if self.refusal is None else None,
            **{key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__ if key != "detail"},
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Score:
        """What `to_json` gave; it cannot be compared with other scores any more."""
        fields = {key: _estimates(plain[key]) for key in cls.__dataclass_fields__ if key != "detail"}
        fields["answers"] = tuple(plain["answers"]) if plain["answers"] is not None else None
        return cls(**fields, detail=None)


def summarise(
    design: Design,
    clean: Answers,
    run: Answers,
    *,
    zero: Answers | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Score:
    """Score a run against the clean one.

    Parameters
    ----------
    design
        The prompts' structure.
    clean, run
        Answers of the clean model, and of the run.
    zero
        Answers with X at 0: then the score has its share p.
    replicates, seed
        Of the bootstrap.
    """
    ones = np.ones((1, len(design)))
    point = {key: float(value[0]) for key, value in _statistics(ones, design, clean, run).items()}
    draws = _statistics(design.weights(replicates, seed), design, clean, run)
    estimates = {key: Estimate.of(point[key], draws[key]) for key in point}
    a, b = design.sides
    one_pair = len(design.pairs) == 1

    def by_side(key: str) -> dict[str, Estimate]:
        return {a: estimates[f"{key}0"], b: estimates[f"{key}1"]}

    score = Score(
        behaviour=design.name,
        half=design.half,
        n_prompts=len(design),
        n_items=len(set(design.items)),
        n_templates=len(set(design.templates)),
        n_clusters=design.n_clusters,
        refusal=_refusal(estimates["clean_margin"], estimates["clean_rank"]),
        mean_ratio=estimates["s"],
        rank=estimates["rank"],
        clean_rank=estimates["clean_rank"],
        sides=by_side("side"),
        margins=by_side("raw"),
        clean_margins=by_side("clean_raw"),
        bits=estimates["bits"],
        clean_bits=estimates["clean_bits"],
        accuracy=estimates["accuracy"],
        mass=estimates["mass"],
        clean_mass=estimates["clean_mass"],
        spoken=by_side("first") if one_pair else {},
        answers=design.pairs[0] if one_pair else None,
        share=None,
        detail=Detail(
            design, clean, run, {key: draws[key] for key in ("s", "bits", "clean_bits", "mass", "clean_mass")}
        ),
    )
    if zero is None:
        return score
    return score.with_share(summarise(design, clean, zero, replicates=replicates, seed=seed))


def _refusal(margin: Estimate, rank: Estimate) -> str | None:
    if not margin.lower > 0:
        return f"the clean model is at chance: mean margin {margin:.2f} logits is not above 0"
    if not rank.lower > 0:
        return f"the clean model is at chance: 2 AUC - 1 = {rank:.2f} is not above 0"
    # A ratio whose denominator may be near 0 explodes: its interval must stay away from 0.
    if margin.lower < margin.value / 4:
        return f"the clean mean margin {margin:.2f} logits is too uncertain to divide by"
    return None


def _estimates(plain: Any) -> Any:
    """Plain data with its estimates made whole again."""
    if isinstance(plain, dict):
        if set(plain) == set(Estimate.__dataclass_fields__):
            return Estimate.from_json(plain)
        return {key: _estimates(value) for key, value in plain.items()}
    return plain
