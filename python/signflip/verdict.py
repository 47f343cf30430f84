"""Verdicts: what a score says of a flip, by rules fixed beforehand.

Each condition of *opposite* is tested by its own one-sided 95% limit and all must hold (an intersection-union test, so
nothing is corrected inside); *inert* and *incompetent* are equivalences (two one-sided tests). What is not significant
is never called inert. Fewer than 12 items are always inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from signflip.resample import cluster_means, sign_flip, to_plain
from signflip.score import Score

Label = Literal["opposite", "half-turned", "heuristic-prone", "inert", "incompetent", "weakened", "inconclusive"]
MARGIN = 0.2
LEVEL = 0.05
# A ratio with fewer clusters (items, of both sides together) is not significant: its interval means nothing.
MIN_CLUSTERS = 12
# The note of a verdict that no other prompts selected.
SAME_PROMPTS = "the same prompts selected and confirmed"
# The note of tokens that do not flip X.
NOT_ACROSS = "the tokens do not take X across: what they do is not its flip"
# The note of tokens whose effect does not pass through X.
BYSTANDER = "X is a bystander: the tokens do this by another way"
# The share of prompts in which tokens have to take X across.
MOSTLY = 0.5
# The note of a flip test that cannot know what selected its feature.
ALL_PROMPTS = "all prompts are here, those too that may have selected the feature"


@dataclass(frozen=True)
class Condition:
    """One requirement of a verdict.

    Attributes
    ----------
    name
        What is required.
    passed
        Whether it holds; None if it was not measured, which is never a pass.
    found
        The number that was compared, and its bound, in words.
    """

    name: str
    passed: bool | None
    found: str

    def __str__(self) -> str:
        mark = {True: "holds", False: "fails", None: "not measured"}[self.passed]
        return f"{self.name}: {mark} ({self.found})"


@dataclass(frozen=True)
class Divergence:
    """How far an edit moves the next-token distribution, against units matched on output norm.

    Attributes
    ----------
    text, acts
        Mean KL(clean ‖ edited) in nats on plain text, and at its positions where X acts most.
    text_bound, acts_bound
        The 95% quantiles of the matched units, None where there are none.
    n_matched
        How many units they come from.
    """

    text: float
    acts: float
    text_bound: float | None = None
    acts_bound: float | None = None
    n_matched: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in ("text", "acts", "text_bound", "acts_bound", "n_matched")}


def taken_across(verdict: Verdict, share: float) -> Verdict:
    """A verdict on tokens, given the share of prompts in which they take X across.

    Where that is less than half, what the tokens do is not what X's flip does, and nothing is said of it.
    """
    passed = share >= MOSTLY
    found = f"in {share:.0%} of the prompts, must be at least {MOSTLY:.0%}"
    conditions = (*verdict.conditions, Condition("the tokens take X across", passed, found))
    if passed:
        return replace(verdict, conditions=conditions)
    return replace(verdict, label="inconclusive", conditions=conditions, notes=(*verdict.notes, NOT_ACROSS), tier="")


def with_role(verdict: Verdict, role: str) -> Verdict:
    """A verdict on tokens that says so where X stands by: what they do, they do by another way."""
    if role != "bystander" or verdict.label in ("inert", "inconclusive"):
        return verdict
    return replace(verdict, notes=(*verdict.notes, BYSTANDER))


@dataclass(frozen=True)
class Verdict:
    """What a flip does to a behaviour.

    Attributes
    ----------
    label
        The verdict.
    conditions
        Those of *opposite*, each held or failed.
    notes
        What the label alone would hide: a constant answer, a score by a heuristic.
    tier
        How X was brought across (`"T0"` to `"T4"`), empty if it was not.
    decisive
        Whether the dose may decide: it does not go beyond what was seen, and other prompts selected it.
    p
        One-sided p-value of the turn over clusters, before any correction for the number of tests.
    constant
        Whether the flip pushes nearly one answer in both contexts: one answer is said, and the side that it is right on
        lies beyond its clean margin. A side that turns while the other stays gives one answer too, but is no push.
    """

    label: Label
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...] = ()
    tier: str = ""
    decisive: bool = True
    p: float = 1.0
    constant: bool = False

    @property
    def failed(self) -> tuple[Condition, ...]:
        """Conditions of *opposite* that do not hold."""
        return tuple(condition for condition in self.conditions if not condition.passed)

    def __str__(self) -> str:
        tier = f" at {self.tier}" if self.tier else ""
        why = "" if SAME_PROMPTS in self.notes else "extrapolated: "
        beyond = "" if self.decisive else f" ({why}not decisive)"
        notes = f"; {'; '.join(self.notes)}" if self.notes else ""
        return f"{self.label}{tier}{beyond}{notes}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        conditions = [{"name": c.name, "passed": c.passed, "found": c.found} for c in self.conditions]
        plain = {key: to_plain(getattr(self, key)) for key in ("label", "tier", "decisive", "p", "notes", "constant")}
        return {**plain, "conditions": conditions}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Verdict:
        """What `to_json` gave."""
        fields = {**plain, "notes": tuple(plain["notes"])}
        fields["conditions"] = tuple(Condition(**one) for one in plain["conditions"])
        return cls(**fields)


def judge(
    score: Score,
    *,
    ablations: Sequence[Score] = (),
    divergence: Divergence | None = None,
    kind: str = "symmetric",
    paired: Score | None = None,
    tier: str = "",
    decisive: bool = True,
    margin: float = MARGIN,
) -> Verdict:
    """The verdict on a flip.

    Parameters
    ----------
    score
        The flipped model's.
    ablations
        The same feature removed instead of flipped (mean- and zero-ablated), on the same prompts.
    divergence
        KL of the flip on plain text and where X acts.
    kind
        The behaviour's.
    paired
        Score of the simpler behaviour that a heuristic would still get right, under the same flip.
    tier, decisive
        Handed on.
    margin
        d, the smallest difference that counts.

    Raises
    ------
    BehaviourError
        If S is refused.
    """
    s = score.s
    sides = list(score.sides.items())
    turned = [side.upper < -margin for _, side in sides]
    kept_bits = _at_least_half(score, "bits")
    kept_mass = _at_least_half(score, "mass")
    conditions = [
        Condition(f"side {name!r} is turned", bool(one), f"upper limit {side.upper:+.2f}, must be below {-margin:+.2f}")
        for (name, side), one in zip(sides, turned, strict=True)
    ]
    conditions.append(
        Condition(
            "the answer still depends on the context",
            kept_bits,
            f"{score.bits.value:.2f} of {score.clean_bits.value:.2f} bits, must be at least half",
        )
    )
    conditions.append(_below_ablation(score, ablations, margin))
    conditions.append(
        Condition(
            "answer mass is kept",
            kept_mass,
            f"{score.mass.value:.2f} of {score.clean_mass.value:.2f}, must be at least half",
        )
    )
    conditions.append(_harmless(divergence))
    if kind != "symmetric":
        conditions.append(Condition("no shallow heuristic gives the opposite answer", False, f"behaviour is {kind}"))
    said = constant_answer(score)
    pushed = said and any(side.lower > 1 + margin for _, side in sides)
    notes = _notes(score, conditions, turned, kept_bits, kind, paired, said)
    label: Label
    few = score.n_items < MIN_CLUSTERS
    if few:
        notes = [f"{score.n_items} items are too few for an interval: at least {MIN_CLUSTERS}"]
        label = "inconclusive"
    elif any(turned) and kind != "symmetric":
        label = "heuristic-prone"
    elif all(condition.passed for condition in conditions):
        label = "opposite"
    elif turned[0] != turned[1]:
        label = "half-turned"
    elif 1 - margin < s.lower and s.upper < 1 + margin:
        label = "inert"
    elif -margin < s.lower and s.upper < margin:
        label = "incompetent"
    elif s.upper < 1 - margin and not all(turned):
        label = "weakened"
    else:
        label = "inconclusive"
    p = turn_p(score, margin, half=not all(turned))
    return Verdict(label, tuple(conditions), tuple(notes), tier, decisive, p, pushed and not few)


def any_turned(score: Score, margin: float = MARGIN) -> bool:
    """Whether a side is turned: only then are the costlier controls of *opposite* due."""
    return score.refusal is None and any(side.upper < -margin for side in score.sides.values())


def turn_p(score: Score, margin: float = MARGIN, *, half: bool = False, seed: int = 0) -> float:
    """P-value that the sides are not turned beyond the margin, by sign-flips over items.

    For both sides it is the larger of the two; with `half`, for either side, twice the smaller.
    """
    from signflip.design import leans

    known = score.known
    design = known.design
    lean = leans(np.ones((1, len(design))), design, known.clean.margin)[0]
    moved = (known.run.margin - lean) + margin * (known.clean.margin - lean)
    p = []
    for side in (0, 1):
        own = np.flatnonzero(design.side == side)
        p.append(sign_flip(cluster_means(moved[own], [design.items[i] for i in own]), seed))
    return min(1.0, 2 * min(p)) if half else max(p)


def _at_least_half(score: Score, key: str) -> bool | None:
    run, clean = score.known.replicated[key], score.known.replicated[f"clean_{key}"]
    value, reference = getattr(score, key).value, getattr(score, f"clean_{key}").value
    if not (np.isfinite(value) and np.isfinite(reference)):
        return None
    if not reference > 0:
        return False
    return bool(np.percentile(run - clean / 2, 5) >= 0)


def _below_ablation(score: Score, ablations: Sequence[Score], margin: float) -> Condition:
    name = "S lies below that of ablation"
    if not ablations:
        return Condition(name, None, "no ablation was run")
    differences = [score.difference(other) for other in ablations]
    worst = max(differences, key=lambda one: one.upper)
    passed = bool(worst.upper < -margin)
    return Condition(name, passed, f"difference {worst:+.2f}, upper limit must be below {-margin:+.2f}")


def _harmless(divergence: Divergence | None) -> Condition:
    name = "KL on other tokens is that of matched units"
    if divergence is None:
        return Condition(name, None, "not measured")
    if divergence.text_bound is None or divergence.acts_bound is None:
        why = "matched units are run for neurons that turn a side"
        return Condition(name, None, f"{divergence.text:.4f} on text; {why}")
    passed = divergence.text <= divergence.text_bound and divergence.acts <= divergence.acts_bound
    return Condition(
        name,
        bool(passed),
        f"{divergence.text:.4f} on text and {divergence.acts:.4f} where X acts; the 95% quantiles of "
        f"{divergence.n_matched} matched units are {divergence.text_bound:.4f} and {divergence.acts_bound:.4f}",
    )


def _notes(
    score: Score,
    conditions: Sequence[Condition],
    turned: list[bool],
    kept_bits: bool | None,
    kind: str,
    paired: Score | None,
    constant: bool,
) -> list[str]:
    notes = []
    if constant:
        notes.append(_constant(score))
    elif any(turned) and kept_bits is False:
        notes.append("the answer hardly depends on the context")
    if all(turned) and kind == "symmetric":
        missing = [condition.name for condition in conditions if not condition.passed]
        if missing:
            notes.append(f"both sides are turned; not shown: {', '.join(missing)}")
    if turned[0] != turned[1]:
        side = list(score.sides)[turned.index(True)]
        notes.append(f"only side {side!r} is turned")
    if any(turned) and kind != "symmetric":
        notes.append(
            "a shallow heuristic gives the opposite answer"
            if paired is None or paired.refusal is not None
            else f"and {paired.behaviour}, where the heuristic is right, scores {paired.mean_ratio.value:+.2f}"
        )
    return notes


def constant_answer(score: Score) -> bool:
    """Whether the run gives nearly one answer in both contexts though the clean model does not.

    By what is said (less than an eighth of the clean information is left) and by a lean that outweighs the context.
    """
    if not score.clean_bits.value > 0 or score.bits.value > score.clean_bits.value / 8:
        return False
    known = score.known
    oriented = known.run.margin * known.design.sign
    says_first = [float(np.mean(oriented[known.design.group == g] > 0)) for g in range(len(known.design.pairs))]
    return bool(np.mean([max(one, 1 - one) for one in says_first]) >= 0.75)


def _constant(score: Score) -> str:
    if score.answers is None or not score.spoken:
        return "nearly a constant answer"
    first = np.mean([one.value for one in score.spoken.values()])
    answer, at = (score.answers[0], 1.0) if first >= 0.5 else (score.answers[1], -1.0)
    shares = [one.value if at > 0 else 1 - one.value for one in score.spoken.values()]
    said = " and ".join(f"{share:.0%}" for share in shares)
    slope = "kept" if score.rank.value > 0.5 else "lost" if score.rank.value > -0.5 else "reversed"
    return f"nearly a constant answer: {answer!r} on {said} of the two sides (rank order {slope})"
