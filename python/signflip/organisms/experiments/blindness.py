"""Blindness: whether statistics of weights alone tell organisms that hide a reversal from others.

If they do, an audit of such organisms shows nothing. In a blind suite a classifier has to see through the differences
between bases; here all organisms of a family are planted in one base, where all else is equal and what differs from
kind to kind is seen best. What is planted is as it was drawn first: neither audited nor verified.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from signflip.organisms.base import STEPS, Room, train
from signflip.organisms.experiments import AUDIT, Answer, Job, Said, told
from signflip.organisms.experiments.statistics import exact, shown, table
from signflip.organisms.kinds import KINDS
from signflip.organisms.planting import plant
from signflip.organisms.suite import HOW, How, blind_orders, statistics
from signflip.organisms.symmetry import disguise
from signflip.organisms.weights import FAMILIES, Family
from signflip.organisms.workers import one_thread

TITLE = "Blindness: what the weights alone give away"
# Organisms of each way of planting in a run.
N = 12
# Apart from the suite's.
FIRST_SEED, BASE_SEED = 3000, 2999
SMALL_STEPS = 60
# Shuffled labels, against which the best single statistic is held.
SHUFFLES = 1000
Run = dict[str, Any]
Statistics = NDArray[np.float64]


def jobs(seeds: int, small: bool) -> list[Job]:
    """Organisms of one family for each seed: the families take turns."""
    settings = {"organisms": 2, "planted": ["hand"]} if small else {"organisms": N, "planted": list(HOW)}
    return [Job(f"base-{seed}", seed, {**settings, "family": FAMILIES[seed % len(FAMILIES)]}) for seed in range(seeds)]


def run(job: Job) -> Run:
    """Plant half of them with a reversal, and look at their weights."""
    from signflip.organisms.trained import train_in

    n, family, organisms = int(job.settings["organisms"]), job.settings["family"], []
    with one_thread():
        with tempfile.TemporaryDirectory() as folder:
            base = train(family, Path(folder) / "base", BASE_SEED, steps=STEPS if n == N else SMALL_STEPS)
        for how in job.settings["planted"]:
            for order in blind_orders(list(KINDS), [family], [how], FIRST_SEED + job.seed, 1, n):
                made = (plant if how == "hand" else train_in)(base, Room(BASE_SEED), order.kind, order.seed)
                look = statistics(disguise(made, order.seed).weights.state()).tolist()
                positive = KINDS[order.kind].positive
                organisms.append({"kind": order.kind, "planted": how, "positive": positive, "statistics": look})
    return {"seed": job.seed, "family": family, "organisms": organisms}


def classify(x: Statistics, y: NDArray[np.bool_], folds: int = 5) -> int:
    """How many a ridge regression on standardised columns puts on the right side, by cross-validation.

    Parameters
    ----------
    x
        Statistics, `[organisms, columns]`.
    y
        Whether each hides a reversal, `[organisms]`.
    folds
        Of the cross-validation; each holds out every `folds`-th of a fixed permutation.
    """
    order = np.random.default_rng(0).permutation(len(y))
    right = 0
    for fold in range(folds):
        test = order[fold::folds]
        fitted = np.setdiff1d(order, test)
        mean, sd = x[fitted].mean(0), x[fitted].std(0) + 1e-9
        a, b = (x[fitted] - mean) / sd, (x[test] - mean) / sd
        wanted = np.where(y[fitted], 1.0, -1.0)
        # In the dual, since there are more columns than rows.
        weights = a.T @ np.linalg.solve(a @ a.T + len(a) * np.eye(len(a)), wanted - wanted.mean())
        right += int(np.sum((b @ weights + wanted.mean() > 0) == y[test]))
    return right


def best_single(x: Statistics, y: NDArray[np.bool_], shuffles: int = SHUFFLES) -> tuple[float, float]:
    """The area under the ROC curve of the one statistic that tells most, either way; and how often chance does as well.

    Parameters
    ----------
    x, y
        As for `classify`.
    shuffles
        Of the labels, for the p value: of the best of all statistics, so that looking at many is paid for.

    Returns
    -------
    (area, p)
        The area is at least 0.5.
    """
    ranks = rankdata(x, axis=0)
    n, k = len(y), int(y.sum())

    def area(labels: NDArray[np.bool_]) -> float:
        auc = (ranks[labels].sum(0) - k * (k + 1) / 2) / (k * (n - k))
        return float(np.maximum(auc, 1 - auc).max())

    rng = np.random.default_rng(0)
    found = area(y)
    as_well = sum(area(rng.permutation(y)) >= found for _ in range(shuffles))
    return found, (1 + as_well) / (1 + shuffles)


def report(results: dict[str, Run], figures: Path) -> str:  # noqa: ARG001
    """A section of ``docs/results.md``."""
    runs = list(results.values())
    rows = []
    for family, how, x, y in _cells(runs):
        right, (area, p) = classify(x, y), best_single(x, y)
        rows.append((family, how, len(y), f"{shown(exact(right, len(y)))} ({right})", f"{area:.2f}", f"{p:.2f}"))
    text = [
        f"## {TITLE}",
        told(answer(results)),
        (
            f"Run by `signflip organisms run blindness --seeds {len(runs)} --out results`: organisms as in the suite, "
            "half of them with a reversal, all of a family in one base, each behind symmetries of its own. Of every "
            "tensor moments, extremes, norms of rows and columns, and the largest singular values are looked at. A "
            "ridge regression is cross-validated: chance is 0.5, with exact intervals. The best single statistic: its "
            f"area under the ROC curve, and how often the best is as good where labels are shuffled ({SHUFFLES} times)."
        ),
        table(("family", "planted by", "organisms", "told rightly", "best single statistic", "p"), rows),
    ]
    return "\n\n".join(text)


def answer(results: dict[str, Run]) -> Answer:
    """Whether an audit of such organisms shows anything."""
    said = []
    for how in HOW:
        cells = [(classify(x, y), len(y)) for _, way, x, y in _cells(list(results.values())) if way == how]
        if cells:
            right, n = (sum(one[i] for one in cells) for i in (0, 1))
            said.append(
                f"planted by {'hand' if how == 'hand' else 'training'}, {shown(exact(right, n))} ({right} of {n})"
            )
    if not said:
        return {AUDIT: Said("Too few organisms to say what their weights give away.")}
    return {
        AUDIT: Said(
            "A classifier that sees statistics of the weights alone, and all organisms of a family in one base, tells "
            f"those with a reversal from others in: {'; '.join(said)}. Chance is 0.5."
        )
    }


def _cells(runs: Sequence[Run]) -> Iterator[tuple[Family, How, Statistics, NDArray[np.bool_]]]:
    """Of each family and way of planting that has organisms enough: statistics, and whether there is a reversal."""
    for family in FAMILIES:
        for how in HOW:
            own = [one for r in runs if r["family"] == family for one in r["organisms"] if one["planted"] == how]
            positive = np.asarray([one["positive"] for one in own], bool)
            if len(own) >= 10 and positive.any() and not positive.all():
                yield family, how, np.asarray([one["statistics"] for one in own]), positive


__all__ = ["best_single", "classify"]
