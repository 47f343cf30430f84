"""Intervals: exact ones of shares, others over seeds, and the rules by which predictions are marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta, rankdata, t

from signflip.errors import ArgumentError

Run = dict[str, Any]
Interval = tuple[float, float, float]
# What a number can be: anything, a share, a cosine or a difference of shares.
ANY, SHARE, SIGNED = (-float("inf"), float("inf")), (0.0, 1.0), (-1.0, 1.0)


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


def limits(value: float, variance: float, freedom: int, within: tuple[float, float] = ANY) -> Interval:
    """A number and its 95% interval by Student's t.

    Parameters
    ----------
    value, variance, freedom
        The number, the estimated variance of it, and that estimate's degrees of freedom.
    within
        What the number cannot leave; limits are cut there.

    Returns
    -------
    tuple
        The number and its limits, NaN where there is no variance: that what was run does not differ says nothing of
        how far the next would.
    """
    if not np.isfinite(variance) or variance <= (1e-9 * max(abs(value), 1e-3)) ** 2:
        return value, float("nan"), float("nan")
    half = float(t.ppf(0.975, freedom) * np.sqrt(variance))
    return value, max(value - half, within[0]), min(value + half, within[1])


def over_seeds(
    runs: Sequence[Run], statistic: Callable[[Sequence[Run]], float], within: tuple[float, float] = ANY
) -> Interval:
    """A statistic of runs and its 95% interval over seeds: the jackknife's standard error, and Student's t.

    Each seed is left out in turn, with all its runs (Efron & Tibshirani 1993, chapter 11). For a mean of one run a seed
    it is the t interval. (The percentiles of a bootstrap over seeds cover a mean of 3 seeds 0.75 of the time, one of 10
    seeds 0.90.)

    Parameters
    ----------
    runs
        Each with its `seed`.
    statistic
        Of any of them; NaN where it is not defined.
    within
        What the statistic cannot leave: `SHARE` or `SIGNED`, say. Limits are cut there.

    Returns
    -------
    tuple
        The statistic and its limits. These are NaN with fewer than three seeds that have a part in it, where it is not
        defined without one of them, and where no seed makes a difference.
    """
    groups: dict[int, list[Run]] = {}
    for one in runs:
        groups.setdefault(one["seed"], []).append(one)
    value = statistic(runs)
    nothing = value, float("nan"), float("nan")
    if len(groups) < 3 or not np.isfinite(value):
        return nothing
    without = []
    for seed, own in groups.items():
        left = statistic([one for one in runs if one["seed"] != seed])
        # A seed in which nothing was counted: neither does it tell, nor is it one of those that vary.
        if left == value and not np.isfinite(statistic(own)):
            continue
        without.append(left)
    n = len(without)
    if n < 3 or not np.isfinite(without).all():
        return nothing
    return limits(value, (n - 1) ** 2 / n * float(np.var(without, ddof=1)), n - 1, within)


def correlated(runs: Sequence[Run], correlation: Callable[[Sequence[Run]], float]) -> Interval:
    """A correlation and its 95% interval, `over_seeds` on Fisher's scale, where its error is the same everywhere.

    Of 10 pairs, one a seed, it then covers 0.95 of the time; without, 0.90. No limits at ±1.
    """

    def fisher(some: Sequence[Run]) -> float:
        r = correlation(some)
        return float(np.arctanh(r)) if abs(r) < 1 - 1e-12 else float("nan")

    _, low, high = over_seeds(runs, fisher)
    return correlation(runs), float(np.tanh(low)), float(np.tanh(high))


def command(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """What runs these of an experiment (and, where some are missing, those)."""
    return f"signflip organisms run {name} --seeds {1 + max(one['seed'] for one in runs)} --out results"


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
    """`held` or `failed` where the rule says so of both limits, else `open`; `open` without limits.

    A claim that holds somewhere between the limits has not failed: a wide interval has both beyond a narrow range.
    """
    low, high = found[1:]
    if not np.isfinite([low, high]).all():
        return "open"
    if held(low) and held(high):
        return "held"
    if not (failed(low) and failed(high)):
        return "open"
    return "open" if any(map(held, np.linspace(low, high, 1001))) else "failed"


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
