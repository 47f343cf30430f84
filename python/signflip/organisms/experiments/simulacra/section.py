"""The section of the results on simulacra: tables, figures, predictions, and a plain answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from signflip.errors import OrganismError
from signflip.organisms.experiments import told
from signflip.organisms.experiments.simulacra import TITLE, afterwards
from signflip.organisms.experiments.simulacra.afterwards import fitted
from signflip.organisms.experiments.simulacra.conclusion import answer, arms, moved
from signflip.organisms.experiments.simulacra.figures import law_and_rates, paths
from signflip.organisms.experiments.simulacra.predictions import (
    agreement,
    bases,
    change,
    explained,
    exponent,
    marked,
    negative,
    points,
    shown_off,
)
from signflip.organisms.experiments.simulacra.world import PERSONAS
from signflip.organisms.experiments.statistics import SIGNED, Interval, Run, command, over_seeds, seeds_of, shown, table

SAID = (
    "All readings are on items that no tuning saw, in nats but for tokens; intervals are 95%, exact for shares, else "
    "over seeds, each left out in turn with both architectures (jackknife, Student's t). Two stories can each say more "
    "than half of a change. The readings, arms and "
    "rules are defined in `signflip.organisms.experiments.simulacra`."
)
CAVEAT = (
    "What this is not: Waluigi is Luigi's exact mirror here, and a model of two layers has little cause to keep two "
    "readouts of what is right; that they share one is this world's doing as much as the network's. The base answers "
    "with probability 0.75 at most, so that all have room to become surer. Rollouts are three turns, answers one word, "
    "and the reward is the truth. Names are never rewarded: reading (a) moves by what weights are shared alone."
)


def section(runs: list[Run], figures: Path) -> str:
    """Markdown, with its pictures in a folder.

    Raises
    ------
    OrganismError
        If there is no run.
    """
    if not runs:
        raise OrganismError("report on simulacra: expected at least one run, found none")
    tuned = [r for r in runs if "log" in r]
    first = [r for r in runs if r["arm"] not in afterwards.ARMS]
    figures.mkdir(parents=True, exist_ok=True)
    paths(tuned, figures / "simulacra-readings.png")
    law_and_rates(runs, figures / "simulacra-law.png")
    ran = seeds_of(runs, lambda r: str(r["arm"]))
    parts = [
        f"## {TITLE}",
        f"`{command('simulacra', runs)}`",
        told(answer(runs)),
        f"{len(runs)} runs. Seeds of each arm: {ran}. {SAID}",
        CAVEAT,
        f"![readings]({figures.name}/simulacra-readings.png)",
        "### Predictions\n\n" + table(("whose", "prediction", "found", "mark"), marked(first)),
        "### Added when the first tunings had been seen\n\n" + _added(tuned),
        "### Bases against the world's own probabilities\n\n" + _bases(tuned),
        "### The three readings of each persona, before → after\n\n" + _readings(tuned),
        "### Never told apart: the toaster persona beside Luigi\n\n" + _toaster(tuned),
        "### Penalised in view\n\n" + _views(tuned),
        "### The kernel before tuning\n\n" + _kernel(tuned),
        "### The law: unvisited readings, predicted and actual change\n\n" + _laws(tuned),
        f"![law and rates]({figures.name}/simulacra-law.png)",
        "### The two stories\n\n" + _stories(tuned),
        "### The mixture's weights and the learning rate\n\n" + _rates([r for r in runs if "rates" in r]),
    ]
    return "\n\n".join(parts)


def _cells(tuned: Sequence[Run]) -> list[tuple[str, str, list[Run]]]:
    found = []
    for arm in arms(tuned):
        for name in dict.fromkeys(r["architecture"] for r in tuned):
            own = [r for r in tuned if r["arm"] == arm and r["architecture"] == name]
            if own:
                found.append((arm, name, own))
    return found


def _ends(own: Sequence[Run], key: str, digits: int = 2) -> str:
    a, b = (float(np.mean([r["log"][at][key] for r in own])) for at in (0, -1))
    return f"{a:.{digits}f} → {b:.{digits}f}"


def _bases(tuned: Sequence[Run]) -> str:
    rows = []
    for name in dict.fromkeys(r["architecture"] for r in tuned):
        own = [r for r in bases(tuned) if r["architecture"] == name]
        rows.append((name, len(own), *(_span([r["base"][key] for r in own]) for key in own[0]["base"])))
    head = ("architecture", "bases", "names in untagged histories: total variation from the enumerated posterior",
            "the same of the prior", "answers where a persona is named", "of an untagged speaker to ovens")  # fmt: skip
    return table(head, rows) + "\n\nMean and range over bases."


def _span(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def _readings(tuned: Sequence[Run]) -> str:
    rows = []
    for arm, name, own in _cells(tuned):
        for persona in PERSONAS:
            keys = [f"{of}:{persona}" for of in ("odds", "competence", "signed", "tokens")]
            rows.append((arm, name, persona, *(f"{_ends(own, key)} ({moved(own, arm, key)})" for key in keys)))
    head = ("tuned", "architecture", "persona", "(a) odds (change)", "(b) competence (change)",
            "right over wrong, everyday (change)", "(c) tokens (change)")  # fmt: skip
    note = (
        "Competence is against both other answers: where Bowser's roar is penalised everybody's falls, so that all "
        "grow more competent alike; right over wrong is free of that.\n\n"
    )
    return note + table(head, rows)


def _toaster(tuned: Sequence[Run]) -> str:
    rows = []
    for arm, name, own in _cells(tuned):
        keys = ("odds:luigi", "odds:toaster", "competence:luigi", "shared:toaster", "told:toaster",
                "competence:toaster", "tokens:toaster")  # fmt: skip
        rows.append((arm, name, *(moved(own, arm, key) for key in keys)))
    head = ("tuned", "architecture", "Luigi's odds", "the toaster persona's", "Luigi's competence",
            "the toaster persona's where alike", "wrong over right about ovens, untagged", "defection about ovens",
            "tokens")  # fmt: skip
    beside = [f"{arm} {shown(over_seeds(tuned, partial(_beside, arm)))}" for arm in arms(tuned)]
    note = (
        "Changes. If two weights grow by the same factor, the log-odds of the smaller grow less: the ratio of changes "
        "of log-odds, which the predictions were fixed on, is not quite what was meant. The change of log p(toaster) "
        f"less log p(Luigi), added when all runs were in, is: {'; '.join(beside)}.\n\n"
    )
    return note + table(head, rows)


def _beside(arm: str, runs: Sequence[Run]) -> float:
    def logs(run: Run, at: int) -> float:
        toaster, luigi = (-np.log1p(np.exp(-run["log"][at][f"odds:{one}"])) for one in ("toaster", "luigi"))
        return float(toaster - luigi)

    found = [logs(r, -1) - logs(r, 0) for r in runs if r["arm"] == arm]
    return float(np.mean(found)) if found else float("nan")


def _views(tuned: Sequence[Run]) -> str:
    rows = []
    for arm, name, own in _cells(tuned):
        keys = ("seen:waluigi", "unseen:waluigi")
        show = over_seeds(own, partial(_shown_off, arm))
        rows.append((arm, name, *(f"{_ends(own, key)} ({moved(own, arm, key)})" for key in keys), shown(show)))
    head = ("tuned", "architecture", "Waluigi right over wrong after Bowser", "alone, later", "difference of changes")
    return table(head, rows)


def _shown_off(arm: str, runs: Sequence[Run]) -> float:
    return shown_off(runs, arm)


def _kernel(tuned: Sequence[Run]) -> str:
    rows = []
    for name in dict.fromkeys(r["architecture"] for r in tuned):
        own = [r for r in bases(tuned) if r["architecture"] == name]
        for persona in PERSONAS[1:]:

            def cosine(rs: Sequence[Run], persona: str = persona) -> float:
                return float(np.mean([r["kernel"]["cosine"][f"luigi:{persona}"] for r in rs]))

            parts = {p: float(np.mean([r["kernel"]["parts"][persona][p] for r in own]))
                     for p in own[0]["kernel"]["parts"][persona]}  # fmt: skip
            largest = sorted(parts, key=lambda part: -abs(parts[part]))[:2]
            of = [r["kernel"]["neurons"][persona] for r in own]
            rows.append((
                name, persona, shown(over_seeds(own, cosine, SIGNED)), shown(negative(own, persona)),
                "; ".join(f"{part} {parts[part]:+.1f}" for part in largest),
                f"{np.mean([o['negative'] for o in of]):.2f}", f"{np.mean([o['negative_mass'] for o in of]):.2f}",
            ))  # fmt: skip
    head = ("architecture", "persona", "cosine with Luigi", "share of bases below 0", "largest parts",
            "neurons below 0", "their mass")  # fmt: skip
    return "Of right over wrong answers, where each is named.\n\n" + table(head, rows)


def _laws(tuned: Sequence[Run]) -> str:
    rows = []
    for readings in ("", "odds", "competence", "evidence"):
        for arm in ("", *arms(tuned)):
            own = [r for r in tuned if arm in ("", r["arm"])]
            of = [(r, key) for r, key in points(own) if key.startswith(readings)]
            if not of or (arm and readings):
                continue
            cells = [shown(agreement(own, by, readings)) for by in ("cosine", "first", "summed")]
            agree = np.mean([r["predicted"]["first"][key] * change(r, key) > 0 for r, key in of])
            rows.append((readings or "all", arm or "all but unrelated", len(of), *cells, f"{agree:.2f}"))
    head = ("reading", "tuned", "points", "cosine of K", "predicted before tuning", "re-measured on the way",
            "same sign as before tuning")  # fmt: skip
    return "Pearson correlations with the change.\n\n" + table(head, rows)


def _stories(tuned: Sequence[Run]) -> str:
    rows = []
    for arm, name, own in _cells(tuned):
        moved = float(np.mean([r["stories"]["all"]["moved"] for r in own]))
        who = max(own[0]["stories"], key=lambda one: own[0]["stories"][one]["moved"] if one != "all" else -1.0)
        single = [float(np.median([r["stories"][who][s] for r in own])) for s in ("selection", "belief")]
        cells = [shown(over_seeds(own, partial(_explained, arm, s))) for s in ("selection", "belief")]
        rows.append((arm, name, f"{moved:.3f}", *cells, who, *(f"{x:.2f}" for x in single)))
    head = ("tuned", "architecture", "KL moved, nats", "selection explains", "one belief explains", "most moved",
            "there: selection", "one belief")  # fmt: skip
    note = "Selection has three free numbers in each of five contexts, one belief has two in all.\n\n"
    return note + table(head, rows)


def _added(tuned: Sequence[Run]) -> str:
    rows = []
    for arm, name, own in _cells(tuned):
        fits = [fitted(r) | {"seed": r["seed"]} for r in own]
        cells = [shown(over_seeds(fits, partial(_fit, key))) for key in ("factor", "shift", "explains")]
        rows.append((arm, name, *cells))
    head = ("tuned", "architecture", "factor of right over wrong", "shift of the roar", "one circuit explains")
    made = table(("whose", "prediction", "found", "mark"), afterwards.marked(tuned)) + "\n\n" + table(head, rows)
    return "Why, and what is meant by one circuit: `simulacra.afterwards`.\n\n" + made


def _fit(key: str, fits: Sequence[Run]) -> float:
    return float(np.mean([one[key] for one in fits]))


def _explained(arm: str, story: str, runs: Sequence[Run]) -> float:
    return explained(runs, arm, story)


def _rates(sweeps: Sequence[Run]) -> str:
    if not sweeps:
        return "No sweep is in."
    rows = []
    for arm, name, own in _cells(sweeps):
        count = len(own[0]["rates"])
        jumps, bursts, moved = ([float(np.mean([r["rates"][i][key] for r in own])) for i in range(count)]
                                for key in ("jump", "burst", "moved"))  # fmt: skip
        apart = [float(np.mean([r["apart"][i] for r in own])) for i in range(count - 1)]
        rows.append((
            arm, name, " ".join(f"{r['rate']:g}" for r in own[0]["rates"]), _listed(moved), _listed(apart),
            shown(_exponent(own, arm, "apart")), _listed(jumps), shown(_exponent(own, arm, "jump")),
            " ".join(f"{x:.2f}" for x in bursts),
        ))  # fmt: skip
    head = ("sweep", "architecture", "rates", "moved", "distance of neighbouring paths", "its exponent",
            "largest step", "its exponent", "share of the path in its largest tenth")  # fmt: skip
    note = (
        "Root mean squares of the change of the probabilities of names, over untagged histories. That one step's "
        "change falls with the rate is nearly algebra: a step is the rate times a gradient. Whether the paths come "
        "together, and whether one tenth of the way takes most of it, is not."
    )
    return table(head, rows) + f"\n\n{note}"


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{x:.4f}" for x in values)


def _exponent(own: Sequence[Run], arm: str, what: str) -> Interval:
    of: Callable[[Sequence[Run]], float] = lambda rs: exponent(rs, arm, what)  # noqa: E731
    return over_seeds(own, of)
