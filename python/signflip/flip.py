"""The flip test: one feature, one behaviour, its trigger, and the controls that say what to make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip.behaviours.behaviour import Behaviour, Half
from signflip.behaviours.plain import plain_sequences
from signflip.behaviours.prompts import Triggered, insert, trigger_ids, trigger_text
from signflip.checks import integer, listed
from signflip.design import Answers, Design
from signflip.dosing import Dose, Feature, Moves, Tiers, asked_doses, doses, edit_index, profiles, tiers_of
from signflip.edits import Edit, PerSequence
from signflip.errors import ArgumentError
from signflip.flipped import ConditionRow, FlipTest, Reached
from signflip.matched import N_MATCHED, Layer, text_divergences
from signflip.mediation import mediate
from signflip.random_strings import random_strings
from signflip.reflection import reflect
from signflip.reversal import Reversal
from signflip.score import Score, answer_tokens, answers, from_reads, summarise
from signflip.search_result import SearchResult
from signflip.sweep import Sweep, log_softmax
from signflip.verdict import ALL_PROMPTS, Divergence, Verdict, any_turned, judge, taken_across, with_role

if TYPE_CHECKING:
    from signflip.behaviours.prompts import ModelPrompt
    from signflip.model import Model

N_UNITS = 5
N_STRINGS = 5
# Strings, and prompts of each, by which the trigger's own side effect is judged. With each string a unit is moved,
# as far as the trigger moves X's: a trigger is a string that also moves a unit, and is compared with such.
KL_STRINGS = 20
KL_PROMPTS = 12


def flip(
    model: Model,
    feature: Any,
    search_result: Any,
    behaviour: Behaviour,
    *,
    doses: Sequence[float | str | Dose] | None = None,
    half: Half | None = "B",
    positions: Sequence[int] | None = None,
    units: int = N_UNITS,
    strings: int = N_STRINGS,
    replicates: int = 2000,
    seed: int = 0,
) -> FlipTest:
    """Test what flipping a feature does to a behaviour, by edits and by found tokens, with controls.

    Parameters
    ----------
    model
        The model.
    feature
        `OneSided`, `Reversal`, or `(site, index)`.
    search_result
        A `SearchResult`, or the trigger itself (text or token ids).
    behaviour
        What to measure.
    doses
        Of the dose curve; by default as for `scan`.
    half
        Prompts to test on. All of them for None, and for a behaviour that is not split. Where they may be those that
        selected the feature, as half A's are, the verdict says so.
    positions
        Where X matters, counted from each prompt's end; by default, for each template, the position after the trigger
        at which X's neuron is largest in size.
    units, strings
        How many matched units and random token strings to run.
    replicates, seed
        Of the bootstrap and of everything drawn.

    Raises
    ------
    ArgumentError
        If the trigger is empty, the search was of another model, or an argument is out of its domain.
    """
    x = Feature.of(feature)
    if not isinstance(behaviour, Behaviour):
        raise ArgumentError(f"behaviour: expected a behaviour, found {behaviour!r}")
    if positions is not None:
        positions = [
            integer("positions", one, -model.cfg.n_ctx, -1)
            for one in listed("positions", positions, "a list of negative numbers, counted from a prompt's end")
        ]
        if not positions:
            raise ArgumentError("positions: expected at least one, or None, found none")
    units, strings = integer("units", units, 0), integer("strings", strings, 0)
    replicates, seed = integer("replicates", replicates, 1), integer("seed", seed, 0, 2**64 - 1)
    asked = asked_doses(doses)
    if isinstance(search_result, SearchResult) and (searched := search_result.settings.get("model")) != model.hash:
        raise ArgumentError(
            f"search_result: expected a search of {model.name} (hash {model.hash}), found one of a model of hash "
            f"{searched}; give its tokens alone to test them on another model"
        )
    test = _Test(model, x, behaviour, half, asked, replicates, seed)
    trigger = found_ids(model, search_result, test.prompts[0])
    return test.run(trigger, positions, units, strings)


def found_ids(model: Model, found: Any, prompt: ModelPrompt) -> tuple[int, ...]:
    """The free tokens of a search's best prompt, or of a trigger given as ids, or as text of a prompt's slot.

    Raises
    ------
    ArgumentError
        If there are none.
    """
    best = getattr(found, "best", found)
    tokens = getattr(best, "tokens", best)
    if isinstance(tokens, str):
        tokens = trigger_ids(model, prompt, tokens)
    wanted = "a search's result or a trigger (text or token ids)"
    ids = tuple(integer("search_result", i, 0) for i in listed("search_result", tokens, wanted))
    if not ids:
        raise ArgumentError("search_result: expected a search's result or a trigger of at least one token, found none")
    return ids


class _Test:
    def __init__(
        self,
        model: Model,
        feature: Feature,
        behaviour: Behaviour,
        half: Half | None,
        asked: Sequence[float | str | Dose] | None,
        replicates: int,
        seed: int,
    ) -> None:
        self.model, self.behaviour, self.half = model, behaviour, half
        self.replicates, self.seed, self.asked = replicates, seed, asked
        self.prompts = behaviour.prompts_for(model, half)
        self.design = Design.of(behaviour.name, [one.prompt for one in self.prompts], half)
        self.clean = behaviour.clean(model, half)
        self.sweep = Sweep(model, [one.ids for one in self.prompts], [one.n_leading for one in self.prompts])
        self.text = Sweep(model, *plain_sequences(model, [one.ids for one in self.prompts]))
        (self.profile,) = profiles(model, [feature], [self.sweep, self.text])
        self.feature = self.profile.feature
        self.rows: list[ConditionRow] = []

    def score(self, run: Answers) -> Score:
        return summarise(self.design, self.clean, run, replicates=self.replicates, seed=self.seed)

    def add(self, group: str, name: str, run: Answers, **more: Any) -> Score:
        score = self.score(run)
        self.rows.append(ConditionRow(group, name, score, **more))
        return score

    def run(self, trigger: tuple[int, ...], positions: Sequence[int] | None, units: int, strings: int) -> FlipTest:
        clean = self.add("clean", "clean", self.clean)
        edited, ablations, furthest = self._doses()
        inserted = [insert(self.model, one, trigger) for one in self.prompts]
        ids = [one.ids for one in inserted]
        by_tokens = self.add("tokens", "found tokens", answers(self.model, self.prompts, (), ids))
        x_clean, x_found = self._x([one.ids for one in self.prompts]), self._x(ids)
        reached = self._reached(inserted, positions, x_clean, x_found)
        clamped, reproduced = self._mediate(inserted, x_clean, x_found)
        mediation = mediate(clean, by_tokens, clamped, reproduced)
        place = self.feature.place
        layer = Layer(self.model, self.sweep, place[0]) if place is not None else None
        if layer is not None:
            self._matched(layer, furthest, units)
        divergence = self._strings(layer, trigger, inserted, strings)
        control = (
            reflect(self.model, self.behaviour, self.replicates, self.seed) if self.behaviour.split else "no halves"
        )
        tier = "T4" if mediation.role == "carrier" else "T3"
        if by_tokens.refusal is None:
            kind = self.behaviour.kind
            verdict = judge(by_tokens, ablations=ablations, divergence=divergence, kind=kind, tier=tier)
        else:
            verdict = Verdict("inconclusive", (), (f"S is refused: {by_tokens.refusal}",))
        # Where X was across before, no tokens took it there.
        taken = reached.flipped & (reached.clean * self.feature.side > 0)
        verdict = with_role(taken_across(verdict, max(float(taken.mean()), reached.on_trigger)), mediation.role)
        if self.half != "B" or not self.behaviour.split:
            verdict = replace(verdict, notes=(*verdict.notes, ALL_PROMPTS))
        text = None if self.model.tokenizer is None else trigger_text(self.model, self.prompts[0], trigger)
        meta = {
            "model": self.model.name,
            "model_hash": self.model.hash,
            "prompts": len(self.prompts),
            "seed": self.seed,
            "replicates": self.replicates,
        }
        return FlipTest(
            self.feature, self.behaviour.name, self.half, trigger, text, tuple(self.rows), reached, mediation, control,
            verdict, edited, self.profile, meta,
        )  # fmt: skip

    # ---- (b), (e): doses and ablations -------------------------------------------------------------------------------

    def _doses(self) -> tuple[Verdict | None, list[Score], Dose]:
        one = self.feature
        curve = doses(self.profile, self.asked)
        names = {dose.name for dose in curve}
        curve = [dose for dose in doses(self.profile, ["mean", "zero"]) if dose.name not in names] + curve
        moves = Moves(self.model, [self.sweep, self.text])
        tiers, on_text = Tiers(moves, self.sweep), Tiers(moves, self.text)
        planned = [
            (dose, tier, metric)
            for tier, metric in tiers_of(one)
            for dose in curve
            if tier == "T0" or dose.name != "mean"
        ]
        pairs = [[p.correct, p.opposite] for p in self.prompts]
        targets = [p.correct for p in self.prompts]
        logits, log_probs = self.sweep.ends(pairs, [tiers.edits(one, d.value, t, m) for d, t, m in planned], targets)
        scores = [
            self.score(from_reads(logits[v], log_probs[v] if log_probs is not None else None))
            for v in range(len(planned))
        ]
        removed = {
            d.name: s for (d, t, _), s in zip(planned, scores, strict=True) if t == "T0" and d.name in ("mean", "zero")
        }
        layer = Layer(self.model, self.text, one.place[0]) if one.place is not None else None
        skip = answer_tokens(self.prompts)
        edits = [on_text.edits(one, d.value, t, m) for d, t, m in planned]
        at = [d.value if d.crosses and any_turned(s) else None for (d, *_), s in zip(planned, scores, strict=True)]
        moved = text_divergences(layer, self.text, edits, one, skip, at)
        best: tuple[float, Verdict] | None = None
        for (dose, tier, metric), score, divergence in zip(planned, scores, moved, strict=True):
            verdict = None
            if score.refusal is None:
                verdict = judge(
                    score,
                    ablations=[] if dose.name in removed else list(removed.values()),
                    divergence=divergence,
                    kind=self.behaviour.kind,
                    tier=tier,
                    decisive=not dose.extrapolated,
                )
                if verdict.decisive and (best is None or score.mean_ratio.value < best[0]):
                    best = score.mean_ratio.value, verdict
            group = "ablated" if dose.name in removed and tier == "T0" else "dose"
            how = f"{tier}/{metric}" if metric else tier
            name = f"{dose.name}-ablated" if group == "ablated" else f"{how} {dose.name} {dose.value:+.3g}"
            far = self.profile.plausibility(dose.value)
            self.rows.append(ConditionRow(group, name, score, verdict, far))
        furthest = min(curve, key=lambda dose: dose.value * one.side)
        return (best[1] if best else None), list(removed.values()), furthest

    # ---- (c), (d): tokens and mediation ------------------------------------------------------------------------------

    def _x(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        from signflip.model import Values

        ((values,),) = self.model.read(
            [list(one) for one in ids], [Values(self.feature.site, None, [self.feature.index])]
        )
        return [np.asarray(one, np.float64)[:, 0] for one in values]

    def _reached(
        self,
        inserted: Sequence[Triggered],
        positions: Sequence[int] | None,
        x_clean: list[NDArray[np.float64]],
        x_found: list[NDArray[np.float64]],
    ) -> Reached:
        side = self.feature.side
        matter = self._positions(positions, inserted)
        values = [float(x[list(p)].mean()) for x, p in zip(x_found, matter, strict=True)]
        clean = [float(x[list(p)].mean()) for x, p in zip(x_clean, matter, strict=True)]
        flipped = [bool((x[list(p)] * side < 0).all()) for x, p in zip(x_found, matter, strict=True)]
        on = [bool((x[slice(*one.span)] * side < 0).any()) for x, one in zip(x_found, inserted, strict=True)]
        return Reached(
            float(np.mean([one.survived for one in inserted])),
            tuple(matter),
            np.asarray(values),
            np.asarray(clean),
            np.asarray(flipped),
            float(np.mean(on)),
        )

    def _positions(self, given: Sequence[int] | None, inserted: Sequence[Triggered]) -> list[tuple[int, ...]]:
        """For each prompt the positions that matter, after the trigger, counted from the end."""
        if given is not None:
            least = max(1, min(one.n_after for one in inserted))
            if min(given) < -least:
                raise ArgumentError(
                    f"positions: expected {-least} to -1, those after the trigger in every prompt, found {min(given)}"
                )
            return [tuple(given)] * len(inserted)
        from signflip.model import Values

        place = self.feature.place
        site = f"blocks.{place[0]}.mlp.hook_post" if place is not None else self.feature.site
        ids = [list(one.ids) for one in self.prompts]
        ((values,),) = self.model.read(ids, [Values(site, None, [self.feature.index])])
        groups: dict[tuple[str, int, int], list[int]] = {}
        for i, (prompt, one) in enumerate(zip(self.prompts, inserted, strict=True)):
            groups.setdefault((prompt.prompt.template, len(prompt.ids), one.n_after), []).append(i)
        found: list[tuple[int, ...]] = [(-1,)] * len(ids)
        for (_, _, n_after), members in groups.items():
            if n_after:
                size = np.mean([np.abs(values[i][-n_after:, 0]) for i in members], axis=0)
                for i in members:
                    found[i] = (int(np.argmax(size)) - n_after,)
        return found

    def _mediate(
        self, inserted: Sequence[Triggered], x_clean: list[NDArray[np.float64]], x_found: list[NDArray[np.float64]]
    ) -> tuple[Score, Score]:
        site, index = self.feature.site, edit_index(self.model, self.feature)
        after = PerSequence([list(range(-one.n_after, 0)) for one in inserted])
        held = PerSequence([x[len(x) - one.n_after :] for x, one in zip(x_clean, inserted, strict=True)])
        taken = PerSequence([x[len(x) - one.n_after :] for x, one in zip(x_found, inserted, strict=True)])
        spans = PerSequence([list(range(*one.span)) for one in inserted])
        # Nothing may follow the trigger, where the slot is at the end.
        follows = any(len(places) for places in after)
        edits = [Edit(site, "set", held, index=index, positions=after)] if follows else []
        if any(len(span) for span in spans):
            # On the trigger there is no clean value to go back to: X is kept within its clean range.
            every = np.concatenate(x_clean)
            edits.append(Edit(site, "clamp", (float(every.min()), float(every.max())), index=index, positions=spans))
        ids = [one.ids for one in inserted]
        clamped = self.add(
            "clamped", "found tokens, X at its clean values", answers(self.model, self.prompts, edits, ids)
        )
        back = [Edit(site, "set", taken, index=index, positions=after)] if follows else []
        reproduced = self.add(
            "set to triggered", "no tokens, X at its triggered values", answers(self.model, self.prompts, back)
        )
        return clamped, reproduced

    # ---- (f), (g): controls ------------------------------------------------------------------------------------------

    def _matched(self, layer: Layer, dose: Dose, n: int) -> None:
        chosen = layer.matched(self.feature, n, self.seed)
        if not chosen:
            return
        pairs = [[p.correct, p.opposite] for p in self.prompts]
        targets = [p.correct for p in self.prompts]
        variants = [layer.push(self.feature, dose.value, neuron) for neuron in chosen]
        logits, log_probs = self.sweep.ends(pairs, variants, targets)
        for v, neuron in enumerate(chosen):
            run = from_reads(logits[v], log_probs[v] if log_probs is not None else None)
            self.add("matched unit", f"neuron {neuron} pushed as far as {dose.name} pushes X's", run)

    def _strings(
        self, layer: Layer | None, trigger: tuple[int, ...], inserted: Sequence[Triggered], n: int
    ) -> Divergence | None:
        """Random strings in the trigger's place: some are scored, all bound its effect on tokens other than answers."""
        if not n:
            return None
        drawn = random_strings(self.model, self.prompts[0], trigger, max(n, KL_STRINGS), self.seed)
        for tokens, log_prob in drawn[:n]:
            ids = [insert(self.model, one, tokens).ids for one in self.prompts]
            known = self.model.tokenizer is not None
            said = repr(trigger_text(self.model, self.prompts[0], tokens)) if known else str(list(tokens))
            run = answers(self.model, self.prompts, (), ids)
            self.add("random tokens", f"random {said} ({log_prob:.1f} nats)", run)
        if not drawn:
            return None
        chosen = self.behaviour.subset(KL_PROMPTS, self.half, self.seed)
        prompts = [self.prompts[i] for i in chosen]
        units = layer.matched(self.feature, N_MATCHED, self.seed) if layer is not None else []
        moved = self._moved(layer, prompts, [inserted[i] for i in chosen])
        clean = self._other_tokens([one.ids for one in prompts])
        found = _mean_kl(clean, self._other_tokens([inserted[i].ids for i in chosen]))
        others = []
        for k, (tokens, _) in enumerate(drawn):
            put = [insert(self.model, one, tokens) for one in prompts]
            edits = []
            if layer is not None and units and any(one.n_after for one in put):
                edits.append(layer.carry(self.feature, moved, put, units[k % len(units)]))
            others.append(_mean_kl(clean, self._other_tokens([one.ids for one in put], edits)))
        bound = float(np.quantile(others, 0.95))
        return Divergence(found, found, bound, bound, len(others))

    def _moved(
        self, layer: Layer | None, prompts: Sequence[ModelPrompt], inserted: Sequence[Triggered]
    ) -> list[NDArray[np.float32]]:
        """How far the trigger moves the output of X's neuron, at each position after it."""
        from signflip.model import Values

        if layer is None:
            return []
        read = [Values(layer.sites["post"], None, [self.feature.index])]
        ((before,),) = self.model.read([list(one.ids) for one in prompts], read)
        ((after,),) = self.model.read([list(one.ids) for one in inserted], read)
        rows = zip(before, after, inserted, strict=True)
        return [b[len(b) - one.n_after :, 0] - a[len(a) - one.n_after :, 0] for a, b, one in rows]

    def _other_tokens(self, ids: Sequence[Sequence[int]], edits: Sequence[Edit] = ()) -> NDArray[np.float32]:
        """Log-probabilities of tokens other than answers, at the last positions."""
        from signflip.model import Logits

        ((logits,),) = self.model.read([list(one) for one in ids], [Logits(-1)], [list(edits)])
        return log_softmax(np.concatenate([one.reshape(1, -1) for one in logits]), answer_tokens(self.prompts))


def _mean_kl(clean: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean KL(clean ‖ other) over rows of log-probabilities, in nats."""
    return max(0.0, float((np.exp(clean) * (clean - other)).sum(1, dtype=np.float64).mean()))


__all__ = ["ConditionRow", "FlipTest", "Reached", "Reversal", "flip"]
