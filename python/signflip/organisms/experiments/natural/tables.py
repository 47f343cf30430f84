"""Tables of the section on N1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from signflip.organisms.experiments.natural import ALGORITHMS, ARMS
from signflip.organisms.experiments.natural.features import SCREENED
from signflip.organisms.experiments.natural.measure import PLACES
from signflip.organisms.experiments.natural.predictions import (
    BEYOND,
    DECIDES,
    TURNED,
    change,
    decided,
    factors,
    grid,
    growth,
    interval,
    mean_over,
    moved,
    pick,
    shift,
    unit,
    void,
)
from signflip.organisms.experiments.natural.search import ASKED, FREE, NAMES, STEPS, WIDTH
from signflip.organisms.experiments.statistics import Run, correlated, pearson, shown, table


def name_of(r: Run) -> str:
    """Depth, algorithm and arm."""
    return f"{'whole ' if r['whole'] else ''}{r['algorithm']} {r['arm']}"


def cells(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that say something, by depth, algorithm and arm."""
    found = []
    for whole in (False, True):
        for algorithm in ALGORITHMS:
            for arm in ARMS:
                own = list(pick(runs, algorithm, arm, whole=whole).values())
                if own:
                    found.append((name_of(own[0]), own))
    return found


def by_base(runs: Sequence[Run]) -> list[Run]:
    """One run of each weakened base."""
    return list({(r["whole"], r["seed"]): r for r in runs}.values())


def ends_of(own: Sequence[Run], what: str, side: int) -> str:
    """A side's mean before and after, nats."""
    before, after = (np.mean([grid(r, when, what)[side].mean() for r in own]) for when in ("before", "after"))
    return f"{before:.2f} → {after:.2f}"


def bases(runs: Sequence[Run]) -> str:
    """What the weakened bases are."""
    rows = []
    for whole in (False, True):
        own = [r for r in by_base(runs) if r["whole"] == whole]
        if not own:
            continue
        share = [1 - float(grid(r, "before", "zero").mean()) / unit(r) for r in own]
        rows.append((
            "all weights" if whole else "layers from 20", len(own),
            f"{np.mean([r['weakened'][0] for r in own]):.2f} → {np.mean([r['weakened'][-1] for r in own]):.2f}",
            f"{np.mean([r['shipped'] for r in own]):.2f} → {np.mean([unit(r) for r in own]):.2f}",
            f"{np.mean(share):.2f} ({min(share):.2f} to {max(share):.2f})",
            *(f"{np.mean([grid(r, 'before', what).mean() for r in own]):.2f}" for what in PLACES),
        ))  # fmt: skip
    known = runs[0]["units"]["known"]
    note = (
        f"In the model as shipped, half A: X's share of the margin is {known['share']:.2f}; mean {known['mean']:.2f}; "
        f"on {runs[0]['units']['tokens']} tokens of plays and requests it is positive at a rate of {known['rate']:.1e} "
        f"and at most {known['extreme']:+.2f}; its gate is open on {known['gate']:.3f}."
    )
    head = ("tuned", "seeds", "right, half A (shipped → weakened)", "mean margin, half B", "share of X, weakened",
            "margin, X at its mean", "at 0", "at the extreme", "at three times it")  # fmt: skip
    return table(head, rows) + "\n\n" + note


def arms(runs: Sequence[Run]) -> str:
    """What became of the margins, an arm a row."""
    rows = []
    for name, own in cells(runs):
        live = [r["log"]["live"] for r in own if "live" in r["log"]]
        rows.append((
            name, len(own),
            *(f"{ends_of(own, what, 0)}; {ends_of(own, what, 1)}" for what in ("clean", "zero", DECIDES, BEYOND)),
            f"{ends_of(own, 'slope', 0)}; {ends_of(own, 'slope', 1)}",
            *(shown(interval([change(r, what) for r in own])) for what in ("clean", DECIDES, "zero", "slope")),
            f"{np.mean([r['after']['mass'][DECIDES] / r['before']['mass'][DECIDES] for r in own]):.2f}",
            f"{np.mean([r['kl'] for r in own]):.3f}",
            f"{np.mean(live):.2f}" if live else "—",
        ))  # fmt: skip
    head = ("arm", "seeds", "margin: women's names; men's", "X at 0", "X at the extreme", "X at three times it",
            "slope × size of mean X", "change, units", "at the extreme", "offset", "slope × mean",
            "answer mass over the base's, X flipped", "KL on plain text", "groups with an advantage")  # fmt: skip
    return table(head, rows)


