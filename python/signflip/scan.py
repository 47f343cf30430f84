"""The scan: every feature brought to its other side by edits, against every behaviour."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from signflip.behaviours.behaviour import Behaviour, Half
from signflip.behaviours.plain import plain_sequences
from signflip.checks import integer, listed
from signflip.design import Answers, Design, leans, side_means
from signflip.dosing import (
    LARGEST,
    Dose,
    Feature,
    Metric,
    Moves,
    Profile,
    Tier,
    Tiers,
    asked_doses,
    doses,
    profiles,
    tiers_of,
)
from signflip.errors import ArgumentError, TokenError, TokenizerError
from signflip.matched import Layer, exceeds, text_divergences
from signflip.resample import holm
from signflip.reversal import Reversal, carrying_positions, twins
from signflip.scanned import Row, SavedScan, Scan, turnedness
from signflip.score import Score, answer_tokens, from_reads, summarise
from signflip.sweep import RowEdit, Sweep
from signflip.verdict import LEVEL, MARGIN, SAME_PROMPTS, Divergence, any_turned, judge

if TYPE_CHECKING:
    from signflip.behaviours.prompts import ModelPrompt
    from signflip.model import Model

log = logging.getLogger("signflip.scan")

MAX_TRIPLES = 50
# A screened S below this is looked at in full: a little above the point where "weakened" begins.
LOOK_BELOW = 0.7
PAIRS_A_FEATURE = 2

Plan = tuple[Dose, Tier, Metric]


def scan(
    model: Model,
    features: Iterable[Any],
    behaviours: Behaviour | Sequence[Behaviour],
    doses: Sequence[float | str | Dose] | None = None,
    *,
    screen: int = 6,
    keep: int = 8,
    look_below: float = LOOK_BELOW,
    tiers: Sequence[Tier] = ("T0", "T1"),
    confirm: int = MAX_TRIPLES,
    replicates: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> Scan:
    """Bring features to their other side by edits, and see what it does to behaviours.

    First every feature at its furthest dose on a few prompts of half A, at all positions but the leading special
    tokens; then the pairs that look turned on all of half A, along the dose curve and by tier; then at most 50
    triples (feature, behaviour, dose), chosen there, on half B, whose numbers alone are reported as effects.
    A behaviour that is not split into halves has one set of prompts for both: nothing decides there, and each verdict
    says so.

    Parameters
    ----------
    model
        The model.
    features
        `OneSided` features of a survey, or `(site, index)`: then extremes are those of the prompts.
    behaviours
        What to look at. Those at which the clean model is at chance are left out, and said so; and, beside others,
        those that do not fit it: an answer that is not one of its tokens, a chat template that it does not have.
    doses
        Numbers or names (see `Dose`); by default the clean mean, 0, the most extreme value seen on the other side
        where X acts, and, extrapolated, the survey's extreme, minus the mean, and the mirrored extreme.
    screen
        Prompts of each behaviour in the first look; 0 looks at everything in full.
    keep
        At most this many (feature, behaviour) pairs are looked at in full.
    look_below
        Only those whose S in the first look is below.
    tiers
        Which to run: `"T0"`, `"T1"`, or both.
    confirm
        At most this many triples go to half B.
    replicates, seed
        Of the bootstrap.
    progress
        Whether to show a bar.

    Raises
    ------
    ArgumentError
        If there are no features or no behaviours, one is there twice, or a dose is unknown.
    SiteError
        If a feature's site or index does not exist.
    """
    screen, keep = integer("screen", screen, 0), integer("keep", keep, 0)
    confirm = integer("confirm", confirm, 0, MAX_TRIPLES)
    replicates, seed = integer("replicates", replicates, 1), integer("seed", seed, 0, 2**64 - 1)
    if (
        not isinstance(look_below, (int, float, np.number))
        or isinstance(look_below, bool)
        or not abs(look_below) <= LARGEST
    ):
        raise ArgumentError(f"look_below: expected a finite number, found {look_below!r}")
    chosen = _features(features)
    scored = _behaviours(behaviours)
    return _Run(model, chosen, scored, asked_doses(doses), _tiers(tiers), replicates, seed, progress).run(
        screen, keep, float(look_below), confirm
    )


def _features(given: Any) -> list[Feature]:
    if hasattr(given, "site") or hasattr(given, "feature"):
        given = [given]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ArgumentError(f"features: expected one-sided features or (site, index), found {given!r}")
    features = [Feature.of(one) for one in given]
    if not features:
        raise ArgumentError("features: expected at least one, found none")
    names: set[str] = set()
    for one in features:
        if one.name in names:
            raise ArgumentError(f"features: expected each once, found {one.name} twice")
        names.add(one.name)
    return features


def _behaviours(given: Any) -> list[Behaviour]:
    behaviours = [given] if isinstance(given, Behaviour) else listed("behaviours", given, "a list of behaviours")
    if not behaviours:
        raise ArgumentError("behaviours: expected at least one, found none")
    names: set[str] = set()
    for one in behaviours:
        if not isinstance(one, Behaviour):
            raise ArgumentError(f"behaviours: expected a list of behaviours, found {one!r}")
        if one.name in names:
            raise ArgumentError(f"behaviours: expected a name of its own for each, found {one.name!r} twice")
        names.add(one.name)
    return behaviours


def _tiers(given: Any) -> tuple[Tier, ...]:
    wanted = "some of 'T0' and 'T1'"
    tiers = [given] if isinstance(given, str) else listed("tiers", given, wanted)
    if not tiers or not all(isinstance(one, str) and one in ("T0", "T1") for one in tiers):
        raise ArgumentError(f"tiers: expected {wanted}, found {given!r}")
    return tuple(dict.fromkeys(tiers))


@dataclass(eq=False)
class _Half:
    """A behaviour's half on a model, ready for variants."""

    behaviour: Behaviour
    prompts: list[ModelPrompt]
    design: Design
    clean: Answers
    sweep: Sweep

    @classmethod
    def of(cls, model: Model, behaviour: Behaviour, half: Half | None, index: Sequence[int] | None = None) -> _Half:
        prompts = behaviour.prompts_for(model, half)
        clean = behaviour.clean(model, half)
        if index is not None:
            prompts, clean = [prompts[i] for i in index], clean.take(index)
        design = Design.of(behaviour.name, [one.prompt for one in prompts], half)
        sweep = Sweep(model, [one.ids for one in prompts], [one.n_leading for one in prompts])
        return cls(behaviour, prompts, design, clean, sweep)

    def answers(self, variants: Sequence[Sequence[RowEdit]], mass: bool = True) -> list[Answers]:
        pairs = [[one.correct, one.opposite] for one in self.prompts]
        targets = [one.correct for one in self.prompts] if mass else None
        logits, log_probs = self.sweep.ends(pairs, variants, targets)
        return [from_reads(logits[v], None if log_probs is None else log_probs[v]) for v in range(len(variants))]


