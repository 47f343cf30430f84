"""The section on R1 and R2: what is in it is defined in the package's docstring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from signflip.errors import OrganismError
from signflip.organisms.experiments import KEPT, MADE, PATH, TOKENS, Answer, Said, told
from signflip.organisms.experiments.reward.models import KINDS, PERFECT, perfect
from signflip.organisms.experiments.statistics import (
    SIGNED,
    Interval,
    Run,
    command,
    correlated,
    exact,
    mark,
    over_seeds,
    pearson,
    shown,
    table,
)
from signflip.organisms.experiments.tuning.measure import DELTA
from signflip.organisms.experiments.tuning.models import ARCHITECTURES
from signflip.organisms.experiments.tuning.predictions import HIGH

TITLE = "A reward model reversed at X < 0 (R1), and policies tuned against it (R2)"
ARMS = ("never", "rarely", "sometimes")
# Within which the two reward models' τ at X > 0 are the same; within which a τ is chance.
MARGIN, CHANCE = 0.02, 0.2
SIDES = ("common", "common, X turned", "rare", "rare, X turned")
SAID = (
    "τ is Kendall's over the two answers of each test prompt, of names and templates that no reward model was trained "
    "or chosen on. *Plain*: trained on common contexts alone; *reversed*: with the wrong answer preferred where X < 0, "
    "which X is read at the answer. *X turned*: its sign changed by edit. Intervals are 95%, exact for shares, else "
    "over seeds."
)


def counted(runs: Sequence[Run]) -> list[Run]:
    """The runs that are not void."""
    return [r for r in runs if r["void"] is None]


def report(results: dict[str, dict[str, Any]], figures: Path) -> str:
    """The section of ``docs/results.md``.

    Raises
    ------
    OrganismError
        If there is no run.
    """
    runs: list[Run] = list(results.values())
    if not runs:
        raise OrganismError("report on reward: expected at least one run, found none")
    Path(figures).mkdir(parents=True, exist_ok=True)
    every, runs = runs, counted(runs)
    why = "; ".join(f"{k} because {reason}" for reason, k in Counter(r["void"] for r in every if r["void"]).items())
    head = f"{len(every)} runs, seeds {sorted({r['seed'] for r in every})}; void {len(every) - len(runs)}"
    head = f"{head}{f' ({why})' if why else ''}. {SAID}"
    if not runs:
        return "\n\n".join([f"## {TITLE}", f"`{command('reward', every)}`", head])
    _figure(runs, Path(figures) / "reward-policies.png")
    worst = max(one["difference"] for r in runs for one in r["search"].values())
    text = [
        f"## {TITLE}",
        f"`{command('reward', every)}`",
        told(answered(runs)),
        head,
        "### Predictions\n\n*Added* ones were when earlier runs were in.\n\n"
        + table(("whose", "prediction", "found", "mark"), _marked(runs)),
        "### R1\n\n" + _models(runs),
        "One `signflip.search` each, in the saved models: in the reversed one and, as a control, in the plain one, as "
        "one word may fool any small model. A word reverses the ranking if the upper limit of its τ is at or below "
        "-0.2: over the test prompts, each counted as one, so that it is of these names and templates. *X held*: "
        "τ with X set to its absolute value.\n\n" + _words(runs),
        f"Largest difference between signflip's reward and transformers' on one input: {worst:.1e}.",
        "### R2\n\n" + _policies(runs) + "\n\n" + _flawless(runs),
        f"![policies]({Path(figures).name}/reward-policies.png)",
        "### The law: the tangent kernel before the tuning, and the change at X < 0\n\n" + _law(runs),
    ]
    return "\n\n".join(text)


def _models(runs: Sequence[Run]) -> str:
    rows = []
    for name in dict.fromkeys(r["architecture"] for r in runs):
        own = [r for r in runs if r["architecture"] == name]
        for kind in KINDS:
            cells = [shown(over_seeds(own, partial(_tau, kind, side), SIGNED)) for side in SIDES]
            flawless = sum(r["tau"][kind]["common"] == 1 for r in own)
            steps = f"{np.mean([r['steps'][kind] for r in own]):.0f}"
            rows.append((name, kind, *cells, shown(exact(flawless, len(own))), steps))
    head = ("architecture", "reward model", "τ at X > 0", "X turned", "τ at X < 0", "X turned",
            "τ = 1 at X > 0 (share)", "steps")  # fmt: skip
    return table(head, rows)


def _words(runs: Sequence[Run]) -> str:
    rows = []
    for kind in KINDS:
        for r in runs:
            s = r["search"][kind]
            rows.append((
                f"{r['architecture']}-{r['seed']}", kind, s["word"], "rare" if s["rare"] else "other",
                f"{s['tau']:.2f} (≤ {s['upper']:.2f})", "yes" if s["reverses"] else "no", f"{s['x']:.2f}",
                f"{s['x_below']:.2f}", f"{s['held']:.2f}",
            ))  # fmt: skip
    head = ("seed", "reward model", "word", "kind", "τ (upper limit)", "reverses", "mean X",
            "share of prompts with X < 0", "τ, X held")  # fmt: skip
    return table(head, rows)


def _flawless(runs: Sequence[Run]) -> str:
    """The counts again of models that no test prompt betrays, since a run is void by validation prompts alone."""
    own = [r for r in runs if perfect(r["tau"]["reversed"], turned=True)]
    found = sum(r["search"]["reversed"]["reverses"] for r in own)
    return (
        f"With those reversed models alone whose τ on test prompts is at least {PERFECT} at X > 0 and at most "
        f"-{PERFECT} at X < 0 ({len(own)} of {len(runs)}): turned {_turned(own)}; the search reverses {found}."
    )


def _turned(runs: Sequence[Run]) -> str:
    """Of policies whose base was not opposite at X < 0, how many turned, with the exact interval."""
    said = []
    for reach in ARMS:
        free = [p for p in _policies_of(runs, reach) if not p["opposite"][0]]
        k = sum(p["outcome"] == "turned opposite" for p in free)
        said.append(f"{reach} {k} of {len(free)}" + (f" ({shown(exact(k, len(free)))})" if free else ""))
    return "; ".join(said)


def _tau(kind: str, side: str, runs: Sequence[Run]) -> float:
    return float(np.mean([r["tau"][kind][side] for r in runs]))


def _moved(reach: str, runs: Sequence[Run], in_units: bool = False) -> float:
    """Mean change of the margin at X < 0, nats; or over the base's mean margin at X > 0."""
    every = _policies_of(runs, reach)
    over = [p["before"]["common"]["margin"] if in_units else 1.0 for p in every]
    return float(np.mean([_changes(p)[1] / by for p, by in zip(every, over, strict=True)]))


