"""Intervals: exact ones of shares, bootstrap ones over seeds, and the rules by which predictions are marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta, rankdata

from signflip.errors import ArgumentError

Run = dict[str, Any]
Interval = tuple[float, float, float]
DRAWS = 2000


def exact(k: int, n: int) -> Interval:
    """A share and its 95% Clopper-Pearson interval.

    Raises
    ------
    ArgumentError
        If it is no share.
    """
    if not 0 <= k <= n or n < 1:
        raise ArgumentError(f"share: expected 0 <= k <= n and n > 0, found {k} of {n}")
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return k / n, low, high


def over_seeds(runs: Sequence[Run], statistic: Callable[[Sequence[Run]], float]) -> Interval:
    """A statistic of runs and its 95% percentile interval when seeds, with all their runs, are drawn again.

    NaN limits where there are fewer than three seeds.
    """
    groups: dict[int, list[Run]] = {}
    for one in runs:
        groups.setdefault(one["seed"], []).append(one)
    value = statistic(runs)
    if len(groups) < 3:
        return value, float("nan"), float("nan")
    rng, seeds = np.random.default_rng(0), list(groups)
    drawn = [
        statistic([one for i in rng.integers(len(seeds), size=len(seeds)) for one in groups[seeds[i]]])
        for _ in range(DRAWS)
    ]
    finite = np.asarray([x for x in drawn if np.isfinite(x)])
    if len(finite) < DRAWS / 2:
        return value, float("nan"), float("nan")
    return value, float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))


def seeds_of(runs: Sequence[Run], name: Callable[[Run], str]) -> str:
    """The seeds that were run of each arm, as text: ``tuned 0–2, 5 (4)``."""
    arms: dict[str, set[int]] = {}
    for one in runs:
        arms.setdefault(name(one), set()).add(one["seed"])
    return "; ".join(f"{arm} {_ranges(sorted(seeds))} ({len(seeds)})" for arm, seeds in arms.items())


def _ranges(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for one in numbers:
        if spans and one == spans[-1][1] + 1:
            spans[-1][1] = one
        else:
            spans.append([one, one])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in spans)


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation; NaN where one side does not vary."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks."""
    return pearson(rankdata(a).tolist(), rankdata(b).tolist())


def mark(found: Interval, held: Callable[[float], bool], failed: Callable[[float], bool]) -> str:
    """`held` or `failed` where the rule says so of both limits, else `open`; `open` without limits."""
    limits = found[1:]
    if not np.isfinite(limits).all():
        return "open"
    if all(map(held, limits)):
        return "held"
    return "failed" if all(map(failed, limits)) else "open"


def shown(found: Interval) -> str:
    """Value and limits as text."""
    if not np.isfinite(found[0]):
        return "—"
    if not np.isfinite(found[1:]).all():
        return f"{found[0]:.2f}"
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])
