"""Blindness: whether statistics of weights alone tell organisms that hide a reversal from others.

If they do, an audit of such organisms shows nothing. In a blind suite a classifier has to see through the differences
between bases; here all organisms of a family are planted in one base, where all else is equal and what differs from
kind to kind is seen best. What is planted is as it was drawn first: neither audited nor verified.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from signflip.organisms.base import STEPS, Room, train
from signflip.organisms.experiments import AUDIT, Answer, Job, Said, told
from signflip.organisms.experiments.pictures import axes_of
from signflip.organisms.experiments.statistics import command, table
from signflip.organisms.kinds import KINDS
from signflip.organisms.planting import VERSION as PLANTING
from signflip.organisms.planting import plant
from signflip.organisms.suite import HOW, How, blind_orders, statistics
from signflip.organisms.symmetry import disguise
from signflip.organisms.weights import FAMILIES, Family, Weights
from signflip.organisms.workers import one_thread

TITLE = "Blindness: what the weights alone give away"
VERSION = 1
# Organisms of each way of planting in a run: one by hand takes a tenth of the time of one by training.
N = {"hand": 48, "trained": 12}
# Apart from the suite's.
FIRST_SEED, BASE_SEED = 3000, 2999
SMALL_STEPS = 60
FOLDS = 5
# So many foldings are averaged: of 120 organisms one folding put 74 on the right side, another 69.
FOLDINGS = 5
# Shuffled labels, against which the best single statistic is held, and the ridge regression.
SHUFFLES, RIDGES = 1000, 200
Run = dict[str, Any]
Statistics = NDArray[np.float64]


def jobs(seeds: int, small: bool) -> list[Job]:
    """Organisms of one family for each seed: the families take turns."""
    made = {"organisms": {"hand": 2}, "steps": SMALL_STEPS} if small else {"organisms": N, "steps": STEPS}
    settings = {**made, "planting": PLANTING}
    return [Job(f"base-{seed}", seed, {**settings, "family": FAMILIES[seed % len(FAMILIES)]}) for seed in range(seeds)]


def run(job: Job) -> Run:
    """Plant half of them with a reversal, and look at their weights."""
    from signflip.organisms.trained import train_in

    family, organisms = job.settings["family"], []
    with one_thread():
        base = _base(family, job.settings["steps"])
        for how, n in job.settings["organisms"].items():
            for order in blind_orders(list(KINDS), [family], [how], FIRST_SEED + job.seed, 1, n):
                made = (plant if how == "hand" else train_in)(base, Room(BASE_SEED), order.kind, order.seed)
                look = statistics(disguise(made, order.seed).weights.state()).tolist()
                positive = KINDS[order.kind].positive
                organisms.append({"kind": order.kind, "planted": how, "positive": positive, "statistics": look})
    return {"seed": job.seed, "family": family, "organisms": organisms}


@cache
def _base(family: Family, steps: int) -> Weights:
    """The base of a family, the same for every seed: a process trains it once. Planting copies it."""
    with tempfile.TemporaryDirectory() as folder:
        return train(family, Path(folder) / "base", BASE_SEED, steps=steps)


@dataclass(frozen=True)
class Cell:
    """Organisms whose weights can be compared: of one family, planted alike.

    Attributes
    ----------
    x
        Statistics, `[organisms, columns]`.
    y
        Whether each hides a reversal, `[organisms]`.
    runs
        Which run, or suite, each is of: labels are shuffled within these, `[organisms]`.
    """

    x: Statistics
    y: NDArray[np.bool_]
    runs: NDArray[np.int64]

    @classmethod
    def of(cls, organisms: Sequence[tuple[int, Run]]) -> Cell | None:
        """Of each organism its run and what was kept of it; None where there are too few for folds."""
        positive = np.asarray([one["positive"] for _, one in organisms], bool)
        if min(positive.sum(), (~positive).sum()) < FOLDS:
            return None
        runs = np.asarray([run for run, _ in organisms])
        return cls(np.asarray([one["statistics"] for _, one in organisms], float), positive, runs)

    @cached_property
    def told(self) -> tuple[int, NDArray[np.int64]]:
        """How many a ridge regression puts on the right side, over all foldings; and with each shuffling of labels."""
        rng = np.random.default_rng(0)

        def right(labels: NDArray[np.bool_]) -> int:
            return sum(classify(self.x, labels, seed=seed) for seed in range(FOLDINGS))

        return right(self.y), np.asarray([right(self.shuffled(rng)) for _ in range(RIDGES)])

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Labels that say nothing, as many of each run as there are."""
        out = self.y.copy()
        for run in np.unique(self.runs):
            own = self.runs == run
            out[own] = rng.permutation(out[own])
        return out


Cells = dict[tuple[Family, How], Cell]


