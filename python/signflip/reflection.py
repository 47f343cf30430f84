"""The positive control for *opposite*: the last residual reflected about the midpoint of a behaviour's two contexts.

Templates differ along the direction in which contexts do, so each has a midpoint of its own: about another template's a
reflection adds a lean to one answer, which no mirror image has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip.behaviours.behaviour import Behaviour, Half
from signflip.design import Answers, Design, side_means
from signflip.resample import to_plain
from signflip.score import Score, answer_tokens, from_reads, summarise
from signflip.sweep import RowEdit, Sweep, log_softmax
from signflip.verdict import Divergence, Verdict, judge

if TYPE_CHECKING:
    from signflip.behaviours.prompts import ModelPrompt
    from signflip.model import Model

Floats = NDArray[np.float32]
N_MATCHED = 20
# Prompts on which whole rows of logits are read.
KL_PROMPTS = 48


@dataclass(frozen=True, eq=False)
class Reflection:
    """What reflecting the residual does: the score that a real opposite would have, by the same rules.

    Attributes
    ----------
    site
        The late layer's residual, chosen and fitted on half A.
    score, projected
        On half B: reflected, and with the direction only projected out.
    verdict
        By the rules that every flip is judged by.
    divergence
        KL over tokens other than the answers at the last position, with the 95% quantiles over displacements of equal
        length along differences of prompts of one side.
    """

    site: str
    score: Score
    projected: Score
    verdict: Verdict
    divergence: Divergence

    def __str__(self) -> str:
        return f"{self.verdict}: reflection at {self.site}: {self.score}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in ("site", "score", "projected", "verdict", "divergence")}


class _Ends:
    """Prompts of which only the last position is edited."""

    def __init__(self, model: Model, behaviour: Behaviour, half: Half | None) -> None:
        self.prompts: list[ModelPrompt] = behaviour.prompts_for(model, half)
        self.design = Design.of(behaviour.name, [one.prompt for one in self.prompts], half)
        self.clean: Answers = behaviour.clean(model, half)
        ids = [one.ids for one in self.prompts]
        # A prompt that goes on as another one would be edited in its middle.
        order = sorted(ids)
        nested = any(b[: len(a)] == a and a != b for a, b in pairwise(order))
        self.sweep = Sweep(model, ids, [len(one) - 1 for one in ids], share=not nested)

    def residuals(self, sites: Sequence[str]) -> list[NDArray[np.float64]]:
        """`[prompts, d_model]` at each site."""
        out = []
        for chunks in self.sweep.many_values([(site, None) for site in sites]):
            rows = np.empty((len(self.prompts), chunks[0].shape[1]))
            for c, values in enumerate(chunks):
                rows[list(self.sweep.chunks[c].members)] = values[self._places(c)]
            out.append(rows)
        return out

    def midpoints(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each prompt the midpoint of its template's contexts, `[prompts, d_model]`; no right answer enters it.

        It is the mean where a template has as many prompts of one side as of the other; elsewhere that of all prompts.
        """
        out = np.broadcast_to(r.mean(0), r.shape).copy()
        templates = np.asarray(self.design.templates)
        for template in set(self.design.templates):
            own = templates == template
            if 2 * np.count_nonzero(self.design.sign[own] > 0) == np.count_nonzero(own):
                out[own] = r[own].mean(0)
        return out

    def edit(self, site: str, values: NDArray[np.float64]) -> list[RowEdit]:
        """Sets each prompt's last residual, `[prompts, d_model]`."""

        def rows(c: int) -> Floats:
            chunk = self.sweep.chunks[c]
            out = np.empty((len(chunk.rows), values.shape[1]), np.float32)
            out[self._places(c)] = values[list(chunk.members)]
            return out

        return [RowEdit(site, "set", None, rows)]

    def _places(self, c: int) -> list[int]:
        chunk = self.sweep.chunks[c]
        place = {(int(s), int(o)): k for k, (s, o) in enumerate(chunk.rows)}
        return [place[int(s), int(o)] for s, o in chunk.ends]

    def answers(self, variants: Sequence[Sequence[RowEdit]], mass: bool = True) -> list[Answers]:
        columns = [[one.correct, one.opposite] for one in self.prompts]
        targets = [one.correct for one in self.prompts] if mass else None
        logits, log_probs = self.sweep.ends(columns, variants, targets)
        return [from_reads(logits[v], None if log_probs is None else log_probs[v]) for v in range(len(variants))]

    def other_tokens_kl(self, variants: Sequence[Sequence[RowEdit]]) -> NDArray[np.float64]:
        """Mean KL(clean ‖ variant) at the last position over tokens other than the answers, `[variants]`."""
        chosen = set(range(0, len(self.prompts), max(1, len(self.prompts) // KL_PROMPTS)))
        skip = answer_tokens(self.prompts)
        total = np.zeros(len(variants))
        for c, chunk in enumerate(self.sweep.chunks):
            members = [m for m, i in enumerate(chunk.members) if i in chosen]
            if not members:
                continue
            clean, *moved = (log_softmax(one, skip) for one in self.sweep.whole_ends(c, members, [[], *variants]))
            total += [float((np.exp(clean) * (clean - one)).sum(dtype=np.float64)) for one in moved]
        return np.maximum(total / len(chosen), 0)


def reflect(model: Model, behaviour: Behaviour, replicates: int = 2000, seed: int = 0) -> Reflection | str:
    """Run the control, or say why it cannot be run.

    The direction is the difference of the two contexts' mean residuals at the last position of half A, and the layer
    the one of the last third that turns half A most. Of half B only the midpoints enter, no right answer.
    """
    fit = _Ends(model, behaviour, "A")
    if len(fit.design.pairs) != 1:
        return f"{behaviour.name} has {len(fit.design.pairs)} answer pairs: no one direction separates its contexts"
    first = model.cfg.n_layers - max(1, model.cfg.n_layers // 3)
    sites = [f"blocks.{layer}.hook_resid_post" for layer in range(first, model.cfg.n_layers)]
    context = fit.design.sign > 0
    ones = np.ones((1, len(fit.design)))
    base = side_means(ones, fit.design, fit.clean.margin).sum()
    fitted = []
    for site, r in zip(sites, fit.residuals(sites), strict=True):
        difference = r[context].mean(0) - r[~context].mean(0)
        if np.linalg.norm(difference) > 0:
            fitted.append((site, difference / np.linalg.norm(difference), r))
    if not fitted:
        return f"the contexts of {behaviour.name} do not differ at the last position"
    runs = fit.answers([fit.edit(site, _mirror(r, u, fit.midpoints(r), 2.0)) for site, u, r in fitted], mass=False)
    turned = [float(side_means(ones, fit.design, run.margin).sum() / base) for run in runs]
    site, u, r_fit = fitted[int(np.argmin(turned))]
    test = _Ends(model, behaviour, "B")
    (r,) = test.residuals([site])
    m = test.midpoints(r)
    reflected = test.edit(site, _mirror(r, u, m, 2.0))
    projected = test.edit(site, _mirror(r, u, m, 1.0))
    runs = test.answers([reflected, projected])
    scores = [summarise(test.design, test.clean, run, replicates=replicates, seed=seed) for run in runs]
    rng = np.random.Generator(np.random.Philox(seed))
    length = np.abs((r - m) @ u)[:, None] * 2
    pushes = []
    for _ in range(N_MATCHED):
        own = np.flatnonzero(fit.design.side == rng.integers(2))
        j, k = rng.choice(own, 2, replace=False)
        d = r_fit[j] - r_fit[k]
        norm = float(np.linalg.norm(d))
        pushes.append(test.edit(site, r + length * (d / norm if norm > 0 else u)))
    kls = test.other_tokens_kl([reflected, *pushes])
    bound = float(np.quantile(kls[1:], 0.95))
    divergence = Divergence(float(kls[0]), float(kls[0]), bound, bound, N_MATCHED)
    verdict = judge(scores[0], ablations=[scores[1]], divergence=divergence, kind=behaviour.kind, tier="control")
    return Reflection(site, scores[0], scores[1], verdict, divergence)


def _mirror(
    r: NDArray[np.float64], u: NDArray[np.float64], m: NDArray[np.float64], factor: float
) -> NDArray[np.float64]:
    return np.asarray(r - factor * ((r - m) @ u)[:, None] * u)
