"""Reversals: what a scan hands on to a search and a flip test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from signflip.design import Answers, Design, side_means
from signflip.dosing import Dose, Feature, Profile
from signflip.matched import Layer, TwoSided
from signflip.resample import to_plain
from signflip.score import Score, from_reads
from signflip.sequences import Context, Rendered
from signflip.sweep import RowEdit, Sweep
from signflip.verdict import Condition, Divergence, Verdict

if TYPE_CHECKING:
    from signflip.behaviours.prompts import ModelPrompt
    from signflip.model import Model

# Positions counted from the end that are tried one at a time, and contexts that are handed to a search.
MAX_POSITIONS = 24
MAX_CONTEXTS = 16
# Two-sided neurons looked at for an equal share, how near it must be, and how many of them are run at the dose.
LOOK_AT = 48
NEAR = 0.1
TWINS = 5


@dataclass(frozen=True, eq=False)
class Reversal:
    """A feature whose flip turns a behaviour, wholly or on one side, confirmed on half B.

    Attributes
    ----------
    feature, behaviour, dose, tier, metric
        What turns what, and how X was brought there.
    score, verdict
        On half B; `verdict.label` is `opposite`, `half-turned` or `heuristic-prone`.
    failed
        The conditions of *opposite* that do not hold.
    profile
        Clean statistics of the feature where it acts.
    prediction, twins, switch
        S by a line through S(mean) and S(0); two-sided neurons of equal share at the same dose; whether the reversal is
        below both, more than arithmetic.
    divergence, plausibility, p_holm
        As in the scan's row.
    positions
        Where the effect is carried: positions counted from the prompt's end, the most common first.
    contexts
        `(before, after)` texts of half A in which the first of those positions carries it, for a search; ids where the
        model has no tokenizer.
    """

    LABELS: ClassVar[tuple[str, ...]] = ("opposite", "half-turned", "heuristic-prone")

    feature: Feature
    behaviour: str
    dose: Dose
    tier: str
    metric: str
    score: Score
    verdict: Verdict
    failed: tuple[Condition, ...]
    profile: Profile
    prediction: float | None
    twins: TwoSided | None
    switch: bool
    divergence: Divergence | None
    plausibility: float
    p_holm: float | None
    positions: tuple[int, ...]
    drops: dict[int, float]
    contexts: list[Context] = field(repr=False)

    @classmethod
    def of(
        cls, row: Any, half: Any, positions: dict[str, list[int]], drops: dict[int, float], twins: Any, switch: bool
    ) -> Reversal:
        """From a confirmed row of a scan and the half of the behaviour that selected it."""
        count = Counter(position for places in positions.values() for position in places)
        ranked = tuple(sorted(count, key=lambda position: (-count[position], -drops.get(position, 0.0))))
        return cls(
            row.feature, row.behaviour, row.dose, row.tier, row.metric, row.score, row.verdict, row.verdict.failed,
            row.profile, row.prediction, twins, switch, row.divergence, row.plausibility, row.p_holm, ranked, drops,
            contexts_of(half.prompts, positions, ranked[0] if ranked else -1),
        )  # fmt: skip

    @property
    def decisive(self) -> bool:
        """Whether the dose was seen, and confirmed on prompts that did not select it: nothing else decides."""
        return self.verdict.decisive

    @property
    def order(self) -> tuple[Any, ...]:
        """How reversals are ranked."""
        label = self.LABELS.index(self.verdict.label)
        return (not self.decisive, label, self.verdict.constant, self.score.mean_ratio.value)

    def flip(self, position: int | str | None = None) -> Any:
        """The objective that is positive exactly when X is on its other side, read where the effect is carried."""
        from signflip import objectives

        at = position if position is not None else (self.positions[0] if self.positions else -1)
        objective = objectives.neuron(self.feature.site, self.feature.index, at)
        return -objective if self.feature.side > 0 else objective

    def __str__(self) -> str:
        how = f"{self.tier}/{self.metric}" if self.metric else self.tier
        failed = ", ".join(condition.name for condition in self.failed) or "none"
        return (
            f"{self.verdict}: {self.feature.name} on {self.behaviour} at {self.dose.name} ({self.dose.value:+.3g}, "
            f"{how}): "
            f"S {self.score.mean_ratio:+.2f}, p {self.p_holm:.2g} (Holm); failed conditions: {failed}"
            + ("" if self.switch else "; no more than its share predicts")
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        keys = ("feature", "behaviour", "dose", "tier", "metric", "score", "verdict", "profile", "prediction", "twins")
        more = ("switch", "divergence", "plausibility", "p_holm", "positions", "drops", "contexts", "decisive")
        return {
            **{key: to_plain(getattr(self, key)) for key in (*keys, *more)},
            "failed": [condition.name for condition in self.failed],
            "rendered": any(isinstance(context, Rendered) for context in self.contexts),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Reversal:
        """What `to_json` gave: all that a search and a flip test need."""
        verdict = Verdict.from_json(plain["verdict"])
        profile = profile_from(plain["profile"])
        twins = None
        if plain["twins"] is not None:
            t = plain["twins"]
            twins = TwoSided(tuple(t["neurons"]), tuple(t["shares"]), tuple(t["s"]), int(t["looked"]))
        return cls(
            Feature(**_numbers(plain["feature"])), plain["behaviour"], Dose(**plain["dose"]), plain["tier"],
            plain["metric"], Score.from_json(plain["score"]), verdict, verdict.failed, profile, plain["prediction"],
            twins, plain["switch"], plain["divergence"] and Divergence(**plain["divergence"]),
            number(plain["plausibility"]), plain["p_holm"], tuple(plain["positions"]),
            {int(place): drop for place, drop in plain["drops"].items()},
            [Rendered(context) if plain.get("rendered") else tuple(context) for context in plain["contexts"]],
        )  # fmt: skip


def carrying_positions(
    model: Model, prompts: Sequence[ModelPrompt], clean: Answers, feature: Feature, value: float
) -> tuple[dict[str, list[int]], dict[int, float]]:
    """Which positions carry an effect: X is set at one position at a time, counted from the prompt's end.

    Returns
    -------
    tuple
        For each template (or each length, where there are none) the positions whose mean drop of the margin is at
        least half the largest; and each position's drop over all prompts that have it, in clean margins.
    """
    sweep = Sweep(model, [one.ids for one in prompts], [one.n_leading for one in prompts], share=False)
    longest = max(len(one.ids) - one.n_leading for one in prompts)
    # What lies before the slot, no trigger in it can change.
    longest = min(longest, max(1, *(len(one.ids) - one.n_before for one in prompts)))
    places = list(range(-1, -1 - min(longest, MAX_POSITIONS), -1))

    def at(position: int) -> Callable[[int], NDArray[np.bool_]]:
        return lambda c: sweep.chunks[c].from_end == position

    variants = [[RowEdit(feature.site, "set", (feature.index,), float(value), at(place))] for place in places]
    logits, _ = sweep.ends([[one.correct, one.opposite] for one in prompts], variants)
    scale = float(np.mean(clean.margin))
    drop = np.stack([(clean.margin - from_reads(logits[v], None).margin) / scale for v in range(len(places))])
    begin = [max(one.n_leading, one.n_before) if one.n_before < len(one.ids) else one.n_leading for one in prompts]
    have = np.asarray(
        [[len(one.ids) + place >= at for one, at in zip(prompts, begin, strict=True)] for place in places]
    )
    drop = np.where(have, drop, np.nan)
    groups: dict[str, list[int]] = {}
    for i, one in enumerate(prompts):
        # Positions line up within a template only if its prompts are equally long.
        groups.setdefault(f"{one.prompt.template}\x00{len(one.ids)}", []).append(i)
    carried = {}
    for name, members in groups.items():
        mean = np.asarray([one[members].mean() if have[k, members].all() else -np.inf for k, one in enumerate(drop)])
        top = mean.max()
        carried[name] = [places[k] for k in np.argsort(-mean) if mean[k] >= top / 2 and top > 0] or [-1]
    overall = {place: float(np.nanmean(one)) for place, one in zip(places, drop, strict=True) if np.isfinite(one).any()}
    return carried, overall


def contexts_of(prompts: Sequence[ModelPrompt], carried: dict[str, list[int]], position: int) -> list[Context]:
    """`(before, after)` texts (or ids) in which a position carries the effect, one an item before any comes twice."""
    chosen: list[tuple[int, ModelPrompt]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for one in prompts:
        if position in carried.get(f"{one.prompt.template}\x00{len(one.ids)}", []):
            key = (one.prompt.item, one.prompt.side)
            chosen.append((seen[key], one))
            seen[key] += 1
    chosen.sort(key=lambda pair: pair[0])
    kept: list[Context] = []
    for _, one in chosen:
        if one.context not in kept and len(kept) < MAX_CONTEXTS:
            kept.append(one.context)
    return kept


def twins(
    model: Model,
    sweep: Sweep,
    run: Callable[[Sequence[Sequence[RowEdit]]], list[Answers]],
    design: Design,
    clean: Answers,
    feature: Feature,
    share: float,
    k: float,
) -> TwoSided | None:
    """Two-sided neurons of X's layer with (nearly) its share, each set to −k times its own mean."""
    place = feature.place
    if place is None:
        return None
    layer = Layer(model, sweep, place[0])
    looked = [i for i in layer.two_sided(place[1], LOOK_AT) if i != feature.index]
    if not looked:
        return TwoSided((), (), (), 0)

    def s_of(values: Sequence[float], neurons: Sequence[int]) -> list[float]:
        variants = [[RowEdit(feature.site, "set", (i,), float(t))] for i, t in zip(neurons, values, strict=True)]
        ones = np.ones((1, len(design)))
        base = side_means(ones, design, clean.margin).sum()
        return [float(side_means(ones, design, one.margin).sum() / base) for one in run(variants)]

    shares = 1 - np.asarray(s_of([0.0] * len(looked), looked))
    order = np.argsort(np.abs(shares - share), kind="stable")
    near = [int(j) for j in order if abs(shares[j] - share) <= NEAR][:TWINS]
    if not near:
        return TwoSided((), (), (), len(looked))
    neurons = [looked[j] for j in near]
    # k is of X's mean where it acts: so are theirs.
    found = s_of([-k * layer.mean_acting(place[1], i) for i in neurons], neurons)
    return TwoSided(tuple(neurons), tuple(float(shares[j]) for j in near), tuple(found), len(looked))


def profile_from(plain: dict[str, Any]) -> Profile:
    """What `Profile.to_json` gave."""
    return Profile(**{**_numbers(plain), "feature": Feature(**_numbers(plain["feature"]))})


def number(plain: float | None) -> float:
    """A number that JSON holds as null where it is not finite."""
    return float("nan") if plain is None else plain


def _numbers(plain: dict[str, Any]) -> dict[str, Any]:
    """Fields of a feature or a profile, whose missing numbers JSON holds as null."""
    return {key: float("nan") if value is None else value for key, value in plain.items()}