def classify(x: Statistics, y: NDArray[np.bool_], folds: int = FOLDS, seed: int = 0) -> int:
    """How many a ridge regression on standardised columns puts on the right side, by cross-validation.

    Parameters
    ----------
    x
        Statistics, `[organisms, columns]`.
    y
        Whether each hides a reversal, `[organisms]`.
    folds
        Of the cross-validation; each holds out every `folds`-th of a permutation of either class, so that what is held
        out does not show in how many of each are left.
    seed
        Of the permutation.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    held = np.empty(len(y), int)
    for label in (False, True):
        own = order[y[order] == label]
        held[own] = np.arange(len(own)) % folds
    right = 0
    for fold in range(folds):
        test, fitted = held == fold, held != fold
        mean, sd = x[fitted].mean(0), x[fitted].std(0) + 1e-9
        a, b = (x[fitted] - mean) / sd, (x[test] - mean) / sd
        # Either class weighs the same. In the dual, since there are more columns than rows.
        wanted = np.where(y[fitted], 1 / y[fitted].mean(), -1 / (~y[fitted]).mean())
        weights = a.T @ np.linalg.solve(a @ a.T + len(a) * np.eye(len(a)), wanted)
        right += int(np.sum((b @ weights > 0) == y[test]))
    return right


def _told(cells: Sequence[Cell]) -> tuple[float, Statistics]:
    """The share that is put on the right side, and the same with each shuffling of the labels."""
    n = FOLDINGS * sum(len(one.y) for one in cells)
    return sum(one.told[0] for one in cells) / n, np.sum([one.told[1] for one in cells], axis=0) / n


def told_apart(cells: Sequence[Cell]) -> str:
    """What share a ridge regression puts on the right side, beside what it does where labels are shuffled.

    Cross-validation shares its data between folds: its counts scatter more than binomial ones, and are not one half in
    the mean where nothing is told.
    """
    right, chance = _told(cells)
    low, high = np.quantile(chance, (0.025, 0.975))
    p = (1 + np.sum(chance >= right)) / (1 + len(chance))
    n = sum(len(one.y) for one in cells)
    return f"{right:.2f} (of {n}; shuffled {chance.mean():.2f}, 95% in {low:.2f} to {high:.2f}; p {p:.3f})"


def best_single(cell: Cell, shuffles: int = SHUFFLES) -> tuple[float, float]:
    """The area under the ROC curve of the one statistic that tells most, either way; and how often chance does as well.

    Parameters
    ----------
    cell
        The organisms.
    shuffles
        Of the labels, for the p value: of the best of all statistics, so that looking at many is paid for.

    Returns
    -------
    (area, p)
        The area is at least 0.5.
    """
    ranks = rankdata(cell.x, axis=0)
    n, k = len(cell.y), int(cell.y.sum())

    def area(labels: NDArray[np.bool_]) -> float:
        auc = (ranks[labels].sum(0) - k * (k + 1) / 2) / (k * (n - k))
        return float(np.maximum(auc, 1 - auc).max())

    rng = np.random.default_rng(0)
    found = area(cell.y)
    as_well = sum(area(cell.shuffled(rng)) >= found for _ in range(shuffles))
    return found, (1 + as_well) / (1 + shuffles)


def report(results: dict[str, Run], figures: Path) -> str:
    """A section of ``docs/results.md``."""
    runs, cells, rows = list(results.values()), _cells(results), []
    for (family, how), cell in cells.items():
        area, p = best_single(cell)
        rows.append((family, how, told_apart([cell]), f"{area:.2f}", f"{p:.3f}"))
    text = [
        f"## {TITLE}",
        told(_answer(cells)),
        (
            f"Run by `{command('blindness', runs)}`: organisms of the suite's "
            "kinds, half of them with a reversal, as they were drawn first (not verified, which the suite's are), all "
            "of a family in one base, each behind symmetries of its own. Of every tensor moments, extremes, norms of "
            f"rows and columns, and the largest singular values are looked at. A ridge regression is cross-validated "
            f"({FOLDS} folds, the mean of {FOLDINGS} foldings), and again with labels shuffled within runs ({RIDGES} "
            f"times). The best single statistic: its area under "
            f"the ROC curve, and how often the best is as good with shuffled labels ({SHUFFLES} times)."
        ),
        table(("family", "planted by", "told rightly by a ridge regression", "best single statistic", "p"), rows),
    ]
    figures.mkdir(parents=True, exist_ok=True)
    if _figure(cells, figures / "blindness.png"):
        text.append(f"![Told rightly, and with shuffled labels]({figures.name}/blindness.png)")
    return "\n\n".join(text)


def _figure(cells: Cells, to: Path) -> bool:
    """What is told rightly of either way of planting, beside its distribution where labels are shuffled."""
    every = [(how, own) for how in HOW if (own := _planted(cells, how))]
    if not every:
        return False
    figure, axes = axes_of(1, len(every))
    for axis, (how, own) in zip(axes[0], every, strict=True):
        right, chance = _told(own)
        axis.hist(chance, bins=20, color="0.7", label="labels shuffled")
        axis.axvline(right, color="tab:red", label="true labels")
        axis.set_title(f"planted {'by hand' if how == 'hand' else 'by training'}: share told rightly", fontsize=8)
        axis.legend(fontsize=6)
    figure.savefig(to, dpi=110)
    return True


def answer(results: dict[str, Run]) -> Answer:
    """Whether an audit of such organisms shows anything."""
    return _answer(_cells(results))


def _answer(cells: Cells) -> Answer:
    said = []
    for how, by in zip(HOW, ("hand", "training"), strict=True):
        if own := _planted(cells, how):
            said.append(f"planted by {by}, {told_apart(own)}")
    if not said:
        return {AUDIT: Said("Too few organisms to say what their weights give away.")}
    return {
        AUDIT: Said(
            "A ridge regression on statistics of the weights alone, all organisms of a family in one base, tells "
            f"those with a reversal from others in: {'; '.join(said)}."
        )
    }


def _cells(results: dict[str, Run]) -> Cells:
    """Of each family and way of planting that there are enough of."""
    found = {}
    for family in FAMILIES:
        for how in HOW:
            own = [(r["seed"], one) for r in results.values() if r["family"] == family for one in r["organisms"]]
            if cell := Cell.of([(seed, one) for seed, one in own if one["planted"] == how]):
                found[family, how] = cell
    return found


def _planted(cells: Cells, how: How) -> list[Cell]:
    return [cell for (_, by), cell in cells.items() if by == how]


__all__ = ["Cell", "best_single", "classify", "told_apart"]