class _Run:
    def __init__(
        self,
        model: Model,
        features: list[Feature],
        behaviours: list[Behaviour],
        asked: Sequence[float | str | Dose] | None,
        tiers: tuple[Tier, ...],
        replicates: int,
        seed: int,
        progress: bool,
    ) -> None:
        self.model, self.features, self.asked = model, features, asked
        self.tiers, self.replicates, self.seed, self.progress = tiers, replicates, seed, progress
        self.refused: dict[str, str] = {}
        known = []
        self.listed = []
        for behaviour in behaviours:
            try:
                known += [one.ids for one in behaviour.prompts_for(model, "A")]
                self.listed.append(behaviour)
            except (TokenError, TokenizerError) as err:
                # One that does not fit the model is left out beside others, as one at chance is.
                if len(behaviours) == 1:
                    raise
                self.refused[behaviour.name] = str(err)
        if not self.listed:
            raise TokenError(f"behaviours: none fits {model.name}: {'; '.join(self.refused.values())}")
        self.text = Sweep(model, *plain_sequences(model, known))
        self.layers: dict[int, Layer] = {}
        self.carried: dict[tuple[str, str, float], tuple[dict[str, list[int]], dict[int, float]]] = {}
        # Σ is that of plain text and of half A's prompts of all behaviours.
        self.moves = Moves(model, [self.text])
        self.on_text = Tiers(self.moves, self.text)

    def run(self, screen: int, keep: int, look_below: float, confirm: int) -> Scan:
        halves: dict[str, _Half] = {}
        for behaviour in self.listed:
            half = _Half.of(self.model, behaviour, "A")
            clean = summarise(half.design, half.clean, half.clean, replicates=self.replicates, seed=self.seed)
            if clean.refusal is not None:
                self.refused[behaviour.name] = clean.refusal
            else:
                halves[behaviour.name] = half
        names = tuple(halves)
        self.half_a = halves
        clean_sweeps = [half.sweep for half in halves.values()] + [self.text]
        self.moves.background = clean_sweeps
        self.profiles = profiles(self.model, self.features, clean_sweeps)
        self.curves = [doses(profile, self.asked) for profile in self.profiles]
        chosen = [_furthest(profile, curve) for profile, curve in zip(self.profiles, self.curves, strict=True)]
        table, sides = self._screen(names, chosen, screen)
        pairs = _candidates(table, keep, look_below if screen else np.inf)
        rows = self._in_full([(f, names[b]) for f, b in pairs])
        prone = {one.name for one in self.listed if one.kind != "symmetric"}
        triples = _triples(rows, confirm, prone)
        confirmed, reversals = self._confirm(triples)
        meta = {
            "model": self.model.name,
            "model_hash": self.model.hash,
            "behaviours": {name: len(half.prompts) for name, half in halves.items()},
            "seed": self.seed,
            "replicates": self.replicates,
            "screened_prompts": screen,
            "confirmed_triples": len(triples),
            "margin": MARGIN,
            "level": LEVEL,
        }
        return Scan(
            names,
            self.refused,
            tuple(self.profiles),
            tuple(chosen),
            table,
            sides,
            tuple(rows),
            tuple(confirmed),
            tuple(sorted(reversals, key=lambda one: one.order)),
            meta,
        )

    # ---- the first look ----------------------------------------------------------------------------------------------

    def _screen(
        self, names: Sequence[str], chosen: Sequence[Dose], n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shape = (len(self.features), len(names))
        s, lower = np.full(shape, np.nan), np.full(shape, np.nan)
        if not n or not names:
            return s, lower
        small = [
            _Half.of(self.model, self.half_a[b].behaviour, "A", self.half_a[b].behaviour.subset(n, "A")) for b in names
        ]
        prompts = [one for half in small for one in half.prompts]
        sweep = Sweep(self.model, [one.ids for one in prompts], [one.n_leading for one in prompts])
        columns = [[one.correct, one.opposite] for one in prompts]
        # By layer, so that variants of one request join at about the same depth.
        order = sorted(range(len(self.features)), key=lambda f: _layer(self.features[f]))
        variants = [
            [RowEdit(self.features[f].site, "set", (self.features[f].index,), float(chosen[f].value))] for f in order
        ]
        with tqdm(total=len(order), desc="scan: first look", disable=not self.progress, unit="feature") as bar:
            logits, _ = sweep.ends(columns, variants, on_done=bar.update)
        for v, f in enumerate(order):
            at = 0
            for b, half in enumerate(small):
                run = from_reads(logits[v, at : at + len(half.prompts)], None)
                at += len(half.prompts)
                s[f, b], lower[f, b] = _quick(half.design, half.clean, run)
        return s, lower

    # ---- half A ------------------------------------------------------------------------------------------------------

    def _whole_curve(self, feature: int) -> list[Plan]:
        """Every dose at every tier."""
        return [
            (dose, tier, metric)
            for tier, metric in tiers_of(self.profiles[feature].feature)
            if tier in self.tiers
            for dose in self.curves[feature]
            # At its mean X hardly moves: T1 there says nothing that T0 does not.
            if tier == "T0" or dose.name != "mean"
        ]

    def _to_confirm(self, feature: int, chosen: Sequence[Row]) -> list[Plan]:
        """The chosen doses, and the removals that they are compared with: the mean and 0 by T0, 0 by their own tier."""
        mean, zero = doses(self.profiles[feature], ["mean", "zero"])
        wanted: dict[tuple[float, Tier, Metric], Plan] = {}
        for row in chosen:
            for dose, tier, metric in (
                (mean, "T0", ""),
                (zero, "T0", ""),
                (zero, row.tier, row.metric),
                (row.dose, row.tier, row.metric),
            ):
                wanted.setdefault((dose.value, tier, metric), (dose, tier, metric))  # type: ignore[arg-type]
        return list(wanted.values())

    def _in_full(self, pairs: Sequence[tuple[int, str]]) -> list[Row]:
        rows: list[Row] = []
        for feature, name in tqdm(pairs, desc="scan: half A", disable=not self.progress, unit="pair"):
            rows.extend(self._pair(feature, self.half_a[name], self._whole_curve(feature), "A"))
        return rows

    def _pair(self, feature: int, half: _Half, planned: Sequence[Plan], which: Half, bounds: bool = False) -> list[Row]:
        """Doses and tiers of a feature on one half of a behaviour."""
        profile = self.profiles[feature]
        tiers = Tiers(self.moves, half.sweep)
        ran = half.answers([tiers.edits(profile.feature, dose.value, tier, metric) for dose, tier, metric in planned])
        scores = [summarise(half.design, half.clean, run, replicates=self.replicates, seed=self.seed) for run in ran]
        paired = self._paired(half, feature, planned, which)
        moved = self._divergences(feature, half, planned, scores if bounds else None)
        rows = []
        for (dose, tier, metric), score, simple, kl in zip(planned, scores, paired, moved, strict=True):
            same = {
                d.name: other
                for (d, t, m), other in zip(planned, scores, strict=True)
                if (t, m) == (tier, metric) or (t == "T0" and d.name == "mean")
            }
            zero = same.get("zero")
            score = score.with_share(zero) if zero is not None else score
            removed = [same[name] for name in ("mean", "zero") if name in same and dose.name not in ("mean", "zero")]
            verdict = judge(
                score,
                ablations=removed,
                divergence=kl,
                kind=half.behaviour.kind,
                paired=simple,
                tier=tier,
                decisive=not dose.extrapolated,
            )
            if which == "B" and not half.behaviour.split:
                verdict = replace(verdict, decisive=False, notes=(*verdict.notes, SAME_PROMPTS))
            prediction = None
            if score.share is not None and profile.mean:
                prediction = 1 - score.share.value * (1 - dose.value / profile.mean)
            rows.append(
                Row(
                    profile, dose, tier, metric, half.behaviour.name, which, score, verdict, prediction, kl,
                    profile.plausibility(dose.value),
                )
            )  # fmt: skip
        return rows

    def _paired(self, half: _Half, feature: int, planned: Sequence[Plan], which: Half) -> list[Score | None]:
        """The paired simple behaviour under the same edits, where there is one."""
        simple = next((one for one in self.listed if one.name == half.behaviour.paired), None)
        if simple is None:
            return [None] * len(planned)
        other = _Half.of(self.model, simple, which)
        tiers = Tiers(self.moves, other.sweep)
        one = self.profiles[feature].feature
        ran = other.answers([tiers.edits(one, dose.value, tier, metric) for dose, tier, metric in planned], mass=False)
        return [
            summarise(other.design, other.clean, run, replicates=min(200, self.replicates), seed=self.seed)
            for run in ran
        ]

    def _divergences(
        self,
        feature: int,
        half: _Half,
        planned: Sequence[Plan],
        scores: Sequence[Score] | None,
    ) -> list[Divergence]:
        """KL of each planned edit; given the scores, of turned ones also that of units pushed as far as X's own."""
        one = self.profiles[feature].feature
        layer = self._layer(one)
        skip = answer_tokens(half.prompts)
        edits = [self.on_text.edits(one, dose.value, tier, metric) for dose, tier, metric in planned]
        if scores is None:
            return text_divergences(layer, self.text, edits, one, skip)
        at = [d.value if d.crosses and any_turned(s) else None for (d, *_), s in zip(planned, scores, strict=True)]
        return text_divergences(layer, self.text, edits, one, skip, at)

    def _layer(self, feature: Feature) -> Layer | None:
        if feature.place is None:
            return None
        number = feature.place[0]
        if number not in self.layers:
            self.layers[number] = Layer(self.model, self.text, number)
        return self.layers[number]

    # ---- half B ------------------------------------------------------------------------------------------------------

    def _confirm(self, triples: Sequence[Row]) -> tuple[list[Row], list[Reversal]]:
        found: list[Row] = []
        tested: list[Row] = []
        by_pair: dict[tuple[str, str], list[Row]] = {}
        for row in triples:
            by_pair.setdefault((row.feature.name, row.behaviour), []).append(row)
        number = {profile.feature.name: f for f, profile in enumerate(self.profiles)}
        halves: dict[str, _Half] = {}
        for (name, behaviour), chosen in tqdm(
            by_pair.items(), desc="scan: half B", disable=not self.progress, unit="pair"
        ):
            feature = number[name]
            if behaviour not in halves:
                halves[behaviour] = _Half.of(self.model, self.half_a[behaviour].behaviour, "B")
            half = halves[behaviour]
            rows = self._pair(feature, half, self._to_confirm(feature, chosen), "B", bounds=True)
            keys = {(row.dose.value, row.tier, row.metric) for row in chosen}
            for row in rows:
                if (row.dose.value, row.tier, row.metric) in keys:
                    tested.append(row)
                elif row.tier == "T0":
                    found.append(row)
        corrected = holm([row.verdict.p for row in tested])
        tested = [replace(row, p_holm=p) for row, p in zip(tested, corrected, strict=True)]
        reversals = [self._reversal(row) for row in tested if row.verdict.label in Reversal.LABELS]
        return tested + found, [one for one in reversals if one is not None]

    def _reversal(self, row: Row) -> Reversal | None:
        if row.p_holm is None or row.p_holm > LEVEL:
            return None
        half = self.half_a[row.behaviour]
        key = (row.feature.name, row.behaviour, row.dose.value)
        if key not in self.carried:
            places = carrying_positions(self.model, half.prompts, half.clean, row.feature, row.dose.value)
            self.carried[key] = places
        positions, drops = self.carried[key]
        equal = None
        # The twins are set to a value as X is by T0: other tiers move more than one neuron.
        if row.tier == "T0" and row.score.share is not None and row.feature.place is not None and row.profile.mean:
            k = -row.dose.value / row.profile.mean
            equal = twins(
                self.model, half.sweep, half.answers, half.design, half.clean, row.feature, row.score.share.value, k
            )
        switch = row.prediction is not None and exceeds(row.score.s, row.prediction, equal, MARGIN)
        return Reversal.of(row, half, positions, drops, equal, switch)


def _layer(feature: Feature) -> int:
    parts = feature.site.split(".")
    return int(parts[1]) if parts[0] == "blocks" else -1


def _furthest(profile: Profile, curve: Sequence[Dose]) -> Dose:
    """The dose furthest on the other side."""
    if not curve:
        raise ArgumentError(f"doses: expected at least one for {profile.feature.name}, found none")
    return min(curve, key=lambda dose: dose.value * profile.feature.side)


def _quick(design: Design, clean: Answers, run: Answers) -> tuple[float, float]:
    """S and the lower side from few prompts, without intervals."""
    ones = np.ones((1, len(design)))
    base, moved = side_means(ones, design, clean.margin)[0], side_means(ones, design, run.margin)[0]
    lean = leans(ones, design, clean.margin)[0]
    shift = np.asarray([lean[design.side == side].mean() for side in (0, 1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(moved.sum() / base.sum()), float(((moved - shift) / (base - shift)).min())


def _candidates(table: NDArray[np.float64], keep: int, below: float) -> list[tuple[int, int]]:
    """The (feature, behaviour) pairs with the lowest S in the first look (all, where there was none).

    At most two of a feature, since one that breaks the model is low everywhere.
    """
    if np.isinf(below):
        return [(f, b) for f in range(table.shape[0]) for b in range(table.shape[1])]
    chosen: list[tuple[int, int]] = []
    for _, f, b in sorted(
        (float(table[f, b]), int(f), int(b)) for f, b in zip(*np.nonzero(table < below), strict=True)
    ):
        if len(chosen) < keep and sum(f == other for other, _ in chosen) < PAIRS_A_FEATURE:
            chosen.append((f, b))
    return chosen


def _triples(rows: Sequence[Row], limit: int, prone: Container[str]) -> list[Row]:
    """What goes to half B: of each pair and tier the lowest seen and the lowest extrapolated dose that looks turned.

    First those whose verdict can be the most: on symmetric behaviours, at doses that were seen. Where nothing looks
    turned the most turned row goes, so that there is something to report under its honest name.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if not row.dose.crosses and row.dose.name != "zero":
            continue
        if row.score.lowest_side >= -MARGIN / 2:
            continue
        key = (row.feature.name, row.behaviour, row.tier, row.dose.extrapolated)
        if key not in best or row.score.mean_ratio.value < best[key].score.mean_ratio.value:
            best[key] = row
    chosen = sorted(best.values(), key=lambda row: (row.behaviour in prone, row.dose.extrapolated, turnedness(row)))
    crossing = [row for row in rows if row.dose.crosses] or list(rows)
    if crossing and not chosen:
        chosen = [min(crossing, key=turnedness)]
    return chosen[:limit]


__all__ = ["Row", "SavedScan", "Scan", "scan"]