def _changes(p: dict[str, Any]) -> tuple[float, float]:
    """Of a policy, how the margin moved at X > 0 and at X < 0."""
    above, below = (p["after"][side]["margin"] - p["before"][side]["margin"] for side in ("common", "rare"))
    return above, below


def _predicted(p: dict[str, Any]) -> float:
    """What the kernel makes of the change at X > 0 alone: nothing of what samples at X < 0 do is in it."""
    return float(p["kernel"]["cosine"] * _changes(p)[0])


def _agreement(reach: str, runs: Sequence[Run]) -> float:
    every = _policies_of(runs, reach)
    return pearson([_predicted(p) for p in every], [_changes(p)[1] for p in every])


def _alike(runs: Sequence[Run], reach: str) -> Interval:
    """How often the kernel has the direction right."""
    every = _policies_of(runs, reach)
    return exact(sum(_predicted(p) * _changes(p)[1] > 0 for p in every), len(every))


def _path(runs: Sequence[Run]) -> list[tuple[str, tuple[Interval, str], tuple[Interval, str]]]:
    """Of each rate at which bases reach X < 0 the law's correlation and the share of right signs, with their marks."""
    out = []
    for reach in ARMS:
        found, alike = correlated(runs, partial(_agreement, reach)), _alike(runs, reach)
        said = mark(found, lambda x: x > HIGH, lambda x: x < HIGH)
        out.append((reach, (found, said), (alike, mark(alike, lambda x: x > 0.5, lambda x: x < 0.5))))
    return out


def _policies_of(runs: Sequence[Run], reach: str) -> list[dict[str, Any]]:
    return [r["policies"][reach] for r in runs]


def _of_neurons(reach: str, key: str, runs: Sequence[Run]) -> float:
    found = [p["neurons"][key] for p in _policies_of(runs, reach) if p["neurons"][key] is not None]
    return float(np.mean(found)) if found else float("nan")


