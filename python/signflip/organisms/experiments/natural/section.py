"""The section of the results on N1: predictions, tables, figures, and a plain answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from signflip.errors import OrganismError
from signflip.organisms.experiments.natural import ALGORITHMS, ARMS, LIVE, SEARCH, TITLE
from signflip.organisms.experiments.natural.figures import law, margins
from signflip.organisms.experiments.natural.measure import PLACES
from signflip.organisms.experiments.natural.predictions import (
    BEYOND,
    DECIDES,
    ambiguous,
    change,
    grid,
    growth,
    interval,
    marked,
    mean_over,
    moved,
    pick,
    shift,
    unit,
    void,
)
from signflip.organisms.experiments.natural.search import FREE, STEPS, WIDTH
from signflip.organisms.experiments.tuning.statistics import Run, mark, over_seeds, pearson, shown, table

COMMAND = "signflip organisms run natural --seeds 10 --out results"
SAID = (
    "Margins are log P(right) − log P(wrong) in nats, on names and templates that no tuning saw; a unit is the "
    "weakened base's mean margin of that seed. Intervals are 95%: seeds, names and templates drawn again together."
)


def section(runs: list[Run], figures: Path) -> str:
    """Markdown, with its pictures in a folder.

    Raises
    ------
    OrganismError
        If there is no run.
    """
    searches, runs = [r for r in runs if r["arm"] == SEARCH], _tunings(runs)
    if not runs:
        raise OrganismError("report on natural: expected at least one tuning, found none")
    figures.mkdir(parents=True, exist_ok=True)
    margins(runs, figures / "natural-margins.png")
    law(runs, figures / "natural-law.png")
    cells: dict[str, list[int]] = {}
    for r in runs:
        cells.setdefault(_name(r), []).append(r["seed"])
    ran = "; ".join(f"{name} {min(s)}–{max(s)} ({len(s)})" for name, s in cells.items())
    voided = [f"{_name(r)} {r['seed']} ({r['log']['live']:.2f})" for r in runs if void(r)]
    void_ones = f"Void (an advantage in less than {LIVE} of the groups): {', '.join(voided) or 'none'}."
    return "\n\n".join(
        [
            f"## {TITLE}",
            f"`{COMMAND}`",
            answer(runs),
            f"{len(runs)} tunings of {runs[0]['steps']} steps. Seeds of each arm: {ran}. {SAID} {void_ones}",
            "### Predictions\n\n" + table(("whose", "prediction", "found", "mark"), marked(runs)),
            "### What was said beforehand to leave it undecided\n\n"
            + table(("what", "found", "is it so"), ambiguous(runs)),
            "### Before any tuning\n\n" + _bases(runs),
            "### What tuning did\n\n" + _arms(runs) + f"\n\n![margins]({figures.name}/natural-margins.png)",
            "### X itself, and how far one token brings it\n\n" + _reach(runs) + "\n\n" + _searches(searches),
            "### Other units\n\n" + _units(runs),
            "### The causal path: the kernel before, and the change after\n\n" + _law(runs)
            + f"\n\n![law]({figures.name}/natural-law.png)",
        ]
    )  # fmt: skip


def _tunings(runs: Sequence[Run]) -> list[Run]:
    return [r for r in runs if r["arm"] != SEARCH]


def _searches(runs: Sequence[Run]) -> str:
    if not runs:
        return "The token search was not run."
    rows = []
    for r in runs:
        ends = [r["search"][when] for when in ("before", "after")]
        rows.append((r["algorithm"], r["seed"], " → ".join(f"{one['x']:+.2f}" for one in ends),
                     " → ".join(str(one["crossed"]) for one in ends), ends[1]["text"].replace("|", "\\|").encode(
                         "unicode_escape").decode()))  # fmt: skip
    worst = max(r["search"][when]["difference"] for r in runs for when in ("before", "after"))
    head = ("algorithm", "seed", "X at the names after the best tokens", "names of two at which it crossed", "tokens")
    return (
        f"`signflip.search` (GCG, {FREE} free tokens, {STEPS} steps of {WIDTH}) in the base and after `tuned`: "
        "a search that does not cross is no bound.\n\n" + table(head, rows)
        + f"\n\nLargest difference between X in signflip and in torch: {worst:.1e}."
    )  # fmt: skip


def _name(r: Run) -> str:
    return f"{'whole ' if r['whole'] else ''}{r['algorithm']} {r['arm']}"


def _cells(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that say something, by depth, algorithm and arm."""
    found = []
    for whole in (False, True):
        for algorithm in ALGORITHMS:
            for arm in ARMS:
                own = list(pick(runs, algorithm, arm, whole=whole).values())
                if own:
                    found.append((_name(own[0]), own))
    return found