def beyond(runs: Sequence[Run]) -> str:
    """At three times the extreme: how each side moved, and how arms differ there."""
    rows = []
    for algorithm in dict.fromkeys(r["algorithm"] for r in runs):
        for arm in ARMS:
            own = pick(runs, algorithm, arm).values()
            if not own:
                continue
            sides = [shown(interval([change(r, BEYOND)[[side]] for r in own])) for side in (0, 1)]
            both = shown(moved(runs, algorithm, arm, BEYOND))
            less = "—" if arm == "tuned" else shown(moved(runs, algorithm, "tuned", BEYOND, arm))
            rows.append((f"{algorithm} {arm}", len(own), *sides, both, less))
    return table(("arm", "seeds", "women's names", "men's", "both", "tuned less this arm"), rows)


def reach(runs: Sequence[Run]) -> str:
    """X on the prompts and after one token."""

    def ends(own: Sequence[Run], part: str, key: str, digits: int = 2) -> str:
        pair = (np.mean([r[when][part][key] for r in own]) for when in ("before", "after"))
        return " → ".join(f"{one:.{digits}f}" for one in pair)

    rows = [
        (name, len(own), ends(own, "x", "mean"), ends(own, "x", "sd"), ends(own, "x", "rarest"),
         ends(own, "x", "crossed", 4), ends(own, "reach", "farthest"), ends(own, "reach", "median"),
         ends(own, "reach", "crossed", 4), ends(own, "reach", "crossed_once", 4))
        for name, own in cells(runs)
    ]  # fmt: skip
    head = ("arm", "seeds", "X on the prompts: mean", "sd", "farthest", "share X > 0",
            "X at a name after one token: farthest (mean of two)", "median", "share X > 0 at both names",
            "at either")  # fmt: skip
    return table(head, rows) + "\n\nEach of a fixed list of single tokens is tried in front of ` Mary` and ` John`."


def units(runs: Sequence[Run]) -> str:
    """How the slopes of other units grew."""
    rows: list[tuple[Any, ...]] = []
    for name, own in cells(runs):
        own = [r for r in own if "units" in r["after"]]
        for kind in ("known", "following", "one_sided", "two_sided") if own else ():
            units = [own[0]["units"]["known"]] if kind == "known" else own[0]["units"][kind]
            where = ", ".join(f"{f['layer']}/{f['index']}" for f in units)
            shares = [f["share"] for f in units]
            gates, by = [f["gate"] for f in units], np.mean([factors(r, kind) for r in own], 0)
            rows.append((name, kind.replace("_", "-"), where, f"{min(shares):.3f} to {max(shares):.3f}",
                         f"{min(gates):.3f} to {max(gates):.3f}", f"{np.mean([f['rate'] for f in units]):.4f}",
                         shown(mean_over(own, partial(growth, kind=kind))),
                         ", ".join(f"{one:.2f}" for one in by)))  # fmt: skip
    if not rows:
        return "Not measured."
    head = ("arm", "units", "layer/neuron", "share", "gate open, rate", "rarer sign, rate", "slope × mean grows, nats",
            "what each slope is multiplied by, mean")  # fmt: skip
    note = (
        "Intervals here are over seeds alone. Controls are the nearest in share and in how often the gate is open, of "
        f"{SCREENED // 2} of either kind with the largest effects; none has a share near X's, and they are matched no "
        "better than the ranges say."
    )
    return f"{table(head, rows)}\n\n{note}\n\n{_others(runs)}"


def _others(runs: Sequence[Run]) -> str:
    """Margins with each of the other units held at the most extreme value seen on its other side."""
    rows = []
    for name, own in cells(runs):
        own = [r for r in own if "units" in r["after"]]
        kinds = ("following", "one_sided", "two_sided") if name.endswith(" tuned") else ("following",)
        for kind in kinds if own else ():
            for i, one in enumerate(own[0]["units"][kind]):
                ends = np.asarray([[r[when]["units"][kind][i]["margins"][1] for when in ("before", "after")]
                                   for r in own]).mean(0)  # fmt: skip
                sides = (f"{before:.2f} → {after:.2f}" for before, after in ends.T)
                rows.append((name, kind.replace("_", "-"), f"{one['layer']}/{one['index']}", f"{one['share']:.3f}",
                             f"{one['mean']:+.2f}", f"{one['extreme']:+.2f}", *sides))  # fmt: skip
    head = ("arm", "units", "layer/neuron", "share", "mean X", "extreme", "women's margin with X there", "men's")
    return (
        "The next features by share in every arm, and the controls where tuned, each with X at the most extreme value "
        "seen on its other side (0 where none was seen: that unit was switched off, not turned), margins in nats "
        "before → after:\n\n" + table(head, rows)
    )