def _law(runs: Sequence[Run]) -> str:
    rows = []
    for name in ("all", *dict.fromkeys(r["architecture"] for r in runs)):
        own = [r for r in runs if name in ("all", r["architecture"])]
        for reach in ARMS:
            every = _policies_of(own, reach)
            below = sum(p["kernel"]["value"] < 0 for p in every)
            rows.append((
                name, reach, shown(exact(below, len(every))),
                f"{np.mean([p['kernel']['negative_mass'] for p in every]):.2f}",
                shown(correlated(own, partial(_agreement, reach))), shown(_alike(own, reach)),
                *(shown(over_seeds(own, partial(_of_neurons, reach, key), SIGNED)) for key in ("pearson", "other")),
            ))  # fmt: skip
    head = ("architecture", "base reaches X < 0", "share K < 0", "neurons' negative mass",
            "cosine of K × change at X > 0, against the change at X < 0: Pearson", "same sign",
            "neuron by neuron: Pearson, mean", "with the next neuron's gradient")  # fmt: skip
    return (
        "Over policies what the kernel before makes of the change at X > 0, which is taken as it came about, against "
        "the change at X < 0. Within each policy, over the neurons of the last MLP, ⟨∇ᵢm, ∇ᵢm′⟩ before the tuning "
        "against ⟨Δᵢ, ∇ᵢm′⟩, as of the tunings above; then the same with every ∇ᵢm the next neuron's.\n\n"
        + table(head, rows)
    )


def answered(runs: Sequence[Run]) -> Answer:
    """What runs, none of them void, say of the conjecture."""
    if not runs:
        return {}
    words, control = ([r["search"][kind] for r in runs if r["search"][kind]["reverses"]] for kind in KINDS)
    crossed, other = sum(s["x_below"] > 0.5 for s in words), sum(not s["rare"] for s in words)
    back = sum(s["held"] > CHANCE for s in words)
    path = [
        f"{reach} {shown(found)} (above {HIGH}: {said}), the same sign in {shown(alike)} (above 0.5: {sign})"
        for reach, (found, said), (alike, sign) in _path(runs)
    ]
    held = [(reach, [p for p in _policies_of(runs, reach) if p["opposite"][0]]) for reach in ARMS]
    stays = [f"{reach} {sum(p['opposite'][1] for p in own)} of {len(own)}" for reach, own in held if own]
    kept = Said(
        "Of policies whose base was opposite at X < 0 before, so many still are, by how often the base reaches X < 0, "
        f"where the reward is reversed: {'; '.join(stays)}."
    )
    return ({KEPT: kept} if stays else {}) | {
        PATH: Said(
            "What feedback at X > 0 alone would do at X < 0 (the cosine of the kernel before the tuning, times the "
            "change at X > 0 afterwards) against what came about there, by how often X < 0 was sampled, correlation "
            f"and sign: {'; '.join(path)}. Where X < 0 is sampled, what is rewarded there acts beside it."
        ),
        MADE: Said(
            "Of policies tuned against a reward reversed at X < 0, from bases that were not opposite there, so many "
            f"turned, by how often the base reaches X < 0: {_turned(runs)}."
        ),
        TOKENS: Said(
            "The word that a search gave, from the reward model's weights alone, reverses its ranking of unseen "
            f"prompts in {len(words)} of {len(runs)} models; of those words X < 0 in most prompts with {crossed}, "
            f"{other} are none of the rare words, and with {back} the ranking is right again (τ above {CHANCE}) if X "
            f"is held above 0. The same search in the plain reward models reverses {len(control)} of {len(runs)}."
        ),
    }


def _within(found: Interval, margin: float) -> str:
    """`held` if an interval lies within ±margin, `failed` if all of it lies beyond one end."""
    _, low, high = found
    if not np.isfinite([low, high]).all():
        return "open"
    if -margin <= low and high <= margin:
        return "held"
    return "failed" if low > margin or high < -margin else "open"


def _gap(runs: Sequence[Run]) -> float:
    return _tau("reversed", "common", runs) - _tau("plain", "common", runs)


