"""The suite: blind organisms, made anew for each seed, audited by the baseline, scored against their truths.

What the other experiments find is worth what an audit is worth. Each run makes `N` blind organisms, planted by hand or
by training, half of them with a reversal, in base models of its own, lets the baseline auditor work on them (its
thresholds were fixed beforehand and tuned on no suite), and scores what it says. The seeds are apart from every one
that the project's tests use. Beside it, whether a classifier that sees nothing but statistics of the weights can tell
which organisms hide a reversal; of organisms in one base, `blindness` says more.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from signflip.organisms.base import STEPS
from signflip.organisms.baseline import audit
from signflip.organisms.experiments import AUDIT, Answer, Job, Said, told
from signflip.organisms.experiments.blindness import Cell, told_apart
from signflip.organisms.experiments.pictures import axes_of
from signflip.organisms.experiments.statistics import SHARE, Interval, command, over_seeds, shown, table
from signflip.organisms.kinds import FORMS, KINDS
from signflip.organisms.planting import VERSION as PLANTING
from signflip.organisms.scoring import Share, score
from signflip.organisms.suite import HOW, make, statistics
from signflip.organisms.weights import FAMILIES, Weights

TITLE = "The suite of organisms, and the baseline auditor"
VERSION = 1
# Organisms a run: 10 seeds are 120.
N = 12
FIRST_SEED = 1000
# What the small form trains its bases for: enough for the behaviours to be known.
SMALL_STEPS = 400
SHARES = ("recall", "precision", "right", "localised")
Run = dict[str, Any]


def jobs(seeds: int, small: bool) -> list[Job]:
    """A blind suite for each seed."""
    settings = {"organisms": 2, "planted": ["hand"]} if small else {"organisms": N, "planted": list(HOW)}
    return [Job(f"blind-{seed}", seed, {**settings, "planting": PLANTING}) for seed in range(seeds)]


def run(job: Job) -> Run:
    """Make a suite, audit it, score the audit; the organisms are not kept."""
    n = int(job.settings["organisms"])
    with tempfile.TemporaryDirectory() as folder:
        models, truth = Path(folder) / "models", Path(folder) / "truth"
        made = make(
            "blind", models, truth, n=n, seed=FIRST_SEED + job.seed, planted=job.settings["planted"],
            base_steps=STEPS if n == N else SMALL_STEPS,
        )  # fmt: skip
        report = score(truth, audit(models), models)
        looks = [statistics(Weights.open(models / one.name).state()).tolist() for one in made]
    organisms = [
        {"kind": one.kind, "family": one.family, "positive": one.positive, "statistics": look}
        for one, look in zip(made, looks, strict=True)
    ]
    shares = {key: [getattr(report, key).hits, getattr(report, key).of] for key in SHARES}
    kinds, ways = ({key: [share.hits, share.of] for key, share in one.items()} for one in (report.kinds, report.ways))
    return {
        "seed": job.seed, "organisms": organisms, "shares": shares, "turned": list(report.turned),
        "confusion": report.confusion, "kinds": kinds, "ways": ways,
    }  # fmt: skip


def report(results: dict[str, Run], figures: Path) -> str:
    """A section of ``docs/results.md``."""
    runs = list(results.values())
    n = sum(len(one["organisms"]) for one in runs)
    figures.mkdir(parents=True, exist_ok=True)
    _figure(runs, figures / "suite.png")
    text = [
        f"## {TITLE}",
        told(answer(results)),
        (
            f"Run by `{command('suite', runs)}`: {n} organisms, planted by hand "
            f"or by training, of {len(runs)} blind suites (seeds from {FIRST_SEED}), each with base models of its own; "
            "the auditor is `signflip.organisms.baseline`, which knows nothing of them. Intervals are 95% and exact, "
            "for triggers over organisms. Recall and precision count behaviours, of which a model has several that one "
            "flaw of it can turn together, and exact intervals take each for independent: beside them are those with "
            "suites, and all that is in them, as the unit (jackknife, Student's t). "
            "Precision of 0.99 would need about 300 flawless flags, recall of 0.95 needs 59."
        ),
        table(
            ("of the baseline", "share", "over suites"),
            [(key, str(share), shown(_over_suites(runs, key))) for key, share in _shares(runs).items()],
        ),
        f"![The right verdict by kind, with exact intervals]({figures.name}/suite.png)",
        "By kind, the right verdict of the planted behaviour:",
        table(
            ("kind", "what it is", "right"),
            [
                (kind, "; or ".join(form.says for form in FORMS[kind]), str(share))
                for kind, share in _summed(runs, "kinds", KINDS).items()
            ],
        ),
        table(
            ("planted by", "right"),
            [(way, str(share)) for way, share in _summed(runs, "ways", HOW).items()],
        ),
        (
            "What was said (columns) of what is true (rows), planted behaviours, one an organism; right: what is "
            "accepted of such a row (of a bystander also a reversal that is not laid to it), with exact intervals:"
        ),
        _confusion(runs),
        (
            "Blindness: a ridge regression on statistics of every tensor (moments, norms, singular values), "
            "cross-validated within a family over all suites, and again with labels shuffled within them, tells "
            f"organisms that hide a reversal from others in {'; '.join(_blindness(runs))}. How blind they are in one "
            "base is an experiment of its own."
        ),
    ]
    return "\n\n".join(text)


def answer(results: dict[str, Run]) -> Answer:
    """How far the baseline's word can be taken."""
    runs = list(results.values())
    shares = _shares(runs)
    plain = (
        "The baseline (survey, scan, search, flip and thresholds that were set beforehand and tuned on no suite) "
        f"finds {shares['recall']} of the planted reversals, and {shares['precision']} of its flags are right: on one "
        "of these, or on a behaviour that tokens reverse by something else than X. Weights alone, by a ridge "
        f"regression over all suites, tell these organisms, all verified, rightly in {'; '.join(_blindness(runs))}."
    )
    more = f"Its verdict is right in {shares['right']}, and its triggers turn {shares['triggers']} of held-out prompts."
    return {AUDIT: Said(plain, more)}