def law(runs: Sequence[Run]) -> str:
    """The kernel, and what was predicted and found."""
    tuned = [r for r in runs if r["arm"] == "tuned" and not void(r)]

    def kernel(place: str, key: str) -> str:
        return shown(mean_over(by_base(runs), lambda r: float(r["kernel"][place][key])))

    def ratio(place: str) -> str:
        return shown(mean_over(tuned, lambda r: shift(r, place) / shift(r, "clean")))

    def correlation(what: str) -> str:
        def of(some: Sequence[Run]) -> float:
            return pearson([r["predicted"][what] for r in some], [shift(r, what) for r in some])

        return shown(correlated(runs, of))

    rows = [(place, *(kernel(place, key) for key in ("ratio", "cosine", "own", "negative_mass")), ratio(place))
            for place in PLACES[1:]]  # fmt: skip
    head = ("X at", "K: unvisited over visited", "cosine", "of it in the unit's own weights",
            "negative part of its layer's neurons", "actual: change over normal change, tuned arms")  # fmt: skip
    agreement = []
    for what in ("clean", DECIDES, BEYOND):
        same = sum(r["predicted"][what] * shift(r, what) > 0 for r in runs)
        agreement.append((what, len(runs), correlation(what), f"{same}/{len(runs)}"))
    return (
        table(head, rows)
        + "\n\nChange predicted by the loss's gradient at step 0 against the change measured, over all arms:\n\n"
        + table(("X at", "tunings", "Pearson", "same sign"), agreement)
    )


def models_searched(runs: Sequence[Run], aim: str) -> list[tuple[str, int, Run]]:
    """What was searched: the base of each seed, once, and what each tuning made of it. Name, seed, what was found.

    Parameters
    ----------
    runs
        Those of the search.
    aim
        What was searched for: one of `search.STEPS`.
    """
    bases = {r["seed"]: r["search"]["before"][aim] for r in runs}
    tuned = [(f"{r['algorithm']} tuned", r["seed"], r["search"]["after"][aim]) for r in runs]
    return [("base", seed, found) for seed, found in bases.items()] + tuned


def searches(runs: Sequence[Run]) -> str:
    """The token search before and after, and what is answered with its tokens in front."""
    if not runs:
        return "The token search was not run."

    def pair(values: Sequence[float]) -> str:
        return "; ".join(f"{one:.2f}" for one in values)

    rows = []
    every = [(aim, *one) for aim in STEPS for one in models_searched(runs, aim)]
    for aim, name, seed, found in every:
        said = found["answered"]
        margins = {what: [float(np.mean(side)) for side in grid] for what, grid in said["margins"].items()}
        text = found["text"].encode("unicode_escape").decode().replace("|", "\\|")
        rows.append((
            aim, name, seed, text, f"{found['x']:+.2f}", found["crossed"],
            f"{said['crossed_clean']:.2f} → {said['crossed']:.2f}",
            *(pair(margins[what]) for what in ("clean", "found", "rescued", "reproduced")),
            pair(np.mean(said["random"], 0).tolist()),
            f"{said['mass']['found'] / said['mass']['clean']:.2f}",
            decided(said),
        ))  # fmt: skip
    worst = max(found["difference"] for *_, found in every)
    head = (
        "searched for", "model", "seed", "tokens", "X at the two names, mean", "of them crossed",
        "prompts with X crossed: without → with", "margin: women's names; men's", "with the tokens",
        "and X as without them", "X as with them, without them", "as many tokens at random",
        "answer mass over that without", "names whose prompts turn",
    )  # fmt: skip
    return (
        f"`signflip.search` (GCG, {FREE} free tokens, steps of {WIDTH}), in the base and after `tuned`: for X on its "
        f"other side at{' and'.join(f' `{name}`' for name in NAMES)} ({STEPS['X']} steps), and for the log-probability "
        f"of the wrong pronoun in {ASKED} prompts of half A, of both sides ({STEPS['answer']} steps). A search that "
        "does not find is no bound. Its tokens are then put in front of the prompts of half B, which nothing was "
        "chosen by. A side is turned where the upper limit of its margin, "
        f"over names and templates, is below −{TURNED} of its clean mean; by X, where that ends with X as it is "
        "without the tokens, and X as it is with them does it alone.\n\n" + table(head, rows)
        + f"\n\nLargest difference between X in signflip and in torch: {worst:.1e}."
    )  # fmt: skip