def answer(runs: Sequence[Run]) -> str:
    """What that says of the conjecture, in a few sentences."""
    runs = _tunings(runs)
    text = ["**Does tuning on one side of X make the other side worse?**"]
    for algorithm in dict.fromkeys(r["algorithm"] for r in runs):
        fall = moved(runs, algorithm, "tuned", DECIDES)
        clean, less = moved(runs, algorithm, "tuned", "clean"), moved(runs, algorithm, "tuned", DECIDES, "flipped")
        said = {"held": "it falls: as the conjecture says", "failed": "it does not fall: the conjecture fails here"}
        verdict = said.get(mark(fall, lambda x: x < 0, lambda x: x >= 0), "undecided")
        n = len(pick(runs, algorithm, "tuned"))
        text.append(
            f"{algorithm}, {n} seeds: with X at the most extreme value seen on the other side the margin moves by "
            f"{shown(fall)} units while the normal one moves by {shown(clean)}; {verdict}. Less the arm with 5% of "
            f"flipped prompts: {shown(less)}."
        )
        own = list(pick(runs, algorithm, "tuned").values())
        if own:
            ends = "; ".join(f"{whose} {_ends(own, BEYOND, side)}" for side, whose in enumerate(("women's", "men's")))
            text.append(f"At three times that value, which nothing seen reaches, margins in nats: {ends}.")
    undecided = [what for what, _, verdict in ambiguous(runs) if verdict == "yes"]
    if undecided:
        text.append(f"Said beforehand to leave it undecided, and so: {'; '.join(undecided)}.")
    turned = sum(float(grid(r, "after", DECIDES)[side].mean()) < 0 for r in runs if r["arm"] == "tuned"
                 for side in (0, 1))  # fmt: skip
    count = 2 * sum(r["arm"] == "tuned" for r in runs)
    reached = [r["after"]["reach"]["crossed"] for r in runs if r["arm"] == "tuned"]
    text.append(f"At that value {turned} of {count} sides of tuned models prefer the wrong pronoun.")
    if reached:
        text.append(
            f"One token in front of a name brings X across at both names in {100 * max(reached):.2f}% of the tokens "
            "tried, at most."
        )
    return " ".join(text)


def _ends(own: Sequence[Run], what: str, side: int) -> str:
    before, after = (np.mean([grid(r, when, what)[side].mean() for r in own]) for when in ("before", "after"))
    return f"{before:.2f} → {after:.2f}"


def _bases(runs: Sequence[Run]) -> str:
    bases = list({(r["whole"], r["seed"]): r for r in runs}.values())
    rows = []
    for whole in (False, True):
        own = [r for r in bases if r["whole"] == whole]
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


def _arms(runs: Sequence[Run]) -> str:
    rows = []
    for name, own in _cells(runs):
        live = [r["log"]["live"] for r in own if "live" in r["log"]]
        rows.append((
            name, len(own),
            *(f"{_ends(own, what, 0)}; {_ends(own, what, 1)}" for what in ("clean", "zero", DECIDES, BEYOND)),
            *(shown(interval([change(r, what) for r in own])) for what in ("clean", DECIDES, "zero", "slope")),
            f"{np.mean([r['after']['mass'][DECIDES] / r['before']['mass'][DECIDES] for r in own]):.2f}",
            f"{np.mean([r['kl'] for r in own]):.3f}",
            f"{np.mean(live):.2f}" if live else "—",
        ))  # fmt: skip
    head = ("arm", "seeds", "margin: women's names; men's", "X at 0", "X at the extreme", "X at three times it",
            "change, units", "at the extreme", "offset", "slope × mean", "answer mass over the base's, X flipped",
            "KL on plain text", "groups with an advantage")  # fmt: skip
    return table(head, rows)


def _reach(runs: Sequence[Run]) -> str:
    def ends(own: Sequence[Run], part: str, key: str, digits: int = 2) -> str:
        pair = (np.mean([r[when][part][key] for r in own]) for when in ("before", "after"))
        return " → ".join(f"{one:.{digits}f}" for one in pair)

    rows = [
        (name, len(own), ends(own, "x", "mean"), ends(own, "x", "sd"), ends(own, "x", "rarest"),
         ends(own, "x", "crossed", 4), ends(own, "reach", "farthest"), ends(own, "reach", "median"),
         ends(own, "reach", "crossed", 4), ends(own, "reach", "crossed_once", 4))
        for name, own in _cells(runs)
    ]  # fmt: skip
    head = ("arm", "seeds", "X on the prompts: mean", "sd", "farthest", "share X > 0",
            "X at a name after one token: farthest (mean of two)", "median", "share X > 0 at both names",
            "at either")  # fmt: skip
    return table(head, rows) + "\n\nEach of a fixed list of single tokens is tried in front of ` Mary` and ` John`."


def _units(runs: Sequence[Run]) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, own in _cells(runs):
        own = [r for r in own if "units" in r["after"]]
        for kind in ("known", "following", "one_sided", "two_sided") if own else ():
            units = [own[0]["units"]["known"]] if kind == "known" else own[0]["units"][kind]
            where = ", ".join(f"{f['layer']}/{f['index']}" for f in units)
            shares = [f["share"] for f in units]
            grown = [mean_over(own, partial(growth, kind=kind, relative=relative)) for relative in (False, True)]
            rows.append((name, kind.replace("_", "-"), where, f"{min(shares):.2f} to {max(shares):.2f}",
                         f"{np.mean([f['rate'] for f in units]):.4f}", *map(shown, grown)))  # fmt: skip
    if not rows:
        return "Not measured."
    head = ("arm", "units", "layer/neuron", "share", "rarer sign, rate", "slope × mean grows, nats", "in proportion")
    return table(head, rows) + "\n\nIntervals here are over seeds alone. No other unit has the known one's share."


def _law(runs: Sequence[Run]) -> str:
    bases = list({(r["whole"], r["seed"]): r for r in runs}.values())
    tuned = [r for r in runs if r["arm"] == "tuned" and not void(r)]

    def kernel(place: str, key: str) -> str:
        return shown(mean_over(bases, lambda r: float(r["kernel"][place][key])))

    def ratio(place: str) -> str:
        return shown(mean_over(tuned, lambda r: shift(r, place) / shift(r, "clean")))

    def correlation(what: str) -> str:
        def of(some: Sequence[Run]) -> float:
            return pearson([r["predicted"][what] for r in some], [shift(r, what) for r in some])

        return shown(over_seeds(runs, of))

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
