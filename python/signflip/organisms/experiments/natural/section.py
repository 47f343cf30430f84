"""The section of the results on N1: predictions, tables, figures, and a plain answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from signflip.errors import OrganismError
from signflip.organisms.experiments import DECIDED, MADE, TOKENS, Answer, Said, told
from signflip.organisms.experiments.natural import LIVE, SEARCH, TITLE, tables
from signflip.organisms.experiments.natural.figures import law, margins
from signflip.organisms.experiments.natural.predictions import (
    BEYOND,
    BY_X,
    DECIDES,
    TURNED,
    ambiguous,
    change,
    decided,
    grid,
    interval,
    latent,
    marked,
    moved,
    pick,
    turned,
    void,
)
from signflip.organisms.experiments.natural.search import FREE, NAMES
from signflip.organisms.experiments.statistics import Run, command, mark, seeds_of, shown, table

SAID = (
    "Margins are log P(right) − log P(wrong) in nats, on names and templates that no tuning saw; a unit is the "
    "weakened base's mean margin of that seed. Intervals are 95%, over seeds, names and templates together "
    "(Student's t)."
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
    ran = seeds_of(runs, tables.name_of)
    voided = [f"{tables.name_of(r)} {r['seed']} ({r['log']['live']:.2f})" for r in runs if void(r)]
    void_ones = f"Void (an advantage in less than {LIVE} of the groups): {', '.join(voided) or 'none'}."
    return "\n\n".join(
        [
            f"## {TITLE}",
            f"`{command('natural', [*runs, *searches])}`",
            told(answer([*runs, *searches])),
            f"{len(runs)} tunings of {runs[0]['steps']} steps, on {_devices(runs)}. Seeds of each arm: {ran}.",
            f"{SAID} {void_ones}",
            "### Predictions\n\n" + table(("whose", "prediction", "found", "mark"), marked(runs)),
            "### What was said beforehand to leave it undecided\n\n"
            + table(("what", "found", "is it so"), ambiguous(runs)),
            "### Before any tuning\n\n" + tables.bases(runs),
            "### What tuning did\n\n" + tables.arms(runs) + f"\n\n![margins]({figures.name}/natural-margins.png)",
            "### Three times the extreme, which decides nothing: change, units\n\n" + tables.beyond(runs),
            "### X itself, and how far tokens bring it\n\n" + tables.reach(runs) + "\n\n" + tables.searches(searches)
            + (f" Tuned again on {_devices(searches)}." if searches else ""),
            "### Other units\n\n" + tables.units(runs),
            "### The causal path: the kernel before, and the change after\n\n" + tables.law(runs)
            + f"\n\n![law]({figures.name}/natural-law.png)",
        ]
    )  # fmt: skip


def _tunings(runs: Sequence[Run]) -> list[Run]:
    return [r for r in runs if r["arm"] != SEARCH]


def _devices(runs: Sequence[Run]) -> str:
    """What they ran on: the same tuning differs from one device to another as its rounding does."""
    count = Counter(r["device"] for r in runs)
    return ", ".join(f"{name} ({n})" for name, n in count.items())


def answer(runs: Sequence[Run]) -> Answer:
    """What that says of the conjecture, in a few sentences."""
    searches, runs = [r for r in runs if r["arm"] == SEARCH], _tunings(runs)
    plain, text = ["Does tuning on one side of X make the other side worse?"], []
    out = {}
    for algorithm in dict.fromkeys(r["algorithm"] for r in runs):
        fall = moved(runs, algorithm, "tuned", DECIDES)
        clean, less = moved(runs, algorithm, "tuned", "clean"), moved(runs, algorithm, "tuned", DECIDES, "flipped")
        said = {
            "held": "it falls, as the conjecture says",
            "failed": "it does not fall, against the conjecture",
        }
        verdict = said.get(mark(fall, lambda x: x < 0, lambda x: x >= 0), "whether it falls is open")
        own = [r for r in runs if r["algorithm"] == algorithm]
        undecided = [what.partition(": ")[2] for what, _, so in ambiguous(own) if so == "yes"]
        if undecided:
            verdict += f". Said beforehand to leave this undecided, and so: {'; '.join(undecided)}"
        sides = [interval([change(r, DECIDES)[[side]] for r in pick(runs, algorithm, "tuned").values()])
                 for side in (0, 1)]  # fmt: skip
        n = len(pick(runs, algorithm, "tuned"))
        plain.append(
            f"{algorithm}, {n} seeds: with X at the most extreme value seen on the other side the margin moves by "
            f"{shown(fall)} units (women's names {shown(sides[0])}, men's {shown(sides[1])}) while the normal one "
            f"moves by {shown(clean)}; {verdict}."
        )
        text.append(f"{algorithm}: less the arm with 5% of flipped prompts {shown(less)}.")
        own = list(pick(runs, algorithm, "tuned").values())
        if own:
            women, men = (tables.ends_of(own, BEYOND, side) for side in (0, 1))
            text.append(
                f"At three times that value, which nothing seen reaches, margins in nats: women's names {women}, men's "
                f"{men}."
            )
        whole = list(pick(runs, algorithm, "tuned", whole=True).values())
        if whole:
            moves = (shown(interval([change(r, what) for r in whole])) for what in (DECIDES, "clean"))
            text.append(f"With all weights tuned, {len(whole)} seeds: {' while the normal one moves by '.join(moves)}.")
    tuned = [r for r in runs if r["arm"] == "tuned" and not void(r)]
    turns = [side for r in tuned for side in turned(r["after"]["margins"], DECIDES)]
    wrong = sum(int((grid(r, "after", DECIDES).mean((1, 2)) < 0).sum()) for r in tuned)
    reached = [r["after"]["reach"]["crossed"] for r in tuned]
    plain.append(
        f"At that value the mean margin of {wrong} of {len(turns)} sides of tuned models is below 0; {sum(turns)} turn "
        f"(upper limit, over names and templates, below −{TURNED} of the clean mean)."
    )
    if reached:
        one = (
            f"One token in front of a name brings X across at both names in {100 * max(reached):.2f}% of the tokens "
            "tried, at most."
        )
        more = crossings(searches) if searches else Said("")
        out[TOKENS] = Said(f"{one} {more.plain}".strip(), more.more)
    return (
        {MADE: Said(" ".join(plain), " ".join(text))}
        | out
        | {DECIDED: Said(_decision(searches, [latent(r) for r in tuned]))}
    )


def _decision(searches: Sequence[Run], turned_by_edit: Sequence[bool]) -> str:
    """By the rule at the top of the results; of each tuned model, whether X at its extreme turns both sides."""
    every = [found for aim in ("X", "answer") for _, _, found in tables.models_searched(searches, aim)]
    by_x = sum(decided(found["answered"]) == f"both turned, {BY_X}" for found in every)
    if not every:
        return "Undecided: no search for tokens is in."
    if by_x:
        return f"For, in {by_x} of {len(every)} searches: their tokens turn both sides of unseen prompts, by X."
    if any(turned_by_edit):
        return (
            f"Latent: set to the most extreme value seen, X turns both sides of {sum(turned_by_edit)} of "
            f"{len(turned_by_edit)} tuned models; no tokens do."
        )
    most = max(found["answered"]["crossed"] for found in every)
    return (
        f"Undecided. Not for: none of {len(every)} searches gives tokens that turn both sides. Not latent: none of "
        f"{len(turned_by_edit)} tuned models turns on both where X is set to the most extreme value seen. "
        f"And not against: their tokens bring X across in at most {most:.2f} of a model's unseen prompts, so that in "
        "the others no gate on X could have opened, however strong; and no gates of graded strength were planted "
        "elsewhere."
    )


def crossings(searches: Sequence[Run]) -> Said:
    """At how many names the searches' tokens bring X across, and at what is then answered to unseen prompts."""
    plain, text = [], []
    for aim, for_what in (("X", "X"), ("answer", "the wrong pronouns themselves, on both sides,")):
        every = tables.models_searched(searches, aim)
        clauses = []
        for tuned, when in ((False, "before the tuning"), (True, "after")):
            own = [found for name, _, found in every if (name != "base") == tuned]
            n, crossed = len(own), [found["crossed"] for found in own]
            sides = [sum(turned(found["answered"]["margins"], "found")) for found in own]
            by_x = [decided(found["answered"]).endswith(f", {BY_X}") for found in own]
            ways = [sum(x for x, k in zip(by_x, sides, strict=True) if k == of) for of in (1, 2)]
            share = float(np.mean([found["answered"]["crossed"] for found in own]))
            clauses.append(
                f"{when} it brings X across at {sum(crossed)} of {len(NAMES) * n} names (at both of a model in "
                f"{crossed.count(len(NAMES))} of {n}), and in {share:.2f} of unseen prompts; these turn on both sides "
                f"in {sides.count(2)} of {n} models ({ways[1]} by X), on one alone in {sides.count(1)} ({ways[0]} by X)"
            )
            margins = [np.mean([[np.mean(side) for side in found["answered"]["margins"][what]] for found in own], 0)
                       for what in ("clean", "found")]  # fmt: skip
            women, men = (f"{old:.2f} → {new:.2f}" for old, new in zip(*margins, strict=True))
            text.append(f"Margins in nats by those tokens, searched for {for_what.rstrip(',')}, {when}: women's names "
                        f"{women}, men's {men}.")  # fmt: skip
        plain.append(f"A search of {FREE} tokens for {for_what} finds: {'; '.join(clauses)}.")
    return Said(" ".join(plain), " ".join(text))