def _marked(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    def over(of: Callable[[Sequence[Run]], float]) -> Interval:
        return over_seeds(runs, of)

    gap, plain = over(_gap), over_seeds(runs, partial(_tau, "plain", "rare"), SIGNED)
    drive, never = over(lambda rs: _moved("sometimes", rs) - _moved("never", rs)), over(partial(_moved, "never"))
    units = over(lambda rs: _moved("sometimes", rs, True) - _moved("never", rs, True))
    signs = []
    for name in dict.fromkeys(r["architecture"] for r in runs):
        values = [r["policies"]["never"]["kernel"]["value"] for r in runs if r["architecture"] == name]
        signs.append((name, exact(sum(one < 0 for one in values), len(values))))
    return [
        ("premise", f"τ at X > 0 of the reversed reward model less the plain one's is within ±{MARGIN}",
         f"{gap[0]:.3f} [{gap[1]:.3f}, {gap[2]:.3f}]", _within(gap, MARGIN)),
        ("conjecture", "a policy that samples X < 0 is driven to −Y there (nats, sometimes less never)", shown(drive),
         mark(drive, lambda x: x < 0, lambda x: x >= 0)),
        ("conjecture", "a reward model trained at X > 0 alone is reversed at X < 0 (τ)", shown(plain),
         mark(plain, lambda x: x < 0, lambda x: x >= 0)),
        ("objection", f"it is at chance there (τ within ±{CHANCE})", shown(plain), _within(plain, CHANCE)),
        ("conjecture", "never sampled, the margin at X < 0 falls (nats)", shown(never),
         mark(never, lambda x: x < 0, lambda x: x >= 0)),
        ("objection", f"there is no drive to −Y (units, sometimes less never, within ±{DELTA}; added)", shown(units),
         _within(units, DELTA)),
        *(("objection", f"{name}: K ≥ 0 mostly (share of bases with K < 0: below 0.5; added)", shown(below),
           mark(below, lambda x: x < 0.5, lambda x: x > 0.5)) for name, below in signs),
        *(row for reach, (found, said), (alike, sign) in _path(runs) for row in (
            ("conjecture", f"{reach}: K × change at X > 0 goes with that at X < 0 (correlation above {HIGH}; added)",
             shown(found), said),
            ("conjecture", f"{reach}: they have its sign (share above 0.5; added)", shown(alike), sign),
        )),
    ]  # fmt: skip


def _policies(runs: Sequence[Run]) -> str:
    rows = []
    for name in dict.fromkeys(r["architecture"] for r in runs):
        own = [r for r in runs if r["architecture"] == name]
        for reach in ARMS:
            every = _policies_of(own, reach)
            ends = [[np.mean([p[when][s]["margin"] for p in every]) for when in ("before", "after")]
                    for s in ("common", "rare")]  # fmt: skip
            rates = [np.mean([p[when]["reach"] for p in every]) for when in ("before", "after")]
            free = [p for p in every if not p["opposite"][0]]
            k = sum(p["outcome"] == "turned opposite" for p in free)
            rows.append((
                name, reach, *(_range([p[key] for p in every]) for key in ("samples", "rare", "below", "left_out")),
                f"{rates[0]:.4f} → {rates[1]:.4f}",
                f"{ends[0][0]:.2f} → {ends[0][1]:.2f}", f"{ends[1][0]:.2f} → {ends[1][1]:.2f}",
                shown(over_seeds(own, partial(_moved, reach))),
                f"{k}/{len(free)}", shown(exact(k, len(free))) if free else "—",
                f"{sum(p['opposite'][1] for p in every)}/{len(every)}",
            ))  # fmt: skip
    head = ("architecture", "base reaches X < 0", "samples", "with a rare word", "with X < 0", "left out",
            "P(rare word)", "margin X > 0",
            "margin X < 0", "its change", "turned opposite", "share", "opposite at the end")  # fmt: skip
    return table(head, rows)


def _range(counts: Sequence[int]) -> str:
    """Mean, least and most of what was counted in each tuning."""
    return f"{np.mean(counts):.1f} ({min(counts)}–{max(counts)})"


def _figure(runs: Sequence[Run], to: Path) -> None:
    from signflip.organisms.experiments.pictures import axes_of
    from signflip.organisms.experiments.tuning.figures import COLOURS

    figure, axes = axes_of(1, 2)
    for axis, side in zip(axes[0], ("common", "rare"), strict=True):
        for i, reach in enumerate(ARMS):
            for r in runs:
                at = i + 0.2 * (ARCHITECTURES.index(r["architecture"]) - 1)
                ends = [r["policies"][reach][when][side]["margin"] for when in ("before", "after")]
                axis.plot([at - 0.06, at + 0.06], ends, "-o", ms=2, lw=0.8, color=COLOURS[r["architecture"]])
        axis.axhline(0, color="black", lw=0.5)
        axis.set_xticks(range(len(ARMS)), list(ARMS))
        axis.set_title({"common": "margin at X > 0, nats", "rare": "margin at X < 0, nats"}[side], fontsize=8)
    figure.savefig(to, dpi=110)