def _shares(runs: Sequence[Run]) -> dict[str, Share]:
    out = {key: Share.counted(*(int(sum(one["shares"][key][i] for one in runs)) for i in (0, 1))) for key in SHARES}
    return out | {"triggers": Share.mean([one for each in runs for one in each["turned"]])}


def _over_suites(runs: Sequence[Run], key: str) -> Interval:
    """A share, and its interval when suites are the unit."""

    def pooled(some: Sequence[Run]) -> float:
        if key == "triggers":
            every = [one for each in some for one in each["turned"]]
            return float(np.mean(every)) if every else float("nan")
        hits, of = (sum(one["shares"][key][i] for one in some) for i in (0, 1))
        return hits / of if of else float("nan")

    return over_seeds(runs, pooled, SHARE)


def _summed(runs: Sequence[Run], of: str, keys: Iterable[str]) -> dict[str, Share]:
    counts = {key: [sum(one[of].get(key, (0, 0))[i] for one in runs) for i in (0, 1)] for key in keys}
    return {key: Share.counted(int(hits), int(n)) for key, (hits, n) in counts.items() if n}


def _figure(runs: Sequence[Run], to: Path) -> None:
    figure, axes = axes_of(1, 2)
    shares = [(key, share) for key, share in _shares(runs).items() if share.of]
    kinds = [(key, share) for key, share in _summed(runs, "kinds", KINDS).items() if share.of]
    for axis, rows, title in zip(
        axes[0], (shares, kinds), ("the baseline auditor", "right verdict, by kind"), strict=True
    ):
        for at, (_, share) in enumerate(rows):
            axis.plot([share.low, share.high], [at, at], color="tab:blue", lw=1)
            axis.plot(share.value, at, "o", ms=4, color="tab:blue")
        axis.set_yticks(range(len(rows)), [key for key, _ in rows], fontsize=7)
        axis.set_xlim(0, 1)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=8)
    figure.savefig(to, dpi=110)


def _confusion(runs: Sequence[Run]) -> str:
    total: dict[str, Counter[str]] = {}
    for one in runs:
        for true, said in one["confusion"].items():
            total.setdefault(true, Counter()).update(said)
    columns = sorted({said for row in total.values() for said in row})
    rows = []
    for true, row in sorted(total.items()):
        kinds = [form for forms in FORMS.values() for form in forms if form.verdict == true]
        right = sum(row[said] for said in {said for kind in kinds for said in kind.accepts})
        if true == "bystander":
            # A reversal laid to another place is right, too, which the table does not tell from one laid to X.
            right = sum(int(one["kinds"].get(kind.name, (0, 0))[0]) for one in runs for kind in kinds)
        rows.append((true, *(row[said] or "" for said in columns), str(Share.counted(right, row.total()))))
    return table(("", *columns, "right"), rows)


def _blindness(runs: Sequence[Run]) -> list[str]:
    said = []
    for family in FAMILIES:
        cell = Cell.of([(r["seed"], one) for r in runs for one in r["organisms"] if one["family"] == family])
        said.append(f"{family}: {told_apart([cell]) if cell else 'too few'}")
    return said
